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

{#- Steps that end in `seen`, the versions known at each moment, from `history`; `asked_then`: which rows are looked at from
    moments before the present. -#}
{% macro seen_windows(lookback) -%}
-- A day's birth, and the first birth of a row in whose window the day is.
surrounded as (
    select
        *,
        min(known_from) over (
            partition by instrument_id order by session_seq range between current row and current row
        ) as born_at,
        min(known_from) over (
            partition by instrument_id order by session_seq range between current row and {{ lookback }} following
        ) as first_birth_after
    from history
),

late_events as (
    select instrument_id, session_seq, known_from as happened_at from surrounded where known_from > first_birth_after
    union
    select instrument_id, session_seq, known_to as happened_at from surrounded where known_to > first_birth_after
),

late_changes as (
    select
        surrounded.instrument_id,
        surrounded.session_date,
        surrounded.session_seq,
        surrounded.born_at,
        late_events.happened_at
    from surrounded
    inner join late_events
        on surrounded.instrument_id = late_events.instrument_id
        and late_events.session_seq <= surrounded.session_seq
        and late_events.session_seq >= surrounded.session_seq - {{ lookback }}
        and late_events.happened_at > surrounded.born_at
    where surrounded.is_touched and surrounded.known_from = surrounded.born_at
),

asked_then as (
    select instrument_id, session_date, session_seq, born_at as seen_at from late_changes
    union
    select instrument_id, session_date, session_seq, happened_at as seen_at from late_changes
),

views as (
    select instrument_id, seen_at, min(session_seq) - {{ lookback }} as first_seq, max(session_seq) as last_seq
    from asked_then
    group by instrument_id, seen_at
),

seen as (
    select
        surrounded.* exclude (born_at, first_birth_after),
        {{ the_present() }} as seen_at,
        case when is_touched and changed.instrument_id is null then known_from end as asked_from
    from surrounded
    left join (select distinct instrument_id, session_date from late_changes) as changed
        on surrounded.instrument_id = changed.instrument_id and surrounded.session_date = changed.session_date
    where known_to is null
    union all by name
    select history.*, views.seen_at, asked_then.seen_at as asked_from
    from history
    inner join views
        on history.instrument_id = views.instrument_id
        and history.session_seq between views.first_seq and views.last_seq
        and {{ known_at('history', 'views.seen_at') }}
    left join asked_then
        on history.instrument_id = asked_then.instrument_id
        and history.session_date = asked_then.session_date
        and views.seen_at = asked_then.seen_at
)
{%- endmacro %}

{#- From `measured` (one row per row of `seen`): `settled`, the rows seen in the present, each of one version; and `states`,
    those of the others, for on_grid. Without a bar there is no row. -#}
{% macro states_seen() -%}
settled as (
    select * exclude (asked_from, seen_at), asked_from as known_from
    from measured
    where asked_from is not null and seen_at = {{ the_present() }}
),

states as (
    select * exclude (asked_from, seen_at), asked_from as known_from, true as is_there
    from measured
    where asked_from is not null and seen_at < {{ the_present() }}
    union all by name
    select instrument_id, session_date, seen_at as known_from, false as is_there
    from asked_then
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
