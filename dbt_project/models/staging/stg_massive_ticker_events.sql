{{ config(meta={'feed': 'massive_ticker_events'}) }}


{%- set members = {'type': 'type', 'event_date_text': 'date', 'symbol': 'ticker_change/ticker'} %}
{%- set issuer = {'issuer_name': 'name', 'composite_figi': 'composite_figi', 'cik': 'cik'} %}

with source as (
    select * from {{ source('raw', 'massive_ticker_events') }}
),

decoded as (
    select {{ envelope() }}, payload, document, {{ utf8_text('payload') }} as text from source
),

named as (
    select
        * exclude (message, issuer),
        {{ json_columns('message', members) }},
        {{ json_columns('issuer', issuer) }}
    from (
        select *, {{ json_fields('text', members) }} as message, {{ json_fields('document', issuer) }} as issuer
        from decoded
    )
),

typed as (
    select *, type as kind, try_cast(event_date_text as date) as event_date from named
),

{{ judged(
    'typed', 'massive_ticker_events', [], [
        refuse_missing("'ticker_change'", ['symbol', 'event_date_text']),
        refuse_unreadable("'ticker_change'", ['event_date'])
    ]
) }}

select
    {{ envelope() }},
    kind,
    disposition,
    reject_reason,
    reject_detail,
    case when disposition = 'quarantined' then payload end as payload,
    symbol,
    event_date,
    issuer_name,
    composite_figi,
    cik
from judged
