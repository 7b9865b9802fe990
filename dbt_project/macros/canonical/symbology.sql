{#-
    Which instrument a listing meant (docs/instruments.md). A master's facts are true for spans of knowledge time; what
    follows from several of them is made segment by segment: a segment begins wherever one of them comes or goes.
-#}

{#- The segments of knowledge time of each `key`, cut where one of the `facts` relations' rows comes or goes. -#}
{% macro segments(facts, key) -%}
    select {{ key }}, known_from, lead(known_from) over (partition by {{ key }} order by known_from) as known_to
    from (
        {% for relation in facts -%}
        select {{ key }}, known_from from {{ relation }}
        union
        select {{ key }}, known_to as known_from from {{ relation }} where known_to is not null
        {{ "union" if not loop.last }}
        {% endfor -%}
    )
{%- endmacro %}

{#- Whether a fact is known during a segment. -#}
{% macro known_during(fact, segment) -%}
    {{ fact }}.known_from <= {{ segment }}.known_from and ({{ fact }}.known_to is null or {{ fact }}.known_to > {{ segment }}.known_from)
{%- endmacro %}

{#- The versions of a snapshot's facts, each until the next of its key became known; without those that no as-of sees. -#}
{% macro known_states(snapshot, key, known_from='known_from') -%}
    select * from (
        select
            * replace ({{ known_from }} as known_from),
            lead({{ known_from }}) over (partition by {{ key }} order by delivered_at) as known_to
        from {{ ref(snapshot) }}
    )
    where not is_deleted and (known_to is null or known_to > known_from)
{%- endmacro %}

{#- What a row leads back to, as one value. -#}
{% macro as_origin() -%}
    struct_pack(knowledge_basis, feed, schema_version, load_id, source, source_partition, source_position)
{%- endmacro %}

{#- The instrument of a listing's use that began on a date. The first use that is known needs no date. -#}
{% macro dated_instrument(listing_id, date) -%}
    {{ listing_id }} || coalesce('@' || ({{ date }})::varchar, '')
{%- endmacro %}

{#- The last steps of states with known_from and known_to: versions_on_grid, whatever segments they were cut into. -#}
{% macro joined_segments(states, key, content, numbers=[]) -%}
edges as (
    select * exclude (known_to), true as is_there from {{ states }}
    union all by name
    select {{ key | join(', ') }}, known_to as known_from, false as is_there from {{ states }} where known_to is not null
),

state_changes as (
    select *
    from edges
    qualify row_number() over (partition by {{ key | join(', ') }}, known_from order by is_there desc) = 1
),

{{ on_grid('state_changes', key=key, numbers=numbers, others=content) }}
{%- endmacro %}

{#- Before the insert, in its transaction: what is not derived any more, or otherwise, is forgotten. -#}
{% macro forget_what_changed(derived, key) -%}
    {%- if is_incremental() -%}
    delete from {{ this }}
    where ({{ key | join(', ') }}) in (
        select ({{ key | join(', ') }})
        from (select * exclude (build_seq) from {{ this }} except select * from {{ ref(derived) }})
    )
    {%- else -%}
    select 1
    {%- endif -%}
{%- endmacro %}

{#- What is derived and not there. -#}
{% macro what_changed(derived) -%}
with derived as (
    select * from {{ ref(derived) }}
    {%- if is_incremental() %}
    except
    select * exclude (build_seq) from {{ this }}
    {%- endif %}
),

changed as (
    select *, {{ window_end() }}::bigint as build_seq from derived
)

select
    {{ column_list() }}
from changed
{%- endmacro %}

{#- A record's origin in an order without nulls, so that the least of several is the same whatever came first. -#}
{% macro comparable_origin(origin='origin') -%}
    struct_pack(
        source := {{ origin }}.source,
        source_partition := coalesce({{ origin }}.source_partition, -1),
        source_position := {{ origin }}.source_position,
        load_id := {{ origin }}.load_id,
        origin := {{ origin }}
    )
{%- endmacro %}

{#- A crypto venue's own pairs need no master: a listing is an instrument of that venue, known from its first record. -#}
{% macro pairs_of_venues() -%}
    select listings.*, listing_id as instrument_id, null::timestamp_ns as known_to, 0 as revision
    from {{ ref('int_listings') }} as listings
    inner join {{ ref('feeds') }} as feeds on listings.feed = feeds.feed
    where asset_class = 'crypto'
{%- endmacro %}
