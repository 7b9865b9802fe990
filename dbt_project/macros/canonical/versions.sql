{#-
    From records to versions: the one rule of identity, duplicates and revisions (docs/time.md), for every table.

    A relation of records has, beside the table's own columns:

    - the identity `key` (a list of columns, never null), and `content`, the venue's facts that make a revision, as
      expressions over columns that the table keeps and is_deletion (a key that a later delivery lacks);
    - rule_known_from: when the fact could have been known by the feed's rule; knowledge_basis: which rule that was;
    - delivered_at: a vendor's delivery; null for a stream, whose delivery is its receipt;
    - slot: which of a key's facts this is, where a record dates them itself (a vintage, a membership's end), and
      self_dated: whether it does; '' and false elsewhere. Such tables pass slotted=true;
    - scope, load_scope: what a delivery is complete for (a session, an index), of the record and of its load, where the
      registry's delivery_scope says so; null where a missing key means nothing, so load_scope wherever a record of the
      load is quarantined: what seems to be missing may be what cannot be read. `named_scopes` maps a feed to the scope that
      a file's name gives, as an expression over the load's attributes: so that an empty delivery is one as well;
    - sequence, source, source_partition, source_position: the vendor's order.

    Knowledge. A key's first version, and a self-dated fact's first delivery, are known by the rule; every other version,
    and every one from the registry's live_from on, from its delivery if that is later: a correction is never visible
    before it was delivered.

    Duplicates. In order of (known_from, delivery, sequence, source, position) the same content as before is a duplicate:
    as the version just before for a vendor's deliveries, so that a correction taken back is a version of its own; as any
    earlier version for a stream, where the old content can only be a late repeat. A file that holds an original and its
    cancel, delivered again, says nothing new: a key's rows of one delivery are compared with those of the one before.

    DuckDB keeps the new records, which are read several times; what only adds columns to them is not kept again (`not
    materialized`).
-#}
{% macro versions(new_records, key, content, sequence='sequence', slotted=false, named_scopes={}, extents=none) %}
{%- set keys = key | join(', ') -%}
{%- set in_order = 'known_from, delivered_at nulls first, ' ~ sequence ~ ' nulls first, source, source_partition nulls first, source_position, load_id' -%}
{%- set as_delivered = 'delivered_at nulls first, ' ~ sequence ~ ' nulls first, source, source_partition nulls first, source_position, load_id' -%}

named_deliveries as (
    {% for feed, scope in named_scopes.items() -%}
    select feed, {{ scope }} as scope, load_seq, load_id, schema_version, source, source_time as delivered_at
    from {{ source('lake', 'loads') }}
    where feed = '{{ feed }}'
        and outcome = 'loaded'
        and records = 0
        and {{ scope }} is not null
        and load_seq <= {{ window_end() }}
    {{ "union all\n    " if not loop.last }}
    {%- else -%}
    select
        null::varchar as feed,
        null::varchar as scope,
        null::bigint as load_seq,
        null::varchar as load_id,
        null::varchar as schema_version,
        null::varchar as source,
        null::timestamp_ns as delivered_at
    where false
    {%- endfor %}
),

{% if is_incremental() -%}
-- What loads made that are read again in this build (market_data/reprocessing.py).
withdrawn as (
    select * from {{ this }} where load_seq < 0
),

-- A new record can change what earlier records of its key are, and a new delivery what is missing from its scope.
touched_keys as (
    select {{ keys }} from {{ new_records }} where scope is null
    union all
    select {{ keys }} from withdrawn where scope is null
),

touched_scopes as (
    select feed, scope from {{ new_records }} where scope is not null
    union
    select feed, load_scope from {{ new_records }} where load_scope is not null
    union
    select feed, scope from withdrawn where scope is not null
    union
    select feed, load_scope from withdrawn where load_scope is not null
    union
    select feed, scope from named_deliveries where load_seq > {{ mark() }}
),

earlier_records as materialized (
    select * from {{ this }} semi join touched_keys using ({{ keys }})
    where scope is null and not is_deletion and {{ in_hours_of_keys(extents) }}
    union all
    select * from {{ this }} semi join touched_scopes using (feed, scope)
    where not is_deletion and {{ in_hours_of_scopes(extents, named_scopes) }}
),

all_records as not materialized (
    select *, null as was from {{ new_records }}
    union all by name
    select
        * exclude (known_from, known_to, revision, is_duplicate, first_copy, build_seq, is_deletion),
        struct_pack(known_from, known_to, revision, is_duplicate, first_copy) as was
    from earlier_records
),
{%- else %}
all_records as materialized (
    select *, null as was from {{ new_records }}
),
{%- endif %}

deliveries as (
    select *
    from (
        select
            feed, scope, load_seq, load_id, schema_version, source, delivered_at, coalesce(load_scope = scope, false) as is_complete
        from all_records
        where scope is not null
        union
        select *, true as is_complete from named_deliveries
        where (feed, scope) in (select (feed, scope) from all_records where scope is not null)
    )
    where feed in (select feed from {{ ref('feeds') }} where delivery_scope in ('day', 'full', 'key'))
),

-- A key that a later, complete delivery of its scope lacks was deleted by it.
missing_keys as (
    select {{ keys }}, deliveries.*
    from (
        select {{ keys }}, feed, scope, min(delivered_at) as first_delivered_at
        from all_records
        where (feed, scope) in (select (feed, scope) from deliveries group by feed, scope having count(*) > 1)
        group by {{ keys }}, feed, scope
    ) as present
    inner join deliveries using (feed, scope)
    anti join all_records as delivered using ({{ keys }}, load_id)
    where is_complete and deliveries.delivered_at > present.first_delivered_at
),

deletions as materialized (
    select
        records.* replace (
            missing_keys.load_seq as load_seq,
            missing_keys.load_id as load_id,
            missing_keys.schema_version as schema_version,
            missing_keys.source as source,
            missing_keys.delivered_at as delivered_at,
            -1 as source_position,
            min(records.rule_known_from) over (partition by {{ keys }}, missing_keys.load_id) as rule_known_from,
            null as was,
            'deleted/' || concat_ws('/', {% for column in key %}missing_keys.{{ column }}{{ ", " if not loop.last }}{% endfor %}) as slot
        )
    from missing_keys
    inner join all_records as records using ({{ keys }})
    where records.delivered_at < missing_keys.delivered_at
    qualify row_number() over (
        partition by {{ keys }}, missing_keys.load_id
        order by
            records.delivered_at desc,
            records.{{ sequence }} desc nulls last,
            records.source desc,
            records.source_position desc,
            records.load_id desc,
            records.slot desc
    ) = 1
),

keyed as not materialized (
    select
        facts.*,
        hash({{ keys }}) as key_hash,
        hash({{ content | join(', ') }}) as content_hash,
        {{ of_feed('revision_rule') }} = 'delivery' as is_delivered,
        coalesce(delivered_at >= {{ of_feed('live_from') }}::timestamp_ns, false) as is_live
    from (
        select *, false as is_deletion from all_records
        union all
        select *, true as is_deletion from deletions
    ) as facts
),

-- Most keys have one record and need no ordering. (Equal hashes of different keys only send a record the longer way.)
shared_hashes as (
    select key_hash from keyed group by key_hash having count(*) > 1
),

lone as (
    select
        *,
        case when is_live then greatest(rule_known_from, delivered_at) else rule_known_from end as known_from,
        null::timestamp_ns as known_to,
        0::bigint as revision,
        false as is_duplicate,
        null::struct(load_id varchar, source varchar, source_partition integer, source_position bigint) as first_copy
    from keyed
    anti join shared_hashes using (key_hash)
),

shared as (
    select * from keyed semi join shared_hashes using (key_hash)
),

{% if slotted -%}
-- What is said again after a deletion is said anew: each deletion of a key ends one life of it.
lives as (
    select *, count(*) filter (is_deletion) over (
        partition by {{ keys }} order by {{ as_delivered }} rows between unbounded preceding and current row
    ) as life
    from shared
),

{% else -%}
said_in_deliveries as (
    select {{ keys }}, delivered_at, load_id, list(content_hash order by {{ as_delivered }}) as said_in_delivery
    from shared
    where is_delivered
    group by {{ keys }}, delivered_at, load_id
),

said as (
    select shared.*, said_in_delivery
    from shared
    left join said_in_deliveries
        on {% for column in key %}shared.{{ column }} = said_in_deliveries.{{ column }}
        and {% endfor %}shared.load_id = said_in_deliveries.load_id
        and shared.delivered_at is not distinct from said_in_deliveries.delivered_at
),

{% endif -%}
known as (
    select
        * exclude ({{ 'life' if slotted else 'said_in_delivery' }}),
        case
            when not is_delivered then rule_known_from
            when is_live or is_deletion then greatest(rule_known_from, delivered_at)
            {% if slotted -%}
            when life = 0 and self_dated and count(*) filter (self_dated) over deliveries_so_far = 1 then rule_known_from
            when life = 0 and slot = '' and row_number() over fact_deliveries = 1 then rule_known_from
            {%- else -%}
            when row_number() over fact_deliveries = 1 then rule_known_from
            {%- endif %}
            else greatest(rule_known_from, delivered_at)
        end as known_from,
        {% if slotted -%}
        -- The same fact delivered again, or an end that nobody has stated yet.
        not is_deletion and (
            (lag(content_hash) over fact_deliveries is not distinct from content_hash)
            or (slot != '' and count(*) filter (self_dated) over deliveries_so_far = 0)
        ) as is_restated
        {%- else -%}
        -- A delivery that says of the key what the delivery before it said, row by row, says nothing new.
        is_delivered and (said_in_delivery is not distinct from first_value(said_in_delivery) over (
            partition by {{ keys }} order by struct_pack(delivered_at, load_id) groups between 1 preceding and 1 preceding
        )) as is_restated
        {%- endif %}
    from {{ 'lives' if slotted else 'said' }}
    window
        fact_deliveries as (partition by {{ keys }}, is_deletion, slot{{ ", life" if slotted }} order by {{ as_delivered }})
        {%- if slotted %},
        deliveries_so_far as (
            partition by {{ keys }}, is_deletion, slot, life order by {{ as_delivered }} rows between unbounded preceding and current row
        )
        {%- endif %}
),

told_apart as (
    select
        *,
        case
            when is_restated then true
            when is_delivered
                then (
                    lag(content_hash) over (partition by {{ keys }}, is_restated order by {{ in_order }})
                    is not distinct from content_hash
                )
            else row_number() over (partition by {{ keys }}, content_hash order by {{ in_order }}) > 1
        end as is_duplicate
    from known
),

ordered as (
    select
        *,
        case when not is_duplicate then lead(known_from) over versions_only end as known_to,
        case when not is_duplicate then row_number() over versions_only - 1 end as revision,
        case when is_duplicate then coalesce(
            last_value(case when not is_duplicate then struct_pack(load_id, source, source_partition, source_position) end ignore nulls)
                over (partition by {{ keys }}, content_hash, slot order by {{ in_order }}),
            last_value(case when not is_duplicate then struct_pack(load_id, source, source_partition, source_position) end ignore nulls)
                over (partition by {{ keys }}, content_hash order by {{ in_order }})
        ) end as first_copy
    from told_apart
    window versions_only as (partition by {{ keys }}, is_duplicate order by {{ in_order }})
),

versions as (
    select * exclude (key_hash, content_hash, is_delivered, is_live) from lone
    union all by name
    select * exclude (key_hash, content_hash, is_delivered, is_live, is_restated) from ordered
),

-- What stands as it stood is not written again.
changed as (
    select * exclude (was), {{ window_end() }}::bigint as build_seq
    from versions
    where was is distinct from struct_pack(known_from, known_to, revision, is_duplicate, first_copy)
)
{%- endmacro %}

{#- The listings of records that are read again in this build: what was summed up of them may hold what is withdrawn. -#}
{% macro withdrawn_listings(tables) -%}
    {%- if not execute or not is_incremental() -%}{{- return([]) -}}{%- endif -%}
    {%- set withdrawn = [] -%}
    {%- for table in tables -%}
        {%- do withdrawn.append("select listing_id from " ~ ref('int_' ~ table ~ '__versioned') ~ " where load_seq < 0") -%}
    {%- endfor -%}
    {{- return(ask_values(withdrawn | join(" union "))) -}}
{%- endmacro %}

{#- Before the insert, in its transaction: they are summed up anew, and may not be there any more. -#}
{% macro forget_withdrawn_listings(tables) -%}
    {%- set listings = withdrawn_listings(tables) -%}
    {{- return("delete from " ~ this ~ " where " ~ in_values('listing_id', listings) if listings else "select 1") -}}
{%- endmacro %}
