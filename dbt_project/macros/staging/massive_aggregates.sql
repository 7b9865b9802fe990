{#- Massive's day and minute aggregates have one format, with the columns in the order open, close, high, low. -#}
{% macro massive_aggregates(feed, bar_interval) -%}
{%- set fields = ['ticker', 'volume', 'open', 'close', 'high', 'low', 'window_start', 'transactions'] %}

with source as (
    select * from {{ source('raw', feed) }}
),

typed as (
    select
        {{ envelope() }},
        headers,
        payload,
        {{ csv_payload(fields) }} as row_payload,
        'bar' as kind,
        {{ given('ticker') }} as symbol,
        {{ given('window_start') }} as event_time_text,
        {% for column in ['open', 'high', 'low', 'close', 'volume'] -%}
        {{ given(column) }} as {{ column }}_text,
        try_cast({{ column }} as double) as {{ column }},
        {% endfor -%}
        {{ given('transactions') }} as trade_count_text,
        {{ whole_number('trade_count_text') }} as trade_count,
        {{ epoch_text_to_time('event_time_text') }} as event_time
    from source
),

{{ judged(
    'typed', feed, {'bar': [
        refuse_missing(['symbol', 'event_time_text', 'open_text', 'high_text', 'low_text', 'close_text', 'volume_text']),
        refuse_unreadable(['open', 'high', 'low', 'close', 'volume', 'trade_count']),
        refuse_impossible_time('source_time'),
        refuse_impossible_values(
            'least(open, high, low, close) <= 0 or volume < 0 or high < greatest(open, close) or low > least(open, close)',
            'open, high, low, close, volume'
        )
    ]},
    json=false
) }},

{{ dated_records() }}

select
    {{ judged_columns('row_payload') }},
    load_session,
    is_complete,
    session_date,
    symbol,
    '{{ bar_interval }}' as bar_interval,
    event_time as bar_start,
    open,
    high,
    low,
    close,
    volume,
    trade_count
from dated
{%- endmacro %}
