{{ config(meta={'feed': 'massive_splits'}) }}

{%- set members = {
    'symbol': 'ticker', 'ex_date_text': 'execution_date', 'split_from_text': 'split_from', 'split_to_text': 'split_to'
} %}

with {{ json_records('massive_splits', members) }},

typed as (
    select
        *,
        'split' as kind,
        try_cast(ex_date_text as date) as ex_date,
        try_cast(split_from_text as double) as split_from,
        try_cast(split_to_text as double) as split_to
    from named
),

{{ judged(
    'typed', 'massive_splits', {'split': [
        refuse_missing(['symbol', 'ex_date_text', 'split_from_text', 'split_to_text']),
        refuse_retyped(['symbol']),
        refuse_unreadable(['ex_date', 'split_from', 'split_to']),
        refuse_impossible_dates(['ex_date']),
        refuse_impossible_values('split_from <= 0 or split_to <= 0', 'split_from, split_to')
    ]}
) }}

select
    {{ judged_columns() }},
    symbol,
    'split' as action_type,
    ex_date,
    split_from,
    split_to
from judged
