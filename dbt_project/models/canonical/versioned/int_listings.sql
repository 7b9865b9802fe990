{%- set tables = {'trades': 'event_time', 'quotes': 'event_time', 'book_updates': 'event_time', 'bars': 'bar_start'} %}
{{ config(
    meta={'may_lag': 60},
    unique_key='listing_id',
    pre_hook="{{ forget_withdrawn_listings(" ~ (tables | list) ~ ") }}"
) }}

{%- set read_again = withdrawn_listings(tables) %}

-- Deletions are left out, and each record by its own rule: neither may depend on what came in between two builds. Of a
-- listing whose records are read again all are seen.
with seen as (
    {% for table, time in tables.items() -%}
    select listing_id, venue, symbol, {{ time }} as event_time, rule_known_from as known_from, {{ as_origin() }} as origin
    from {{ ref('int_' ~ table ~ '__versioned') }}
    where not is_deletion
        and ({{ is_new('int_' ~ table ~ '__versioned') }}{{ " or " ~ in_values('listing_id', read_again) if read_again }})
    {{ "union all" if not loop.last }}
    {% endfor %}
),

new_listings as (
    select
        listing_id,
        any_value(venue) as venue,
        any_value(symbol) as symbol,
        min(event_time) as first_event_time,
        max(event_time) as last_event_time,
        min(known_from) as known_from
    from seen
    group by listing_id
),

new_firsts as (
    select listing_id, min({{ comparable_origin() }}) as first_record
    from seen
    semi join new_listings using (listing_id, known_from)
    group by listing_id
),

all_listings as (
    select *
    from new_listings
    inner join new_firsts using (listing_id)
    {% if is_incremental() -%}
    union all by name
    select *, {{ comparable_origin(as_origin()) }} as first_record
    from {{ this }}
    semi join new_listings using (listing_id)
    {%- endif %}
),

listings as (
    select
        listing_id,
        any_value(venue) as venue,
        any_value(symbol) as symbol,
        min(first_event_time) as first_event_time,
        max(last_event_time) as last_event_time,
        min(known_from) as known_from,
        unnest(arg_min(first_record, struct_pack(known_from, first_record)).origin) -- noqa: AL03
    from all_listings
    group by listing_id
),

changed as (
    select *, {{ window_end() }}::bigint as build_seq from listings
)

select
    {{ column_list() }}
from changed
