{{ config(materialized='table_function', parameters='known_at') }}

{{ with_instrument_as_of(ref('corporate_actions'), new_york_time('ex_date')) }}
