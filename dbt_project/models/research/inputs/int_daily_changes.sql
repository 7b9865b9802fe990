{{ config(
    materialized='incremental',
    meta={'may_lag': 600},
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    pre_hook="{{ forget_seen_changes() }}",
    post_hook="{{ note_progress() }}"
) }}

-- Days of listings, from a date on; a split may give way to an equal one ten sessions later.
with listings as (
    select listing_id, min(session_date) as from_session
    from (
        select listing_id, min(session_date) as session_date
        from {{ ref('int_trades__versioned') }}
        where {{ is_new('int_trades__versioned') }}
        group by listing_id
        union all
        select listing_id, min(session_date) as session_date
        from ({{ sessions_of_new_quotes() }})
        group by listing_id
        union all
        select listing_id, min(session_date) as session_date
        from {{ ref('int_bars__versioned') }}
        where {{ is_new('int_bars__versioned') }} and bar_interval = '1d'
        group by listing_id
        union all
        select listing_id, min(valid_from) as session_date
        from {{ ref('int_universe_membership__versioned') }}
        where {{ is_new('int_universe_membership__versioned') }}
        group by listing_id
        union all
        select listing_id, min(ex_date) - 30 as session_date
        from {{ ref('int_corporate_actions__versioned') }}
        where {{ is_new('int_corporate_actions__versioned') }}
        group by listing_id
    )
    group by listing_id
),

meanings as (
    select * from {{ ref('int_listing_meanings') }}
),

instruments as (
    select unnest(coalesce(instruments, [listings.listing_id])) as instrument_id, from_session
    from listings
    left join meanings using (listing_id)
    union all
    select unnest(instruments) as instrument_id, date '0001-01-01' as from_session
    from meanings
    where {{ is_new('int_listing_meanings') }}
),

changes as (
    select instrument_id, min(from_session) as from_session, {{ window_end() }}::bigint as build_seq
    from instruments
    group by instrument_id
)

select
    {{ column_list() }}
from changes
