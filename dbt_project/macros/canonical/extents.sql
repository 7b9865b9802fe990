{#-
    Where the earlier records of a key can be, so that a build reads by what is new and not by how long history is. For
    the large tables, lake.observability.extents keeps which numbers (trade ids, quotes' numbers) a listing had in each
    hour of event time, and which hours a delivery's scope had; rows are added in the transaction that writes the
    table's own. An hour that cannot hold a key is not read; one that might is.
-#}

{#- What a table's streams and deliveries are, by staging model: the number and the condition of a stream's records, and the
    columns that name a delivery's scope. -#}
{% macro extents(streams, deliveries) -%}
    {{- return({'streams': streams, 'deliveries': deliveries}) -}}
{%- endmacro %}

{#- Whether a row lies in an hour that can hold the key of a new record of a stream. -#}
{% macro in_hours_of_keys(extents) -%}
    {%- if not extents or not _has_extents() -%}{{- return("true") -}}{%- endif -%}
    {%- set fresh = [] -%}
    {%- for staging_model, (number, condition) in extents.streams.items() -%}
        {%- do fresh.append(
            "select feed, symbol, try_cast(" ~ number ~ " as bigint) as number from " ~ unseen(staging_model)
            ~ " where disposition = 'modelled' and " ~ condition
        ) -%}
    {%- endfor -%}
    {{- return(_in_hours(
        "select distinct hour from lake.observability.extents as there inner join ("
        ~ "select venue || ':' || symbol as listing_id, number // 65536 as part, min(number) as first_number,"
        ~ " max(number) as last_number, bool_or(number is null) as has_other from (" ~ fresh | join(" union all ")
        ~ ") inner join " ~ ref('feeds') ~ " using (feed) group by venue, symbol, part) as fresh using (listing_id)"
        ~ " where there.model = '" ~ this.identifier ~ "' and there.scope = '' and (there.has_other or fresh.has_other"
        ~ " or (there.first_number <= fresh.last_number and there.last_number >= fresh.first_number))"
    )) -}}
{%- endmacro %}

{#- Whether a row lies in an hour of a scope that a new delivery speaks of. -#}
{% macro in_hours_of_scopes(extents, named_scopes) -%}
    {%- if not extents or not _has_extents() -%}{{- return("true") -}}{%- endif -%}
    {%- set scopes = ["select null as feed, null as scope where false"] -%}
    {%- for staging_model, columns in extents.deliveries.items() -%}
        {%- for column in columns -%}
            {%- do scopes.append("select feed, " ~ column ~ "::varchar from " ~ unseen(staging_model)) -%}
        {%- endfor -%}
    {%- endfor -%}
    {%- for feed, scope in named_scopes.items() -%}
        {%- do scopes.append(
            "select feed, " ~ scope ~ " from lake.observability.loads where feed = '" ~ feed ~ "' and outcome = 'loaded'"
            ~ " and load_seq > " ~ mark() ~ " and load_seq <= " ~ window_end()
        ) -%}
    {%- endfor -%}
    {{- return(_in_hours(
        "select distinct hour from lake.observability.extents where model = '" ~ this.identifier
        ~ "' and (feed, scope) in (" ~ scopes | join(" union all ") ~ ")"
    )) -}}
{%- endmacro %}

{#- With the rows of the table, in their transaction: what they add to its extents. Those of a table that has none yet are
    made of all of it. -#}
{% macro note_extents(number) -%}
    {%- if not execute -%}{{- return("select 1") -}}{%- endif -%}
    {%- set mine = "select * from lake.observability.extents where model = '" ~ this.identifier ~ "'" -%}
    {%- set is_anew = flags.FULL_REFRESH or not _has_extents() -%}
    {%- if is_anew %}
    delete from lake.observability.extents where model = '{{ this.identifier }}';
    {%- endif %}
    insert into lake.observability.extents by name
    select
        '{{ this.identifier }}' as model,
        written.feed,
        written.scope,
        written.listing_id,
        written.hour,
        least(written.first_number, there.first_number) as first_number,
        greatest(written.last_number, there.last_number) as last_number,
        written.has_other or coalesce(there.has_other, false) as has_other,
        {{ window_end() }} as build_seq
    from (
        select
            feed,
            coalesce(scope, '') as scope,
            if(scope is null, listing_id, '') as listing_id,
            time_bucket(interval '1 hour', event_time::timestamp) as hour,
            min(try_cast({{ number }} as bigint)) as first_number,
            max(try_cast({{ number }} as bigint)) as last_number,
            bool_or(try_cast({{ number }} as bigint) is null) as has_other
        from {{ this }}
        {% if not is_anew %}where build_seq = {{ window_end() }}{% endif %}
        group by all
    ) as written
    left join ({{ mine }}) as there using (feed, scope, listing_id, hour)
    where there.model is null
        or written.first_number < coalesce(there.first_number, written.first_number + 1)
        or written.last_number > coalesce(there.last_number, written.last_number - 1)
        or (written.has_other and not there.has_other);
    delete from lake.observability.extents
    where model = '{{ this.identifier }}'
        and build_seq < {{ window_end() }}
        and (feed, scope, listing_id, hour) in (
            select (feed, scope, listing_id, hour) from ({{ mine }}) where build_seq = {{ window_end() }}
        )
{%- endmacro %}

{#- Whether they can be relied upon. Rows that `mdp reprocess` has withdrawn may be of keys that no new record has. -#}
{% macro _has_extents() -%}
    {%- if not execute or not is_incremental() -%}{{- return(false) -}}{%- endif -%}
    {%- if ask_value("select count(*) from (select 1 from " ~ this ~ " where load_seq < 0 limit 1)", 0) -%}{{- return(false) -}}{%- endif -%}
    {{- return(ask_value(
        "select count(*) from (from lake.observability.extents where model = '" ~ this.identifier ~ "' limit 1)", 0
    ) > 0) -}}
{%- endmacro %}

{#- A condition on event_time with literal bounds, by which files are pruned, from the hours that a query answers. -#}
{% macro _in_hours(hours) -%}
    {%- set ranges = ask(
        "select min(hour)::varchar, (max(hour) + interval '1 hour')::varchar from ("
        ~ "select hour, hour - row_number() over (order by hour) * interval '1 hour' as run from (" ~ hours ~ ")"
        ~ ") group by run order by 1"
    ) -%}
    {%- if ranges | length > 24 -%}{%- set ranges = [(ranges[0][0], ranges[-1][1])] -%}{%- endif -%}
    {{- return(in_ranges('event_time', ranges)) -}}
{%- endmacro %}
