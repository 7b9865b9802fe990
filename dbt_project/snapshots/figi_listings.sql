{% snapshot figi_listings %}

{{ config(unique_key=['asked_for', 'figi'], strategy='timestamp', updated_at='delivered_at') }}

with said as (
    {{ said_by_delivery('int_figi_listings__versioned', 'asked_for, figi') }}
)

select
    asked_for,
    figi,
    is_deletion as is_deleted,
    composite_figi,
    share_class_figi,
    symbol,
    exchange_code,
    name,
    security_type,
    security_type_2,
    market_sector,
    security_description,
    known_from,
    {{ snapshot_lineage() }},
    delivered_at
from said

{% endsnapshot %}
