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

-- Of versions that share a cell only the last was ever seen.
observations as (
    select *, lag(value) over (partition by series_id, observation_date order by known_from) as previous_value
    from on_the_grid
    where known_to is null or known_to > known_from
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
    select series_id, observation_date, known_from from observations
    union
    select observations.series_id, observations.observation_date, late_vintages.known_from
    from observations
    inner join late_vintages using (series_id)
    where late_vintages.known_from > observations.known_from
        and (observations.known_to is null or late_vintages.known_from < observations.known_to)
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

-- It is a first print if the period is newer than any of the earlier vintages, of which there must be one.
first_prints as (
    select
        first_vintages.series_id,
        first_vintages.observation_date,
        first_vintages.known_from,
        case
            when max(vintages.newest_period) < first_vintages.observation_date then any_value(first_vintage).value
        end as first_print
    from first_vintages
    left join vintages
        on first_vintages.series_id = vintages.series_id
        and vintages.published_on < first_vintage.published_on
        and vintages.known_from <= first_vintages.known_from
    group by first_vintages.series_id, first_vintages.observation_date, first_vintages.known_from
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
    inner join observations
        on first_prints.series_id = observations.series_id
        and first_prints.observation_date = observations.observation_date
        and observations.known_from <= first_prints.known_from
        and (observations.known_to is null or observations.known_to > first_prints.known_from)
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
