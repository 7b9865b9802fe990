{#-
    The changed rows of a table in place of those of the same key. Where the key begins with the load, only rows of earlier
    loads can be there already: their literal numbers let DuckLake read the files that hold them, and no others.
-#}
{% macro duckdb__get_delete_insert_merge_sql(target, source, unique_key, dest_columns, incremental_predicates) -%}
    {%- set keys = [unique_key] if unique_key is string else unique_key -%}
    {%- set columns = get_quoted_csv(dest_columns | map(attribute='name')) -%}
    {%- set is_of_loads = keys[0] == 'load_seq' -%}
    {%- set earlier = run_query(
        "select distinct load_seq from " ~ source ~ " where load_seq <= " ~ mark() ~ " order by load_seq"
    ).columns[0].values() if is_of_loads else [] -%}
    {% if earlier or not is_of_loads -%}
    delete from {{ target }}
    where {% if is_of_loads %}load_seq in ({{ earlier | join(', ') }}) and {% endif %}({{ keys | join(', ') }}) in (
        select ({{ keys | join(', ') }}) from {{ source }}
    );
    {%- endif %}
    insert into {{ target }} ({{ columns }}) select {{ columns }} from {{ source }}
{%- endmacro %}
