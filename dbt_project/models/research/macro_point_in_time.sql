{{ config(materialized='table_function', parameters='decisions, series, lag, max_age') }}

{{ point_in_time(
    ref('macro_series'),
    key='series_id',
    period='observation_date',
    aged_from='observation_date',
    asked_key='series'
) }}
