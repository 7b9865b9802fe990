{{ config(unique_key=['load_seq', 'source_position', 'slot']) }}

with listings as (
    select * from {{ unseen('stg_openfigi_mapping') }} where disposition = 'modelled'
),

-- It has no dates: it is known from its delivery. An answer is complete for what was asked.
new_records as (
    select
        records.* exclude (source_time, is_complete),
        source_time as rule_known_from,
        'loaded' as knowledge_basis,
        source_time as delivered_at,
        nullif(asked_for, '') as scope,
        case when is_complete then nullif(asked_for, '') end as load_scope,
        '' as slot
    from listings as records
),

{{ versions(
    'new_records',
    key=['asked_for', 'figi'],
    content=[
        'composite_figi', 'share_class_figi', 'symbol', 'exchange_code', 'name', 'security_type', 'security_type_2', 'market_sector',
        'security_description', 'is_deletion'
    ],
    sequence='figi'
) }}

select
    {{ column_list() }}
from changed
