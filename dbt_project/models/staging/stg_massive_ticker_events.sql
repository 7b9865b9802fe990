{{ config(meta={'feed': 'massive_ticker_events'}) }}

{%- set members = {'type': 'type', 'event_date_text': 'date', 'symbol': 'ticker_change/ticker'} %}
{%- set issuer = {'issuer_name': 'name', 'composite_figi': 'composite_figi', 'cik': 'cik'} %}

with {{ json_records('massive_ticker_events', members) }},

typed as (
    select
        * exclude (issuer),
        type as kind,
        try_cast(event_date_text as date) as event_date,
        {{ json_columns('issuer', issuer) }}
    from (select *, {{ json_fields('document', issuer) }} as issuer from named)
),

{{ judged(
    'typed', 'massive_ticker_events', {'ticker_change': [
        refuse_missing(['composite_figi', 'symbol', 'event_date_text']),
        refuse_retyped(['composite_figi', 'symbol']),
        refuse_unreadable(['event_date']),
        refuse_impossible_dates(['event_date'])
    ]}
) }}

select
    {{ judged_columns() }},
    {{ none_quarantined() }} over (partition by load_id) as is_complete,
    symbol,
    event_date,
    issuer_name,
    composite_figi,
    cik
from judged
