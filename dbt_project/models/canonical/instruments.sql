with named as (
    select * from {{ ref('int_instruments__versioned') }}
),

-- Of a crypto pair the venue's spelling says what is traded for what.
pairs as (
    select
        listings.*,
        listing_id as instrument_id,
        'crypto' as asset_class,
        symbol as name,
        {{ base_currency_of('listings.venue', 'symbol') }} as base_currency,
        {{ currency_of('listings.venue', 'symbol') }} as quote_currency,
        null::timestamp_ns as known_to,
        0 as revision
    from {{ ref('int_listings') }} as listings
    inner join {{ ref('feeds') }} as feeds on listings.feed = feeds.feed
    where asset_class = 'crypto'
),

shown as (
    select * from named
    union all by name
    select * from pairs
)

select
    {{ column_list() }}
from shown
