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
        seen_at,
        a,
        {% for n in windows -%}
        count(r) over last_{{ n }} as observations_{{ n }},
        var_samp(r) over last_{{ n }} as variance_{{ n }},
        var_samp(o) over last_{{ n }} as overnight_variance_{{ n }},
        var_samp(c) over last_{{ n }} as intraday_variance_{{ n }},
        avg((h - l) * (h - l)) over last_{{ n }} as squared_range_{{ n }},
        avg(0.5 * (h - l) * (h - l) - (2 * ln(2) - 1) * c * c) over last_{{ n }} as garman_klass_term_{{ n }},
        avg(h * (h - c) + l * (l - c)) over last_{{ n }} as rogers_satchell_term_{{ n }}{{ "," if not loop.last }}
        {% endfor %}
    from observations
    window
        {% for n in windows -%}
        last_{{ n }} as {{ last_sessions(n) }}{{ "," if not loop.last }}
        {% endfor %}
),

weights as (
    select
        *,
        {% for n in windows -%}
        0.34 / (1.34 + (observations_{{ n }} + 1) / (observations_{{ n }} - 1)) as k_{{ n }}{{ "," if not loop.last }}
        {% endfor %}
    from sums
),

measured as (
    select
        {{ day_columns() }},
        seen_at,
        {% for n in windows -%}
        observations_{{ n }},
        {{ estimate('a * variance_' ~ n, 'observations_' ~ n, n) }} as close_to_close_{{ n }},
        {{ estimate('a / (4 * ln(2)) * squared_range_' ~ n, 'observations_' ~ n, n) }} as parkinson_{{ n }},
        {{ estimate('a * garman_klass_term_' ~ n, 'observations_' ~ n, n) }} as garman_klass_{{ n }},
        {{ estimate('a * rogers_satchell_term_' ~ n, 'observations_' ~ n, n) }} as rogers_satchell_{{ n }},
        {{ estimate(
            'a * (overnight_variance_' ~ n ~ ' + k_' ~ n ~ ' * intraday_variance_' ~ n
            ~ ' + (1 - k_' ~ n ~ ') * rogers_satchell_term_' ~ n ~ ')',
            'observations_' ~ n, n
        ) }} as yang_zhang_{{ n }}{{ "," if not loop.last }}
        {% endfor %}
    from weights
),

{{ states_seen() }},

{%- set numbers = [] -%}
{%- for n in windows -%}
    {%- for estimator in ['close_to_close', 'parkinson', 'garman_klass', 'rogers_satchell', 'yang_zhang'] -%}
        {%- do numbers.append(estimator ~ '_' ~ n) -%}
    {%- endfor -%}
{%- endfor %}

{{ on_grid(
    'states',
    key=['instrument_id', 'session_date'],
    numbers=numbers,
    others=['symbol', 'observations_5', 'observations_20', 'observations_60', 'observations_252']
) }}

select
    {{ column_list() }}
from versions_on_grid
