{{ config(meta={'feed': 'coinbase_exchange'}) }}

{%- set members = {
    'type': 'type', 'symbol': 'product_id', 'sequence_text': 'sequence', 'event_time_text': 'time', 'trade_id': 'trade_id',
    'price_text': 'price', 'size_text': 'size', 'maker_side': 'side', 'bid_price_text': 'best_bid', 'ask_price_text': 'best_ask',
    'bid_size_text': 'best_bid_size', 'ask_size_text': 'best_ask_size'
} %}

with source as (
    select * from {{ source('raw', 'coinbase_exchange') }}
),

decoded as (
    select {{ envelope() }}, payload, headers, {{ utf8_text('payload') }} as text from source
),

parsed as (
    select *, {{ json_fields('text', members) }} as message from decoded
),

named as (
    select * exclude (message), {{ json_columns('message', members) }} from parsed
),

typed as (
    select
        {{ envelope({'2': 'bid_size_text is not null or ask_size_text is not null'}) }},
        payload,
        text,
        symbol,
        case
            when payload is null then 'tombstone'
            when octet_length(payload) = 0 then case {{ header('direction') }} when '<->' then 'connect' else 'blank' end
            else type
        end as kind,
        trade_id,
        event_time_text,
        price_text,
        size_text,
        maker_side,
        sequence_text,
        bid_price_text,
        bid_size_text,
        ask_price_text,
        ask_size_text,
        {{ whole_number('sequence_text') }} as sequence,
        try_cast(price_text as double) as price,
        try_cast(size_text as double) as size,
        try_cast(bid_price_text as double) as bid_price,
        try_cast(bid_size_text as double) as bid_size,
        try_cast(ask_price_text as double) as ask_price,
        try_cast(ask_size_text as double) as ask_size,
        -- The side is the maker's: the aggressor took the other one.
        case maker_side when 'sell' then 'buy' when 'buy' then 'sell' end as side,
        {{ iso_text_to_time('event_time_text') }} as trade_time
    from named
),

-- A snapshot of the book has no clock of its own: the time of receipt is the only one.
timed as (
    select
        *,
        case kind when 'snapshot' then source_time else trade_time end as event_time,
        case
            when kind in ('snapshot', 'l2update')
                then {{ json_fields('text', {'bids_text': 'bids', 'asks_text': 'asks', 'changes_text': 'changes'}) }}
        end as depth
    from typed
),

levelled as (
    select
        *,
        depth[1] as bids_text,
        depth[2] as asks_text,
        depth[3] as changes_text,
        case kind when 'snapshot' then 'full' when 'l2update' then 'full' end as book,
        kind = 'snapshot' as is_snapshot,
        case kind
            when 'snapshot' then {{ book_levels('depth[1]', 'depth[2]') }}
            when 'l2update' then {{ book_changes('depth[3]') }}
        end as levels
    from timed
),

{{ judged(
    'levelled', 'coinbase_exchange', {
        'match last_match': [
            refuse_missing([
                'symbol', 'trade_id', 'price_text', 'size_text', 'maker_side', 'event_time_text', 'sequence_text', 'source_time'
            ]),
            refuse_retyped(['symbol', 'trade_id']),
            refuse_unreadable(['price', 'size', 'sequence']),
            refuse_unlisted('maker_side', ['buy', 'sell']),
            refuse_impossible_time('source_time'),
            refuse_impossible_values('price <= 0 or size <= 0', 'price, size')
        ],
        'ticker': [
            refuse_missing(['symbol', 'sequence_text', 'bid_price_text', 'ask_price_text', 'event_time_text', 'source_time']),
            refuse_retyped(['symbol']),
            refuse_unreadable(['sequence', 'bid_price', 'bid_size', 'ask_price', 'ask_size']),
            refuse_impossible_time('source_time')
        ],
        'snapshot': [
            refuse_missing(['symbol', 'source_time', 'bids_text', 'asks_text']),
            refuse_retyped(['symbol']),
            refuse_unusable_levels()
        ],
        'l2update': [
            refuse_missing(['symbol', 'source_time', 'changes_text', 'event_time_text']),
            refuse_retyped(['symbol']),
            refuse_impossible_time('source_time'),
            refuse_unusable_levels()
        ]
    }
) }}

select
    {{ judged_columns() }},
    symbol,
    event_time,
    source_time as received_time,
    trade_id,
    sequence,
    price,
    size,
    side,
    bid_price,
    bid_size,
    ask_price,
    ask_size,
    book,
    is_snapshot,
    levels
from judged
