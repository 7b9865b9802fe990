{#- Records of other kinds do not reach this table (market_data/dbt_runs.py). -#}
{%- set kinds = {
    'stg_binance_spot': ['bookTicker'],
    'stg_coinbase_exchange': ['ticker']
} -%}
{{ config(
    meta={'kinds': kinds},
    unique_key=['load_seq', 'source_position', 'slot'],
    partitioned_by=['event_date'],
    sorted_by=['listing_id', 'event_time'],
    post_hook="{{ note_extents('quote_number') }}"
) }}

with binance_quotes as (
    select * from {{ unseen('stg_binance_spot') }}
    where {{ is_of_kind(kinds.stg_binance_spot) }} and disposition = 'modelled'
),

coinbase_quotes as (
    select * from {{ unseen('stg_coinbase_exchange') }}
    where {{ is_of_kind(kinds.stg_coinbase_exchange) }} and disposition = 'modelled'
),

massive_quotes as (
    select * from {{ unseen('stg_massive_quotes') }} where disposition = 'modelled'
),

exchanges as (
    select * from {{ ref('exchanges') }}
),

streamed as (
    select
        {{ lineage() }},
        symbol,
        event_time,
        received_time,
        bid_price,
        bid_size,
        ask_price,
        ask_size,
        update_id,
        sequence,
        coalesce(update_id, sequence) as quote_number,
        event_time::date as session_date,
        '' as identity_scope,
        null::varchar as scope,
        null::varchar as load_scope,
        null::timestamp_ns as delivered_at,
        greatest(received_time, event_time) as rule_known_from,
        'received' as knowledge_basis
    from (
        select *, null::bigint as sequence from binance_quotes
        union all by name
        select *, null::bigint as update_id from coinbase_quotes
    )
),

delivered as (
    select
        {{ lineage('massive_quotes') }},
        symbol,
        event_time,
        bid_price,
        bid_size,
        bid_exchange.mic as bid_exchange,
        ask_price,
        ask_size,
        ask_exchange.mic as ask_exchange,
        conditions,
        sequence,
        sequence as quote_number,
        session_date,
        session_date::varchar as identity_scope,
        session_date::varchar as scope,
        case when is_complete then load_session::varchar end as load_scope,
        source_time as delivered_at,
        {{ next_day_known_from('massive_quotes', 'session_date') }} as rule_known_from,
        'assumed' as knowledge_basis
    from massive_quotes
    left join exchanges as bid_exchange
        on massive_quotes.feed = bid_exchange.feed and massive_quotes.bid_exchange_code = bid_exchange.code
    left join exchanges as ask_exchange
        on massive_quotes.feed = ask_exchange.feed and massive_quotes.ask_exchange_code = ask_exchange.code
),

new_records as (
    select
        records.*,
        {{ of_feed('venue') }} as venue,
        {{ of_feed('venue') }} || ':' || symbol as listing_id,
        event_time::date as event_date,
        '' as slot
    from (
        select
            *, null::varchar[] as conditions, null::varchar as bid_exchange, null::varchar as ask_exchange
        from streamed
        union all by name
        select * from delivered
    ) as records
),

-- Binance's bookTicker has no clock but the receipt, so its time is not the venue's fact: received twice, it is the same quote.
{{ versions(
    'new_records',
    key=['listing_id', 'identity_scope', 'quote_number'],
    content=[
        "case when feed != 'binance_spot' then event_time end", 'bid_price', 'bid_size', 'bid_exchange', 'ask_price', 'ask_size', 'ask_exchange', 'update_id',
        'conditions', 'sequence', 'is_deletion'
    ],
    named_scopes={'massive_quotes': named_session()},
    extents=extents(
        streams={
            'stg_binance_spot': ['update_id', is_of_kind(kinds.stg_binance_spot)],
            'stg_coinbase_exchange': ['sequence', is_of_kind(kinds.stg_coinbase_exchange)]
        },
        deliveries={'stg_massive_quotes': ['session_date', 'load_session']}
    )
) }}

select
    {{ column_list() }}
from changed
