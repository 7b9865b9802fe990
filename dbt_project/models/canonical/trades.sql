with versions as (
    select * from {{ ref('int_trades__versioned') }}
),

-- A trade that a later delivery of its day lacks was taken back by it: a revision, like any cancel.
shown as (
    select
        * replace (
            is_cancelled or is_deletion as is_cancelled,
            case when is_deletion then null else source_position end as source_position
        )
    from versions
    where not is_duplicate
)

select
    {{ column_list() }}
from shown
