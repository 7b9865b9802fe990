{{ config(materialized='table_function', parameters='known_at') }}

{{ with_instrument_as_of(ref('bars_1m'), 'bar_start', has_column=true) }}
