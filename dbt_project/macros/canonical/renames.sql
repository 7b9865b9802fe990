{#-
    Renames, and the old ticker's last trade. A master dates a rename to a day that need not be the day of the first trade
    under the new ticker (META: a Saturday, two sessions late). What traded under the new ticker after the old one's last
    trade is the instrument's; so for each rename that last trade is kept, as it was known.
-#}

{#- Trades of a rename: of the old listing, before the rename's date, and no older than this. -#}
{% macro in_rename_window(event_time, renamed_on) -%}
    {{ event_time }} < {{ new_york_time(renamed_on) }}
    and {{ event_time }} >= {{ new_york_time(renamed_on ~ " - interval '" ~ var('rename_window_days') ~ " days'") }}
{%- endmacro %}

{#- The renames to look at: new ones, and those with changed trades. -#}
{% macro touched_renames() -%}
    select distinct previous_listing_id as listing_id, valid_from as renamed_on
    from {{ ref('int_symbology__versioned') }} as names
    where previous_listing_id != names.listing_id
        and (
            build_seq > {{ mark() }}
            or (previous_listing_id, valid_from) in (
                select (renames.previous_listing_id, renames.valid_from)
                from {{ ref('int_trades__versioned') }} as trades
                inner join {{ ref('int_symbology__versioned') }} as renames
                    on trades.listing_id = renames.previous_listing_id
                    and {{ in_rename_window('trades.event_time', 'renames.valid_from') }}
                where trades.build_seq > {{ mark() }}
            )
        )
{%- endmacro %}

{#- The dates on which their trades stand: the partitions to read. -#}
{% macro dates_of_touched_renames() -%}
    {{- return(ask_values(
        "select distinct unnest(generate_series(renamed_on - " ~ var('rename_window_days') ~ ", renamed_on, interval '1 day'))::date::varchar as date"
        ~ " from (" ~ touched_renames() ~ ")"
    ) if execute else []) -}}
{%- endmacro %}

{% macro forget_touched_renames() -%}
    {%- if is_incremental() -%}
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

{#-
    What listings meant, as known at `known_at`, in steps that end in `spans`: listing_id, instrument_id, and the span
    [starts_at, ends_at) of event time. A listing outside of all its spans is an instrument of its own.
-#}
{% macro spans_as_of(known_at='known_at') -%}
known_names as (
    select *
    from {{ ref('int_symbology__versioned') }}
    where known_from <= {{ known_at }}::varchar::timestamp_ns
        and (known_to is null or known_to > {{ known_at }}::varchar::timestamp_ns)
),

known_last_trades as (
    select *
    from {{ ref('int_last_trades') }}
    where known_from <= {{ known_at }}::varchar::timestamp_ns
        and (known_to is null or known_to > {{ known_at }}::varchar::timestamp_ns)
),

{{ spans() }}
{%- endmacro %}

{#- The spans of known names and last trades; in each `segment` of knowledge time, where they have such a column. -#}
{% macro spans(segment='') -%}
{%- set start_of_time = "timestamp_ns '1677-09-22 00:00:00'" -%}
{%- set end_of_time = "timestamp_ns '2262-04-11 00:00:00'" -%}
{%- set in_segment = ', names.' ~ segment if segment else '' -%}
dated as (
    select
        names.listing_id{{ in_segment }},
        instrument_id,
        names.valid_to,
        -- After the old ticker's last trade, though not before somebody else's use of the new one ended.
        greatest(
            coalesce(
                make_timestamp_ns(epoch_ns(last_trade_at) + 1),
                {{ new_york_time('names.valid_from') }},
                {{ start_of_time }}
            ),
            coalesce(
                lag({{ new_york_time('names.valid_to') }}) over (
                    partition by names.listing_id{{ in_segment }} order by valid_from nulls first
                ),
                {{ start_of_time }}
            )
        ) as starts_at,
        coalesce({{ new_york_time('names.valid_to') }}, {{ end_of_time }}) as ends_at
    from known_names as names
    left join known_last_trades as last_trades
        on names.previous_listing_id = last_trades.listing_id
        and names.previous_listing_id != names.listing_id
        and names.valid_from = last_trades.renamed_on
        {%- if segment %}
        and last_trades.known_from <= names.{{ segment }}
        and (last_trades.known_to is null or last_trades.known_to > names.{{ segment }})
        {%- endif %}
),

-- Whoever uses a ticker that was given up, without being named yet, is another instrument.
followed as (
    select
        names.*,
        coalesce(
            lead(starts_at) over (partition by listing_id{{ in_segment }} order by starts_at), {{ end_of_time }}
        ) as next_starts_at
    from dated as names
),

spans as (
    select listing_id{{ in_segment }}, instrument_id, true as is_named, starts_at, ends_at from followed as names
    union all
    select listing_id{{ in_segment }}, {{ dated_instrument('listing_id', 'valid_to') }}, false, ends_at, next_starts_at
    from followed as names
    where ends_at < next_starts_at
)
{%- endmacro %}

{#- The body of X_as_of(known_at): a table of versions as it was known then, each row with the instrument that its listing
    meant at the time `happened`, by what was known; in a column before the others, or in the one that is there. -#}
{% macro with_instrument_as_of(relation, happened, has_column=false) -%}
{%- set instrument = 'coalesce(spans.instrument_id, known.listing_id) as instrument_id' -%}
with {{ spans_as_of() }},

-- When it will be known otherwise was not known then.
known as (
    select * replace (null::timestamp_ns as known_to), {{ happened }} as happened_at
    from {{ relation }}
    where known_from <= known_at::varchar::timestamp_ns
        and (known_to is null or known_to > known_at::varchar::timestamp_ns)
)

select
    {% if has_column -%}
    known.* exclude (happened_at) replace ({{ instrument }})
    {%- else -%}
    {{ instrument }},
    known.* exclude (happened_at)
    {%- endif %}
from known
left join spans
    on known.listing_id = spans.listing_id
    and known.happened_at >= spans.starts_at
    and known.happened_at < spans.ends_at
{%- endmacro %}
