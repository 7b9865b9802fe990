{#-
    What a build's tests look at: what was written since the published version, so that testing costs by what is new. A
    model says in its meta which of its rows follow from which changed ones:

        test_scope: {column: event_time, of: dates, changed: event_date, in: [int_trades__versioned]}

    `of: dates` compares a date or time column with literal dates, by which files are pruned; `of: since`
    with the first of them; `of: values` any other column. `in` names versioned models, or `loads` for the loads themselves. With the var test_everything (`mdp verify
    --tables`), in a full refresh, and for models without a scope, tests see every row.
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
    {%- set published = ask_value("select published_load_seq from raw.main.build_window", 0) -%}
    {%- set values = [] -%}
    {%- for table in scope['in'] if table == 'loads' or adapter.get_relation('lake', 'versioned', table) -%}
        {%- set changed = "lake.observability.loads where load_seq > " if table == 'loads'
            else "lake.versioned." ~ table ~ " where build_seq > " -%}
        {%- do values.extend(ask_values(
            "select distinct (" ~ scope.changed ~ ")::varchar as changed from " ~ changed ~ published
        ) | select | list) -%}
    {%- endfor -%}
    {%- if scope.of == 'since' -%}
        {{- return(scope.column ~ " >= '" ~ (values | min) ~ "'" if values else "false") -}}
    {%- endif -%}
    {{- return(in_dates(scope.column, values) if scope.of == 'dates' else in_values(scope.column, values)) -}}
{%- endmacro %}

{#- Whether a column has one of the values, as literals. -#}
{% macro in_values(column, values) -%}
    {%- set literals = [] -%}
    {%- for value in values | unique -%}{%- do literals.append("'" ~ adapter.escape_sql_string(value | string) ~ "'") -%}{%- endfor -%}
    {{- return(column ~ " in (" ~ literals | join(', ') ~ ")" if literals else "false") -}}
{%- endmacro %}

{#-
    Whether a date or time column falls on one of the dates, in the form by which DuckLake prunes files: ranges with
    literal bounds, and nothing wrapped round the column. Neighbouring dates are one range.
-#}
{% macro in_dates(column, dates) -%}
    {%- set ranges = [] -%}
    {%- for value in dates | unique | sort -%}
        {%- set first = modules.datetime.date.fromisoformat(value) -%}
        {%- set next = first + modules.datetime.timedelta(days=1) -%}
        {%- if ranges and ranges[-1][1] == first -%}
            {%- do ranges.append((ranges.pop()[0], next)) -%}
        {%- else -%}
            {%- do ranges.append((first, next)) -%}
        {%- endif -%}
    {%- endfor -%}
    {%- set conditions = [] -%}
    {%- for first, next in ranges -%}
        {%- do conditions.append("(" ~ column ~ " >= '" ~ first ~ "' and " ~ column ~ " < '" ~ next ~ "')") -%}
    {%- endfor -%}
    {{- return("(" ~ conditions | join(' or ') ~ ")" if conditions else "false") -}}
{%- endmacro %}
