{{ config(materialized='table_function', parameters='known_at') }}

-- Prices on the scale of the instrument's newest session in the answer.
with known as (
    {{ as_of(ref('bars_1d_adjusted')) }}
),

newest as (
    select
        *,
        split_factor / arg_max(split_factor, session_date) over (partition by instrument_id) as split_scale,
        total_factor / arg_max(total_factor, session_date) over (partition by instrument_id) as total_scale
    from known
)

select -- noqa: AM04
    * exclude (split_scale, total_scale),
    {% for price in ['open', 'high', 'low', 'close'] -%}
    {{ price }} * split_scale as split_adj_{{ price }},
    {% endfor -%}
    volume / split_scale as split_adj_volume,
    {% for price in ['open', 'high', 'low', 'close'] -%}
    {{ price }} * total_scale as adj_{{ price }}{{ "," if not loop.last }}
    {% endfor -%}
from newest
