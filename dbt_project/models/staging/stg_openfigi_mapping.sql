{{ config(meta={'feed': 'openfigi_mapping'}) }}

{%- set members = {
    'figi': 'figi', 'composite_figi': 'compositeFIGI', 'share_class_figi': 'shareClassFIGI', 'symbol': 'ticker', 'exchange_code': 'exchCode',
    'name': 'name', 'security_type': 'securityType', 'security_type_2': 'securityType2', 'market_sector': 'marketSector',
    'security_description': 'securityDescription', 'error': 'error', 'warning': 'warning'
} %}

with {{ json_records('openfigi_mapping', members, attributes=['ticker']) }},

typed as (
    select
        *,
        case
            when coalesce(error, warning) is not null then 'no_match'
            when text is not null and json_valid(text) then 'listing'
        end as kind
    from named
),

{{ judged(
    'typed', 'openfigi_mapping', {'listing': [
        refuse_missing(['figi']),
        refuse_retyped(['figi', 'composite_figi', 'symbol'])
    ]}
) }}

select
    {{ judged_columns() }},
    coalesce(ticker, '') as asked_for,
    -- An answer that holds an error, a warning or a broken record is complete for nothing.
    bool_and(disposition = 'modelled') over (partition by load_id) as is_complete,
    figi,
    composite_figi,
    share_class_figi,
    symbol,
    exchange_code,
    name,
    security_type,
    security_type_2,
    market_sector,
    security_description
from judged
