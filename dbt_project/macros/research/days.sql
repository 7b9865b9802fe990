{#-
    Daily tables, one way of building for all. int_daily_changes says from which session on an instrument's days changed;
    each model forgets those days and makes them anew, with as many sessions before them as its windows are long.
-#}

{#- The instruments whose days changed since this model's mark, and from which session on. -#}
{% macro touched_days() -%}
    {#- dbt must see every ref while it parses. -#}
    {%- set changes = ref('int_daily_changes') -%}
    {%- set days = this if model.name == 'int_bars_1d__chained' else ref('int_bars_1d__chained') -%}
    {%- if is_incremental() -%}
    select instrument_id, min(from_session) as from_session
    from {{ changes }}
    where {{ is_new('int_daily_changes') }}
    group by instrument_id
    {%- else -%}
    select distinct instrument_id, date '0001-01-01' as from_session from {{ days }}
    {%- endif -%}
{%- endmacro %}

{#- The first session that changed at all since this model's mark, as a literal by which files are pruned. -#}
{% macro first_touched_day(days_before=0) -%}
    {%- set changes = ref('int_daily_changes') -%}
    {%- if not is_incremental() -%}{{- return("date '0001-01-01'") -}}{%- endif -%}
    {%- set first = ask_value(
        "select min(from_session)::varchar from " ~ changes ~ " where " ~ is_new('int_daily_changes')
    ) -%}
    {{- return("date '" ~ (first or '9999-01-01') ~ "' - " ~ days_before) -}}
{%- endmacro %}

{#- Before the insert, in its transaction. A table whose rows depend on all instruments says so: meta.remade. -#}
{% macro forget_touched_days() -%}
    {%- if is_incremental() and model.config.meta.get('remade') == 'for all instruments' -%}
    delete from {{ this }} where session_date >= {{ first_touched_day() }}
    {%- elif is_incremental() and model.config.meta.get('remade') == 'for all decisions' -%}
    delete from {{ this }} where session_date >= {{ first_decided_day() }}
    {%- elif is_incremental() -%}
    delete from {{ this }}
    where session_date >= {{ first_touched_day() }}
        and rowid in (
            select days.rowid
            from {{ this }} as days
            inner join ({{ touched_days() }}) as touched
                on days.instrument_id = touched.instrument_id and days.session_date >= touched.from_session
        )
    {%- else -%}
    select 1
    {%- endif -%}
{%- endmacro %}

{#- Two steps that end in `history`: the touched instruments' days with at least `lookback` sessions before the first that
    changed; is_touched says which of them are to be made. -#}
{% macro touched_history(lookback) -%}
{%- set days_before = lookback * 3 // 2 + 30 if lookback else 0 -%}
touched as (
    {{ touched_days() }}
),

history as (
    select days.*, days.session_date >= touched.from_session as is_touched
    from {{ ref('int_bars_1d__chained') }} as days
    inner join touched
        on days.instrument_id = touched.instrument_id
        and days.session_date >= touched.from_session {{ "- " ~ days_before if days_before and is_incremental() }}
    where days.session_date >= {{ first_touched_day(days_before) }}
)
{%- endmacro %}

{#- How many sessions a year and a month have. -#}
{% macro sessions_a_year(calendar='calendar') -%}
    case {{ calendar }} when 'utc' then 365 else 252 end
{%- endmacro %}

{% macro sessions_a_month(calendar='calendar') -%}
    case {{ calendar }} when 'utc' then 30 else 21 end
{%- endmacro %}

{#- What each 1d table says of a row beside its own columns. -#}
{% macro day_columns() -%}
    instrument_id, symbol, venue, currency, session_date, session_close
{%- endmacro %}

{#- Changes that every reader has seen, and that are published, are not kept. -#}
{% macro forget_seen_changes() -%}
    {%- if is_incremental() -%}
    {#- Tests look for them from the published marks on. -#}
    delete from {{ this }} where build_seq <= {{ [least_mark_downstream(), least_mark_downstream(published_progress())] | min }}
    {%- else -%}
    select 1
    {%- endif -%}
{%- endmacro %}

{#- The first session of which a decision can be another since this model's mark: days changed, or macro values. -#}
{% macro first_decided_day() -%}
    {%- set observations, changes = ref('int_macro_observations__versioned'), ref('int_daily_changes') -%}
    {%- if not is_incremental() -%}{{- return("date '0001-01-01'") -}}{%- endif -%}
    {%- set first = ask_value(
        "select (min(least(known_from, rule_known_from))::date - 2)::varchar from "
        ~ observations ~ " where " ~ is_new('int_macro_observations__versioned')
    ) -%}
    {{- return("least(" ~ first_touched_day() ~ ", date '" ~ (first or '9999-01-01') ~ "')") -}}
{%- endmacro %}
