{{ config(materialized='view') }}

with members as (
    select * from {{ ref('int_index_members') }}
),

-- Whether a master names a member is not shown here: versions that differ by it alone are one.
{{ joined_segments('members', key=['universe', 'instrument_id', 'valid_from'], content=['symbol', 'valid_to']) }},

chosen as (
    select * from {{ ref('int_universe_top') }}
),

universes as (
    select * from versions_on_grid
    union all by name
    select * from chosen
)

select
    {{ column_list() }}
from universes
