{{ config(materialized='table_function', parameters='known_at') }}

{{ with_instrument_as_of(ref('quotes'), 'event_time') }}
