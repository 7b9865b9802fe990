{#-
    Snapshots: dbt's own, fed delivery by delivery.

        states (the snapshot's query: one row per key and delivery that changed it)
          └─ forget the keys whose fed states are not their first states any more (an older delivery came late)
          └─ for each next delivery of a key: dbt's timestamp strategy closes the row before, and opens the new one

    dbt feeds a snapshot the present state once a run, so it loses what several deliveries said between two runs, and takes
    a late one for the newest. Here the query says all states, and each run feeds those that are missing, one delivery of
    a key after the other. What a snapshot holds is therefore a function of the deliveries, not of when dbt ran, and
    --full-refresh, which dbt ignores for snapshots, makes it anew from all of them.
-#}
{% materialization snapshot, adapter='duckdb' -%}
    {%- set target = this.incorporate(type='table') -%}
    {%- set states = make_temp_relation(target, '__states') -%}
    {%- set next = make_temp_relation(target, '__next') -%}
    {%- set key = config.require('unique_key') | join(', ') -%}
    {%- set delivered_at = config.require('updated_at') -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {%- set is_there = load_cached_relation(this) is not none -%}
    {% call statement('states') %}
        {{ create_table_as(True, states, sql) }}
    {% endcall %}
    {%- if is_there and flags.FULL_REFRESH -%}
        {#- Emptied, not dropped: who restores the published version need not copy it back whole. -#}
        {% call statement('forget') %} delete from {{ target }} {% endcall %}
    {%- elif is_there -%}
        {% call statement('forget') %} {{ forget_rewritten_keys(target, states, key, delivered_at) }} {% endcall %}
    {%- else -%}
        {%- set strategy = snapshot_timestamp_strategy(model, 'snapshotted_data', 'source_data', model.config, false) -%}
        {% call statement('create') %}
            {{ create_table_as(False, target, build_snapshot_table(strategy, 'select * from ' ~ states ~ ' where false')) }}
        {% endcall %}
    {%- endif -%}

    {%- set deliveries = run_query(most_deliveries_to_feed(target, states, key, delivered_at)).rows[0][0] | int -%}
    {%- set strategy = snapshot_timestamp_strategy(model, 'snapshotted_data', 'source_data', model.config, true) -%}
    {%- for _ in range(deliveries) -%}
        {% call statement('next') %}
            {{ create_table_as(True, next, next_deliveries(target, states, key, delivered_at)) }}
        {% endcall %}
        {%- set changes = build_snapshot_staging_table(strategy, 'select * from ' ~ next, target) -%}
        {%- set columns = [] -%}
        {%- for column in adapter.get_columns_in_relation(target) -%}{%- do columns.append(adapter.quote(column.name)) -%}{%- endfor -%}
        {% call statement('feed') %}
            {{ snapshot_merge_sql(target=target, source=changes, insert_cols=columns) }}
        {% endcall %}
        {%- do post_snapshot(changes) -%}
        {%- do adapter.drop_relation(next) -%}
    {%- endfor -%}
    {%- do adapter.drop_relation(states) -%}

    {% call statement('main') %} select {{ deliveries }} as deliveries {% endcall %}
    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {{ adapter.commit() }}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': [target]}) }}
{%- endmaterialization %}

{#- Delete what is fed of keys of which a fed state is no state any more, or a missing state is older than a fed one. -#}
{% macro forget_rewritten_keys(target, states, key, delivered_at) -%}
    delete from {{ target }}
    where ({{ key }}) in (
        select ({{ key }})
        from (
            select * exclude (dbt_scd_id, dbt_updated_at, dbt_valid_from, dbt_valid_to) from {{ target }}
            except
            select * from {{ states }}
        )
        union
        select ({{ key }})
        from {{ states }}
        inner join (
            select {{ key }}, max({{ delivered_at }}) as last_delivered_at from {{ target }} group by {{ key }}
        ) using ({{ key }})
        where {{ delivered_at }} < last_delivered_at
            and ({{ key }}, {{ delivered_at }}) not in (select ({{ key }}, {{ delivered_at }}) from {{ target }})
    )
{%- endmacro %}

{#- The states that are not fed yet. -#}
{% macro states_to_feed(target, states, key, delivered_at) -%}
    (select * from {{ states }} anti join {{ target }} using ({{ key }}, {{ delivered_at }}))
{%- endmacro %}

{% macro most_deliveries_to_feed(target, states, key, delivered_at) -%}
    select coalesce(max(deliveries), 0)
    from (select count(*) as deliveries from {{ states_to_feed(target, states, key, delivered_at) }} group by {{ key }})
{%- endmacro %}

{#- Of each key the oldest state that is not fed yet. -#}
{% macro next_deliveries(target, states, key, delivered_at) -%}
    select * from {{ states_to_feed(target, states, key, delivered_at) }}
    qualify row_number() over (partition by {{ key }} order by {{ delivered_at }}) = 1
{%- endmacro %}

{#- What leads a snapshot's row back to its record, or to the delivery whose silence made it. -#}
{% macro snapshot_lineage() -%}
    knowledge_basis, feed, schema_version, load_id, source, source_partition, nullif(source_position, -1) as source_position
{%- endmacro %}
