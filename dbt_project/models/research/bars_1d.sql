{{ config(
    meta={'may_lag': 600},
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    sorted_by=['listing_id', 'session_date'],
    pre_hook="{{ forget_touched_bars('session_date', 'session_date', '1d', 'session_date') }}",
    post_hook="{{ note_progress() }}"
) }}

-- An equity session is [open, close) and its closing prints, which are stamped after the close; a crypto day is UTC's.
with {{ bar_versions(
    of_trade='trades.session_date',
    of_bar='bars.session_date',
    bar_interval='1d',
    bar_end="coalesce(close_at, (period + 1)::timestamp_ns)",
    eligible='is_in_session or is_closing_print',
    of_minutes='bars_1m'
) }},

days as (
    select
        named.*,
        period as session_date,
        case calendar.calendar when 'utc' then (period + 1)::timestamp_ns else sessions.close_at end as session_close,
        {{ currency_of('venue', 'symbol') }} as currency
    from named
    inner join (select distinct venue, calendar from feeds) as calendar using (venue)
    left join sessions on calendar.calendar = sessions.calendar and named.period = sessions.session_date
)

select
    {{ column_list() }}
from days
where session_close is not null
