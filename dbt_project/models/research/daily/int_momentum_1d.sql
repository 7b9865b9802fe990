{{ config(schema='versioned', sorted_by=['instrument_id', 'session_date']) }}

-- A year of months back, and a bar that may be ten sessions older; a month of crypto has 30 days.
with {{ touched_history(370) }},

{{ seen_windows(370) }},

returns as (
    select
        *,
        {{ sessions_a_year() }} as a,
        {{ sessions_a_month() }} as m,
        case when gap_sessions <= 10 then (split_ratio * close + cash_dividend) / previous_close end as gross_return,
        {{ observation_columns() }}
    from seen
),

-- ln I as a whole number of 1e-18: such sums are exact, and a product over months does not depend on where it begins.
indices as (
    select
        *,
        struct_pack(
            session_seq,
            log_index := sum(coalesce(round(ln(gross_return) * 1e18)::hugeint, 0)) over so_far,
            breaks := count(*) filter (gross_return is null) over so_far
        ) as here,
        count(r) over last_year as observations_252,
        var_samp(r) over last_year as variance_252
    from returns
    window
        so_far as (
            partition by instrument_id, seen_at order by session_seq rows between unbounded preceding and current row
        ),
        last_year as {{ last_sessions(252) }}
),

looked_back as (
    select *, {{ months_before([1, 3, 6, 12]) }} from indices
),

momentum as (
    select
        {{ day_columns() }},
        calendar,
        session_seq,
        asked_from,
        {{ estimate('a * variance_252', 'observations_252', 252) }} as close_to_close_252,
        {{ growth(recent(1), recent(3)) }} as momentum_3_1,
        {{ growth(recent(1), recent(6)) }} as momentum_6_1,
        {{ growth(recent(1), recent(12)) }} as momentum_12_1,
        -{{ growth('here', recent(1)) }} as reversal_1m
    from looked_back
),

measured as (
    select
        * exclude (close_to_close_252),
        momentum_3_1 / nullif(close_to_close_252, 0) as momentum_3_1_scaled,
        momentum_6_1 / nullif(close_to_close_252, 0) as momentum_6_1_scaled,
        momentum_12_1 / nullif(close_to_close_252, 0) as momentum_12_1_scaled,
        reversal_1m / nullif(close_to_close_252, 0) as reversal_1m_scaled
    from momentum
),

{{ states_seen() }},

{{ on_grid(
    'states',
    key=['instrument_id', 'session_date'],
    numbers=[
        'momentum_3_1', 'momentum_6_1', 'momentum_12_1', 'reversal_1m',
        'momentum_3_1_scaled', 'momentum_6_1_scaled', 'momentum_12_1_scaled', 'reversal_1m_scaled'
    ],
    others=['symbol']
) }}

select
    {{ column_list() }}
from versions_on_grid
