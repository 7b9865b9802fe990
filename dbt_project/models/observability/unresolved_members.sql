with members as (
    select * from {{ ref('int_index_members') }}
),

unresolved as (
    select universe as index_name, symbol, instrument_id, valid_from, valid_to
    from members
    where not is_named and known_to is null
)

select
    {{ column_list() }}
from unresolved
