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
