with {{ spans_as_of("'2262-04-11'") }},

listings as (
    select listings.*
    from {{ ref('int_listings') }} as listings
    inner join {{ ref('feeds') }} as feeds on listings.feed = feeds.feed
    where asset_class != 'crypto'
),

firsts as (
    select listing_id, min(starts_at) as starts_at, arg_min(instrument_id, starts_at) as instrument_id
    from spans
    group by listing_id
),

-- Before the first instrument that a master names, unless that one bears the listing's own name.
unnamed as (
    select
        listings.*,
        listing_id as instrument_id,
        null::date as unnamed_from,
        {{ new_york_date('starts_at') }} as unnamed_to,
        case when starts_at is null then 'no master names it' else 'used before the instrument that a master names' end as reason
    from listings
    left join firsts using (listing_id)
    where firsts.listing_id is null or (first_event_time < starts_at and firsts.instrument_id != listing_id)
    union all by name
    select
        listings.*,
        spans.instrument_id,
        {{ new_york_date('starts_at') }} as unnamed_from,
        nullif({{ new_york_date('ends_at') }}, date '2262-04-10') as unnamed_to,
        'used after its instrument gave it up' as reason
    from listings
    inner join spans using (listing_id)
    where not is_named and last_event_time >= starts_at and first_event_time < ends_at
)

select
    {{ column_list() }}
from unnamed
