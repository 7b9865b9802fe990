with snapshots as (
    select * from {{ ref('int_book_snapshots') }}
)

select
    {{ column_list() }}
from snapshots
