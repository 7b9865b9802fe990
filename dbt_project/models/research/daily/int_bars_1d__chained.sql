{{ config(schema='versioned', sorted_by=['instrument_id', 'session_date']) }}

with touched as (
    {% set changes, meanings = ref('int_daily_changes'), ref('int_listing_meanings') -%}
    {% if is_incremental() -%}
    select instrument_id, min(from_session) as from_session
    from {{ changes }}
    where {{ is_new('int_daily_changes') }}
    group by instrument_id
    {%- else -%}
    select instrument_id, date '0001-01-01' as from_session
    from (
        select unnest(instruments) as instrument_id from {{ meanings }}
        union
        select listing_id as instrument_id from {{ ref('bars_1d') }}
    )
    {%- endif %}
),

-- 1. Bars and actions of the listings that have ever meant these instruments.
listings as (
    select distinct listing_id
    from (select listing_id, unnest(instruments) as instrument_id from {{ ref('int_listing_meanings') }})
    semi join touched using (instrument_id)
    union
    select instrument_id as listing_id from touched
),

calendars as (
    select distinct venue, calendar from {{ ref('feeds') }}
),

sessions as (
    select * from {{ ref('int_sessions') }}
),

bars as (
    select bars.* exclude (instrument_id), calendars.calendar, sessions.session_seq
    from {{ ref('bars_1d') }} as bars
    semi join listings using (listing_id)
    inner join calendars using (venue)
    inner join sessions on calendars.calendar = sessions.calendar and bars.session_date = sessions.session_date
),

{{ named_over_time('bars', 'session_close', named='named_bars') }},

touched_bars as (
    select * from named_bars semi join touched using (instrument_id)
),

{{ known_actions() }},

-- 2. Where a day's bar before can be: the last day that was known before this one and has been ever since, or after it.
days as (
    select
        instrument_id,
        session_date,
        min(known_from) as born_at,
        max(known_from) filter (is_start) as unbroken_from,
        count(*) filter (known_to is null) > 0 as is_unbroken
    from (
        select
            *,
            coalesce(
                max(coalesce(known_to, {{ the_present() }})) over (
                    partition by instrument_id, session_date
                    order by known_from
                    rows between unbounded preceding and 1 preceding
                ) < known_from,
                true
            ) as is_start
        from touched_bars
    )
    group by instrument_id, session_date
),

touched_day_list as (
    select
        days.*,
        lag(session_date) over chain as previous_date,
        lag(is_unbroken) over chain as previous_is_unbroken,
        lag(unbroken_from) over chain as previous_unbroken_from
    from days
    window chain as (partition by instrument_id order by session_date)
),

days_to_chain as (
    select
        touched_day_list.instrument_id,
        session_date,
        born_at,
        previous_date,
        coalesce(previous_is_unbroken and previous_unbroken_from <= born_at, false) as is_regular
    from touched_day_list
    inner join touched
        on touched_day_list.instrument_id = touched.instrument_id and session_date >= touched.from_session
),

candidates as (
    select instrument_id, session_date, born_at, previous_date as candidate_date
    from days_to_chain
    where is_regular
    union all
    select to_chain.instrument_id, to_chain.session_date, to_chain.born_at, days.session_date as candidate_date
    from days_to_chain as to_chain
    inner join days on to_chain.instrument_id = days.instrument_id and days.session_date < to_chain.session_date
    where not is_regular
    qualify days.session_date >= coalesce(
            max(days.session_date) filter (days.is_unbroken and days.unbroken_from <= to_chain.born_at) over (
                partition by to_chain.instrument_id, to_chain.session_date
            ),
            date '0001-01-01'
        )
),

-- 3. The moments at which a day's own bar, the bar before, or an action between them changed.
moments as (
    select instrument_id, session_date, known_from
    from (
        select instrument_id, session_date, known_from from touched_bars
        union
        select instrument_id, session_date, known_to as known_from from touched_bars where known_to is not null
    )
    semi join days_to_chain using (instrument_id, session_date)
    union
    select candidates.instrument_id, candidates.session_date, bars.known_from
    from candidates
    inner join (
        select instrument_id, session_date, known_from from touched_bars
        union
        select instrument_id, session_date, known_to as known_from from touched_bars where known_to is not null
    ) as bars
        on candidates.instrument_id = bars.instrument_id
        and candidates.candidate_date = bars.session_date
        and bars.known_from > candidates.born_at
    union
    select candidates.instrument_id, candidates.session_date, actions.known_from
    from (
        select instrument_id, session_date, born_at, min(candidate_date) as first_date
        from candidates
        group by instrument_id, session_date, born_at
    ) as candidates
    inner join (
        select instrument_id, ex_date, known_from from actions
        union
        select instrument_id, ex_date, known_to as known_from from actions where known_to is not null
    ) as actions
        on candidates.instrument_id = actions.instrument_id
        and actions.ex_date > candidates.first_date
        and actions.ex_date <= candidates.session_date
        and actions.known_from > candidates.born_at
),

-- 4. What was known at each. Of two listings that mean one instrument on one day, the later name counts.
own_bars as (
    select moments.known_from as moment, bars.*
    from moments
    inner join touched_bars as bars
        on moments.instrument_id = bars.instrument_id
        and moments.session_date = bars.session_date
        and {{ known_at('bars', 'moments.known_from') }}
),

chained as (
    select
        own_bars.*,
        previous.session_date as previous_session_date,
        previous.close as previous_close,
        own_bars.session_seq - previous.session_seq as gap_sessions
    from own_bars
    left join candidates using (instrument_id, session_date)
    left join touched_bars as previous
        on candidates.instrument_id = previous.instrument_id
        and candidates.candidate_date = previous.session_date
        and {{ known_at('previous', 'own_bars.moment') }}
    qualify row_number() over (
            partition by own_bars.instrument_id, own_bars.session_date, own_bars.moment
            order by
                own_bars.named_since desc nulls last,
                own_bars.listing_id asc,
                previous.session_date desc nulls last,
                previous.named_since desc nulls last,
                previous.listing_id asc
        ) = 1
),

{{ applied_actions('chained') }},

states as (
    select
        moments.instrument_id,
        moments.session_date,
        moments.known_from,
        chained.* exclude (instrument_id, session_date, known_from, known_to, moment),
        coalesce(split_ratio, 1) as split_ratio,
        coalesce(cash_dividend, 0) as cash_dividend,
        coalesce(not_applied, []) as not_applied,
        chained.instrument_id is not null as is_there
    from moments
    left join chained
        on moments.instrument_id = chained.instrument_id
        and moments.session_date = chained.session_date
        and moments.known_from = chained.moment
    left join applied
        on moments.instrument_id = applied.instrument_id
        and moments.session_date = applied.session_date
        and moments.known_from = applied.moment
),

{{ on_grid(
    'states',
    key=['instrument_id', 'session_date'],
    numbers=[
        'open', 'high', 'low', 'close', 'volume', 'vwap', 'dollar_volume', 'previous_close', 'split_ratio', 'cash_dividend'
    ],
    others=['listing_id', 'trade_count', 'bar_source', 'previous_session_date', 'not_applied']
) }}

select
    {{ column_list() }}
from versions_on_grid
