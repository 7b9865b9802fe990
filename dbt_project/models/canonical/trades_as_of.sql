{{ config(materialized='table_function', parameters='known_at') }}

{{ with_instrument_as_of(ref('trades'), 'event_time') }}
