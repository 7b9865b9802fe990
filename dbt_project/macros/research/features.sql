{#- The tables that features_1d joins, and the columns it takes of each. -#}
{% macro feature_tables() -%}
    {%- set volatility = [] -%}
    {%- for n in [5, 20, 60, 252] -%}
        {%- for estimator in ['close_to_close', 'parkinson', 'garman_klass', 'rogers_satchell', 'yang_zhang', 'observations'] -%}
            {%- do volatility.append(estimator ~ '_' ~ n) -%}
        {%- endfor -%}
    {%- endfor -%}
    {%- set momentum = [] -%}
    {%- for measure in ['momentum_3_1', 'momentum_6_1', 'momentum_12_1', 'reversal_1m'] -%}
        {%- for kind in ['', '_scaled', '_rank', '_z'] -%}{%- do momentum.append(measure ~ kind) -%}{%- endfor -%}
    {%- endfor -%}
    {{- return({
        'bars_1d_adjusted': [
            'open', 'high', 'low', 'close', 'volume', 'vwap', 'trade_count', 'bar_source', 'split_factor', 'total_factor'
        ],
        'returns_1d': [
            'gap_sessions', 'return_simple', 'return_log', 'return_total', 'return_total_log', 'return_overnight', 'return_intraday'
        ],
        'volatility_1d': volatility,
        'momentum_1d': momentum,
        'liquidity_1d': [
            'dollar_volume', 'adv_20', 'amihud_20', 'amihud_252', 'quoted_spread_bps', 'effective_spread_bps', 'volume_observations_20',
            'observations_20 as liquidity_observations_20', 'observations_252 as liquidity_observations_252'
        ]
    }) -}}
{%- endmacro %}

{#- Their columns, from relations that are named as they are. -#}
{% macro feature_columns() -%}
    {%- for table, columns in feature_tables().items() -%}
        {%- set outer = loop -%}
        {%- for column in columns %}
    {{ table }}.{{ column }}{{ "," if not (outer.last and loop.last) }}
        {%- endfor -%}
    {%- endfor -%}
{%- endmacro %}

{#- When the newest of the joined rows became known. -#}
{% macro newest_known_from() -%}
    greatest({% for table in feature_tables() %}{{ table }}.known_from{{ ", " if not loop.last }}{% endfor %})
{%- endmacro %}
