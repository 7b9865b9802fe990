{{ config(
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
