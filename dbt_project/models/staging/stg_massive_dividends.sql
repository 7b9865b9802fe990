{{ config(meta={'feed': 'massive_dividends'}) }}

{%- set members = {
    'symbol': 'ticker', 'ex_date_text': 'ex_dividend_date', 'cash_amount_text': 'cash_amount', 'currency': 'currency',
    'dividend_type': 'dividend_type', 'declared_on_text': 'declaration_date', 'record_date_text': 'record_date',
    'pay_date_text': 'pay_date'
} %}

with {{ json_records('massive_dividends', members) }},

typed as (
    select
        *,
        'dividend' as kind,
        try_cast(ex_date_text as date) as ex_date,
        try_cast(cash_amount_text as double) as cash_amount,
        try_cast(nullif(declared_on_text, '') as date) as declared_on,
        try_cast(nullif(record_date_text, '') as date) as record_date,
        try_cast(nullif(pay_date_text, '') as date) as pay_date
    from named
),

{{ judged(
    'typed', 'massive_dividends', {'dividend': [
        refuse_missing(['symbol', 'ex_date_text', 'cash_amount_text']),
        refuse_retyped(['symbol']),
        refuse_unreadable(['ex_date', 'cash_amount', 'declared_on', 'record_date', 'pay_date']),
        refuse_impossible_dates(['ex_date', 'declared_on']),
        refuse_impossible_values('cash_amount < 0', 'cash_amount')
    ]}
) }}

select
    {{ judged_columns() }},
    symbol,
    -- One ex-date can have a regular and a special dividend: they are two actions.
    case when dividend_type is null or dividend_type = 'CD' then 'dividend' when dividend_type = 'SC' then 'special_dividend'
        else 'dividend_' || lower(dividend_type)
    end as action_type,
    ex_date,
    cash_amount,
    currency,
    declared_on,
    record_date,
    pay_date
from judged
