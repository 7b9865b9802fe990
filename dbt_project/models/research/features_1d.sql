{{ config(materialized='view') }}

-- A row is cut wherever one of the tables has a new version.
with moments as (
    {% for table in feature_tables() -%}
    select instrument_id, session_date, known_from from {{ ref(table) }}
    union
    {% endfor -%}
    select instrument_id, session_date, known_to as known_from from {{ ref('bars_1d_adjusted') }} where known_to is not null
),

segments as (
    select
        *,
        lead(known_from) over (partition by instrument_id, session_date order by known_from) as known_to
    from moments
),

features as (
    select
        bars_1d_adjusted.instrument_id,
        bars_1d_adjusted.symbol,
        bars_1d_adjusted.venue,
        bars_1d_adjusted.currency,
        bars_1d_adjusted.session_date,
        bars_1d_adjusted.session_close,
        {{ feature_columns() }},
        segments.known_from,
        segments.known_to
    from segments
    {% for table in feature_tables() -%}
    inner join {{ ref(table) }} as {{ table }}
        on segments.instrument_id = {{ table }}.instrument_id
        and segments.session_date = {{ table }}.session_date
        and {{ known_at(table, 'segments.known_from') }}
    {% endfor %}
)

select
    {{ column_list() }}
from features
