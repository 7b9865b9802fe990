{{ config(materialized='table_function', parameters='known_at') }}

{{ as_of(ref('macro_series'), computed=', (known_at::varchar::timestamp_ns)::date - observation_date as age_days') }}
