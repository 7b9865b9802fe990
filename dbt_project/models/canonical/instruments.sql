with named as (
    select * from {{ ref('int_instruments__versioned') }}
),

-- Of a crypto pair the venue's spelling says what is traded for what.
pairs as (
    select
        *,
        'crypto' as asset_class,
        symbol as name,
        {{ base_currency_of('venue', 'symbol') }} as base_currency,
        {{ currency_of('venue', 'symbol') }} as quote_currency
    from ({{ pairs_of_venues() }})
),

shown as (
    select * from named
    union all by name
    select * from pairs
)

select
    {{ column_list() }}
from shown
