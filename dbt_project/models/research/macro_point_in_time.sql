{{ config(materialized='table_function', parameters='decisions, series, lag, max_age') }}

{{ point_in_time(
    ref('macro_series'),
    key='series_id',
    period='observation_date',
    aged_from='observation_date',
    asked_key="case
        when series in (select series_id from " ~ ref('macro_series') ~ ") then series
        else error(
            'macro_series has no series ' || coalesce('''' || series || '''', 'null') || '; those it has are in its series_id'
        )
    end"
) }}
