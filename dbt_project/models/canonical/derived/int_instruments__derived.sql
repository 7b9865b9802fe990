-- An instrument is what symbology names; ticker events and OpenFIGI say what it is called.
with names as (
    select *, {{ as_origin() }} as origin from {{ ref('int_symbology__versioned') }}
),

-- A change of ticker has a date, the name beside it has none: it is known from its delivery.
ticker_changes as (
    {{ known_states('ticker_changes', 'composite_figi, event_date', known_from='greatest(known_from, delivered_at)') }}
),

figi_listings as (
    select * exclude (composite_figi), coalesce(composite_figi, figi) as composite_figi
    from ({{ known_states('figi_listings', 'asked_for, figi') }})
    where exchange_code = 'US'
),

instruments_of_figis as (
    select distinct instrument_id, composite_figi from names
),

issuers as (
    select instrument_id, ticker_changes.*, {{ as_origin() }} as origin
    from ticker_changes
    inner join instruments_of_figis using (composite_figi)
),

attributes as (
    select instrument_id, figi_listings.*, {{ as_origin() }} as origin
    from figi_listings
    inner join instruments_of_figis using (composite_figi)
),

instrument_segments as (
    {{ segments(['names', 'issuers', 'attributes'], 'instrument_id') }}
),

named as (
    select
        segments.instrument_id,
        segments.known_from,
        segments.known_to,
        arg_max(
            struct_pack(venue, symbol, composite_figi), coalesce(valid_from, date '0001-01-01')
        ) as name,
        max(struct_pack(at := names.known_from, origin := origin)) as newest
    from instrument_segments as segments
    inner join names on segments.instrument_id = names.instrument_id and {{ known_during('names', 'segments') }}
    group by segments.instrument_id, segments.known_from, segments.known_to
),

issued as (
    select
        named.instrument_id,
        named.known_from,
        arg_max(struct_pack(issuer_name, cik), event_date) as issuer,
        max(struct_pack(at := issuers.known_from, origin := origin)) as newest
    from named
    inner join issuers
        on named.instrument_id = issuers.instrument_id
        and named.name.composite_figi = issuers.composite_figi
        and {{ known_during('issuers', 'named') }}
    group by named.instrument_id, named.known_from
),

attributed as (
    select
        named.instrument_id,
        named.known_from,
        arg_max(
            struct_pack(share_class_figi, name := attributes.name, security_type, market_sector),
            struct_pack(is_composite := figi = attributes.composite_figi, delivered_at, figi, asked_for)
        ) as attribute,
        max(struct_pack(at := attributes.known_from, origin := origin)) as newest
    from named
    inner join attributes
        on named.instrument_id = attributes.instrument_id
        and named.name.composite_figi = attributes.composite_figi
        and {{ known_during('attributes', 'named') }}
    group by named.instrument_id, named.known_from
),

states as (
    select
        named.instrument_id,
        'equity' as asset_class,
        named.name.venue as venue, -- noqa: AL09
        named.name.symbol as symbol, -- noqa: AL09
        coalesce(issuer.issuer_name, attribute.name) as name,
        named.name.composite_figi as composite_figi, -- noqa: AL09
        attribute.share_class_figi as share_class_figi, -- noqa: AL09
        issuer.cik as cik, -- noqa: AL09
        attribute.security_type as security_type, -- noqa: AL09
        attribute.market_sector as market_sector, -- noqa: AL09
        null::varchar as base_currency,
        {{ currency_of('named.name.venue', 'named.name.symbol') }} as quote_currency,
        named.known_from,
        named.known_to,
        greatest(named.newest, issued.newest, attributed.newest).origin as origin
    from named
    left join issued on named.instrument_id = issued.instrument_id and named.known_from = issued.known_from
    left join attributed on named.instrument_id = attributed.instrument_id and named.known_from = attributed.known_from
),

{{ joined_segments(
    'states',
    key=['instrument_id'],
    content=['venue', 'symbol', 'name', 'composite_figi', 'share_class_figi', 'cik', 'security_type', 'market_sector']
) }},

revised as (
    select
        *,
        unnest(origin), -- noqa: AL03
        row_number() over (partition by instrument_id order by known_from) - 1 as revision
    from versions_on_grid
)

select
    {{ column_list() }}
from revised
