{{ config(meta={'feed': 'massive_trades'}) }}

{#- CTA and UTP correction codes: what takes a trade back, and what else is known (1 marks a corrected form). -#}
{%- set cancels = ['7', '8', '10', '11', '12'] %}
{%- set others = ['0', '1'] %}
{%- set fields = [
    'ticker', 'conditions', 'correction', 'exchange', 'id', 'participant_timestamp', 'price', 'sequence_number',
    'sip_timestamp', 'size', 'tape', 'trf_id', 'trf_timestamp'
] %}

with source as (
    select * from {{ source('raw', 'massive_trades') }}
),

typed as (
    select
        {{ envelope() }},
        headers,
        payload,
        {{ csv_payload(fields) }} as row_payload,
        'trade' as kind,
        {{ given('ticker') }} as symbol,
        {{ given('id') }} as trade_id,
        {{ given('exchange') }} as exchange_code,
        {{ given('trf_id') }} as trf_id,
        string_split({{ given('conditions') }}, ',') as conditions,
        coalesce({{ given('correction') }}, '0') as correction,
        {{ given('price') }} as price_text,
        {{ given('size') }} as size_text,
        {{ given('sequence_number') }} as sequence_text,
        coalesce({{ given('participant_timestamp') }}, {{ given('sip_timestamp') }}) as event_time_text,
        try_cast(price as double) as price,
        try_cast(size as double) as size,
        {{ whole_number('sequence_text') }} as sequence,
        {{ epoch_text_to_time('event_time_text') }} as event_time
    from source
),

{{ judged(
    'typed', 'massive_trades', {'trade': [
        refuse_missing(['symbol', 'trade_id', 'price_text', 'size_text', 'event_time_text']),
        refuse_unreadable(['price', 'size', 'sequence']),
        refuse_unlisted('correction', cancels + others),
        refuse_impossible_time('source_time'),
        refuse_impossible_values('price <= 0 or size <= 0', 'price, size')
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
    trade_id,
    exchange_code,
    trf_id,
    sequence,
    price,
    size,
    conditions,
    correction in ('{{ cancels | join("', '") }}') as is_cancelled
from dated
