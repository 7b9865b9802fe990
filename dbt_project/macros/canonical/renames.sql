{#-
    Renames, and the old ticker's last trade. A master dates a rename to a day that need not be the day of the first trade
    under the new ticker (META: a Saturday, two sessions late). What traded under the new ticker after the old one's last
    trade is the instrument's; so for each rename that last trade is kept, as it was known.
-#}

{#- Trades and bars of a rename: of the old listing, before the rename's date, and no older than this. -#}
{% macro in_rename_window(event_time, renamed_on) -%}
    {{ event_time }} < {{ new_york_time(renamed_on) }}
    and {{ event_time }} >= {{ new_york_time(renamed_on ~ " - interval '" ~ var('rename_window_days') ~ " days'") }}
{%- endmacro %}

{#- The renames to look at: new ones, and those with changed trades or daily bars. -#}
{% macro touched_renames() -%}
    select distinct previous_listing_id as listing_id, valid_from as renamed_on
    from {{ ref('int_symbology__versioned') }} as names
    where previous_listing_id != names.listing_id
        and (
            {{ is_new('int_symbology__versioned') }}
            or (previous_listing_id, valid_from) in (
                select (renames.previous_listing_id, renames.valid_from)
                from (
                    select listing_id, event_time
                    from {{ ref('int_trades__versioned') }}
                    where {{ is_new('int_trades__versioned') }}
                    union all
                    select listing_id, bar_start as event_time
                    from {{ ref('int_bars__versioned') }}
                    where bar_interval = '1d' and {{ is_new('int_bars__versioned') }}
                ) as changed
                inner join {{ ref('int_symbology__versioned') }} as renames
                    on changed.listing_id = renames.previous_listing_id
                    and {{ in_rename_window('changed.event_time', 'renames.valid_from') }}
            )
        )
{%- endmacro %}

{#- The dates on which their trades stand: the partitions to read. Where nothing was ever renamed, no trade is looked at. -#}
{% macro dates_of_touched_renames() -%}
    {%- set renames = ask_value(
        "select count(*) from " ~ ref('int_symbology__versioned') ~ " where previous_listing_id != listing_id"
    ) -%}
    {{- return(ask_values(
        "select distinct unnest(generate_series(renamed_on - " ~ var('rename_window_days') ~ ", renamed_on, interval '1 day'))::date::varchar"
        ~ " as date from (" ~ touched_renames() ~ ")"
    ) if renames else []) -}}
{%- endmacro %}

{#- Before the insert, in its transaction: they are forgotten, and made anew by the model; and so are those that are no more. -#}
{% macro forget_touched_renames() -%}
    {%- if is_incremental() and (dates_of_touched_renames() or not has_nothing_since('int_symbology__versioned', mark())) -%}
    delete from {{ this }}
    where (listing_id, renamed_on) in (select (listing_id, renamed_on) from ({{ touched_renames() }}))
        or (listing_id, renamed_on) not in (
            select (previous_listing_id, valid_from)
            from {{ ref('int_symbology__versioned') }} as names
            where previous_listing_id != names.listing_id
        )
    {%- else -%}
    select 1
    {%- endif -%}
{%- endmacro %}

{#- Whether a time falls in a span; an end that is null is open. -#}
{% macro in_span(time, span='spans') -%}
    ({{ span }}.starts_at is null or {{ time }} >= {{ span }}.starts_at) and ({{ span }}.ends_at is null or {{ time }} < {{ span }}.ends_at)
{%- endmacro %}

{#- The body of X_as_of(known_at): a table of versions as it was known then, each row with the instrument that its listing
    meant at the time `happened`, by what was known; in a column before the others, or in the one that is there. A listing
    without spans is an instrument of its own. -#}
{% macro with_instrument_as_of(relation, happened, has_column=false) -%}
{%- set instrument = 'coalesce(spans.instrument_id, known.listing_id) as instrument_id' -%}
with spans as (
    select * from {{ ref('int_listing_spans') }}
    where known_from <= {{ asked_time('known_at') }}
        and (known_to is null or known_to > {{ asked_time('known_at') }})
        and instrument_id != listing_id
),

-- When it will be known otherwise was not known then.
known as (
    select * replace (null::timestamp_ns as known_to), {{ happened }} as happened_at
    from {{ relation }}
    where known_from <= {{ asked_time('known_at') }}
        and (known_to is null or known_to > {{ asked_time('known_at') }})
)

select
    {% if has_column -%}
    known.* exclude (happened_at) replace ({{ instrument }})
    {%- else -%}
    {{ instrument }},
    known.* exclude (happened_at)
    {%- endif %}
from known
left join spans on known.listing_id = spans.listing_id and {{ in_span('known.happened_at') }}
{%- endmacro %}
