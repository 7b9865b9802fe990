{{ config(
    meta={'reads_raw': true},
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    post_hook="{{ note_progress() }}"
) }}

{%- set inner_objects = {'binance_spot': 'data'} %}

with feeds as (
    select * from {{ ref('feeds') }}
),

messages as (
    {% for staging in staging_models() -%}
    select load_seq, load_id, feed, source_time, {{ json_text('payload') }} as text from {{ unseen(staging, raw=true) }}
    {{ "union all" if not loop.last }}
    {% endfor %}
),

-- Messages of one shape are counted together: there are few shapes and many messages.
shapes as (
    select load_seq, load_id, feed, '' as prefix, json_keys(text) as names, {{ counted_sights() }}
    from messages
    group by all
    {% for feed, field in inner_objects.items() -%}
    union all
    select load_seq, load_id, feed, '{{ field }}.' as prefix, json_keys(text, '/{{ field }}') as names, {{ counted_sights() }}
    from messages
    where feed = '{{ feed }}'
    group by all
    {%- endfor %}
),

named as (
    select load_seq, load_id, feed, prefix || unnest(list_distinct(names)) as field, records, first_seen_at, last_seen_at
    from shapes
    union all
    -- Of a CSV file the header says it for all rows.
    select
        load_seq,
        load_id,
        feed,
        unnest(from_json(json_extract(drift, '/added'), '["VARCHAR"]')) as field,
        records,
        source_time as first_seen_at,
        source_time as last_seen_at
    from {{ source('lake', 'loads') }}
    semi join (select feed from feeds where format = 'csv') using (feed)
    where outcome = 'loaded' and load_seq > {{ mark() }} and load_seq <= {{ window_end() }}
),

unknown as (
    select
        load_seq,
        load_id,
        feed,
        replace(field, chr(0), '␀') as field,
        sum(records) as records,
        min(first_seen_at) as first_seen_at,
        max(last_seen_at) as last_seen_at
    from named
    inner join feeds using (feed)
    where not list_contains(string_split(feeds.fields, ' '), field)
    group by all
)

select
    {{ column_list() }}
from unknown
