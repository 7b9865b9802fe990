{#- When a fact could have been known, by the registry's rule of its feed (docs/time.md has the table of rules). -#}

{#- Files of the next morning: the day after the session at the feed's lag, New York wall-clock time. -#}
{% macro next_day_known_from(feed, session_date) -%}
    {{ new_york_time(
        session_date ~ " + interval '1 day' + (select knowledge_lag::interval from " ~ ref('feeds') ~ " where feed = '" ~ feed ~ "')"
    ) }}
{%- endmacro %}

{#- The start of a date in New York. -#}
{% macro on_date_known_from(date) -%}
    {{ new_york_time(date) }}
{%- endmacro %}

{#- What is said during a day is safely known at its end: the start of the next date in New York. -#}
{% macro end_of_day_known_from(date) -%}
    {{ new_york_time('(' ~ date ~ ') + 1') }}
{%- endmacro %}
