{#- Records of other kinds do not reach this table (market_data/dbt_runs.py). -#}
{%- set kinds = {
    'stg_binance_spot': ['depthUpdate', 'depthSnapshot', 'partialDepth'],
    'stg_coinbase_exchange': ['snapshot', 'l2update']
} -%}
{{ config(
    meta={'kinds': kinds},
    unique_key=['load_seq', 'source_position'],
    partitioned_by=['book_date'],
    sorted_by=['listing_id', 'book', 'book_order']
) }}

with binance_messages as (
    select
        *,
        null::bigint as sequence,
        -- The venue numbers what it says: the same number is the same message.
        case when is_snapshot then 'snapshot/' else 'update/' end || update_id as message_id,
        event_time::date as book_date,
        2 * update_id + is_snapshot::bigint as book_order
    from {{ unseen('stg_binance_spot') }}
    where {{ is_of_kind(kinds.stg_binance_spot) }} and disposition = 'modelled'
),

coinbase_messages as (
    select
        *,
        null::bigint as update_id,
        null::bigint as first_update_id,
        -- Without numbers, a message is what it says and when, and its place is that of its receipt.
        case when is_snapshot then 'snapshot/' || epoch_ns(received_time) else 'update/' || epoch_ns(event_time) end
        || '/' || md5(levels::varchar) as message_id,
        received_time::date as book_date,
        epoch_ns(received_time) as book_order
    from {{ unseen('stg_coinbase_exchange') }}
    where {{ is_of_kind(kinds.stg_coinbase_exchange) }} and disposition = 'modelled'
),

messages as (
    select * from binance_messages
    union all by name
    select * from coinbase_messages
),

new_records as (
    select
        {{ lineage('messages') }},
        {{ of_feed('venue') }} as venue,
        {{ of_feed('venue') }} || ':' || symbol as listing_id,
        symbol,
        book,
        event_time,
        received_time,
        levels,
        update_id,
        first_update_id,
        is_snapshot,
        sequence,
        message_id,
        '' as slot,
        book_date,
        book_order,
        greatest(received_time, event_time) as rule_known_from,
        'received' as knowledge_basis,
        null::varchar as scope,
        null::varchar as load_scope,
        null::timestamp_ns as delivered_at
    from messages
),

-- What is said of a message is said of all its levels: a correction with fewer of them leaves none of the earlier ones.
-- A snapshot's time is that of its receipt: received twice, it is the same snapshot.
{{ versions(
    'new_records',
    key=['listing_id', 'book', 'message_id'],
    content=['case when not is_snapshot then event_time end', 'levels', 'first_update_id', 'is_deletion']
) }}

select
    {{ column_list() }}
from changed
