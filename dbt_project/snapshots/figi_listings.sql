{% snapshot figi_listings %}

{{ config(unique_key=['asked_for', 'figi'], strategy='timestamp', updated_at='delivered_at') }}

with versions as (
    select * from {{ ref('int_figi_listings__versioned') }} where not is_duplicate
),

-- What a delivery says of a listing, in the end. A listing that it takes back is a row as well.
said as (
    select * replace (min(known_from) over (partition by asked_for, figi, delivered_at) as known_from)
    from versions
    qualify row_number() over (partition by asked_for, figi, delivered_at order by revision desc) = 1
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
