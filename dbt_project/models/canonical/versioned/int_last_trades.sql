{{ config(
    incremental_strategy='append',
    pre_hook="{{ forget_touched_renames() }}"
) }}

{%- set dates = dates_of_touched_renames() %}

with renames as (
    select * from ({{ touched_renames() }}) {{ "where false" if execute and not dates }}
),

calendars as (
    select distinct venue, calendar from {{ ref('feeds') }}
),

trades as (
    select renames.listing_id, renamed_on, event_time, known_from, known_to
    from {{ ref('int_trades__versioned') }} as trades
    inner join renames
        on trades.listing_id = renames.listing_id and {{ in_rename_window('event_time', 'renamed_on') }}
    where not is_duplicate
        and not is_deletion
        and not is_cancelled
        and (known_to is null or known_to > known_from)
        and {{ in_dates('event_date', dates) }}
),

-- A vendor's bar does not say when its last trade was, only that it was by the close.
vendor_days as (
    select renames.listing_id, renamed_on, sessions.close_at::timestamp_ns as event_time, known_from, known_to
    from {{ ref('int_bars__versioned') }} as bars
    inner join renames
        on bars.listing_id = renames.listing_id and {{ in_rename_window('bar_start', 'renamed_on') }}
    inner join calendars on bars.venue = calendars.venue
    inner join {{ ref('sessions') }} as sessions
        on calendars.calendar = sessions.calendar and bars.session_date = sessions.session_date
    where bar_interval = '1d'
        and volume > 0
        and not is_duplicate
        and not is_deletion
        and (known_to is null or known_to > known_from)
        and {{ in_dates('event_date', dates) }}
),

-- Trades that became known, and ceased to be, together are one: their last.
last_of_each as (
    select listing_id, renamed_on, known_from, known_to, max(event_time) as event_time
    from (
        select * from trades
        union all
        select * from vendor_days
    )
    group by listing_id, renamed_on, known_from, known_to
),

rename_segments as (
    {{ segments(['last_of_each'], 'listing_id, renamed_on') }}
),

states as (
    select segments.listing_id, segments.renamed_on, segments.known_from, segments.known_to, max(event_time) as last_trade_at
    from rename_segments as segments
    inner join last_of_each as trades
        on segments.listing_id = trades.listing_id
        and segments.renamed_on = trades.renamed_on
        and {{ known_during('trades', 'segments') }}
    group by segments.listing_id, segments.renamed_on, segments.known_from, segments.known_to
),

{{ joined_segments('states', key=['listing_id', 'renamed_on'], content=['last_trade_at']) }}

select
    {{ column_list() }}
from versions_on_grid
