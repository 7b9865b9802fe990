{{ config(meta={'feed': 'alfred_observations'}) }}

{%- set members = {'published_on_text': 'realtime_start', 'observation_date_text': 'date', 'value_text': 'value'} %}

with {{ json_records('alfred_observations', members, attributes=['series_id']) }},

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
    'typed', 'alfred_observations', {'observation': [
        refuse_missing(['series_id', 'published_on_text', 'observation_date_text', 'given_value']),
        refuse_unreadable(['published_on', 'observation_date', 'value']),
        refuse_impossible_dates(['published_on', 'observation_date'])
    ]}
) }}

select
    {{ judged_columns() }},
    series_id,
    observation_date,
    published_on,
    value
from judged
