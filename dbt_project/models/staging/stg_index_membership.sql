{{ config(meta={'feed': 'index_membership'}) }}

{%- set fields = ['ticker', 'start_date', 'end_date'] %}

with source as (
    select * from {{ source('raw', 'index_membership') }}
),

typed as (
    select
        {{ envelope() }},
        payload,
        {{ csv_payload(fields) }} as row_payload,
        'membership' as kind,
        {{ header('index_name') }} as index_name,
        {{ given('ticker') }} as symbol,
        {{ given('start_date') }} as valid_from_text,
        nullif({{ given('end_date') }}, '9999-12-31') as valid_to_text,
        try_cast({{ given('start_date') }} as date) as valid_from,
        -- Some write an open end as the last of all dates.
        try_cast(nullif({{ given('end_date') }}, '9999-12-31') as date) as valid_to
    from source
),

{{ judged(
    'typed', 'index_membership', {'membership': [
        refuse_missing(['index_name', 'symbol', 'valid_from_text']),
        refuse_unreadable(['valid_from', 'valid_to']),
        refuse_impossible_dates(['valid_from', 'valid_to']),
        refuse_impossible_values('valid_to < valid_from', 'valid_from, valid_to')
    ]},
    json=false
) }}

select
    {{ judged_columns('row_payload') }},
    {{ none_quarantined() }} over (partition by load_id) as is_complete,
    index_name,
    symbol,
    valid_from,
    valid_to
from judged
