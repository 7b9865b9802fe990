{{ config(materialized='table_function', parameters='decisions, features, lag, max_age') }}

{{ point_in_time(
    "query_table('" ~ this.database ~ "." ~ this.schema ~ ".' || features)",
    key='instrument_id',
    period='session_date',
    aged_from='session_close',
    asked_key='instrument_id'
) }}
