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
            log_index := sum(coalesce(round(ln(gross_return) * 1e18)::hugeint, 0)) over so_far,
            breaks := count(*) filter (gross_return is null) over so_far
        ) as here
    from returns
    window so_far as (
        partition by instrument_id, seen_at order by session_seq rows between unbounded preceding and current row
    )
),

looked_back as (
    select
        *,
        {% for months in [1, 3, 6, 12] -%}
        last_value(here) over (
            partition by instrument_id, seen_at
            order by session_seq
            range between {{ months }} * m + 10 preceding and {{ months }} * m preceding
        ) as before_{{ months }},
        {% endfor -%}
        count(r) over last_year as observations_252,
        var_samp(r) over last_year as variance_252
    from indices
    window last_year as {{ last_sessions(252) }}
),

momentum as (
    select
        {{ day_columns() }},
        calendar,
        session_seq,
        seen_at,
        {{ estimate('a * variance_252', 'observations_252', 252) }} as close_to_close_252,
        {% for months in [3, 6, 12] -%}
        case when before_1.breaks = before_{{ months }}.breaks
            then exp((before_1.log_index - before_{{ months }}.log_index) / 1e18) - 1
        end as momentum_{{ months }}_1,
        {% endfor -%}
        case when here.breaks = before_1.breaks
            then 1 - exp((here.log_index - before_1.log_index) / 1e18)
        end as reversal_1m
    from looked_back
),

measured as (
    select
        * exclude (close_to_close_252),
        {% for measure in ['momentum_3_1', 'momentum_6_1', 'momentum_12_1', 'reversal_1m'] -%}
        {{ measure }} / nullif(close_to_close_252, 0) as {{ measure }}_scaled{{ "," if not loop.last }}
        {% endfor %}
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
