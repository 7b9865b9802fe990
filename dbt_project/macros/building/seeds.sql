{#- Empties a seed's table before its rows are written; where the table has other columns than the seed, as one that an
    earlier version of the project made, it makes the table anew. Called by dbt's materialization of seeds. -#}
{% macro duckdb__reset_csv_table(model, full_refresh, old_relation, agate_table) -%}
    {%- set stored = adapter.get_columns_in_relation(old_relation) | map(attribute='name') | list -%}
    {%- set is_other = stored != agate_table.column_names | list -%}
    {{- return(dbt.default__reset_csv_table(model, full_refresh or is_other, old_relation, agate_table)) -}}
{%- endmacro %}
