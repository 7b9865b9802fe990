with quarantined as (
    select * from {{ ref('quarantine', v=2) }}
),

renamed as (
    select arrived_at as source_time, * from quarantined
)

select
    {{ column_list() }}
from renamed
