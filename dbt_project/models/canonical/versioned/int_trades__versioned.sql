{#- Records of other kinds do not reach this table (market_data/dbt_runs.py). -#}
{%- set kinds = {
    'stg_binance_spot': ['trade'],
    'stg_coinbase_exchange': ['match', 'last_match']
} -%}
{{ config(
    meta={'kinds': kinds},
    unique_key=['load_seq', 'source_position', 'slot'],
    partitioned_by=['event_date'],
    sorted_by=['listing_id', 'event_time'],
    post_hook="{{ note_extents('trade_id') }}"
) }}

with binance_trades as (
    select * from {{ unseen('stg_binance_spot') }}
    where {{ is_of_kind(kinds.stg_binance_spot) }} and disposition = 'modelled'
),

coinbase_trades as (
    select * from {{ unseen('stg_coinbase_exchange') }}
    where {{ is_of_kind(kinds.stg_coinbase_exchange) }} and disposition = 'modelled'
),

massive_trades as (
    select * from {{ unseen('stg_massive_trades') }} where disposition = 'modelled'
),

exchanges as (
    select * from {{ ref('exchanges') }}
),

streamed as (
    select
        {{ lineage() }},
        symbol,
        trade_id,
        event_time,
        received_time,
        price,
        size,
        side,
        sequence,
        event_time::date as session_date,
        '' as identity_scope,
        null::varchar as scope,
        null::varchar as load_scope,
        null::timestamp_ns as delivered_at,
        greatest(received_time, event_time) as rule_known_from,
        'received' as knowledge_basis
    from (
        select *, null::bigint as sequence from binance_trades
        union all by name
        select * from coinbase_trades
    )
),

delivered as (
    select
        {{ lineage('massive_trades') }},
        symbol,
        trade_id,
        event_time,
        price,
        size,
        conditions,
        sequence,
        is_cancelled,
        exchanges.mic as exchange,
        session_date,
        -- A trade id is unique only within ticker, exchange, reporting facility and day.
        concat_ws('/', session_date::varchar, coalesce(exchange_code, ''), coalesce(trf_id, '')) as identity_scope,
        session_date::varchar as scope,
        case when is_complete then load_session::varchar end as load_scope,
        source_time as delivered_at,
        {{ next_day_known_from('massive_trades', 'session_date') }} as rule_known_from,
        'assumed' as knowledge_basis
    from massive_trades
    -- FINRA's facilities share the exchange code 4; the reporting facility's own id tells them apart.
    left join exchanges
        on massive_trades.feed = exchanges.feed
        and case when exchange_code = '4' then trf_id else exchange_code end = exchanges.code
),

new_records as (
    select
        {{ of_feed('venue') }} as venue,
        {{ of_feed('venue') }} || ':' || symbol as listing_id,
        symbol,
        exchange,
        trade_id,
        event_time,
        received_time,
        price,
        size,
        side,
        conditions,
        sequence,
        coalesce(is_cancelled, false) as is_cancelled,
        rule_known_from,
        knowledge_basis,
        feed,
        schema_version,
        load_id,
        source,
        source_partition,
        source_position,
        event_time::date as event_date,
        session_date,
        identity_scope,
        scope,
        load_scope,
        delivered_at,
        '' as slot,
        load_seq
    from (
        select *, null::varchar[] as conditions from streamed
        union all by name
        select * from delivered
    ) as records
),

{{ versions(
    'new_records',
    key=['listing_id', 'identity_scope', 'trade_id'],
    content=['event_time', 'price', 'size', 'side', 'exchange', 'conditions', 'sequence', 'is_cancelled or is_deletion'],
    named_scopes={'massive_trades': named_session()},
    extents=extents(
        streams={
            'stg_binance_spot': ['trade_id', is_of_kind(kinds.stg_binance_spot)],
            'stg_coinbase_exchange': ['trade_id', is_of_kind(kinds.stg_coinbase_exchange)]
        },
        deliveries={'stg_massive_trades': ['session_date', 'load_session']}
    )
) }}

select
    {{ column_list() }}
from changed
