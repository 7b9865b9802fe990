{#- Where nothing was set aside, nothing reaches this table (market_data/dbt_runs.py). -#}
{{ config(
    meta={'kinds': {'stg_binance_spot': ['quarantined'], 'stg_coinbase_exchange': ['quarantined']}},
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    pre_hook="{{ rename_column('source_time', 'arrived_at') }}",
    post_hook="{{ note_progress() }}"
) }}

with rejected as (
    {% for staging in staging_models() -%}
    select {{ lineage() }}, source_time as arrived_at, kind, reject_reason as reason, reject_detail as detail, payload
    from {{ unseen(staging) }}
    where disposition = 'quarantined'
    {{ "union all" if not loop.last }}
    {% endfor %}
)

select
    {{ column_list() }}
from rejected
