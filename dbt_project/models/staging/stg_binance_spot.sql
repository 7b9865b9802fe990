{{ config(meta={'feed': 'binance_spot'}) }}

{%- set members = {
    'event_type': 'e', 'symbol': 's', 'trade_id': 't', 'price_text': 'p', 'size_text': 'q', 'event_time_text': 'T',
    'buyer_is_maker': 'm', 'update_id_text': 'u', 'bid_price_text': 'b', 'bid_size_text': 'B', 'ask_price_text': 'a',
    'ask_size_text': 'A'
} %}
{%- set combined = {'stream': 'stream', 'last_update_id': 'lastUpdateId'} %}
{%- set bare = {'stream': 'stream', 'last_update_id': 'lastUpdateId'} %}
{%- for column, field in members.items() %}
{%- do combined.update({column: 'data/' ~ field}) %}
{%- do bare.update({column: field}) %}
{%- endfor %}

with source as (
    select * from {{ source('raw', 'binance_spot') }}
),

decoded as (
    select {{ envelope() }}, payload, {{ utf8_text('payload') }} as text from source
),

parsed as (
    select *, {{ json_fields('text', combined) }} as fields from decoded
),

-- A connection to one raw stream sends the messages without the combined stream's envelope.
opened as (
    select * replace (case when fields[1] is null then {{ json_fields('text', bare) }} else fields end as fields) from parsed
),

named as (
    select
        * exclude (fields),
        {{ json_columns('fields', combined) }}
    from opened
),

typed as (
    select
        {{ envelope({'2': 'length(event_time_text) between 15 and 17'}) }},
        payload,
        text,
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
        {{ whole_number('update_id_text') }} as update_id,
        -- The buyer being the maker, the aggressor sold.
        case buyer_is_maker when 'true' then 'sell' when 'false' then 'buy' end as side,
        {{ epoch_text_to_time('event_time_text') }} as trade_time
    from named
),

-- bookTicker has no clock of its own: the time of receipt is the only one.
timed as (
    select *, case kind when 'bookTicker' then source_time else trade_time end as event_time from typed
),

{{ judged(
    'timed', 'binance_spot', ['trade', 'bookTicker'], [
        refuse_missing("'trade'", ['symbol', 'trade_id', 'price_text', 'size_text', 'event_time_text', 'source_time']),
        refuse_missing("'bookTicker'", ['symbol', 'update_id_text', 'bid_price_text', 'bid_size_text', 'ask_price_text', 'ask_size_text', 'event_time']),
        refuse_retyped("'trade', 'bookTicker'", ['symbol']),
        refuse_retyped("'trade'", ['trade_id']),
        refuse_unreadable("'trade'", ['price', 'size']),
        refuse_unreadable("'bookTicker'", ['update_id', 'bid_price', 'bid_size', 'ask_price', 'ask_size']),
        refuse_impossible_time("'trade'", 'source_time'),
        refuse_impossible_values("'trade'", 'price <= 0 or size <= 0', 'price, size')
    ]
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
    update_id
from judged
