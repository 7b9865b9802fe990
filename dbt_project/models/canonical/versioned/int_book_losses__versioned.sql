{#- A build that sets no record of Coinbase aside does not run this model (market_data/dbt_runs.py). -#}
{{ config(
    meta={'kinds': {'stg_coinbase_exchange': ['quarantined']}},
    unique_key=['load_seq', 'source_position'],
    partitioned_by=['book_date']
) }}

-- Where a venue numbers its messages, the next one tells of the loss. One without a time of receipt has no place.
with lost_messages as (
    select
        *,
        -- What a record does not say readably may have been any book's.
        case when {{ is_unreadable('symbol') }} then '' else coalesce(symbol, '') end as named_symbol
    from {{ unseen('stg_coinbase_exchange') }}
    where disposition = 'quarantined'
        and (kind is null or kind in ('snapshot', 'l2update') or {{ is_unreadable('kind') }})
        and received_time is not null
),

new_records as (
    select
        {{ lineage('lost_messages') }},
        {{ of_feed('venue') }} as venue,
        {{ of_feed('venue') }} || ':' || named_symbol as listing_id,
        named_symbol as symbol,
        'full' as book,
        received_time as event_time,
        received_time,
        null::bigint as sequence,
        'lost/' || epoch_ns(received_time) || '/' || md5(payload) as message_id,
        '' as slot,
        received_time::date as book_date,
        epoch_ns(received_time) as book_order,
        received_time as rule_known_from,
        'received' as knowledge_basis,
        null::varchar as scope,
        null::varchar as load_scope,
        null::timestamp_ns as delivered_at
    from lost_messages
),

{{ versions('new_records', key=['listing_id', 'book', 'message_id'], content=['received_time', 'is_deletion']) }}

select
    {{ column_list() }}
from changed
