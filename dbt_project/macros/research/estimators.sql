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
