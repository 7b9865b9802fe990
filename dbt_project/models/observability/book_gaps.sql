-- depends_on: {{ ref('int_book_updates__versioned') }}
-- depends_on: {{ ref('int_book_losses__versioned') }}
{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    pre_hook="{{ forget_rebuilt_books() }}",
    post_hook="{{ note_progress() }}"
) }}

with breaks as (
    select *, {{ window_end() }} as build_seq from {{ rebuilt_books('break') }}
)

select
    {{ column_list() }}
from breaks
