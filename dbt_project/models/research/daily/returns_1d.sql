{{ config(alias='returns_1d', sorted_by=['instrument_id', 'session_date']) }}

with {{ touched_history(0) }},

-- Over more than ten sessions a return says nothing: CRSP's limit.
returns as (
    select
        *,
        case when gap_sessions <= 10 then split_ratio * close / previous_close - 1 end as return_simple,
        case when gap_sessions <= 10 then (split_ratio * close + cash_dividend) / previous_close - 1 end as return_total,
        case
            when gap_sessions <= 10 then (split_ratio * open + cash_dividend) / previous_close - 1
        end as return_overnight,
        close / open - 1 as return_intraday
    from history
),

with_logs as (
    select *, ln(1 + return_simple) as return_log, ln(1 + return_total) as return_total_log from returns
),

{{ joined_segments(
    'with_logs',
    key=['instrument_id', 'session_date'],
    numbers=['return_simple', 'return_total', 'return_overnight', 'return_intraday', 'return_log', 'return_total_log'],
    content=['symbol', 'gap_sessions']
) }}

select
    {{ column_list() }}
from versions_on_grid
