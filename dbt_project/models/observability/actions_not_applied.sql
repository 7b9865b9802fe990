with days as (
    select instrument_id, symbol, session_date, unnest(not_applied) as action
    from {{ ref('int_bars_1d__chained') }}
    where known_to is null and len(not_applied) > 0
),

of_bars as (
    select
        instrument_id,
        symbol,
        session_date,
        action.action_type as action_type, -- noqa: AL09
        action.ex_date as ex_date, -- noqa: AL09
        action.reason as reason -- noqa: AL09
    from days
),

-- Two equal splits contradict each other whether or not a bar is there to answer for them.
splits as (
    select
        coalesce(spans.instrument_id, actions.listing_id) as instrument_id,
        actions.symbol,
        actions.action_type,
        actions.ex_date,
        split_to / split_from as split_ratio,
        sessions.session_seq as ex_seq
    from {{ ref('corporate_actions') }} as actions
    inner join (select distinct venue, calendar from {{ ref('feeds') }}) as calendars using (venue)
    asof left join {{ ref('int_sessions') }} as sessions
        on calendars.calendar = sessions.calendar and actions.ex_date <= sessions.session_date
    left join {{ ref('int_listing_spans') }} as spans
        on actions.listing_id = spans.listing_id
        and spans.known_to is null
        and {{ in_span(new_york_time('ex_date')) }}
    where actions.known_to is null and action_type = 'split'
),

equal_splits as (
    select
        instrument_id,
        symbol,
        null::date as session_date,
        action_type,
        ex_date,
        {{ equal_split_follows() }} as reason
    from splits
    semi join splits as later on {{ is_equal_split_before('splits', 'later') }}
    anti join of_bars using (instrument_id, action_type, ex_date)
),

reported as (
    select * from of_bars
    union all
    select * from equal_splits
)

select
    {{ column_list() }}
from reported
