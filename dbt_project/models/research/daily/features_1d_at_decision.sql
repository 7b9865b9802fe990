{{ config(sorted_by=['session_date', 'instrument_id'], meta={'remade': 'for all decisions'}) }}
{%- set first_day = first_decided_day() %}

with calendars as (
    select distinct venue, calendar from {{ ref('feeds') }}
),

sessions as (
    select * from {{ ref('int_sessions') }}
),

decisions as (
    select * from sessions where session_date >= {{ first_day }}
),

-- The days of each instrument that a decision of the next ten sessions may see.
days as (
    select bars.instrument_id, bars.session_date, calendars.calendar, sessions.session_seq, bars.known_from, bars.known_to
    from {{ ref('bars_1d_adjusted') }} as bars
    inner join calendars using (venue)
    inner join sessions on calendars.calendar = sessions.calendar and bars.session_date = sessions.session_date
    where bars.session_date >= {{ first_day }} - 30
),

-- The newest day known at the decision.
decided as (
    select
        days.instrument_id,
        days.session_date as feature_session_date,
        decisions.session_date,
        decisions.close_at,
        decisions.decision_time
    from days
    inner join decisions
        on days.calendar = decisions.calendar
        and decisions.session_seq between days.session_seq and days.session_seq + 9
        and {{ known_at('days', 'decisions.decision_time') }}
    qualify row_number() over (
            partition by days.instrument_id, decisions.session_date order by days.session_date desc
        ) = 1
),

-- Of each macro series the newest period, until a newer one became known; its value may be missing.
periods as (
    select
        series_id,
        observation_date,
        min(min(known_from)) over (
            partition by series_id order by observation_date desc rows between unbounded preceding and 1 preceding
        ) as newer_from
    from {{ ref('macro_series') }}
    group by series_id, observation_date
),

newest_values as (
    select series_id, value, known_from, least(known_to, newer_from) as known_to
    from {{ ref('macro_series') }}
    inner join periods using (series_id, observation_date)
    where newer_from is null or known_from < newer_from
),

macro_values as (
    select decision_time, series_id, value
    from newest_values
    inner join (select distinct decision_time from decided) as decision_times
        on known_from <= decision_time and (known_to is null or known_to > decision_time)
),

macro as (
    select decision_time, map_from_entries(list(struct_pack(series_id, value) order by series_id)) as macro
    from macro_values
    group by decision_time
),

features as (
    select
        decided.instrument_id,
        bars_1d_adjusted.symbol,
        bars_1d_adjusted.venue,
        bars_1d_adjusted.currency,
        decided.session_date,
        decided.close_at as session_close,
        decided.decision_time,
        decided.feature_session_date,
        {{ feature_columns() }},
        coalesce(macro.macro, map([]::varchar[], []::double[])) as macro,
        decided.decision_time as known_from,
        null::timestamp_ns as known_to
    from decided
    {% for table in feature_tables() -%}
    inner join {{ ref(table) }} as {{ table }}
        on decided.instrument_id = {{ table }}.instrument_id
        and decided.feature_session_date = {{ table }}.session_date
        and {{ known_at(table, 'decided.decision_time') }}
    {% endfor -%}
    left join macro using (decision_time)
)

select
    {{ column_list() }}
from features
