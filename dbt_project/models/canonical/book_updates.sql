with messages as (
    select * from {{ ref('int_book_updates__versioned') }} where not is_duplicate and not is_deletion
),

-- A message without a level still moves the book's number on: it is one row.
levels as (
    select * exclude (levels), unnest(case when len(levels) > 0 then levels else [null] end) as level from messages
),

shown as (
    select * exclude (level), level.side, level.price, level.size from levels
)

select
    {{ column_list() }}
from shown
