with listings as (
    select listings.*
    from {{ ref('int_listings') }} as listings
    inner join {{ ref('feeds') }} as feeds on listings.feed = feeds.feed
    where asset_class != 'crypto'
),

spans as (
    select * from {{ ref('int_listing_spans') }} where known_to is null
),

unnamed as (
    select
        listings.*,
        coalesce(instrument_id, listings.listing_id) as instrument_id,
        {{ new_york_date('starts_at') }} as unnamed_from,
        {{ new_york_date('ends_at') }} as unnamed_to,
        case
            when starts_at is not null then 'used after its instrument gave it up'
            when ends_at is not null then 'used before the instrument that a master names'
            else 'no master names it'
        end as reason
    from listings
    left join spans using (listing_id)
    where spans.listing_id is null
        or (
            not is_named
            and (starts_at is null or last_event_time >= starts_at)
            and (ends_at is null or first_event_time < ends_at)
        )
)

select
    {{ column_list() }}
from unnamed
