{#- All clocks are UTC at nanoseconds (TIMESTAMP_NS); the readings below turn a vendor's text into one, or into null. -#}

{#- Epoch seconds, milli-, micro- or nanoseconds, told apart by their number of digits. (The two numbers that give null are
    DuckDB's infinities, of which it makes no time.) -#}
{% macro epoch_text_to_time(text) -%}
    make_timestamp_ns(nullif(nullif(try_cast(
        ({{ whole_number(text) }})::hugeint
        * case
            when length({{ text }}) <= 11 then 1000000000
            when length({{ text }}) <= 14 then 1000000
            when length({{ text }}) <= 17 then 1000
            else 1
        end as bigint
    ), 9223372036854775807), -9223372036854775807))
{%- endmacro %}

{#- ISO 8601 text with a zone or without (then UTC); years that TIMESTAMP_NS cannot hold give null. -#}
{% macro iso_text_to_time(text) -%}
    try_cast({{ text }} as timestamp_ns)
{%- endmacro %}

{#- A time that a caller asks with, as TIMESTAMP_NS: a TIMESTAMP (UTC), a TIMESTAMPTZ, whatever the session's zone, a DATE or
    text. What is none is refused, null too, of which a comparison would quietly keep no row. `case` rather than `coalesce`:
    DuckDB folds it into a constant, by which files are pruned. -#}
{% macro asked_time(argument) -%}
    case
        when {{ iso_text_to_time(argument ~ '::varchar') }} is null
            then error(
                '{{ argument }} is no time from 1677 to 2262: '
                || coalesce('''' || {{ argument }}::varchar || ''' (' || typeof({{ argument }}) || ')', 'null')
                || '; give a TIMESTAMP (UTC), a TIMESTAMPTZ, a DATE or text such as ''2024-03-08 16:00:00'' or ''2024-03-08 11:00:00-05'''
            )
        else {{ iso_text_to_time(argument ~ '::varchar') }}
    end
{%- endmacro %}

{#- Midnight in New York at the start of a date, in UTC. An interval added to the date is wall-clock time. -#}
{% macro new_york_time(date) -%}
    ((({{ date }})::timestamp at time zone 'America/New_York') at time zone 'UTC')::timestamp_ns
{%- endmacro %}

{#- The date in New York at a UTC time. -#}
{% macro new_york_date(time) -%}
    ((({{ time }})::timestamp at time zone 'UTC') at time zone 'America/New_York')::date
{%- endmacro %}

{#- The end of the cell of knowledge time that holds a time: cells are (g - grid, g], counted from 1970. -#}
{% macro cell_end(time) -%}
    {%- set grid = (var('knowledge_grid_seconds') | int) * 1000000000 -%}
    make_timestamp_ns(epoch_ns({{ time }}) + ((-epoch_ns({{ time }})) % {{ grid }} + {{ grid }}) % {{ grid }})
{%- endmacro %}
