{{ config(materialized='table_function', parameters='known_at') }}

{{ as_of(ref('macro_series'), computed=', (' ~ asked_time('known_at') ~ ')::date - observation_date as age_days') }}
