{{ config(materialized='table_function', parameters='known_at') }}

-- The columns of version 1; dbt warns of every reference to a version that has a date to go.
select
    instrument_id,
    symbol,
    venue,
    currency,
    session_date,
    session_close,
    return_simple,
    return_log,
    return_total,
    known_from,
    known_to
from ({{ as_of(ref('returns_1d', v=2)) }})
