{{ config(materialized='table_function', parameters='known_at') }}

{{ as_of(ref('volatility_1d')) }}
