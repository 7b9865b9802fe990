{{ config(unique_key=['load_seq', 'source_position', 'slot']) }}

with changes as (
    select *, {{ on_date_known_from('event_date') }} as rule_known_from
    from {{ unseen('stg_massive_ticker_events') }}
    where disposition = 'modelled'
),

-- An answer is complete for its instrument: a change that a later one lacks was taken back by it.
new_records as (
    select
        records.* exclude (source_time, is_complete),
        {{ of_feed('venue') }} as venue,
        {{ of_feed('venue') }} || ':' || symbol as listing_id,
        'assumed' as knowledge_basis,
        source_time as delivered_at,
        composite_figi as scope,
        case when is_complete then composite_figi end as load_scope,
        '' as slot
    from changes as records
),

{{ versions(
    'new_records',
    key=['composite_figi', 'event_date'],
    content=['listing_id', 'issuer_name', 'cik', 'is_deletion'],
    sequence='event_date'
) }}

select
    {{ column_list() }}
from changed
