{{ config(materialized='table_function', parameters='known_at') }}

{% for table in feature_tables() -%}
{{ "with " if loop.first }}{{ table }} as (
    {{ as_of(ref(table)) }}
){{ "," if not loop.last }}

{% endfor -%}
select
    bars_1d_adjusted.instrument_id,
    bars_1d_adjusted.symbol,
    bars_1d_adjusted.venue,
    bars_1d_adjusted.currency,
    bars_1d_adjusted.session_date,
    bars_1d_adjusted.session_close,
    {{ feature_columns() }},
    {{ newest_known_from() }} as known_from,
    null::timestamp_ns as known_to
from bars_1d_adjusted
{% for table in feature_tables() if table != 'bars_1d_adjusted' -%}
inner join {{ table }} using (instrument_id, session_date)
{% endfor %}
