with calendars as (
    select distinct venue, asset_class from {{ ref('feeds') }}
),

memberships_on_grid as (
    select
        index_name,
        listing_id,
        split_part(listing_id, ':', 1) as venue,
        symbol,
        valid_from,
        valid_to,
        {{ cell_end('known_from') }} as known_from,
        {{ cell_end('known_to') }} as known_to
    from {{ ref('universe_membership') }}
),

memberships as (
    select * from memberships_on_grid where known_to is null or known_to > known_from
),

-- The file's ticker may be a later name: by the start, else by the end, else by its newest use.
{{ named_over_time(
    'memberships',
    happened='',
    span='coalesce(' ~ span_at('at_start', new_york_time('valid_from'), named=true) ~ ', '
        ~ span_at('at_end', new_york_time('valid_to'), named=true) ~ ', '
        ~ span_at('before_end', new_york_time('valid_to') ~ " - interval '1 microsecond'", named=true) ~ ', '
        ~ "case when valid_to is null then list_filter(spans, lambda newest: newest.is_named)[-1] end)"
) }},

-- Two tickers of a file may be one instrument: its longest membership stands.
moments as (
    select index_name, instrument_id, valid_from, known_from from named
    union
    select index_name, instrument_id, valid_from, known_to as known_from from named where known_to is not null
),

states as (
    select
        moments.*,
        named.* exclude (index_name, instrument_id, valid_from, known_from, known_to),
        named.instrument_id is not null as is_there
    from moments
    left join named
        on moments.index_name = named.index_name
        and moments.instrument_id = named.instrument_id
        and moments.valid_from = named.valid_from
        and {{ known_at('named', 'moments.known_from') }}
    qualify row_number() over (
            partition by moments.index_name, moments.instrument_id, moments.valid_from, moments.known_from
            order by named.valid_to desc nulls first, named.symbol asc
        ) = 1
),

-- Whether a master names it is told as known now: only a report asks, and it makes no version.
states_to_compare as (
    select
        * replace (
            last_value(is_named) over (
                partition by index_name, instrument_id, valid_from
                order by known_from
                rows between unbounded preceding and unbounded following
            ) as is_named
        )
    from states
),

{{ on_grid(
    'states_to_compare',
    key=['index_name', 'instrument_id', 'valid_from'],
    numbers=[],
    others=['symbol', 'valid_to']
) }}

select
    index_name as universe,
    asset_class,
    {{ currency_of('venue', 'symbol') }} as currency,
    instrument_id,
    symbol,
    valid_from,
    valid_to,
    is_named,
    known_from,
    known_to
from versions_on_grid
inner join calendars using (venue)
