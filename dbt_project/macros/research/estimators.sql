{#- Estimators over a named window of observations, by docs/research.md. A is the number of sessions a year. -#}

{#- A value of an estimate over n sessions: null where there are too few observations, or no real root. -#}
{% macro estimate(squared, observations, sessions) -%}
    case when {{ observations }} >= {{ enough(sessions) }} and ({{ squared }}) >= 0 then sqrt({{ squared }}) end
{%- endmacro %}

{#- The columns of an observation: on total-adjusted prices, o from the close before to the open; h, l, c from the open; r
    from close to close. Null where there is no return. -#}
{% macro observation_columns() -%}
    case when gap_sessions <= 10 then ln(split_ratio * open / (previous_close - cash_dividend)) end as o,
    case when gap_sessions <= 10 then ln(high / open) end as h,
    case when gap_sessions <= 10 then ln(low / open) end as l,
    case when gap_sessions <= 10 then ln(close / open) end as c,
    o + c as r
{%- endmacro %}

{#- The windows last_<n> over the last n sessions. -#}
{% macro windows_of_sessions(lengths) -%}
    {% for n in lengths -%}
    last_{{ n }} as {{ last_sessions(n) }}{{ "," if not loop.last }}
    {% endfor -%}
{%- endmacro %}

{#- What the five estimators of volatility need of each window. -#}
{% macro volatility_sums(lengths) -%}
    {% for n in lengths -%}
    count(r) over last_{{ n }} as observations_{{ n }},
    var_samp(r) over last_{{ n }} as variance_{{ n }},
    var_samp(o) over last_{{ n }} as overnight_variance_{{ n }},
    var_samp(c) over last_{{ n }} as intraday_variance_{{ n }},
    avg((h - l) * (h - l)) over last_{{ n }} as squared_range_{{ n }},
    avg(0.5 * (h - l) * (h - l) - (2 * ln(2) - 1) * c * c) over last_{{ n }} as garman_klass_term_{{ n }},
    avg(h * (h - c) + l * (l - c)) over last_{{ n }} as rogers_satchell_term_{{ n }}{{ "," if not loop.last }}
    {% endfor -%}
{%- endmacro %}

{#- The five estimators; a is the number of sessions a year. -#}
{% macro volatility_estimates(lengths) -%}
    {% for n in lengths -%}
    {%- set k = '0.34 / (1.34 + (observations_' ~ n ~ ' + 1) / (observations_' ~ n ~ ' - 1))' -%}
    observations_{{ n }},
    {{ estimate('a * variance_' ~ n, 'observations_' ~ n, n) }} as close_to_close_{{ n }},
    {{ estimate('a / (4 * ln(2)) * squared_range_' ~ n, 'observations_' ~ n, n) }} as parkinson_{{ n }},
    {{ estimate('a * garman_klass_term_' ~ n, 'observations_' ~ n, n) }} as garman_klass_{{ n }},
    {{ estimate('a * rogers_satchell_term_' ~ n, 'observations_' ~ n, n) }} as rogers_satchell_{{ n }},
    {{ estimate(
        'a * (overnight_variance_' ~ n ~ ' + ' ~ k ~ ' * intraday_variance_' ~ n
        ~ ' + (1 - ' ~ k ~ ') * rogers_satchell_term_' ~ n ~ ')',
        'observations_' ~ n, n
    ) }} as yang_zhang_{{ n }}{{ "," if not loop.last }}
    {% endfor -%}
{%- endmacro %}

{% macro volatility_names(lengths) -%}
    {%- set names = [] -%}
    {%- for n in lengths -%}
        {%- for estimator in ['close_to_close', 'parkinson', 'garman_klass', 'rogers_satchell', 'yang_zhang'] -%}
            {%- do names.append(estimator ~ '_' ~ n) -%}
        {%- endfor -%}
    {%- endfor -%}
    {{- return(names) -}}
{%- endmacro %}

{#- The index of the last bar at or before so many months of m sessions ago, at most ten sessions older. -#}
{% macro months_before(lengths) -%}
    {% for months in lengths -%}
    last_value(here) over (
        partition by instrument_id, seen_at
        order by session_seq
        range between {{ months }} * m + 10 preceding and {{ months }} * m preceding
    ) as before_{{ months }}{{ "," if not loop.last }}
    {% endfor -%}
{%- endmacro %}

{#- What an index grew by from one place to another; null if a return between is. -#}
{% macro growth(end, start) -%}
    (case when {{ end }}.breaks = {{ start }}.breaks then exp(({{ end }}.log_index - {{ start }}.log_index) / 1e18) - 1 end)
{%- endmacro %}

{#- Rank and score among everyone with a value. A mean is of whole numbers of 1e-18: it must not depend on their order. -#}
{% macro ranks_of(measures) -%}
    {% for measure in measures -%}
    case when {{ measure }} is not null and count({{ measure }}) over everyone > 1 then percent_rank() over (
        partition by asset_class, market, session_date, moment, {{ measure }} is null order by round({{ measure }}, 12)
    ) end as {{ measure }}_rank,
    case when count({{ measure }}) over everyone > 1 then
        (
            {{ measure }}
            - sum(round({{ measure }} * 1e18)::hugeint) over everyone / 1e18 / count({{ measure }}) over everyone
        ) / nullif(stddev_samp({{ measure }}) over everyone, 0)
    end as {{ measure }}_z{{ "," if not loop.last }}
    {% endfor -%}
{%- endmacro %}

{% macro measures_and_ranks(measures) -%}
    {%- set names = [] -%}
    {%- for measure in measures -%}
        {%- for kind in ['', '_scaled', '_rank', '_z'] -%}{%- do names.append(measure ~ kind) -%}{%- endfor -%}
    {%- endfor -%}
    {{- return(names) -}}
{%- endmacro %}
