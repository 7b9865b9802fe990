{%- set windows = [5, 20, 60, 252] -%}
{{ config(sorted_by=['instrument_id', 'session_date']) }}

with {{ touched_history(251) }},

{{ seen_windows(251) }},

observations as (
    select *, {{ sessions_a_year() }} as a, {{ observation_columns() }} from seen
),

sums as (
    select
        instrument_id,
        symbol,
        venue,
        currency,
        session_date,
        session_close,
        asked_from,
        a,
        {{ volatility_sums(windows) }}
    from observations
    window {{ windows_of_sessions(windows) }}
),

measured as (
    select
        {{ day_columns() }},
        asked_from,
        {{ volatility_estimates(windows) }}
    from sums
),

{{ states_seen() }},

{{ on_grid(
    'states',
    key=['instrument_id', 'session_date'],
    numbers=volatility_names(windows),
    others=['symbol', 'observations_5', 'observations_20', 'observations_60', 'observations_252']
) }}

select
    {{ column_list() }}
from versions_on_grid
