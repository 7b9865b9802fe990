{{ config(materialized='table_function', parameters='known_at') }}

-- Neither when it will be known otherwise, nor an end that lies ahead, was known then.
select
    * replace ( -- noqa: AM04
        null::timestamp_ns as known_to,
        case when {{ new_york_time('valid_to') }} <= {{ asked_time('known_at') }} then valid_to end as valid_to
    )
from {{ ref('symbology') }}
where known_from <= {{ asked_time('known_at') }}
    and (known_to is null or known_to > {{ asked_time('known_at') }})
