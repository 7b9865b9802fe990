{#- What the registry says of a record's feed, in a column of seeds/feeds.csv. (Of a join DuckDB expects many times as many rows
    as there are, and parts what it sorts afterwards into hundreds of pieces.) -#}
{% macro of_feed(column) -%}
    (select map(list(feed), list({{ column }})) from {{ ref('feeds') }})[feed]
{%- endmacro %}
