{#- One staging model a feed, stg_<feed>. (A list, not a look at the graph: dbt must see the refs while it parses.) -#}
{% macro staging_models() -%}
    {{- return([
        'stg_alfred_observations', 'stg_binance_spot', 'stg_coinbase_exchange', 'stg_index_membership', 'stg_massive_day_aggs',
        'stg_massive_dividends', 'stg_massive_minute_aggs', 'stg_massive_quotes', 'stg_massive_splits',
        'stg_massive_ticker_events', 'stg_massive_trades', 'stg_openfigi_mapping'
    ]) -}}
{%- endmacro %}
