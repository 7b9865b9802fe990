{#- What dbt asks the catalog at the start of each run, in place of the adapter's own queries: those have DuckLake read
    the statistics of all tables for each schema, and find no schema by its quoted name, so that all are made anew. -#}

{% macro duckdb__list_relations_without_caching(schema_relation) %}
  {%- set is_here %}
    lower(database_name) = '{{ schema_relation.database | lower }}'
    and lower(schema_name) = '{{ schema_relation.schema | lower }}'
  {%- endset -%}
  {%- call statement('list_relations_without_caching', fetch_result=true) -%}
    -- Of a view whose table is gone nobody knows the columns.
    with views as (
        select schema_name, view_name as name from duckdb_views() where {{ is_here }}
    )

    select '{{ schema_relation.database }}' as database, name, schema_name as schema, 'view' as type
    from views
    union all
    select distinct '{{ schema_relation.database }}' as database, table_name as name, schema_name as schema, 'table' as type
    from duckdb_columns()
    where {{ is_here }} and (schema_name, table_name) not in (select (schema_name, name) from views)
  {%- endcall -%}
  {{ return(load_result('list_relations_without_caching').table) }}
{% endmacro %}


{% macro duckdb__list_schemas(database) -%}
  {{ return(run_query("select schema_name from duckdb_schemas() where lower(database_name) = '"
      ~ (database or '') | replace('"', '') | lower ~ "'")) }}
{%- endmacro %}
