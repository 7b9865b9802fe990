{{ config(materialized='table_function', parameters='decisions, features, lag, max_age') }}

-- Decisions name instruments, and a stored row of bars_1d its listing: bars_1d_adjusted has the same bars by instrument.
{{ point_in_time(
    "query_table('" ~ this.database ~ "." ~ this.schema ~ ".' || if(lower(features) = 'bars_1d', 'bars_1d_adjusted', features))",
    key='instrument_id',
    period='session_date',
    aged_from='session_close',
    asked_key='instrument_id'
) }}
