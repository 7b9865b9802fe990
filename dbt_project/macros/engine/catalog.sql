{#- What dbt asks the catalog at the start of each run, in place of the adapter's own queries: those have DuckLake read
    the statistics of all tables for each schema, and find no schema by its quoted name, so that all are made anew. -#}

{% macro duckdb__list_relations_without_caching(schema_relation) %}
  {%- call statement('list_relations_without_caching', fetch_result=true) -%}
    with relations as (
        select distinct database_name, schema_name, table_name
        from duckdb_columns()
        where lower(database_name) = '{{ schema_relation.database | lower }}'
            and lower(schema_name) = '{{ schema_relation.schema | lower }}'
    )

    select
        '{{ schema_relation.database }}' as database,
        table_name as name,
        relations.schema_name as schema,
        case when view_name is null then 'table' else 'view' end as type
    from relations
    left join duckdb_views() as views
        on relations.database_name = views.database_name
        and relations.schema_name = views.schema_name
        and relations.table_name = views.view_name
  {%- endcall -%}
  {{ return(load_result('list_relations_without_caching').table) }}
{% endmacro %}


{% macro duckdb__list_schemas(database) -%}
  {{ return(run_query("select schema_name from duckdb_schemas() where lower(database_name) = '"
      ~ (database or '') | replace('"', '') | lower ~ "'")) }}
{%- endmacro %}
