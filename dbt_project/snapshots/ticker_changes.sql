{% snapshot ticker_changes %}

{{ config(unique_key=['composite_figi', 'event_date'], strategy='timestamp', updated_at='delivered_at') }}

with said as (
    {{ said_by_delivery('int_ticker_changes__versioned', 'composite_figi, event_date') }}
)

select
    composite_figi,
    event_date,
    is_deletion as is_deleted,
    listing_id,
    venue,
    symbol,
    issuer_name,
    cik,
    known_from,
    {{ snapshot_lineage() }},
    delivered_at
from said

{% endsnapshot %}
