{{ config(meta={'feed': 'alfred_observations'}) }}

{%- set members = {'published_on_text': 'realtime_start', 'observation_date_text': 'date', 'value_text': 'value'} %}

with source as (
    select * from {{ source('raw', 'alfred_observations') }}
),

decoded as (
    select {{ envelope() }}, payload, {{ header('series_id') }} as series_id, {{ utf8_text('payload') }} as text from source
),

named as (
    select
        * exclude (message),
        {{ json_columns('message', members) }}
    from (select *, {{ json_fields('text', members) }} as message from decoded)
),

typed as (
    select
        * exclude (value_text),
        'observation' as kind,
        value_text as given_value,
        -- A full stop is FRED's missing value: a fact like any other, and a version of its own.
        nullif(value_text, '.') as value_text,
        try_cast(published_on_text as date) as published_on,
        try_cast(observation_date_text as date) as observation_date,
        try_cast(nullif(value_text, '.') as double) as value
    from named
),

{{ judged(
    'typed', 'alfred_observations', ['observation'], [
        refuse_missing("'observation'", ['series_id', 'published_on_text', 'observation_date_text', 'given_value']),
        refuse_unreadable("'observation'", ['published_on', 'observation_date', 'value'])
    ]
) }}

select
    {{ envelope() }},
    kind,
    disposition,
    reject_reason,
    reject_detail,
    case when disposition = 'quarantined' then payload end as payload,
    series_id,
    observation_date,
    published_on,
    value
from judged
