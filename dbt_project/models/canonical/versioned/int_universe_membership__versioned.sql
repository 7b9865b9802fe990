{{ config(unique_key=['load_seq', 'source_position', 'slot']) }}

with memberships as (
    select * from {{ unseen('stg_index_membership') }} where disposition = 'modelled'
),

-- One line says two things, known at different times: that a membership begins, and (sooner or later) that it ends.
begins as (
    select
        * replace (null::date as valid_to),
        '' as slot,
        false as self_dated,
        {{ on_date_known_from('valid_from') }} as rule_known_from
    from memberships
),

ends as (
    select
        *,
        'end' as slot,
        valid_to is not null as self_dated,
        {{ on_date_known_from('coalesce(valid_to, valid_from)') }} as rule_known_from
    from memberships
),

new_records as (
    select
        records.* exclude (source_time, is_complete),
        {{ of_feed('venue') }} || ':' || symbol as listing_id,
        'assumed' as knowledge_basis,
        source_time as delivered_at,
        index_name as scope,
        case when is_complete then index_name end as load_scope
    from (
        select * from begins
        union all by name
        select * from ends
    ) as records
),

{{ versions(
    'new_records',
    key=['index_name', 'listing_id', 'valid_from'],
    content=['valid_to', 'is_deletion'],
    sequence='slot',
    slotted=true,
    named_scopes={'index_membership': "json_extract_string(attributes, '/index_name')"}
) }}

select
    {{ column_list() }}
from changed
