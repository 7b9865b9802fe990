{%- set minute_of_trade = "time_bucket(interval '1 minute', event_time::timestamp)::timestamp_ns" %}
{{ config(
    meta={'may_lag': 60},
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    partitioned_by=['year(bar_start)', 'month(bar_start)', 'day(bar_start)'],
    sorted_by=['listing_id', 'bar_start'],
    pre_hook="{{ forget_touched_bars(\"time_bucket(interval '1 minute', event_time::timestamp)::timestamp_ns\", 'bar_start', '1m', 'bar_start') }}",
    post_hook="{{ note_progress() }}"
) }}

with {{ bar_versions(
    of_trade=minute_of_trade,
    of_bar='bar_start',
    bar_interval='1m',
    bar_end="period + interval '1 minute'",
    eligible='true',
    bar_length="interval '1 minute'"
) }},

minutes as (
    select *, period as bar_start from named
)

select
    {{ column_list() }}
from minutes
