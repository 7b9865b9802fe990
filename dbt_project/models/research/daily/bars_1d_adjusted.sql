{{ config(sorted_by=['instrument_id', 'session_date']) }}

with {{ touched_history(0) }},

-- The days with a split or a dividend, whenever they were known: only they change a factor.
steps as (
    select
        steps.instrument_id,
        steps.session_date,
        split_ratio,
        split_ratio / (1 - cash_dividend / previous_close) as total_ratio,
        known_from,
        known_to
    from {{ ref('int_bars_1d__chained') }} as steps
    semi join touched using (instrument_id)
    where split_ratio != 1 or cash_dividend != 0
),

step_events as (
    select instrument_id, session_date, known_from as happened_at from steps
    union
    select instrument_id, session_date, known_to as happened_at from steps where known_to is not null
),

last_step_events as (
    select distinct
        instrument_id,
        session_date,
        max(happened_at) over (
            partition by instrument_id order by session_date range between unbounded preceding and current row
        ) as last_step_event
    from step_events
),

births as (
    select
        instrument_id,
        session_date,
        min(known_from) as born_at,
        greatest(max(known_from), max(known_to)) as last_event
    from history
    group by instrument_id, session_date
),

-- A day none of whose inputs changed since it was first known is seen in the present; any other at each change.
asked as (
    select
        births.instrument_id,
        births.session_date,
        born_at as known_from,
        case
            when greatest(last_event, last_step_event) > born_at then born_at else {{ the_present() }}
        end as seen_at
    from births
    asof left join last_step_events
        on births.instrument_id = last_step_events.instrument_id
        and births.session_date >= last_step_events.session_date
    union
    select births.instrument_id, births.session_date, happened_at as known_from, happened_at as seen_at
    from births
    inner join step_events
        on births.instrument_id = step_events.instrument_id
        and step_events.session_date <= births.session_date
        and happened_at > born_at
    union
    select births.instrument_id, births.session_date, happened_at as known_from, happened_at as seen_at
    from births
    inner join (
        select instrument_id, session_date, known_from as happened_at from history
        union
        select instrument_id, session_date, known_to as happened_at from history where known_to is not null
    ) as own_events
        on births.instrument_id = own_events.instrument_id
        and births.session_date = own_events.session_date
        and happened_at > born_at
),

views as (
    select distinct instrument_id, seen_at from asked where seen_at < {{ the_present() }}
),

seen_steps as (
    select instrument_id, {{ the_present() }} as seen_at, session_date, split_ratio, total_ratio
    from steps
    where known_to is null
    union all
    select steps.instrument_id, seen_at, session_date, split_ratio, total_ratio
    from steps
    inner join views
        on steps.instrument_id = views.instrument_id
        and {{ known_at('steps', 'seen_at') }}
),

factors as (
    select
        instrument_id,
        seen_at,
        session_date,
        product(split_ratio) over so_far as split_factor,
        product(total_ratio) over so_far as total_factor
    from seen_steps
    window so_far as (
        partition by instrument_id, seen_at order by session_date rows between unbounded preceding and current row
    )
),

factors_asked as (
    select
        asked.*,
        coalesce(split_factor, 1) as split_factor,
        coalesce(total_factor, 1) as total_factor
    from asked
    asof left join factors
        on asked.instrument_id = factors.instrument_id
        and asked.seen_at = factors.seen_at
        and asked.session_date >= factors.session_date
),

states as (
    select
        asked.instrument_id,
        asked.session_date,
        asked.known_from,
        history.* exclude (instrument_id, session_date, known_from, known_to),
        split_factor,
        total_factor,
        history.instrument_id is not null as is_there
    from factors_asked as asked
    left join history
        on asked.instrument_id = history.instrument_id
        and asked.session_date = history.session_date
        and {{ known_at('history', 'asked.known_from') }}
),

{{ on_grid(
    'states',
    key=['instrument_id', 'session_date'],
    numbers=['open', 'high', 'low', 'close', 'volume', 'vwap', 'dollar_volume', 'split_factor', 'total_factor'],
    others=['symbol', 'trade_count', 'bar_source']
) }}

select
    {{ column_list() }}
from versions_on_grid
