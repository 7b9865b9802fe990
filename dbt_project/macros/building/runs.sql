{#- The last word of an invocation: only what ends well can be built upon or published (market_data/publishing.py). -#}
{% macro finish_run(results) -%}
    {%- if flags.WHICH in ('build', 'run', 'snapshot', 'seed', 'test') -%}
        {%- set bad = results | map(attribute='status') | map('string') | select('in', ['error', 'fail', 'runtime error', 'skipped']) | list -%}
        insert into lake.observability.runs (invocation_id, event, command, happened_at)
        values ('{{ invocation_id }}', '{{ "failed" if bad else "succeeded" }}', 'dbt {{ flags.WHICH }}', now()::timestamp)
    {%- else -%}
        select 1
    {%- endif -%}
{%- endmacro %}
