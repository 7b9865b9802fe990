{#- The last word of an invocation, by which the head may be built upon or published (market_data/publishing.py). -#}
{% macro finish_run(results) -%}
    {%- set bad = [] -%}
    {%- for result in results
        if result.status | string in ('error', 'fail', 'runtime error', 'skipped')
        and result.node.resource_type != 'unit_test' -%}
        {%- do bad.append(result.node.name) -%}
    {%- endfor -%}
    {%- set behind = [] -%}
    {%- set come = progress() -%}
    {%- set last_load_seq = window_end() -%}
    {#- Snapshots last: whether one has news costs a look, and one that is behind is enough. -#}
    {%- for type in ['model', 'snapshot'] -%}
        {%- for node in graph.get('nodes', {}).values()
            if node.resource_type == type and node.config.materialized in keeps_a_mark()
            and come.get(node.alias, 0) < last_load_seq -%}
            {%- if not (behind or is_snapshot_without_news(node.alias, come)) -%}{%- do behind.append(node.name) -%}{%- endif -%}
        {%- endfor -%}
    {%- endfor -%}
    {#- Tests that pass write nothing and change nothing; unit tests are of the code alone. -#}
    {%- if flags.WHICH in ('build', 'run', 'snapshot', 'seed') or (flags.WHICH == 'test' and bad) -%}
        insert into lake.observability.runs (invocation_id, event, command, happened_at)
        values (
            '{{ invocation_id }}',
            '{{ "failed" if bad else "incomplete" if behind else "succeeded" }}',
            'dbt {{ flags.WHICH }}{{ " --full-refresh" if flags.FULL_REFRESH }}',
            now()::timestamp
        )
    {%- else -%}
        select 1
    {%- endif -%}
{%- endmacro %}
