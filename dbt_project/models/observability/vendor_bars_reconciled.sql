-- Both as known now; the vendor's own bar is of the version that stands.
with bars as (
    select * from {{ ref('bars_1d') }} where known_to is null and bar_source = 'trades'
),

vendor_bars as (
    select *, {{ new_york_date('bar_start') }} as session_date
    from {{ ref('bars') }}
    where known_to is null and bar_interval = '1d'
),

reconciled as (
    select
        vendor_bars.listing_id,
        vendor_bars.session_date,
        bars.open,
        vendor_bars.open as vendor_open,
        bars.high,
        vendor_bars.high as vendor_high,
        bars.low,
        vendor_bars.low as vendor_low,
        bars.close,
        vendor_bars.close as vendor_close,
        bars.volume,
        vendor_bars.volume as vendor_volume,
        bars.open = vendor_bars.open
        and bars.high = vendor_bars.high
        and bars.low = vendor_bars.low
        and bars.close = vendor_bars.close as has_same_prices,
        vendor_bars.volume / nullif(bars.volume, 0) - 1 as volume_difference
    from bars
    inner join vendor_bars using (listing_id, session_date)
)

select
    {{ column_list() }}
from reconciled
