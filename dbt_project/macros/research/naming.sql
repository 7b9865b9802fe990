{#-
    Steps that end in `named`: the rows of `facts` (versions of a listing's facts, each with a time `happened`), cut where
    what the listing meant at that time became known otherwise, with the instrument_id that was known. `span`: which of the
    known `spans` of event time it is, by default the one at that time. named_since: since when, by that knowledge, the
    listing has meant it; is_named: whether a master says so.
-#}
{% macro named_over_time(facts, happened, named='named', span='') -%}
{%- set span = span or span_at('span', happened) -%}
meanings_of_{{ facts }} as (
    select
        listing_id, meaning.known_from as meant_from, coalesce(meaning.known_to, {{ the_present() }}) as meant_to, meaning.spans as spans
    from (select listing_id, unnest(meanings) as meaning from {{ ref('int_listing_meanings') }})
),

spans_of_{{ facts }} as (
    select
        facts.*,
        meant_from,
        nullif(meant_to, {{ the_present() }}) as meant_to,
        {{ span }} as span
    from {{ facts }} as facts
    left join meanings_of_{{ facts }} as meanings
        on facts.listing_id = meanings.listing_id
        and meant_from < coalesce(facts.known_to, {{ the_present() }})
        and meant_to > facts.known_from
),

{{ named }} as (
    select
        * exclude (span, meant_from, meant_to) replace (
            greatest(known_from, meant_from) as known_from, least(known_to, meant_to) as known_to
        ),
        coalesce(span.instrument_id, listing_id) as instrument_id,
        coalesce(span.is_named, false) as is_named,
        span.starts_at as named_since
    from spans_of_{{ facts }}
)
{%- endmacro %}

{#- Of the known `spans` of event time the one that holds a time; with `named`, only if a master names it. -#}
{% macro span_at(name, time, named=false) -%}
    list_filter(spans, lambda {{ name }}: {{ in_span(time, name) }}{{ " and " ~ name ~ ".is_named" if named }})[1]
{%- endmacro %}

{#- Whether a version was known at a moment: a join's condition without `or`, which would compare each row with each. -#}
{% macro known_at(version, moment) -%}
    {{ version }}.known_from <= {{ moment }} and coalesce({{ version }}.known_to, {{ the_present() }}) > {{ moment }}
{%- endmacro %}
