with unknown_fields as (
    select * from {{ ref('unknown_fields') }}
),

drift as (
    select
        feed,
        field,
        min(first_seen_at) as first_seen_at,
        max(last_seen_at) as last_seen_at,
        arg_min(load_id, struct_pack(first_seen_at, load_id)) as first_load_id,
        count(*) as loads,
        sum(records) as records
    from unknown_fields
    group by feed, field
)

select
    {{ column_list() }}
from drift
