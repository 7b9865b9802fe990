{{ config(materialized='table_function', parameters='known_at') }}

-- An end that lies ahead was not known then.
select -- noqa: AM04
    * replace (case when {{ new_york_time('valid_to') }} <= known_at::varchar::timestamp_ns then valid_to end as valid_to)
from ({{ as_of(ref('universe')) }})
