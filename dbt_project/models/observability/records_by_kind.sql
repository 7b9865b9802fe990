{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    post_hook="{{ note_progress() }}"
) }}

with records as (
    {% for staging in staging_models() -%}
    select load_seq, load_id, feed, kind, disposition from {{ unseen(staging) }}
    {{ "union all" if not loop.last }}
    {% endfor %}
),

counted as (
    select load_seq, load_id, feed, kind, disposition, count(*) as records from records group by all
)

select
    {{ column_list() }}
from counted
