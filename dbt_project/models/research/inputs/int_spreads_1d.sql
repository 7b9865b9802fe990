{{ config(
    materialized='incremental',
    meta={'may_lag': 600},
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    sorted_by=['listing_id', 'session_date'],
    pre_hook="{{ forget_touched_spreads() }}",
    post_hook="{{ note_progress() }}"
) }}
{%- set in_touched_dates = in_dates('event_date', touched_quote_dates()) %}

with touched as (
    {{ touched_quote_sessions() }}
),

feeds as (
    select * from {{ ref('feeds') }}
),

all_quotes as (
    select
        listing_id,
        venue,
        feed,
        {{ quote_clock() }} as clock,
        bid_price,
        ask_price,
        bid_size,
        ask_size,
        sequence,
        update_id,
        known_from,
        known_to
    from {{ ref('int_quotes__versioned') }}
    where not is_duplicate and not is_deletion and (known_to is null or known_to > known_from) and {{ in_touched_dates }}
),

-- The touched sessions that have quotes.
quoted_sessions as (
    select
        touched.listing_id,
        touched.session_date,
        sessions.open_at,
        sessions.close_at,
        sessions.calendar,
        feeds.knowledge_lag::interval as knowledge_lag
    from touched
    inner join (select distinct listing_id, venue, feed from all_quotes) as listings using (listing_id)
    inner join feeds using (feed)
    inner join {{ ref('int_sessions') }} as sessions
        on feeds.calendar = sessions.calendar and touched.session_date = sessions.session_date
),

{{ trade_rules() }},

-- The trades of the session's bar that may set its high and low, but for those whose clock is long after the close.
trades as (
    select
        trades.listing_id,
        quoted_sessions.session_date,
        {{ quote_clock() }} as clock,
        close_at,
        price,
        size,
        trades.known_from,
        trades.known_to,
        quoted_sessions.knowledge_lag
    from {{ ref('int_trades__versioned') }} as trades
    inner join quoted_sessions using (listing_id, session_date)
    left join conditions using (feed)
    where not is_duplicate
        and not is_deletion
        and not is_cancelled
        and (known_to is null or known_to > known_from)
        and price > 0
        and size > 0
        and {{ quote_clock() }} < {{ last_clock_of_session() }}
        and {{ in_touched_dates }}
        and case
            when event_time >= open_at and event_time < close_at
                then not list_has_any(coalesce(trades.conditions, []), coalesce(no_high_low, []))
            else coalesce(list_contains(trades.conditions, '8'), false)
                and event_time >= close_at
                and not list_has_any(trades.conditions, coalesce(no_high_low_outside, []))
        end
),

last_trades as (
    select listing_id, session_date, max(clock) as last_clock from trades group by listing_id, session_date
),

quotes as (
    select
        all_quotes.*,
        quoted_sessions.* exclude (listing_id, calendar),
        clock < close_at or calendar != 'utc' as makes_cells,
        clock >= open_at and clock < close_at as is_in_session,
        bid_price > 0 and ask_price >= bid_price as is_valid,
        (bid_price + ask_price) / 2 as mid
    from all_quotes
    inner join quoted_sessions
        on all_quotes.listing_id = quoted_sessions.listing_id
        and clock >= open_at - interval '1 day'
    left join last_trades
        on quoted_sessions.listing_id = last_trades.listing_id
        and quoted_sessions.session_date = last_trades.session_date
    where clock < greatest(close_at, last_clock)
),

-- Quotes after the close of a day of UTC matter to trades received later alone, and are known before them.
facts as (
    select listing_id, session_date, close_at, knowledge_lag, known_from, known_to from quotes where makes_cells
    union all
    select listing_id, session_date, close_at, knowledge_lag, known_from, known_to from trades
),

cells as (
    select
        listing_id,
        session_date,
        {{ cell_end('greatest(close_at + knowledge_lag, known_at)') }} as cell
    from (
        select listing_id, session_date, close_at, knowledge_lag, known_from as known_at from facts
        union all
        select listing_id, session_date, close_at, knowledge_lag, known_to from facts where known_to is not null
    )
    group by all
),

-- Of quotes at one time only the last was ever to be seen.
known_quotes as (
    select quotes.* exclude (known_from, known_to), cell
    from quotes
    inner join cells
        on quotes.listing_id = cells.listing_id
        and quotes.session_date = cells.session_date
        and {{ known_at('quotes', 'cell') }}
    qualify row_number() over (
            partition by quotes.listing_id, quotes.session_date, cell, clock
            order by {{ in_quote_order('quotes') }}
        ) = 1
),

lasting as (
    select
        *,
        epoch_ns(lead(clock, 1, close_at) over (
            partition by listing_id, session_date, cell order by clock
        )) - epoch_ns(clock) as nanoseconds
    from known_quotes
    where is_in_session
),

quoted_spreads as (
    select
        listing_id,
        session_date,
        cell,
        sum(10000 * (ask_price - bid_price) / mid * nanoseconds) filter (is_valid)
        / nullif(sum(nanoseconds) filter (is_valid), 0) as quoted_spread_bps
    from lasting
    group by listing_id, session_date, cell
),

known_trades as (
    select trades.listing_id, trades.session_date, cell, clock, price, size
    from trades
    inner join cells
        on trades.listing_id = cells.listing_id
        and trades.session_date = cells.session_date
        and {{ known_at('trades', 'cell') }}
),

effective_spreads as (
    select
        trades.listing_id,
        trades.session_date,
        trades.cell,
        sum(10000 * 2 * abs(price - mid) / mid * price * size) filter (is_valid)
        / sum(price * size) filter (is_valid) as effective_spread_bps
    from known_trades as trades
    asof join known_quotes as quotes
        on trades.listing_id = quotes.listing_id
        and trades.session_date = quotes.session_date
        and trades.cell = quotes.cell
        and trades.clock > quotes.clock
    group by trades.listing_id, trades.session_date, trades.cell
),

states as (
    select
        cells.listing_id,
        cells.session_date,
        cells.cell as known_from,
        quoted_spread_bps,
        effective_spread_bps,
        quoted_spread_bps is not null or effective_spread_bps is not null as is_there
    from cells
    left join quoted_spreads using (listing_id, session_date, cell)
    left join effective_spreads using (listing_id, session_date, cell)
),

{{ on_grid(
    'states',
    key=['listing_id', 'session_date'],
    numbers=['quoted_spread_bps', 'effective_spread_bps'],
    others=['is_there']
) }}

select
    {{ column_list() }}
from versions_on_grid
