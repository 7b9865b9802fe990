-- Days of UTC are numbered as days since 1970; the exchange's sessions as the seed numbers them.
with days as (
    select unnest(generate_series(date '2008-01-01', date '2039-12-31', interval '1 day'))::date as session_date
),

sessions as (
    select calendar, session_date, session_seq, open_at::timestamp_ns as open_at, close_at::timestamp_ns as close_at
    from {{ ref('sessions') }}
    union all
    select
        'utc' as calendar,
        session_date,
        session_date - date '1970-01-01' as session_seq,
        session_date::timestamp_ns as open_at,
        (session_date + 1)::timestamp_ns as close_at
    from days
)

select
    calendar,
    session_date,
    session_seq,
    open_at,
    close_at,
    {{ cell_end("(close_at::timestamp + interval '" ~ var('decision_lag') ~ "')::timestamp_ns") }} as decision_time
from sessions
