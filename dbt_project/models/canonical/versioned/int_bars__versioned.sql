{{ config(
    unique_key=['load_seq', 'source_position', 'slot'],
    partitioned_by=['event_date'],
    sorted_by=['listing_id', 'bar_start']
) }}

with day_bars as (
    select *, {{ next_day_known_from('massive_day_aggs', 'session_date') }} as rule_known_from
    from {{ unseen('stg_massive_day_aggs') }}
    where disposition = 'modelled'
),

minute_bars as (
    select *, {{ next_day_known_from('massive_minute_aggs', 'session_date') }} as rule_known_from
    from {{ unseen('stg_massive_minute_aggs') }}
    where disposition = 'modelled'
),

new_records as (
    select
        records.* exclude (source_time, is_complete),
        {{ of_feed('venue') }} as venue,
        {{ of_feed('venue') }} || ':' || symbol as listing_id,
        null::double as vwap,
        'assumed' as knowledge_basis,
        bar_start::date as event_date,
        -- Day and minute files of one session are deliveries of different things.
        concat_ws('/', bar_interval, session_date) as scope,
        case when is_complete then concat_ws('/', bar_interval, load_session) end as load_scope,
        source_time as delivered_at,
        '' as slot
    from (
        select * from day_bars
        union all
        select * from minute_bars
    ) as records
),

{{ versions(
    'new_records',
    key=['listing_id', 'bar_interval', 'bar_start'],
    content=['open', 'high', 'low', 'close', 'volume', 'vwap', 'trade_count', 'is_deletion'],
    sequence='bar_start',
    named_scopes={
        'massive_day_aggs': "'1d/' || " ~ named_session(),
        'massive_minute_aggs': "'1m/' || " ~ named_session()
    }
) }}

select
    {{ column_list() }}
from changed
