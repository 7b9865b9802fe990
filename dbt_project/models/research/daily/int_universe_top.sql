{{ config(schema='versioned', meta={'remade': 'for all instruments'}) }}

-- Each calendar's last session of a month, when the next month's members are chosen.
with last_sessions as (
    select calendar, session_date, session_seq, decision_time
    from {{ ref('int_sessions') }}
    qualify row_number() over (
            partition by calendar, date_trunc('month', session_date) order by session_date desc
        ) = 1
),

month_ends as (
    select
        *,
        session_date + 1 as valid_from,
        lead(session_date) over (partition by calendar order by session_date) + 1 as valid_to
    from last_sessions
),

touched_month_ends as (
    select * from month_ends where session_date >= {{ first_touched_day() }}
),

-- Of each instrument the newest day known at the decision, of the last ten sessions.
candidates as (
    select
        liquidity.instrument_id,
        liquidity.symbol,
        liquidity.venue,
        liquidity.currency,
        liquidity.adv_20,
        month_ends.session_date,
        month_ends.valid_from,
        month_ends.valid_to,
        month_ends.decision_time
    from {{ ref('liquidity_1d') }} as liquidity
    inner join (select distinct venue, calendar from {{ ref('feeds') }}) as calendars using (venue)
    inner join {{ ref('int_sessions') }} as sessions
        on calendars.calendar = sessions.calendar and liquidity.session_date = sessions.session_date
    inner join touched_month_ends as month_ends
        on sessions.calendar = month_ends.calendar
        and sessions.session_seq between month_ends.session_seq - 9 and month_ends.session_seq
    where liquidity.session_date >= {{ first_touched_day(30) }}
        and {{ known_at('liquidity', 'month_ends.decision_time') }}
    qualify row_number() over (
            partition by liquidity.instrument_id, month_ends.session_date order by liquidity.session_date desc
        ) = 1
),

ranked as (
    select
        candidates.*,
        asset_classes.asset_class,
        row_number() over (
            partition by asset_classes.asset_class, currency, candidates.session_date
            order by {{ twelve_digits('adv_20') }} desc, instrument_id asc
        ) as place
    from candidates
    inner join (select distinct venue, asset_class from {{ ref('feeds') }}) as asset_classes using (venue)
    where adv_20 is not null and currency is not null
),

chosen as (
    select
        ranked.*,
        'top_' || size as universe,
        decision_time as known_from,
        null::timestamp_ns as known_to
    from ranked
    inner join (select unnest({{ var('universe_sizes') }}) as size) as sizes on place <= size
)

select
    {{ column_list() }}
from chosen
