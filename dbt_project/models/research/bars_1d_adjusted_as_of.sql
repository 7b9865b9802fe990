{{ config(materialized='table_function', parameters='known_at') }}

-- Prices on the scale of the instrument's newest session in the answer.
with known as (
    {{ as_of(ref('bars_1d_adjusted')) }}
),

newest as (
    select -- noqa: AM04
        *,
        split_factor / arg_max(split_factor, session_date) over (partition by instrument_id) as split_scale,
        total_factor / arg_max(total_factor, session_date) over (partition by instrument_id) as total_scale
    from known
)

select -- noqa: AM04
    * exclude (split_scale, total_scale),
    {{ scaled('split_adj_', 'split_scale') }},
    volume / split_scale as split_adj_volume,
    {{ scaled('adj_', 'total_scale') }}
from newest
