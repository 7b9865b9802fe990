{#-
    What a build's tests look at: the partitions that were written since the published version, so that testing
    costs by what is new. A model says in its meta how its rows follow from the records:

        test_scope: {column: event_time::date, changed: event_date, in: [int_trades__versioned]}

    With the var test_everything (`mdp verify --tables`), and for models without a scope, tests see every row.
-#}
{% macro get_where_subquery(relation) -%}
    {%- set conditions = [] -%}
    {%- if config.get('where') -%}{%- do conditions.append(config.get('where')) -%}{%- endif -%}
    {%- set scope = scope_of(relation) if execute and not var('test_everything') and not flags.FULL_REFRESH else none -%}
    {%- if scope -%}{%- do conditions.append(scope) -%}{%- endif -%}
    {%- if conditions -%}
        (select * from {{ relation }} where ({{ conditions | join(') and (') }})) as dbt_subquery
    {%- else -%}
        {{ relation }}
    {%- endif -%}
{%- endmacro %}

{% macro scope_of(relation) -%}
    {%- set found = [] -%}
    {%- for node in graph.nodes.values() if node.resource_type == 'model' and node.alias == relation.identifier
        and node.schema == relation.schema and node.config.meta.get('test_scope') -%}
        {%- do found.append(node.config.meta.test_scope) -%}
    {%- endfor -%}
    {%- if not found -%}{{- return(none) -}}{%- endif -%}
    {%- set scope = found[0] -%}
    {%- set published = ask("select published_load_seq from raw.main.build_window", 0) -%}
    {%- set values = [] -%}
    {%- for table in scope['in'] if adapter.get_relation('lake', 'versioned', table) -%}
        {%- for value in run_query(
            "select distinct (" ~ scope.changed ~ ")::varchar as changed from lake.versioned." ~ table
            ~ " where build_seq > " ~ published
        ).columns[0].values() if value is not none -%}
            {%- do values.append("'" ~ adapter.escape_sql_string(value | string) ~ "'") -%}
        {%- endfor -%}
    {%- endfor -%}
    {{- return("(" ~ scope.column ~ ")::varchar in (" ~ (values | unique | sort | join(', ')) ~ ")" if values else "false") -}}
{%- endmacro %}
