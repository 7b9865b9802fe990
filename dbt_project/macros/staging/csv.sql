{#- For quarantine: a CSV record has no payload of its own unless its row is malformed; its fields as JSON stand for it. -#}
{% macro csv_payload(columns) -%}
    coalesce(payload, encode(json_object({% for column in columns %}'{{ column }}', {{ adapter.quote(column) }}{{ ", " if not loop.last }}{% endfor %})::varchar))
{%- endmacro %}

{#- An empty CSV field is a missing one. -#}
{% macro given(column) -%}
    nullif({{ adapter.quote(column) }}, '')
{%- endmacro %}

{#-
    The session that a load of a vendor's day file delivers: as its name says, else the most frequent New York date of
    its rows, so that one stray timestamp never makes a file pass for the delivery of another day.
-#}
{% macro load_sessions(records) -%}
    select load_id, coalesce(max(try_cast({{ header('session_date') }} as date)), mode({{ new_york_date('event_time') }})) as load_session
    from {{ records }}
    group by load_id
{%- endmacro %}

{#- The same, of a load, from the attributes that the ledger holds of it. -#}
{% macro named_session() -%}
    try_cast(json_extract_string(attributes, '/session_date') as date)::varchar
{%- endmacro %}
