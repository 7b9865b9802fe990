{{ config(materialized='table_function', parameters='known_at') }}

-- An end that lies ahead was not known then. A day of crypto is UTC's.
select
    * replace ( -- noqa: AM04
        case
            when
                case asset_class when 'crypto' then valid_to::timestamp_ns else {{ new_york_time('valid_to') }} end
                <= {{ asked_time('known_at') }}
                then valid_to
        end as valid_to
    )
from ({{ as_of(ref('universe')) }})
