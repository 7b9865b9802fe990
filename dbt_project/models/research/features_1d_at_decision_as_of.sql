{{ config(materialized='table_function', parameters='known_at') }}

{{ as_of(ref('features_1d_at_decision')) }}
