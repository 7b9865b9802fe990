{#- For quarantine: a CSV record has no payload of its own unless its row is malformed; its fields as JSON stand for it. -#}
{% macro csv_payload(columns) -%}
    coalesce(payload, encode(json_object({% for column in columns %}'{{ column }}', {{ adapter.quote(column) }}{{ ", " if not loop.last }}{% endfor %})::varchar))
{%- endmacro %}

{#- An empty CSV field is a missing one. -#}
{% macro given(column) -%}
    nullif({{ adapter.quote(column) }}, '')
{%- endmacro %}

{#-
    Judged records of a vendor's day files with their sessions, ending in `dated`. A load delivers the session that its
    file's name says, else the most frequent New York date of its rows, so that one stray timestamp never makes a file
    pass for the delivery of another day; and it is complete where all of its records can be used.
-#}
{% macro dated_records() -%}
load_sessions as (
    select
        load_id,
        coalesce(
            max(try_cast({{ header('session_date') }} as date)),
            mode({{ new_york_date('event_time') }})
        ) as load_session,
        {{ none_quarantined() }} as is_complete
    from judged
    group by load_id
),

dated as (
    select
        judged.*,
        load_sessions.load_session,
        load_sessions.is_complete,
        {{ new_york_date('event_time') }} as session_date
    from judged
    left join load_sessions using (load_id)
)
{%- endmacro %}

{#- The session that a file's name says, from the attributes that the ledger holds of a load. -#}
{% macro named_session() -%}
    try_cast(json_extract_string(attributes, '/session_date') as date)::varchar
{%- endmacro %}
