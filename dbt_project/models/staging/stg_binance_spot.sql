{{ config(meta={'feed': 'binance_spot'}) }}

{%- set members = {
    'event_type': 'e', 'symbol': 's', 'trade_id': 't', 'price_text': 'p', 'size_text': 'q', 'event_time_text': 'T',
    'buyer_is_maker': 'm'
} %}
{%- set quote_members = {
    'update_id_text': 'u', 'bid_price_text': 'b', 'bid_size_text': 'B', 'ask_price_text': 'a', 'ask_size_text': 'A'
} %}
{%- set depth_members = {
    'event_time_text': 'E', 'first_update_id_text': 'U', 'bids_text': 'bids', 'asks_text': 'asks',
    'last_id_text': 'lastUpdateId'
} %}
{%- set depth_kinds = "'depthUpdate', 'depthSnapshot', 'partialDepth'" %}
{%- set is_depth = 'kind in (' ~ depth_kinds ~ ')' %}
{%- set combined = {'stream': 'stream'} %}
{%- set bare = {'stream': 'stream'} %}
{%- set combined_rest = {'last_update_id': 'lastUpdateId'} %}
{%- set bare_rest = {'last_update_id': 'lastUpdateId'} %}
{%- for column, field in members.items() %}
{%- do combined.update({column: 'data/' ~ field}) %}
{%- do bare.update({column: field}) %}
{%- endfor %}
{%- for column, field in quote_members.items() %}
{%- do combined_rest.update({column: 'data/' ~ field}) %}
{%- do bare_rest.update({column: field}) %}
{%- endfor %}

with source as (
    select * from {{ source('raw', 'binance_spot') }}
),

decoded as (
    select {{ envelope() }}, payload, headers, {{ utf8_text('payload') }} as text from source
),

parsed as (
    select *, {{ json_fields('text', combined) }} as fields from decoded
),

-- A connection to one raw stream sends the messages without the combined stream's envelope.
opened as (
    select
        * replace (
            case when fields is null or fields[1] is not null then fields else {{ json_fields('text', bare) }} end as fields
        )
    from parsed
),

common as (
    select
        * exclude (fields),
        fields[1] is not null as is_combined,
        {{ json_columns('fields', combined) }}
    from opened
),

-- What trades need not be asked for.
completed as (
    select
        *,
        case
            when event_type = 'trade' then null
            when is_combined then {{ json_fields('text', combined_rest) }}
            else {{ json_fields('text', bare_rest) }}
        end as rest
    from common
),

named as (
    select
        * exclude (rest),
        {{ json_columns('rest', combined_rest) }}
    from completed
),

typed as (
    select
        {{ envelope({'2': 'length(event_time_text) between 15 and 17'}) }},
        payload,
        text,
        headers,
        symbol,
        trade_id,
        case
            when payload is null then 'tombstone'
            when event_type is not null then event_type
            -- bookTicker and partial depth carry no type: the stream's name or the fields tell them.
            when stream like '%@bookTicker' or (update_id_text is not null and ask_price_text is not null) then 'bookTicker'
            when stream like '%@depth5%' or stream like '%@depth10%' or stream like '%@depth20%' then 'partialDepth'
            when last_update_id is not null then 'depthSnapshot'
        end as kind,
        event_time_text,
        price_text,
        size_text,
        buyer_is_maker,
        bid_price_text,
        bid_size_text,
        ask_price_text,
        ask_size_text,
        try_cast(price_text as double) as price,
        try_cast(size_text as double) as size,
        try_cast(bid_price_text as double) as bid_price,
        try_cast(bid_size_text as double) as bid_size,
        try_cast(ask_price_text as double) as ask_price,
        try_cast(ask_size_text as double) as ask_size,
        update_id_text,
        stream,
        -- The buyer being the maker, the aggressor sold.
        case buyer_is_maker when 'true' then 'sell' when 'false' then 'buy' end as side,
        {{ epoch_text_to_time('event_time_text') }} as trade_time
    from named
),

-- What only messages of the order book have. With the stream's envelope or without, as above.
deepened as (
    select
        *,
        case
            when {{ is_depth }} and stream is not null then {{ json_fields('text', depth_members, within='/data') }}
            when {{ is_depth }} then {{ json_fields('text', depth_members) }}
        end as depth
    from typed
),

-- bookTicker and snapshots have no clock of their own: the time of receipt is the only one. Snapshots do not name the symbol
-- either: the stream, the record's key or the capture's name says it.
timed as (
    select
        * replace (
            case
                when symbol is null and {{ is_depth }}
                    then upper(coalesce(nullif(split_part(stream, '@', 1), ''), instrument, {{ header('instrument') }}))
                else symbol
            end as symbol,
            case when kind = 'depthUpdate' then depth[1] else event_time_text end as event_time_text,
            coalesce(update_id_text, depth[5]) as update_id_text
        ),
        case
            when kind in ('bookTicker', 'depthSnapshot', 'partialDepth') then source_time
            when kind = 'depthUpdate' then {{ epoch_text_to_time('depth[1]') }}
            else trade_time
        end as event_time,
        {{ whole_number('coalesce(update_id_text, depth[5])') }} as update_id,
        depth[2] as first_update_id_text,
        {{ whole_number('depth[2]') }} as first_update_id,
        case kind
            when 'depthUpdate' then 'full'
            when 'depthSnapshot' then 'full'
            when 'partialDepth' then regexp_extract(stream, '@(depth[0-9]+)', 1)
        end as book,
        kind in ('depthSnapshot', 'partialDepth') as is_snapshot,
        coalesce(depth[3], case when kind = 'depthUpdate' then bid_price_text end) as bids_text,
        coalesce(depth[4], case when kind = 'depthUpdate' then ask_price_text end) as asks_text
    from deepened
),

levelled as (
    select *, {{ book_levels('bids_text', 'asks_text') }} as levels from timed
),

{{ judged(
    'levelled', 'binance_spot', {
        'trade': [
            refuse_missing([
                'symbol', 'trade_id', 'price_text', 'size_text', 'event_time_text', 'buyer_is_maker', 'source_time'
            ]),
            refuse_retyped(['symbol', 'trade_id']),
            refuse_unreadable(['price', 'size']),
            refuse_unlisted('buyer_is_maker', ['true', 'false']),
            refuse_impossible_time('source_time'),
            refuse_impossible_values('price <= 0 or size <= 0', 'price, size')
        ],
        'bookTicker': [
            refuse_missing([
                'symbol', 'update_id_text', 'bid_price_text', 'bid_size_text', 'ask_price_text', 'ask_size_text', 'event_time'
            ]),
            refuse_retyped(['symbol']),
            refuse_unreadable(['update_id', 'bid_price', 'bid_size', 'ask_price', 'ask_size'])
        ],
        'depthUpdate': [
            refuse_missing(['event_time_text', 'source_time']),
            refuse_impossible_time('source_time'),
            refuse_missing(['symbol', 'update_id_text', 'bids_text', 'asks_text', 'event_time', 'first_update_id_text']),
            refuse_retyped(['symbol']),
            refuse_unreadable(['update_id', 'first_update_id']),
            refuse_unusable_levels(),
            refuse_impossible_values('update_id not between 0 and 1000000000000000000', 'update_id'),
            refuse_impossible_values('first_update_id not between 0 and update_id', 'first_update_id, update_id')
        ],
        'depthSnapshot partialDepth': [
            refuse_missing(['symbol', 'update_id_text', 'bids_text', 'asks_text', 'event_time']),
            refuse_retyped(['symbol']),
            refuse_unreadable(['update_id']),
            refuse_unusable_levels(),
            refuse_impossible_values('update_id not between 0 and 1000000000000000000', 'update_id')
        ]
    }
) }}

select
    {{ judged_columns() }},
    symbol,
    event_time,
    source_time as received_time,
    trade_id,
    price,
    size,
    side,
    bid_price,
    bid_size,
    ask_price,
    ask_size,
    update_id,
    first_update_id,
    book,
    is_snapshot,
    levels
from judged
