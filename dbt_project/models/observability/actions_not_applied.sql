with days as (
    select instrument_id, symbol, session_date, unnest(not_applied) as action
    from {{ ref('int_bars_1d__chained') }}
    where known_to is null and len(not_applied) > 0
),

reported as (
    select
        instrument_id,
        symbol,
        session_date,
        action.action_type as action_type, -- noqa: AL09
        action.ex_date as ex_date, -- noqa: AL09
        action.reason as reason -- noqa: AL09
    from days
)

select
    {{ column_list() }}
from reported
