-- depends_on: {{ ref('int_book_updates__versioned') }}
-- depends_on: {{ ref('int_book_losses__versioned') }}
{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    partitioned_by=['book_date'],
    sorted_by=['listing_id', 'book', 'event_time'],
    pre_hook="{{ forget_rebuilt_books() }}",
    post_hook="{{ note_progress() }}"
) }}

with shown as (
    select
        *,
        null::timestamp_ns as known_to,
        'received' as knowledge_basis,
        0 as revision,
        {{ window_end() }} as build_seq
    from {{ rebuilt_books('snapshot') }}
)

select
    {{ column_list() }}
from shown
