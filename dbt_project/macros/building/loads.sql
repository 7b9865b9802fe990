{#-
    What a build reads. The writer that opens the lake (market_data/lake_plugin.py) enters each new entry of the
    raw zone's ledger in lake.observability.loads under the next load_seq, and closes the build's window there:
    raw.main.build_window holds its last load_seq. Each incremental model keeps its own mark, the last load_seq
    that it has processed, in lake.observability.progress, written in the transaction that writes its rows. So a
    model reads the loads in (its mark, end of the window], whatever was killed, skipped or selected before.
    raw.main.progress holds the marks as the build found them, where asking costs nothing.
-#}

{#- The rows that a query answers while models run; none while dbt parses. A build asks each question once, so it must be
    one whose answer no later model of the build changes. (The graph is the one thing that all nodes of a build share.) -#}
{% macro ask(query) -%}
    {%- if not execute -%}{{- return([]) -}}{%- endif -%}
    {%- if graph.get('answers_of') != invocation_id -%}
        {%- do graph.update({'answers_of': invocation_id, 'answers': {}}) -%}
    {%- endif -%}
    {%- if query not in graph.answers -%}
        {%- do graph.answers.update({query: run_query(query).rows | map('list') | list}) -%}
    {%- endif -%}
    {{- return(graph.answers[query]) -}}
{%- endmacro %}

{#- The first column of what a query answers. -#}
{% macro ask_values(query) -%}
    {{- return(ask(query) | map('first') | list) -}}
{%- endmacro %}

{#- The one value that a query answers; `fallback` while dbt parses. -#}
{% macro ask_value(query, fallback=none) -%}
    {{- return(ask_values(query) | first if ask(query) else fallback) -}}
{%- endmacro %}

{#- The last load_seq of this build. -#}
{% macro window_end() -%}
    {{- return(ask_value("select last_load_seq from raw.main.build_window", 0)) -}}
{%- endmacro %}

{#- How far each model has come, now or `at_start` of the build: its name and the last load_seq that it has processed. -#}
{% macro progress(at_start=false) -%}
    {%- set found = {} -%}
    {%- set marks = ask("select model, load_seq from raw.main.progress") if at_start
        else run_query("select model, load_seq from lake.observability.progress").rows if execute else [] -%}
    {%- for row in marks -%}
        {%- do found.update({row[0]: row[1]}) -%}
    {%- endfor -%}
    {{- return(found) -}}
{%- endmacro %}

{#- This model's own mark, as a literal. (A macro of its own so that unit tests can override it.) -#}
{% macro mark() -%}
    {{- return(progress(at_start=true).get(this.identifier, 0) if is_incremental() else 0) -}}
{%- endmacro %}

{#-
    Written with a model's rows, in their transaction: it has processed everything up to the window's end, or as far as
    the models that it reads have come; what those have not processed is to be seen by it later.
-#}
{% macro note_progress() -%}
    {%- if not execute -%}{{- return("select 1") -}}{%- endif -%}
    {%- set marks = [window_end()] -%}
    {%- set come = progress() -%}
    {%- for name in marked_parents(model.depends_on.nodes) -%}
        {%- do marks.append(window_end() if is_snapshot_without_news(name, come) else come.get(name, 0)) -%}
    {%- endfor -%}
    delete from lake.observability.progress where model = '{{ this.identifier }}';
    insert into lake.observability.progress values ('{{ this.identifier }}', {{ marks | min }}, '{{ invocation_id }}')
{%- endmacro %}

{#- `dbt run` runs no snapshot. One that has read all that its models hold needs no run, and holds nobody back. -#}
{% macro is_snapshot_without_news(name, come) -%}
    {%- for node in graph.nodes.values()
        if node.resource_type == 'snapshot' and node.alias == name and 0 < come.get(name, 0) < window_end() -%}
        {%- for id in node.depends_on.nodes if graph.nodes[id].config.materialized == 'incremental' -%}
            {%- set parent = graph.nodes[id] -%}
            {%- set unread = run_query(
                "select count(*) from " ~ parent.relation_name ~ " where build_seq > " ~ come.get(name, 0)
            ).columns[0].values()[0] -%}
            {%- if unread or come.get(parent.alias, 0) < window_end() -%}{{- return(false) -}}{%- endif -%}
        {%- endfor -%}
        {{- return(true) -}}
    {%- endfor -%}
    {{- return(false) -}}
{%- endmacro %}

{#- The tables with marks that are read, directly or through views. -#}
{% macro marked_parents(ids) -%}
    {%- set names = [] -%}
    {%- for id in ids if id in graph.nodes -%}
        {%- if graph.nodes[id].config.materialized in keeps_a_mark() -%}
            {%- do names.append(graph.nodes[id].alias) -%}
        {%- elif graph.nodes[id].config.materialized == 'view' -%}
            {%- do names.extend(marked_parents(graph.nodes[id].depends_on.nodes)) -%}
        {%- endif -%}
    {%- endfor -%}
    {{- return(names) -}}
{%- endmacro %}

{#- The materializations whose tables keep a mark of their own. -#}
{% macro keeps_a_mark() -%}
    {{- return(['incremental', 'snapshot']) -}}
{%- endmacro %}

{#- After which load a staging model must read: the least mark of the incremental models that read it. A model that starts
    from nothing, or whose table is not there, needs them all. -#}
{% macro least_mark_downstream(come=none) -%}
    {%- set marks = [window_end()] -%}
    {%- set come = progress(at_start=true) if come is none else come -%}
    {%- for node in graph.nodes.values()
        if model.unique_id in node.depends_on.nodes and node.config.materialized == 'incremental' -%}
        {%- set starts_anew = flags.FULL_REFRESH or not adapter.get_relation(node.database, node.schema, node.alias) -%}
        {%- do marks.append(0 if starts_anew else come.get(node.alias, 0)) -%}
    {%- endfor -%}
    {{- return(marks | min) -}}
{%- endmacro %}

{#-
    Points raw.main.<feed> at the files of the loads that a staging model must read: those that some incremental
    model downstream has not processed. An entry that delivers bytes which are there already points to the files of
    another load, so load_id, source and source_time always come from the entry. Where a seal has replaced a file, its
    rows are those of the seal's files that have the load_id which they were written with.
-#}
{% macro open_raw() -%}
    {%- if not execute -%}{{- return("select 1") -}}{%- endif -%}
    {%- set feed = model.config.meta.feed -%}
    {%- set raw_zone = ask_value("select raw_zone from raw.main.build_window") -%}
    {%- set loads = loads_and_files(feed, least_mark_downstream()) -%}
    {%- set found = run_query("select distinct file, seal_id from (" ~ loads ~ ") order by file").rows | map('list') | list -%}
    {%- set open_files = found | rejectattr(1) | map('first') | list -%}
    {%- set seals = found | map('last') | select | list -%}
    {%- set sealed_files = run_query(
        "select distinct unnest(files) as file from lake.observability.loads where outcome = 'sealed'"
        ~ " and " ~ in_values('load_id', seals) ~ " order by file"
    ).columns[0].values() if seals else [] -%}
    {%- set columns = run_query(
        "select column_name from duckdb_columns() where database_name = 'raw' and table_name = '" ~ feed ~ "__nothing'"
        ~ " and column_name not in ('__file', 'load_id', 'source', 'source_time') order by column_index"
    ).columns[0].values() -%}
    create or replace view raw.main.{{ adapter.quote(feed) }} as
    {% if open_files or sealed_files -%}
    with loads as ({{ loads }})

    -- The feed's own columns by name: one that a vendor adds lands, and is not read before somebody means to.
    select
        {{ envelope_of_loads(columns) }}
    from ({{ rows_of(feed, raw_zone, open_files) }}) as stored
    inner join (
        select *, '{{ adapter.escape_sql_string(raw_zone) }}' || file as path from loads where seal_id is null
    ) as loads on stored.__file = loads.path
    union all
    select
        {{ envelope_of_loads(columns) }}
    from ({{ rows_of(feed, raw_zone, sealed_files) }}) as stored
    inner join (
        select distinct on (load_seq, stored_load_id) * from loads where seal_id is not null
    ) as loads on stored.load_id = loads.stored_load_id
    {%- else -%}
    select * exclude (__file), null::bigint as load_seq from raw.main.{{ adapter.quote(feed ~ '__nothing') }}
    {%- endif -%}
{%- endmacro %}

{#- The loads of this build after a load_seq, a row for each file that their entries name, and what has become of it. -#}
{% macro loads_and_files(feed, after) -%}
    select load_seq, loads.load_id, source, source_time, file, sealed.load_id as stored_load_id, seal_id
    from (
        select load_seq, load_id, source, source_time, unnest(files) as file
        from lake.observability.loads
        where feed = '{{ feed }}' and load_seq > {{ after }} and load_seq <= {{ window_end() }} and outcome = 'loaded'
    ) as loads
    left join lake.observability.sealed using (file)
{%- endmacro %}

{#- The columns of `stored` rows, and whose they are. -#}
{% macro envelope_of_loads(columns) -%}
    {% for column in columns -%}
    stored.{{ adapter.quote(column) }},
    {% endfor -%}
    loads.load_seq,
    loads.load_id,
    loads.source,
    coalesce(loads.source_time, stored.source_time) as source_time
{%- endmacro %}

{#- All rows of raw files, with the columns of the feed there in any case. -#}
{% macro rows_of(feed, raw_zone, files) -%}
    select * from raw.main.{{ adapter.quote(feed ~ '__nothing') }}
    {% if files -%}
    union all by name
    select * from read_parquet(
        [{% for file in files %}'{{ adapter.escape_sql_string(raw_zone ~ file) }}'{{ ", " if not loop.last }}{% endfor %}],
        filename = '__file', union_by_name = true, hive_partitioning = false
    )
    {%- endif %}
{%- endmacro %}

{#- Remembers which loads a staging table holds, so that a model selected without its parents says so. -#}
{% macro note_staged() -%}
    {%- if not execute -%}{{- return("select 1") -}}{%- endif -%}
    {%- set after = least_mark_downstream() -%}
    create table if not exists scratch.staging.staged (model varchar primary key, after_seq bigint, to_seq bigint);
    insert or replace into scratch.staging.staged values ('{{ this.identifier }}', {{ after }}, {{ window_end() }})
{%- endmacro %}

{#- A staging model's records that this model has not processed yet; with `raw`, as they stand in the raw zone, which only the
    invocation that builds the staging model has open. One that is not built because there are none for it may hold what
    another build left. -#}
{% macro unseen(staging_model, raw=false) -%}
    {%- set staged = ref(staging_model) -%}
    {%- set relation = source('raw', staging_model.removeprefix('stg_')) if raw else staged -%}
    {%- if execute and flags.WHICH in ('run', 'build') and staging_model not in selected_models() -%}
        {%- if (raw or adapter.get_relation('scratch', 'staging', staging_model)) and not has_news(staging_model) -%}
            {{- return("(select * from " ~ relation ~ " where false)") -}}
        {%- endif -%}
        {%- set holds = ask_value(
            "select count(*) from scratch.staging.staged where model = '" ~ staging_model ~ "' and after_seq <= " ~ mark()
            ~ " and to_seq >= " ~ window_end(), 0
        ) if not raw and adapter.get_relation('scratch', 'staging', 'staged') else 0 -%}
        {%- if not holds and mark() < window_end() -%}
            {%- do exceptions.raise_compiler_error(
                model.name ~ " needs loads that " ~ staging_model ~ " does not hold; select its parents too: dbt build --select +"
                ~ model.name
            ) -%}
        {%- endif -%}
    {%- endif -%}
    (select * from {{ relation }} where load_seq > {{ mark() }})
{%- endmacro %}

{#- Whether a staging model's feed has loads that this model has not processed. -#}
{% macro has_news(staging_model) -%}
    {%- for node in graph.nodes.values() if node.resource_type == 'model' and node.name == staging_model -%}
        {{- return(ask_value(
            "select count(*) from lake.observability.loads where feed = '" ~ node.config.meta.feed ~ "' and outcome = 'loaded'"
            ~ " and load_seq > " ~ mark() ~ " and load_seq <= " ~ window_end(), 0
        ) > 0) -}}
    {%- endfor -%}
{%- endmacro %}

{% macro selected_models() -%}
    {%- set names = [] -%}
    {%- for unique_id in selected_resources -%}{%- do names.append(unique_id.split('.')[-1]) -%}{%- endfor -%}
    {{- return(names) -}}
{%- endmacro %}

{#- Of a versioned table's rows, those that this model has not seen: what the table took in since this model's mark. -#}
{% macro is_new(table) -%}
    {{- return("false" if has_nothing_since(table, mark()) else "build_seq > " ~ mark()) -}}
{%- endmacro %}

{#- Whether a table is known to have no row of a load after this one, without a look: `mdp` says which tables the loads since
    the published version do not reach. A look at one of many costs more than all of a small build's rows. -#}
{% macro has_nothing_since(table, load_seq) -%}
    {{- return(
        table in var('tables_not_reached')
        and load_seq >= ask_value("select published_load_seq from raw.main.build_window", 0)
    ) -}}
{%- endmacro %}

{#- The loads to be counted anew since this model's mark, each with a table that has news of it or with none: the new ones,
    and those of which a late record turned a duplicate into a revision. -#}
{% macro touched_loads(tables) -%}
    {%- set changes = ["select load_seq, '' as table_name from lake.observability.loads where load_seq > " ~ mark()] -%}
    {%- for table in tables -%}
        {%- set name = 'int_' ~ table ~ '__versioned' -%}
        {%- set change = "select load_seq, '" ~ table ~ "' as table_name from " ~ ref(name) ~ " where " ~ is_new(name) -%}
        {%- if not has_nothing_since(name, mark()) -%}{%- do changes.append(change) -%}{%- endif -%}
    {%- endfor -%}
    {{- return(ask(changes | join(" union "))) -}}
{%- endmacro %}

{#- Whether a row is of such a load. With literal numbers, by which DuckLake prunes files. -#}
{% macro is_touched_load(tables) -%}
    {%- if not execute or mark() == 0 -%}{{- return("true") -}}{%- endif -%}
    {%- set loads = touched_loads(tables) | map('first') | unique | sort -%}
    {{- return("load_seq in (" ~ loads | join(", ") ~ ")" if loads else "false") -}}
{%- endmacro %}

{#- The tables that can hold records of such loads. All rows of new loads are news; an earlier load may have others. -#}
{% macro tables_of_touched_loads(tables) -%}
    {%- if not execute or mark() == 0 or touched_loads(tables) | map('first') | select('le', mark()) | list -%}
        {{- return(tables) -}}
    {%- endif -%}
    {%- set names = touched_loads(tables) | map('last') | select | unique | sort -%}
    {{- return(names or tables[:1]) -}}
{%- endmacro %}
