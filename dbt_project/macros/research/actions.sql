{#-
    Splits and dividends, by docs/research.md: which of them a day's bar answers for, and which are reported instead.
-#}

{#- Whether an action is a split that an equal one of its instrument follows within ten sessions. -#}
{% macro is_equal_split_before(action, later) -%}
    {{ action }}.instrument_id = {{ later }}.instrument_id
        and {{ action }}.split_ratio = {{ later }}.split_ratio
        and {{ later }}.ex_date > {{ action }}.ex_date
        and {{ later }}.ex_seq - {{ action }}.ex_seq <= 10
{%- endmacro %}

{#- Why such a split is not applied. -#}
{% macro equal_split_follows() -%}
    'an equal split follows within 10 sessions'
{%- endmacro %}

{#- Steps that end in `actions`: those of the touched instruments, cut on the grid of knowledge, with is_superseded while an
    equal split is known to follow within ten sessions: a vendor that restates a split's date leaves both. -#}
{% macro known_actions() -%}
action_facts as (
    select
        facts.listing_id,
        action_type,
        ex_date,
        split_to / split_from as split_ratio,
        cash_amount,
        upper(facts.currency) as paid_in,
        ex_sessions.session_seq as ex_seq,
        {{ cell_end('facts.known_from') }} as known_from,
        {{ cell_end('facts.known_to') }} as known_to
    from {{ ref('corporate_actions') }} as facts
    semi join listings using (listing_id)
    inner join calendars using (venue)
    asof left join sessions as ex_sessions
        on calendars.calendar = ex_sessions.calendar and facts.ex_date <= ex_sessions.session_date
),

shown_actions as (
    select * from action_facts where known_to is null or known_to > known_from
),

{{ named_over_time('shown_actions', new_york_time('ex_date'), named='named_actions') }},

touched_actions as (
    select * from named_actions semi join touched using (instrument_id)
),

-- For as long as both were known as they are: either may be corrected.
rivals as (
    select
        actions.instrument_id,
        actions.listing_id,
        actions.ex_date,
        actions.action_type,
        greatest(actions.known_from, later.known_from) as known_from,
        least(actions.known_to, later.known_to) as known_to
    from touched_actions as actions
    inner join touched_actions as later
        on {{ is_equal_split_before('actions', 'later') }}
        and (actions.known_to is null or actions.known_to > later.known_from)
        and (later.known_to is null or later.known_to > actions.known_from)
),

action_moments as (
    select instrument_id, listing_id, ex_date, action_type, known_from from touched_actions
    union
    select instrument_id, listing_id, ex_date, action_type, known_from from rivals
    union
    select instrument_id, listing_id, ex_date, action_type, known_to as known_from from rivals where known_to is not null
    union
    select instrument_id, listing_id, ex_date, action_type, known_to as known_from
    from touched_actions
    where known_to is not null
),

actions as (
    select
        actions.* replace (segments.known_from as known_from, segments.next_from as known_to),
        exists(
            select 1
            from rivals
            where rivals.instrument_id = actions.instrument_id
                and rivals.listing_id = actions.listing_id
                and rivals.ex_date = actions.ex_date
                and rivals.action_type = actions.action_type
                and {{ known_at('rivals', 'segments.known_from') }}
        ) as is_superseded
    from (
        select
            *,
            lead(known_from) over (
                partition by instrument_id, listing_id, ex_date, action_type order by known_from
            ) as next_from
        from action_moments
    ) as segments
    inner join touched_actions as actions
        on segments.instrument_id = actions.instrument_id
        and segments.listing_id = actions.listing_id
        and segments.ex_date = actions.ex_date
        and segments.action_type = actions.action_type
        and {{ known_at('actions', 'segments.known_from') }}
)
{%- endmacro %}

{#- Steps that end in `applied`, for the chained days that have actions after the bar before: split_ratio, cash_dividend
    (per share of the bar before), and not_applied, the actions that are reported with the reason. -#}
{% macro applied_actions(chained) -%}
actions_of_days as (
    select
        days.instrument_id,
        days.session_date,
        days.moment,
        days.previous_close,
        actions.action_type,
        actions.ex_date,
        actions.split_ratio,
        actions.cash_amount,
        case
            when actions.cash_amount is not null and actions.paid_in != days.currency
                then 'paid in ' || actions.paid_in || ', priced in ' || days.currency
            when actions.is_superseded then {{ equal_split_follows() }}
            when greatest(actions.split_ratio, 1 / actions.split_ratio) >= 1.5
                and abs(ln(days.previous_close / days.open))
                < abs(ln(days.previous_close / days.open) - ln(actions.split_ratio))
                then 'the price did not change by it'
        end as refused
    from {{ chained }} as days
    inner join actions
        on days.instrument_id = actions.instrument_id
        and actions.ex_date > days.previous_session_date
        and actions.ex_date <= days.session_date
        and {{ known_at('actions', 'days.moment') }}
),

splits_of_days as (
    select
        instrument_id,
        session_date,
        moment,
        coalesce(
            list(struct_pack(ex_date, split_ratio)) filter (split_ratio is not null and refused is null), []
        ) as splits,
        coalesce(
            list(struct_pack(action_type, ex_date, reason := refused) order by ex_date, action_type) filter (
                refused is not null
            ),
            []
        ) as all_refused
    from actions_of_days
    group by instrument_id, session_date, moment
),

dividends_of_days as (
    select
        instrument_id,
        session_date,
        moment,
        sum(
            cash_amount
            * coalesce(
                list_product(list_transform(
                    list_filter(splits, lambda split: split.ex_date <= actions_of_days.ex_date),
                    lambda split: split.split_ratio
                )),
                1
            )
        ) filter (actions_of_days.refused is null) as cash_dividend,
        coalesce(
            list(
                struct_pack(action_type, ex_date, reason := 'not below the close before')
                order by ex_date, action_type
            ) filter (cash_amount is not null and actions_of_days.refused is null),
            []
        ) as dividends
    from actions_of_days
    inner join splits_of_days using (instrument_id, session_date, moment)
    group by instrument_id, session_date, moment
),

applied as (
    select
        instrument_id,
        session_date,
        moment,
        coalesce(list_product(list_transform(splits, lambda split: split.split_ratio)), 1) as split_ratio,
        case when cash_dividend < previous_close then cash_dividend else 0 end as cash_dividend,
        all_refused || case when cash_dividend >= previous_close then dividends else [] end as not_applied
    from splits_of_days
    inner join dividends_of_days using (instrument_id, session_date, moment)
    inner join (
        select distinct instrument_id, session_date, moment, previous_close from actions_of_days
    ) using (instrument_id, session_date, moment)
)
{%- endmacro %}

{#- Prices on another scale. -#}
{% macro scaled(prefix, scale) -%}
    {% for price in ['open', 'high', 'low', 'close'] -%}
    {{ price }} * {{ scale }} as {{ prefix }}{{ price }}{{ "," if not loop.last }}
    {% endfor -%}
{%- endmacro %}
