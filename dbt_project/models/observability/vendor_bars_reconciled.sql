-- Both as known now, of the markets and lengths of which a vendor sends bars; each vendor's bar in the version that stands.
with vendor_bars as (
    select
        *,
        {{ new_york_date('bar_start') }} as session_date,
        case bar_interval when '1m' then bar_start end as minute_start
    from {{ ref('bars') }}
    where known_to is null and bar_interval in ('1d', '1m')
),

days_and_minutes as (
    select *, '1d' as bar_interval from {{ ref('bars_1d') }}
    union all by name
    select *, '1m' as bar_interval, {{ new_york_date('bar_start') }} as session_date, bar_start as minute_start
    from {{ ref('bars_1m') }}
),

-- A market whose vendor sends no bars of a length has nothing to be reconciled.
bars as (
    select *
    from days_and_minutes
    semi join (select distinct venue, bar_interval from {{ ref('bars') }}) using (venue, bar_interval)
    where known_to is null and bar_source = 'trades'
),

side_by_side as (
    select
        coalesce(bars.listing_id, vendor_bars.listing_id) as listing_id,
        coalesce(bars.bar_interval, vendor_bars.bar_interval) as bar_interval,
        coalesce(bars.session_date, vendor_bars.session_date) as session_date,
        coalesce(bars.minute_start, vendor_bars.minute_start) as minute_start,
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
        vendor_bars.volume / nullif(bars.volume, 0) - 1 as volume_difference,
        bars.listing_id is not null as is_traded,
        vendor_bars.listing_id is not null as is_of_vendor
    from bars
    full join vendor_bars
        on bars.listing_id = vendor_bars.listing_id
        and bars.bar_interval = vendor_bars.bar_interval
        and bars.session_date = vendor_bars.session_date
        and bars.minute_start is not distinct from vendor_bars.minute_start
),

-- Volumes are sums of doubles, whose last digits depend on their order.
reconciled as (
    select
        *,
        case
            when not is_traded then 'only_vendor'
            when not is_of_vendor then 'only_trades'
            when has_same_prices and not {{ differs('volume', 'vendor_volume') }} then 'equal'
            else 'differs'
        end as status
    from side_by_side
)

select
    {{ column_list() }}
from reconciled
