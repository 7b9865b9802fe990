-- What masters say of a listing, and the last trades of the old tickers that its renames follow, change its spans.
with names as (
    select * from {{ ref('int_symbology__versioned') }}
),

last_trades as (
    select renames.listing_id, renames.previous_listing_id, trades.* exclude (listing_id)
    from {{ ref('int_last_trades') }} as trades
    inner join (
        select distinct listing_id, previous_listing_id, valid_from from names where previous_listing_id != listing_id
    ) as renames on trades.listing_id = renames.previous_listing_id and trades.renamed_on = renames.valid_from
),

-- Nothing is known of a listing at first.
births as (
    select distinct listing_id, timestamp_ns '1677-09-22 00:00:00' as known_from, null::timestamp_ns as known_to from names
),

listing_segments as (
    {{ segments(['births', 'names', 'last_trades'], 'listing_id') }}
),

dated as (
    select
        segments.*,
        instrument_id,
        valid_to,
        -- After the old ticker's last trade, though not before somebody else's use of the new one ended.
        greatest(
            coalesce(make_timestamp_ns(epoch_ns(last_trade_at) + 1), {{ new_york_time('valid_from') }}),
            lag({{ new_york_time('valid_to') }}) over uses
        ) as starts_at,
        {{ new_york_time('valid_to') }} as ends_at,
        row_number() over uses as nth
    from listing_segments as segments
    left join names on segments.listing_id = names.listing_id and {{ known_during('names', 'segments') }}
    left join last_trades
        on names.listing_id = last_trades.listing_id
        and names.previous_listing_id = last_trades.previous_listing_id
        and names.valid_from = last_trades.renamed_on
        and {{ known_during('last_trades', 'segments') }}
    window uses as (partition by segments.listing_id, segments.known_from order by valid_from nulls first)
),

gaps as (
    select *, lead(starts_at) over (partition by listing_id, known_from order by nth) as next_starts_at from dated
),

-- Whoever uses a ticker that was given up, or used it before, without being named yet, is another instrument.
spans as (
    select
        listing_id,
        coalesce(instrument_id, listing_id) as instrument_id,
        instrument_id is not null as is_named,
        starts_at,
        ends_at,
        known_from,
        known_to
    from dated
    union all
    select
        listing_id,
        {{ dated_instrument('listing_id', 'valid_to') }} as instrument_id,
        false as is_named,
        ends_at as starts_at,
        next_starts_at as ends_at,
        known_from,
        known_to
    from gaps
    where ends_at is not null and ends_at is distinct from next_starts_at
    union all
    select
        listing_id,
        listing_id as instrument_id,
        instrument_id = listing_id as is_named,
        null as starts_at,
        starts_at as ends_at,
        known_from,
        known_to
    from dated
    where nth = 1 and starts_at is not null
)

select
    {{ column_list() }}
from spans
