{#-
    What every staging model says of a record, whatever the feed:

    - kind: what the venue or vendor calls it (trade, bookTicker, subscriptions, …);
    - reject_reason, reject_detail: why it cannot be used (docs/quarantine.md), null where it can;
    - disposition: modelled, control, unread (kinds that the registry lists as not yet modelled) or quarantined.
-#}

{#- The envelope of the raw zone, as every staging model carries it. A stream mixes versions of its format
    (seeds/feed_formats.csv): `later_versions` says how a record tells each later one, newest first. -#}
{% macro envelope(later_versions={}) -%}
    load_seq, load_id, feed,
    {% if later_versions -%}
    case{% for version, condition in later_versions.items() %} when {{ condition }} then '{{ version }}'{% endfor %} else '1' end as schema_version,
    {%- else -%}
    schema_version,
    {%- endif %}
    source, source_partition, source_position, source_time, instrument
{%- endmacro %}

{#- What every staging model says of a judged record; only what is quarantined keeps its bytes beyond the raw zone. -#}
{% macro judged_columns(payload='payload') -%}
    {{ envelope() }},
    case when disposition = 'quarantined' then replace(kind, chr(0), '␀') else kind end as kind,
    disposition,
    reject_reason,
    reject_detail,
    case when disposition = 'quarantined' then {{ payload }} end as payload
{%- endmacro %}

{#- The records of a JSON feed with their fields as columns, in three steps ending in `named`. `members` maps columns to JSON
    pointers; `attributes` are values that a file's name or --set gave. -#}
{% macro json_records(feed, members, attributes=[]) -%}
source as (
    select * from {{ source('raw', feed) }}
),

decoded as (
    select
        {{ envelope() }},
        {% for attribute in attributes -%}
        {{ header(attribute) }} as {{ attribute }},
        {% endfor -%}
        payload,
        document,
        {{ utf8_text('payload') }} as text
    from source
),

named as (
    select
        * exclude (fields),
        {{ json_columns('fields', members) }}
    from (select *, {{ json_fields('text', members) }} as fields from decoded)
)
{%- endmacro %}

{#- A value of the envelope's headers, as text: the attributes of a file, such as series_id. -#}
{% macro header(name) -%}
    try(decode(list_filter(headers, lambda h: h."key" = '{{ name }}')[1]."value"))
{%- endmacro %}

{#-
    Two steps that judge a relation of parsed records. It must have `kind`, `payload` and `text` (where the feed sends
    JSON) or `row_payload` (CSV); `rules` maps the modelled kinds, those that share rules as one word after the other, to the
    feed's own checks: branches of a CASE that give 'reason: detail', written by the refuse_ macros below. The first that
    applies is the record's reason. A record meets the rules of its own kind only.
-#}
{% macro judged(records, feed, rules, json=true) -%}
verdicts as (
    select
        *,
        case
            {% if json -%}
            when payload is not null and text is null then 'not_utf8: the payload is not UTF-8 text'
            when kind is null and not json_valid(text) then 'malformed_json: the payload is not a JSON document'
            {% else -%}
            when payload is not null and {{ utf8_text('payload') }} is null then 'not_utf8: the row is not UTF-8 text'
            when payload is not null then 'malformed_row: the row has another number of fields than the header'
            {% endif -%}
            -- DuckLake cuts SQL at the NUL of a value. (JSON texts, and a CSV row's fields as JSON, hold it escaped.)
            {% if json -%}
            when contains(text, chr(0)) or contains(text, '\u0000') then 'invalid_value: the payload holds a NUL character'
            {% else -%}
            when contains({{ utf8_text('row_payload') }}, '\u0000') then 'invalid_value: the row holds a NUL character'
            {% endif -%}
            when kind is null then 'unknown_kind: the record does not say what it is'
            {% for kinds, checks in rules.items() -%}
            when {{ is_of_kind(kinds.split(' ')) }} then case
                {{ checks | map('trim') | join('\n                ') }}
            end
            {% endfor -%}
            when kind != 'tombstone' and not {{ is_listed(feed, 'control_kinds') }} and not {{ is_listed(feed, 'unread_kinds') }}
                then 'unknown_kind: ' || kind
        end as verdict
    from {{ records }}
),

judged as (
    select
        * exclude (verdict),
        split_part(verdict, ': ', 1) as reject_reason,
        verdict[length(split_part(verdict, ': ', 1)) + 3:] as reject_detail,
        case
            when verdict is not null then 'quarantined'
            when {{ is_of_kind((rules | join(' ')).split(' ')) }} then 'modelled'
            when {{ is_listed(feed, 'unread_kinds') }} and not {{ is_listed(feed, 'control_kinds') }} then 'unread'
            else 'control'
        end as disposition
    from verdicts
)
{%- endmacro %}

{#- Whether a text is JSON's of an object or a list. -#}
{% macro is_object_or_list(column) -%}
    (starts_with({{ column }}, '{') or starts_with({{ column }}, '['))
{%- endmacro %}

{#- Whether a text cannot be what it is called: it is an object or a list, or holds a NUL. -#}
{% macro is_unreadable(column) -%}
    coalesce({{ is_object_or_list(column) }} or contains({{ column }}, chr(0)) or contains({{ column }}, '␀'), false)
{%- endmacro %}

{#- Over a load's records: a delivery says that what it lacks is gone only where all that it holds can be read. (A blank
    line holds nothing.) -#}
{% macro none_quarantined() -%}
    bool_and(disposition != 'quarantined' or coalesce(octet_length(payload) = 0, false))
{%- endmacro %}

{#- Whether a record is of one of the kinds. -#}
{% macro is_of_kind(kinds) -%}
    kind in ('{{ kinds | join("', '") }}')
{%- endmacro %}

{#- Whether the registry lists a record's kind in one of its columns. -#}
{% macro is_listed(feed, column) -%}
    coalesce(list_contains(string_split((select {{ column }} from {{ ref('feeds') }} where feed = '{{ feed }}'), ' '), kind), false)
{%- endmacro %}

{% macro refuse_missing(columns) -%}
    {% for column in columns %}
                when {{ column }} is null then 'missing_field: {{ column | replace("_text", "") }}'
    {%- endfor %}
{%- endmacro %}

{#- A text that is an object or a list: the vendor now says something else by this name. -#}
{% macro refuse_retyped(columns) -%}
    {% for column in columns %}
                when {{ is_object_or_list(column) }} then 'invalid_value: {{ column }} is ' || {{ column }}
    {%- endfor %}
{%- endmacro %}

{#- For each column x, a value that x_text gives and that does not read as a finite number, date or time. -#}
{% macro refuse_unreadable(columns) -%}
    {% for column in columns %}
                when {{ column }}_text is not null and ({{ column }} is null or not isfinite({{ column }}))
                    then 'invalid_value: {{ column }} is ' || {{ column }}_text
    {%- endfor %}
{%- endmacro %}

{#- A code that is none of those that are known: it would be read as the one that is not looked for. -#}
{% macro refuse_unlisted(column, codes) -%}
                when {{ column }} not in ('{{ codes | join("', '") }}') then 'invalid_value: {{ column }} is ' || {{ column }}
{%- endmacro %}

{% macro refuse_impossible_values(condition, detail) -%}
                when {{ condition }} then 'impossible_value: {{ detail }} is ' || concat_ws(', ', {{ detail }})
{%- endmacro %}

{#- Dates beyond what nanoseconds hold: nothing could be known by them. -#}
{% macro refuse_impossible_dates(columns) -%}
    {% for column in columns %}
                when {{ column }} < date '1678-01-01' or {{ column }} > date '2262-01-01'
                    then 'impossible_time: {{ column }} is ' || {{ column }}
    {%- endfor %}
{%- endmacro %}

{#- Times that cannot be: before 1970, beyond what nanoseconds hold, or more than a day after the record arrived. -#}
{% macro refuse_impossible_time(arrived) -%}
                when event_time is null and try_cast(event_time_text as timestamp) is null
                    and not regexp_full_match(event_time_text, '-?[0-9]+')
                    then 'invalid_value: time is ' || event_time_text
                when event_time is null then 'impossible_time: ' || event_time_text
                when event_time < timestamp_ns '1970-01-02 00:00:00' or event_time > {{ arrived }} + interval '1 day'
                    then 'impossible_time: ' || coalesce(try(event_time::varchar), event_time_text)
{%- endmacro %}

{#- How many records there are, and when the first and the last of them was received or delivered. -#}
{% macro counted_sights() -%}
    count(*) as records, min(source_time) as first_seen_at, max(source_time) as last_seen_at
{%- endmacro %}
