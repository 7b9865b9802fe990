{{ config(materialized='table_function', parameters='known_at') }}

{{ as_of(ref('returns_1d', v=1)) }}
