{{ config(meta={'feed': 'massive_quotes'}) }}

{%- set fields = [
    'ticker', 'ask_exchange', 'ask_price', 'ask_size', 'bid_exchange', 'bid_price', 'bid_size', 'conditions', 'indicators',
    'participant_timestamp', 'sequence_number', 'sip_timestamp', 'tape', 'trf_timestamp'
] %}

with source as (
    select * from {{ source('raw', 'massive_quotes') }}
),

typed as (
    select
        {{ envelope() }},
        headers,
        payload,
        {{ csv_payload(fields) }} as row_payload,
        'quote' as kind,
        {{ given('ticker') }} as symbol,
        {{ given('bid_exchange') }} as bid_exchange_code,
        {{ given('ask_exchange') }} as ask_exchange_code,
        string_split({{ given('conditions') }}, ',') as conditions,
        {{ given('bid_price') }} as bid_price_text,
        {{ given('bid_size') }} as bid_size_text,
        {{ given('ask_price') }} as ask_price_text,
        {{ given('ask_size') }} as ask_size_text,
        {{ given('sequence_number') }} as sequence_text,
        coalesce({{ given('participant_timestamp') }}, {{ given('sip_timestamp') }}) as event_time_text,
        try_cast(bid_price as double) as bid_price,
        try_cast(bid_size as double) as bid_size,
        try_cast(ask_price as double) as ask_price,
        try_cast(ask_size as double) as ask_size,
        {{ whole_number('sequence_text') }} as sequence,
        {{ epoch_text_to_time('event_time_text') }} as event_time
    from source
),

{{ judged(
    'typed', 'massive_quotes', {'quote': [
        refuse_missing(['symbol', 'sequence_text', 'bid_price_text', 'ask_price_text', 'event_time_text']),
        refuse_unreadable(['sequence', 'bid_price', 'bid_size', 'ask_price', 'ask_size']),
        refuse_impossible_time('source_time')
    ]},
    json=false
) }},

{{ dated_records() }}

select
    {{ judged_columns('row_payload') }},
    load_session,
    is_complete,
    session_date,
    symbol,
    event_time,
    sequence,
    bid_price,
    bid_size,
    bid_exchange_code,
    ask_price,
    ask_size,
    ask_exchange_code,
    conditions
from dated
