{%- set measures = ['momentum_3_1', 'momentum_6_1', 'momentum_12_1', 'reversal_1m'] -%}
{{ config(sorted_by=['session_date', 'instrument_id'], meta={'remade': 'for all instruments'}) }}

-- A rank depends on all members: the sessions from the first that changed are made anew for all instruments.
with own as (
    select * from {{ ref('int_momentum_1d') }} where session_date >= {{ first_touched_day() }}
),

members as (
    select * from {{ ref('universe') }} where universe = '{{ var("cross_section") }}'
),

decisions as (
    select calendar, decision_time from {{ ref('int_sessions') }}
),

-- 1. Members' values, as long as both were known, in cells that end with a session's decisions.
member_values as (
    select
        own.* exclude (known_from, known_to),
        members.asset_class,
        members.currency as market,
        greatest(own.known_from, members.known_from) as known_from,
        least(own.known_to, members.known_to) as known_to
    from own
    inner join members
        on own.instrument_id = members.instrument_id
        and own.session_date >= members.valid_from
        and (members.valid_to is null or own.session_date < members.valid_to)
        and (own.known_to is null or own.known_to > members.known_from)
        and (members.known_to is null or members.known_to > own.known_from)
),

in_cells as (
    select
        member_values.* exclude (known_from, known_to),
        begins.decision_time as known_from,
        case when known_to is not null then coalesce(ends.decision_time, {{ the_present() }}) end as known_to
    from member_values
    asof join decisions as begins
        on member_values.calendar = begins.calendar and member_values.known_from <= begins.decision_time
    asof left join decisions as ends
        on member_values.calendar = ends.calendar and member_values.known_to <= ends.decision_time
),

compared as (
    select * from in_cells where known_to is null or known_to > known_from
),

-- 2. Each cross-section, at each cell in which one of its values changed.
cross_moments as (
    select asset_class, market, session_date, known_from as moment from compared
    union
    select asset_class, market, session_date, known_to as moment from compared where known_to is not null
),

-- Periods of an index may overlap: a member is one all the same.
known_values as (
    select distinct cross_moments.moment, compared.* exclude (known_from, known_to)
    from cross_moments
    inner join compared
        on cross_moments.asset_class = compared.asset_class
        and cross_moments.market = compared.market
        and cross_moments.session_date = compared.session_date
        and {{ known_at('compared', 'moment') }}
),

-- Means of whole numbers of 1e-18: a sum over members must not depend on their order.
ranked as (
    select
        asset_class,
        market,
        instrument_id,
        session_date,
        moment,
        {{ ranks_of(measures) }}
    from known_values
    window everyone as (partition by asset_class, market, session_date, moment)
),

ranks as (
    select
        ranked.*,
        next_moment
    from ranked
    inner join (
        select
            *,
            lead(moment) over (partition by asset_class, market, session_date order by moment) as next_moment
        from cross_moments
    ) using (asset_class, market, session_date, moment)
),

-- 3. The instrument's own versions, cut where its rank changed.
moments as (
    select instrument_id, session_date, known_from from own
    union
    select instrument_id, session_date, known_to as known_from from own where known_to is not null
    union
    select instrument_id, session_date, moment as known_from from ranks
    union
    select instrument_id, session_date, next_moment as known_from from ranks where next_moment is not null
),

states as (
    select
        moments.instrument_id,
        moments.session_date,
        moments.known_from,
        own.* exclude (instrument_id, session_date, known_from, known_to),
        ranks.* exclude (instrument_id, session_date, moment, next_moment, asset_class, market),
        own.instrument_id is not null as is_there
    from moments
    left join own
        on moments.instrument_id = own.instrument_id
        and moments.session_date = own.session_date
        and {{ known_at('own', 'moments.known_from') }}
    left join ranks
        on moments.instrument_id = ranks.instrument_id
        and moments.session_date = ranks.session_date
        and ranks.moment <= moments.known_from
        and coalesce(ranks.next_moment, {{ the_present() }}) > moments.known_from
),

{{ on_grid('states', key=['instrument_id', 'session_date'], numbers=measures_and_ranks(measures), others=['symbol']) }}

select
    {{ column_list() }}
from versions_on_grid
