{{ config(unique_key=['load_seq', 'source_position', 'slot']) }}

with observations as (
    select * from {{ unseen('stg_alfred_observations') }} where disposition = 'modelled'
),

-- A vintage dates itself: it was published during its first day, and is safely known at the day's end.
new_records as (
    select
        * exclude (source_time),
        {{ end_of_day_known_from('published_on') }} as rule_known_from,
        'published' as knowledge_basis,
        source_time as delivered_at,
        null::varchar as scope,
        null::varchar as load_scope,
        published_on::varchar as slot,
        true as self_dated
    from observations
),

{{ versions(
    'new_records',
    key=['series_id', 'observation_date'],
    content=['value', 'is_deletion'],
    sequence='published_on',
    slotted=true
) }}

select
    {{ column_list() }}
from changed
