{{ config(sorted_by=['instrument_id', 'session_date']) }}

with {{ touched_history(251) }},

{{ seen_windows(251) }},

observations as (
    select
        *,
        case
            when gap_sessions <= 10 and dollar_volume > 0
                then 1e6 * abs((split_ratio * close + cash_dividend) / previous_close - 1) / dollar_volume
        end as illiquidity
    from seen
),

means as (
    select
        *,
        count(dollar_volume) over last_20 as volume_observations_20,
        avg(dollar_volume) over last_20 as mean_dollar_volume_20,
        count(illiquidity) over last_20 as observations_20,
        avg(illiquidity) over last_20 as mean_illiquidity_20,
        count(illiquidity) over last_252 as observations_252,
        avg(illiquidity) over last_252 as mean_illiquidity_252
    from observations
    window
        last_20 as {{ last_sessions(20) }},
        last_252 as {{ last_sessions(252) }}
),

measured as (
    select
        {{ day_columns() }},
        listing_id,
        asked_from,
        dollar_volume,
        volume_observations_20,
        case when volume_observations_20 >= {{ enough(20) }} then mean_dollar_volume_20 end as adv_20,
        observations_20,
        case when observations_20 >= {{ enough(20) }} then mean_illiquidity_20 end as amihud_20,
        observations_252,
        case when observations_252 >= {{ enough(252) }} then mean_illiquidity_252 end as amihud_252
    from means
),

{{ states_seen() }},

-- Spreads have versions of their own: a day is cut where either changed.
windows_known as (
    select *, lead(known_from) over (partition by instrument_id, session_date order by known_from) as known_to
    from states
),

spreads as (
    select * from {{ ref('int_spreads_1d') }} where session_date >= {{ first_touched_day() }}
),

cuts as (
    select instrument_id, session_date, known_from from windows_known
    union
    select windows_known.instrument_id, windows_known.session_date, changes.changed_at as known_from
    from windows_known
    inner join (
        select listing_id, session_date, known_from as changed_at from spreads
        union
        select listing_id, session_date, known_to as changed_at from spreads where known_to is not null
    ) as changes using (listing_id, session_date)
    where changed_at > windows_known.known_from and (windows_known.known_to is null or changed_at < windows_known.known_to)
),

states_with_spreads as (
    select windows_known.* exclude (known_from, known_to), cuts.known_from, quoted_spread_bps, effective_spread_bps
    from cuts
    inner join windows_known
        on cuts.instrument_id = windows_known.instrument_id
        and cuts.session_date = windows_known.session_date
        and {{ known_at('windows_known', 'cuts.known_from') }}
    left join spreads
        on windows_known.listing_id = spreads.listing_id
        and windows_known.session_date = spreads.session_date
        and {{ known_at('spreads', 'cuts.known_from') }}
),

{{ on_grid(
    'states_with_spreads',
    key=['instrument_id', 'session_date'],
    numbers=['dollar_volume', 'adv_20', 'amihud_20', 'amihud_252', 'quoted_spread_bps', 'effective_spread_bps'],
    others=['symbol', 'volume_observations_20', 'observations_20', 'observations_252']
) }}

select
    {{ column_list() }}
from versions_on_grid
