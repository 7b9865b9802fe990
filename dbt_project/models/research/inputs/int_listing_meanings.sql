{{ config(
    materialized='incremental',
    meta={'may_lag': 600},
    incremental_strategy='delete+insert',
    unique_key=['listing_id'],
    on_schema_change='append_new_columns',
    post_hook="{{ note_progress() }}"
) }}

-- On the grid: what came and went within a cell was never seen.
with spans_on_grid as (
    select * replace ({{ cell_end('known_from') }} as known_from, {{ cell_end('known_to') }} as known_to)
    from {{ ref('int_listing_spans') }}
),

meanings_known as (
    select
        listing_id,
        known_from,
        known_to,
        list(struct_pack(instrument_id, is_named, starts_at, ends_at) order by starts_at nulls first) as spans
    from spans_on_grid
    where known_to is null or known_to > known_from
    group by listing_id, known_from, known_to
),

meanings as (
    select listing_id, list(struct_pack(known_from, known_to, spans) order by known_from) as meanings
    from meanings_known
    group by listing_id
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
