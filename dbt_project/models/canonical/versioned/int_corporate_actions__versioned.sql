{{ config(unique_key=['load_seq', 'source_position', 'slot']) }}

with splits as (
    select
        *,
        {{ on_date_known_from('ex_date') }} as rule_known_from,
        'assumed' as knowledge_basis
    from {{ unseen('stg_massive_splits') }}
    where disposition = 'modelled'
),

-- A dividend is known at the end of the day that declares it; an undeclared one cannot be dated before its ex-date.
dividends as (
    select
        *,
        case
            when declared_on is not null then {{ end_of_day_known_from('declared_on') }}
            else {{ on_date_known_from('ex_date') }}
        end as rule_known_from,
        case when declared_on is not null then 'published' else 'assumed' end as knowledge_basis
    from {{ unseen('stg_massive_dividends') }}
    where disposition = 'modelled'
),

new_records as (
    select
        records.* exclude (source_time),
        {{ of_feed('venue') }} as venue,
        {{ of_feed('venue') }} || ':' || symbol as listing_id,
        source_time as delivered_at,
        null::varchar as scope,
        null::varchar as load_scope,
        '' as slot
    from (
        select
            *,
            null::double as cash_amount,
            null::varchar as currency,
            null::date as declared_on,
            null::date as record_date,
            null::date as pay_date
        from splits
        union all by name
        select *, null::double as split_from, null::double as split_to from dividends
    ) as records
),

{{ versions(
    'new_records',
    key=['listing_id', 'action_type', 'ex_date'],
    content=['split_from', 'split_to', 'cash_amount', 'currency', 'declared_on', 'record_date', 'pay_date', 'is_deletion'],
    sequence='ex_date'
) }}

select
    {{ column_list() }}
from changed
