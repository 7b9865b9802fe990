{{ config(materialized='table_function', parameters='known_at') }}

{{ as_of(ref('momentum_1d')) }}
