{{ config(materialized='view') }}

with members as (
    select * from {{ ref('int_index_members') }}
),

chosen as (
    select * from {{ ref('int_universe_top') }}
),

universes as (
    select * from members
    union all by name
    select * from chosen
)

select
    {{ column_list() }}
from universes
