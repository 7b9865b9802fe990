with named as (
    select * from {{ ref('int_symbology__versioned') }}
),

pairs as (
    select *, null::date as valid_from, null::date as valid_to from ({{ pairs_of_venues() }})
),

shown as (
    select * from named
    union all by name
    select * from pairs
)

select
    {{ column_list() }}
from shown
