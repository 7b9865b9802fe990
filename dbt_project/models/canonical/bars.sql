with versions as (
    select * from {{ ref('int_bars__versioned') }}
),

kept as (
    select * from versions where not is_duplicate and not is_deletion
)

select
    {{ column_list() }}
from kept
