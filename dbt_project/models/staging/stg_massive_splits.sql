{{ config(meta={'feed': 'massive_splits'}) }}

{%- set members = {
    'symbol': 'ticker', 'ex_date_text': 'execution_date', 'split_from_text': 'split_from', 'split_to_text': 'split_to'
} %}

with source as (
    select * from {{ source('raw', 'massive_splits') }}
),

decoded as (
    select {{ envelope() }}, payload, {{ utf8_text('payload') }} as text from source
),

named as (
    select
        * exclude (message),
        {{ json_columns('message', members) }}
    from (select *, {{ json_fields('text', members) }} as message from decoded)
),

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
    'typed', 'massive_splits', ['split'], [
        refuse_missing("'split'", ['symbol', 'ex_date_text', 'split_from_text', 'split_to_text']),
        refuse_unreadable("'split'", ['ex_date', 'split_from', 'split_to']),
        refuse_impossible_values("'split'", 'split_from <= 0 or split_to <= 0', 'split_from, split_to')
    ]
) }}

select
    {{ envelope() }},
    kind,
    disposition,
    reject_reason,
    reject_detail,
    case when disposition = 'quarantined' then payload end as payload,
    symbol,
    'split' as action_type,
    ex_date,
    split_from,
    split_to
from judged
