{% snapshot ticker_changes %}

{{ config(unique_key=['composite_figi', 'event_date'], strategy='timestamp', updated_at='delivered_at') }}

with versions as (
    select * from {{ ref('int_ticker_changes__versioned') }} where not is_duplicate
),

-- What a delivery says of a change, in the end. A change that it takes back is a row as well.
said as (
    select * replace (min(known_from) over (partition by composite_figi, event_date, delivered_at) as known_from)
    from versions
    qualify row_number() over (partition by composite_figi, event_date, delivered_at order by revision desc) = 1
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
