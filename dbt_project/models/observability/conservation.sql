{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key='load_id',
    on_schema_change='append_new_columns',
    post_hook="{{ note_progress() }}"
) }}

{%- set tables = [
    'trades', 'quotes', 'book_updates', 'bars', 'corporate_actions', 'universe_membership', 'macro_observations',
    'ticker_changes', 'figi_listings'
] %}
{%- set is_touched = is_touched_load(tables) %}

with loads as (
    select * from {{ source('lake', 'loads') }} where outcome = 'loaded' and load_seq <= {{ window_end() }}
),

-- A record counts once however many rows it makes, as canonical if any of them is.
modelled as (
    {% for table in tables_of_touched_loads(tables) -%}
    select load_seq, source_position, bool_or(not is_duplicate) as is_canonical
    from {{ ref('int_' ~ table ~ '__versioned') }}
    where not is_deletion and {{ is_touched }}
    group by load_seq, source_position
    {{ "union all" if not loop.last }}
    {% endfor %}
),

modelled_counts as (
    select
        load_seq,
        count(*) filter (is_canonical) as canonical_records,
        count(*) filter (not is_canonical) as duplicates
    from modelled
    group by load_seq
),

quarantined_counts as (
    select load_id, count(*) as quarantined
    from {{ ref('quarantine') }}
    where load_id in (select load_id from loads where {{ is_touched }})
    group by load_id
),

kind_counts as (
    select
        load_seq,
        sum(records) filter (disposition = 'control') as control,
        sum(records) filter (disposition = 'unread') as unread
    from {{ ref('records_by_kind') }}
    where {{ is_touched }}
    group by load_seq
),

reconciled as (
    select
        loads.load_id,
        loads.feed,
        loads.records as raw_records,
        coalesce(canonical_records, 0) as canonical_records,
        coalesce(duplicates, 0) as duplicates,
        coalesce(quarantined, 0) as quarantined,
        coalesce(control, 0) as control,
        coalesce(unread, 0) as unread
    from loads
    left join modelled_counts using (load_seq)
    left join quarantined_counts using (load_id)
    left join kind_counts using (load_seq)
    where {{ is_touched }}
),

judged as (
    select *, raw_records = canonical_records + duplicates + quarantined + control + unread as is_conserved
    from reconciled
)

select
    {{ column_list() }}
from judged
