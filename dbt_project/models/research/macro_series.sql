{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    sorted_by=['series_id', 'observation_date'],
    pre_hook="{{ forget_touched_series() }}",
    post_hook="{{ note_progress() }}"
) }}

-- A series is made anew as a whole: what its first prints are depends on all of its vintages.
with touched as (
    {{ touched_series() }}
),

on_the_grid as (
    select
        * exclude (known_from, known_to),
        {{ cell_end('known_from') }} as known_from,
        {{ cell_end('known_to') }} as known_to
    from {{ ref('int_macro_observations__versioned') }}
    semi join touched using (series_id)
    where not is_duplicate and not is_deletion
),

-- One delivery may bring several vintages of a period: they share a cell, and only the last was ever seen; what was
-- printed first, and what came before, the others say too.
observations as (
    select
        *,
        lag(value) over (
            partition by series_id, observation_date order by known_from, published_on, revision
        ) as previous_value
    from on_the_grid
),

shown as (
    select * from observations where known_to is null or known_to > known_from
),

-- On each publication date: the newest period that the series spoke of, and since when we knew.
vintages as (
    select series_id, published_on, known_from, max(observation_date) as newest_period
    from observations
    group by series_id, published_on, known_from
),

-- A vintage that becomes known after a later one can change what was a first print.
late_vintages as (
    select distinct series_id, known_from
    from vintages
    qualify max(published_on) over (
            partition by series_id order by known_from range between unbounded preceding and current row exclude group
        ) > published_on
),

moments as (
    select series_id, observation_date, known_from from shown
    union
    select shown.series_id, shown.observation_date, late_vintages.known_from
    from shown
    inner join late_vintages using (series_id)
    where late_vintages.known_from > shown.known_from
        and (shown.known_to is null or late_vintages.known_from < shown.known_to)
),

first_vintages as (
    select
        moments.series_id,
        moments.observation_date,
        moments.known_from,
        arg_min(struct_pack(published_on, value), struct_pack(published_on, revision)) as first_vintage
    from moments
    inner join observations
        on moments.series_id = observations.series_id
        and moments.observation_date = observations.observation_date
        and observations.known_from <= moments.known_from
    group by moments.series_id, moments.observation_date, moments.known_from
),

-- The newest period of the vintages before each, and since when the last of them has been known.
earlier_vintages as (
    select
        series_id,
        published_on,
        max(max(newest_period)) over earlier as earlier_period,
        max(max(known_from)) over earlier as earlier_known_from
    from vintages
    group by series_id, published_on
    window earlier as (
        partition by series_id order by published_on rows between unbounded preceding and 1 preceding
    )
),

dated_first_vintages as (
    select first_vintages.*, earlier_period, coalesce(earlier_known_from > known_from, false) as is_before_a_late_one
    from first_vintages
    inner join earlier_vintages
        on first_vintages.series_id = earlier_vintages.series_id
        and first_vintage.published_on = earlier_vintages.published_on
),

-- Where one of them became known later, those that were known are looked for: rare, and dear for a daily series.
earlier_periods as (
    select series_id, observation_date, known_from, first_vintage, earlier_period
    from dated_first_vintages
    where not is_before_a_late_one
    union all
    select
        firsts.series_id,
        firsts.observation_date,
        firsts.known_from,
        firsts.first_vintage,
        max(vintages.newest_period) as earlier_period
    from dated_first_vintages as firsts
    left join vintages
        on firsts.series_id = vintages.series_id
        and vintages.published_on < firsts.first_vintage.published_on
        and vintages.known_from <= firsts.known_from
    where is_before_a_late_one
    group by firsts.series_id, firsts.observation_date, firsts.known_from, firsts.first_vintage
),

-- It is a first print if the period is newer than any of the earlier vintages, of which there must be one.
first_prints as (
    select
        series_id,
        observation_date,
        known_from,
        case when earlier_period < observation_date then first_vintage.value end as first_print
    from earlier_periods
),

states as (
    select
        first_prints.series_id,
        first_prints.observation_date,
        first_prints.known_from,
        value,
        first_print,
        value - first_print as revision,
        value - previous_value as surprise,
        published_on,
        true as is_there
    from first_prints
    inner join shown
        on first_prints.series_id = shown.series_id
        and first_prints.observation_date = shown.observation_date
        and {{ known_at('shown', 'first_prints.known_from') }}
),

{{ on_grid(
    'states',
    key=['series_id', 'observation_date'],
    numbers=['value', 'first_print', 'revision', 'surprise'],
    others=['published_on']
) }}

select
    {{ column_list() }}
from versions_on_grid
