{#-
    Windows over sessions, as they were known. A row's window holds versions, and each of them can change. So a row is
    looked at from one or several moments of knowledge:

        history ── a day none of whose inputs changed since it was first known ── seen once, over the present versions
                └─ any other ── seen at its birth, and at each later change in its window, over the versions known then

    A model computes its windows over `seen`, per instrument and `seen_at`, with one formula for both; asked_from says since
    when a row of it is a version, and is null for those that are only in windows. Cost: the present once, and a window's length for each change that came late.
-#}

{#- The moment from which the present is seen: after all that is known. -#}
{% macro the_present() -%}
    timestamp_ns '2262-04-11 00:00:00'
{%- endmacro %}

{#- Steps that end in `asked` (which rows from when) and `seen` (the versions known then), from `history`. -#}
{% macro seen_windows(lookback) -%}
births as (
    select
        instrument_id,
        session_date,
        session_seq,
        bool_or(is_touched) as is_touched,
        min(known_from) as born_at,
        greatest(max(known_from), max(known_to)) as last_event
    from history
    group by instrument_id, session_date, session_seq
),

-- The last change within a row's window, and the first birth of a row in whose window this one is.
surrounded as (
    select
        *,
        max(last_event) over (
            partition by instrument_id order by session_seq range between {{ lookback }} preceding and current row
        ) as last_event_in_window,
        min(born_at) over (
            partition by instrument_id order by session_seq range between current row and {{ lookback }} following
        ) as first_birth_after
    from births
),

late_events as (
    select events.instrument_id, events.session_seq, events.happened_at
    from (
        select instrument_id, session_seq, known_from as happened_at from history
        union
        select instrument_id, session_seq, known_to as happened_at from history where known_to is not null
    ) as events
    inner join surrounded using (instrument_id, session_seq)
    where events.happened_at > surrounded.first_birth_after
),

asked as (
    select
        instrument_id,
        session_date,
        session_seq,
        born_at as known_from,
        case when last_event_in_window > born_at then born_at else {{ the_present() }} end as seen_at
    from surrounded
    where is_touched
    union all
    select distinct
        surrounded.instrument_id,
        surrounded.session_date,
        surrounded.session_seq,
        late_events.happened_at as known_from,
        late_events.happened_at as seen_at
    from surrounded
    inner join late_events
        on surrounded.instrument_id = late_events.instrument_id
        and late_events.session_seq <= surrounded.session_seq
        and late_events.session_seq >= surrounded.session_seq - {{ lookback }}
        and late_events.happened_at > surrounded.born_at
    where surrounded.is_touched
),

views as (
    select instrument_id, seen_at, min(session_seq) - {{ lookback }} as first_seq, max(session_seq) as last_seq
    from asked
    where seen_at < {{ the_present() }}
    group by instrument_id, seen_at
),

versions_seen as (
    select *, {{ the_present() }} as seen_at from history where known_to is null
    union all by name
    select history.*, views.seen_at
    from history
    inner join views
        on history.instrument_id = views.instrument_id
        and history.session_seq between views.first_seq and views.last_seq
        and {{ known_at('history', 'views.seen_at') }}
),

seen as (
    select versions_seen.*, asked.known_from as asked_from
    from versions_seen
    left join asked
        on versions_seen.instrument_id = asked.instrument_id
        and versions_seen.session_date = asked.session_date
        and versions_seen.seen_at = asked.seen_at
)
{%- endmacro %}

{#- From `measured` (one row per row of `seen`) the states of the asked rows, for on_grid; without a bar there is no row. -#}
{% macro states_seen() -%}
states as (
    select * exclude (asked_from), asked_from as known_from, true as is_there from measured where asked_from is not null
    union all by name
    select instrument_id, session_date, known_from, false as is_there
    from (select * from asked where seen_at < {{ the_present() }}) as asked_then
    anti join seen using (instrument_id, session_date, seen_at)
)
{%- endmacro %}

{#- The frame of the last `sessions` sessions. -#}
{% macro last_sessions(sessions) -%}
    (partition by instrument_id, seen_at order by session_seq range between {{ sessions - 1 }} preceding and current row)
{%- endmacro %}

{#- The fewest observations of which an estimate over n sessions is made: four fifths of them. -#}
{% macro enough(sessions) -%}
    {{- (sessions * 4 + 4) // 5 -}}
{%- endmacro %}
