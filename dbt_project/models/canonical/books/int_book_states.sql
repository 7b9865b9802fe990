-- depends_on: {{ ref('int_book_updates__versioned') }}
-- depends_on: {{ ref('int_book_losses__versioned') }}
{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    partitioned_by=['book_date'],
    sorted_by=['listing_id', 'book'],
    pre_hook="{{ forget_rebuilt_books(whole_dates=true) }}",
    post_hook="{{ note_progress() }}"
) }}

with states as (
    select *, {{ window_end() }} as build_seq from {{ rebuilt_books('state') }}
)

select
    {{ column_list() }}
from states
