with named as (
    select * from {{ ref('int_symbology__versioned') }}
),

-- A crypto venue's own pairs need no master: a listing is an instrument of that venue, known from its first record.
pairs as (
    select
        listings.*,
        listing_id as instrument_id,
        null::date as valid_from,
        null::date as valid_to,
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
