{#-
    Versions on the grid of knowledge time (docs/time.md). Derived rows are cut on cells (g - grid, g], never by load or
    by build: the version at cell end g is computed from all inputs known by g and stands where it differs from the one
    before. Rows that differ by less than 1e-12 relative are equal.
-#}

{#- Whether two numbers differ by more than parallel sums of doubles do. -#}
{% macro differs(a, b) -%}
    case
        when {{ a }} is null or {{ b }} is null then ({{ a }} is distinct from {{ b }})
        else abs({{ a }} - {{ b }}) > 1e-12 * greatest(abs({{ a }}), abs({{ b }}))
    end
{%- endmacro %}

{#- Whether two relations' rows have one key, of which parts may be null. -#}
{% macro same_key(a, b, key) -%}
    {% for column in key -%}
    {{ a }}.{{ column }} is not distinct from {{ b }}.{{ column }}{{ " and " if not loop.last }}
    {%- endfor %}
{%- endmacro %}

{#-
    Three steps, ending in `versions_on_grid`, from `states`: one row per key and cell with known_from (the cell's end)
    and is_there (whether the row exists then). Drops states that change nothing, closes each version where the next state
    begins, and leaves out the states in which there is no row. Most keys have one state, which is compared with nothing.
-#}
{% macro on_grid(states, key, numbers, others) -%}
keys_of_several_states as (
    select {{ key | join(', ') }} from {{ states }} group by {{ key | join(', ') }} having count(*) > 1
),

changes as (
    select
        *,
        lag(is_there) over history is null
        or lag(is_there) over history != is_there
        or (is_there and (
            {% for column in numbers -%}
            {{ differs(column, 'lag(' ~ column ~ ') over history') }}
            or {% endfor -%}
            {% for column in others -%}
            ({{ column }} is distinct from lag({{ column }}) over history)
            {{ "or " if not loop.last }}{% endfor %}
        )) as is_change
    from {{ states }}
    semi join keys_of_several_states as several
        on {{ same_key(states, 'several', key) }}
    window history as (partition by {{ key | join(', ') }} order by known_from)
),

versions_on_grid as (
    select *
    from (
        select
            * exclude (is_change),
            lead(known_from) over (partition by {{ key | join(', ') }} order by known_from) as known_to
        from changes
        where is_change
        union all by name
        select *, null::timestamp_ns as known_to
        from {{ states }}
        anti join keys_of_several_states as several
            on {{ same_key(states, 'several', key) }}
    )
    where is_there
)
{%- endmacro %}

{#- The body of X_as_of(known_at): the rows of a research table as they were known then. `k` may be a TIMESTAMP (UTC), a
    TIMESTAMPTZ, a DATE or text. -#}
{% macro as_of(relation, computed='') -%}
    -- When it will be known otherwise was not known then.
    select * replace (null::timestamp_ns as known_to){{ computed }}
    from {{ relation }}
    where known_from <= {{ asked_time('known_at') }}
        and (known_to is null or known_to > {{ asked_time('known_at') }})
{%- endmacro %}
