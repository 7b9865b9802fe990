{#-
    What a build's tests look at: what a model took in since it was published, so that testing costs by what is new. A
    model says in its meta which of its rows follow from which changed ones:

        test_scope: {column: bar_start, of: dates, changed: event_date, in: [int_trades__versioned]}

    `of: dates` compares a date or time column with literal dates, by which files are pruned; `of: times` a time column with
    the first and the last time that changed on each date, which in a live build are seconds of a long day;
    `of: since` a date with the first that changed; `of: values` any other column. `in` names versioned models, or `loads`
    for the loads themselves; where they differ, `changed` has an expression for each. With the var test_everything
    (`mdp verify --tables`), in a full refresh, and for models without a scope, tests see every row.
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
        {%- do found.append(node) -%}
    {%- endfor -%}
    {%- if not found -%}{{- return(none) -}}{%- endif -%}
    {%- set scope = found[0].config.meta.test_scope -%}
    {%- set since = published_mark(found[0]) -%}
    {%- if since is none -%}{{- return(none) -}}{%- endif -%}
    {%- set values = [] -%}
    {%- for table in scope['in'] if table == 'loads'
        or (not has_nothing_since(table, since) and adapter.get_relation('lake', 'versioned', table)) -%}
        {%- set column = scope.changed[table] if scope.changed is mapping else scope.changed -%}
        {%- set what = "unnest([min(" ~ column ~ "), max(" ~ column ~ ")])" if scope.of == 'times'
            else "distinct (" ~ column ~ ")" -%}
        {%- set changed = "lake.observability.loads where load_seq > " if table == 'loads'
            else "lake.versioned." ~ table ~ " where build_seq > " -%}
        {%- do values.extend(ask_values(
            "select " ~ what ~ "::varchar as changed from " ~ changed ~ since
            ~ (" group by " ~ column ~ "::date" if scope.of == 'times' else '')
        ) | select | list) -%}
    {%- endfor -%}
    {%- if scope.of == 'values' -%}{{- return(in_values(scope.column, values)) -}}{%- endif -%}
    {%- if scope.of == 'since' -%}
        {{- return(scope.column ~ " >= '" ~ (values | min) ~ "'" if values else "false") -}}
    {%- endif -%}
    {{- return(in_dates(scope.column, values) if scope.of == 'dates' else in_times(scope.column, values)) -}}
{%- endmacro %}

{#- How far a model had come in the published version, which may be behind others there; none where it has no mark: all of it is
    new. A view holds what its tables hold. -#}
{% macro published_mark(node) -%}
    {%- if node.config.materialized not in keeps_a_mark() -%}
        {{- return(ask_value("select published_load_seq from raw.main.build_window", 0)) -}}
    {%- endif -%}
    {{- return(published_progress().get(node.alias)) -}}
{%- endmacro %}

{#- The marks of the published version, by model. -#}
{% macro published_progress() -%}
    {%- set version = ask_value("select max(version) from lake.observability.releases") -%}
    {%- set found = {} -%}
    {%- set query = "select model, load_seq from lake.observability.progress at (version => " ~ version ~ ")" -%}
    {%- for name, load_seq in (ask(query) if version is not none else []) -%}
        {%- do found.update({name: load_seq}) -%}
    {%- endfor -%}
    {{- return(found) -}}
{%- endmacro %}

{#- Whether a time column lies between the first and the last of the times, date by date. -#}
{% macro in_times(column, times) -%}
    {%- set spans = {} -%}
    {%- for time in times | sort -%}
        {%- do spans.update({time[:10]: (spans.get(time[:10], (time, time))[0], time)}) -%}
    {%- endfor -%}
    {{- return(in_ranges(column, spans.values(), '<=')) -}}
{%- endmacro %}

{#- Whether a column lies in one of the ranges, whose bounds are literals; the second is left out, or with '<=' taken in. -#}
{% macro in_ranges(column, ranges, until='<') -%}
    {%- set conditions = [] -%}
    {%- for first, last in ranges -%}
        {%- do conditions.append("(" ~ column ~ " >= '" ~ first ~ "' and " ~ column ~ " " ~ until ~ " '" ~ last ~ "')") -%}
    {%- endfor -%}
    {{- return("(" ~ conditions | join(' or ') ~ ")" if conditions else "false") -}}
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
    {{- return(in_ranges(column, ranges)) -}}
{%- endmacro %}
