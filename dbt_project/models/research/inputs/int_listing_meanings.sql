{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key=['listing_id'],
    on_schema_change='append_new_columns',
    post_hook="{{ note_progress() }}"
) }}

-- Names and last trades on the grid; what came and went within a cell was never seen.
with names_on_grid as (
    select * replace ({{ cell_end('known_from') }} as known_from, {{ cell_end('known_to') }} as known_to)
    from {{ ref('int_symbology__versioned') }}
),

names as (
    select * from names_on_grid where known_to is null or known_to > known_from
),

last_trades_on_grid as (
    select * replace ({{ cell_end('known_from') }} as known_from, {{ cell_end('known_to') }} as known_to)
    from {{ ref('int_last_trades') }}
),

known_last_trades as (
    select * from last_trades_on_grid where known_to is null or known_to > known_from
),

last_trades_of_names as (
    select names.listing_id, last_trades.known_from, last_trades.known_to
    from names
    inner join known_last_trades as last_trades
        on names.previous_listing_id = last_trades.listing_id
        and names.valid_from = last_trades.renamed_on
),

name_segments as (
    {{ segments(['names', 'last_trades_of_names'], 'listing_id') }}
),

known_names as (
    select names.*, segments.known_from as segment_from
    from name_segments as segments
    inner join names on segments.listing_id = names.listing_id and {{ known_during('names', 'segments') }}
),

{{ spans(segment='segment_from') }},

spans_of_segments as (
    select
        listing_id,
        segment_from,
        list(struct_pack(instrument_id, is_named, starts_at, ends_at) order by starts_at) as spans
    from spans
    group by listing_id, segment_from
),

meanings as (
    select
        segments.listing_id,
        list(
            struct_pack(known_from := segments.known_from, known_to := segments.known_to, spans := coalesce(spans, []))
            order by segments.known_from
        ) as meanings
    from name_segments as segments
    left join spans_of_segments
        on segments.listing_id = spans_of_segments.listing_id and segments.known_from = spans_of_segments.segment_from
    group by segments.listing_id
),

{% if is_incremental() -%}
-- A listing that no master names any more is kept, without a meaning: it has changed.
before as (
    select * from {{ this }}
),

compared as (
    select
        listing_id,
        coalesce(meanings.meanings, []) as meanings,
        before.meanings as meanings_before,
        coalesce(before.instruments, []) as instruments_before
    from meanings
    full join before using (listing_id)
),
{%- else %}
compared as (
    select *, null as meanings_before, []::varchar[] as instruments_before from meanings
),
{%- endif %}

changed as (
    select
        listing_id,
        meanings,
        list_sort(list_distinct(
            [listing_id]
            || instruments_before
            || flatten(list_transform(meanings, lambda m: list_transform(m.spans, lambda s: s.instrument_id)))
        )) as instruments,
        {{ window_end() }}::bigint as build_seq
    from compared
    where meanings is distinct from meanings_before
)

select
    {{ column_list() }}
from changed
