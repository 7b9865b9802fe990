{{ config(materialized='view', alias='returns_1d_v1') }}

with returns as (
    select * from {{ ref('returns_1d', v=2) }}
)

select
    {{ column_list() }}
from returns
