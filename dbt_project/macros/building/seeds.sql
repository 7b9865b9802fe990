{#- Empties a seed's table before its rows are written; where the table has other columns than the seed, or others than
    the types of column_types (by DuckDB's own names), as one that an earlier version of the project made, it makes the
    table anew. Called by dbt's materialization of seeds. -#}
{% macro duckdb__reset_csv_table(model, full_refresh, old_relation, agate_table) -%}
    {%- set stored = adapter.get_columns_in_relation(old_relation) -%}
    {%- set types = model.config.column_types -%}
    {%- set names, of_other_type = [], [] -%}
    {%- for column in stored -%}
        {%- do names.append(column.name) -%}
        {%- if types.get(column.name, column.dtype) | lower != column.dtype | lower -%}
            {%- do of_other_type.append(column.name) -%}
        {%- endif -%}
    {%- endfor -%}
    {%- set is_other = names != agate_table.column_names | list or of_other_type != [] -%}
    {{- return(dbt.default__reset_csv_table(model, full_refresh or is_other, old_relation, agate_table)) -}}
{%- endmacro %}
