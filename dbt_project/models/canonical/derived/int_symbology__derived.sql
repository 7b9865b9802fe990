-- 1. Each instrument's changes of ticker, in the order of their dates: a claim on a listing from one to the next.
with ticker_changes as (
    {{ known_states('ticker_changes', 'composite_figi, event_date') }}
),

instrument_segments as (
    {{ segments(['ticker_changes'], 'composite_figi') }}
),

claims as (
    select
        segments.composite_figi,
        segments.known_from,
        segments.known_to,
        listing_id,
        venue,
        symbol,
        event_date as valid_from,
        lead(event_date) over chain as valid_to,
        lag(listing_id) over chain as previous_listing_id,
        first_value(listing_id) over chain as first_listing_id,
        first_value(event_date) over chain as first_date,
        {{ as_origin() }} as origin
    from instrument_segments as segments
    inner join ticker_changes
        on segments.composite_figi = ticker_changes.composite_figi and {{ known_during('ticker_changes', 'segments') }}
    window chain as (partition by segments.composite_figi, segments.known_from order by event_date)
),

-- 2. Each listing's claims. Of two from one date one stands; a later one ends the one before.
listing_segments as (
    {{ segments(['claims'], 'listing_id') }}
),

claims_of_listings as (
    select claims.* replace (segments.known_from as known_from, segments.known_to as known_to)
    from listing_segments as segments
    inner join claims on segments.listing_id = claims.listing_id and {{ known_during('claims', 'segments') }}
    qualify row_number() over (
            partition by claims.listing_id, segments.known_from, valid_from order by claims.composite_figi
        ) = 1
),

uses as (
    select
        * replace (
            least(valid_to, lead(valid_from) over (partition by listing_id, known_from order by valid_from)) as valid_to
        )
    from claims_of_listings
),

-- 3. The instrument is named after the first listing of its chain: alone if nobody is known to have used it before.
first_uses as (
    select
        listing_id,
        known_from,
        known_to,
        min(struct_pack(valid_from, composite_figi)) as first_user,
        list(struct_pack(valid_from, composite_figi)) as users,
        max(valid_from) as last_used,
        arg_max(valid_to, valid_from) as last_ended,
        count(valid_to) = count(*) as has_ended
    from uses
    group by listing_id, known_from, known_to
),

named as (
    select
        uses.* replace (
            greatest(uses.known_from, firsts.known_from) as known_from,
            least(uses.known_to, firsts.known_to) as known_to
        ),
        case
            when first_user = struct_pack(valid_from := first_date, composite_figi := uses.composite_figi) then first_listing_id
            when list_contains(users, struct_pack(valid_from := first_date, composite_figi := uses.composite_figi))
                then {{ dated_instrument('first_listing_id', 'first_date') }}
            -- Two that claim one ticker from one date.
            else {{ dated_instrument('first_listing_id', 'first_date') }} || '/' || uses.composite_figi
        end as instrument_id
    from uses
    inner join first_uses as firsts
        on uses.first_listing_id = firsts.listing_id
        and (firsts.known_to is null or uses.known_from < firsts.known_to)
        and (uses.known_to is null or firsts.known_from < uses.known_to)
),

-- 4. A listing that OpenFIGI names and no chain claims now: it means an instrument of its own.
figi_listings as (
    select
        *,
        'us_equities' as venue,
        replace(symbol, '/', '.') as ticker,
        'us_equities:' || replace(symbol, '/', '.') as listing_id
    from ({{ known_states('figi_listings', 'asked_for, figi') }})
    where exchange_code = 'US' and symbol is not null
),

figi_segments as (
    {{ segments(['figi_listings', 'first_uses'], 'listing_id') }}
),

figi_named as (
    select
        segments.listing_id,
        segments.known_from,
        segments.known_to,
        figi_listings.venue,
        figi_listings.ticker as symbol,
        coalesce(figi_listings.composite_figi, figi_listings.figi) as composite_figi,
        last_ended as valid_from,
        null::date as valid_to,
        null::varchar as previous_listing_id,
        {{ dated_instrument('segments.listing_id', 'last_ended') }} as instrument_id,
        {{ as_origin() }} as origin
    from figi_segments as segments
    inner join figi_listings on segments.listing_id = figi_listings.listing_id and {{ known_during('figi_listings', 'segments') }}
    left join first_uses as firsts on segments.listing_id = firsts.listing_id and {{ known_during('firsts', 'segments') }}
    where firsts.listing_id is null or has_ended
    qualify row_number() over (
            partition by segments.listing_id, segments.known_from
            order by figi_listings.delivered_at desc, figi_listings.figi asc, asked_for asc
        ) = 1
),

states as (
    select
        listing_id,
        venue,
        symbol,
        instrument_id,
        valid_from,
        valid_to,
        composite_figi,
        previous_listing_id,
        known_from,
        known_to,
        origin
    from named
    union all by name
    select * from figi_named
),

{{ joined_segments(
    'states',
    key=['listing_id', 'valid_from'],
    content=['instrument_id', 'valid_to', 'composite_figi', 'previous_listing_id']
) }},

revised as (
    select
        *,
        unnest(origin), -- noqa: AL03
        row_number() over (partition by listing_id, valid_from order by known_from) - 1 as revision
    from versions_on_grid
)

select
    {{ column_list() }}
from revised
