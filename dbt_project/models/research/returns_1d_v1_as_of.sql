{{ config(materialized='table_function', parameters='known_at') }}

-- The view by its name: dbt warns of each reference to a version that has a deprecation date.
{{ as_of(ref('returns_1d', v=2).incorporate(path={'identifier': 'returns_1d_v1'})) }}
