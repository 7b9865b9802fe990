{#-
    Bars, one set of rules for every length. A bar's key is (listing_id, `period`): the period is the minute's start or
    the session. Work is chosen by what the build changed, so each model begins from the periods it touched.
-#}

{#- The dates of all trades and bars of the sessions that changed since this model's mark: the partitions to read. A session
    in New York goes on into the next day in UTC. -#}
{% macro changed_dates() -%}
    {%- set dates = [] -%}
    {%- if execute -%}
        {%- for name in ['int_trades__versioned', 'int_bars__versioned'] -%}
            {%- do dates.extend(ask_values(
                "select distinct unnest([session_date, session_date + 1, event_date])::date::varchar as changed from "
                ~ ref(name) ~ " where " ~ is_new(name)
            )) -%}
        {%- endfor -%}
    {%- endif -%}
    {{- return(dates) -}}
{%- endmacro %}

{#- The bars to make anew: those of changed trades and changed vendor bars, and the vendor's of every session with a
    changed trade, because a known trade takes the place of all of them. `of_trade`, `of_bar`: the period of each. -#}
{% macro touched_bars(of_trade, of_bar, bar_interval, dates) -%}
    {%- set trades = ref('int_trades__versioned') -%}
    {%- set bars = ref('int_bars__versioned') -%}
    select listing_id, {{ of_trade }} as period, session_date from {{ trades }} as trades
    where {{ is_new('int_trades__versioned') }}
    union
    select listing_id, {{ of_bar }} as period, session_date
    from {{ bars }} as bars
    where bar_interval = '{{ bar_interval }}' and {{ is_new('int_bars__versioned') }}
    union
    select listing_id, {{ of_bar }} as period, session_date
    from {{ bars }} as bars
    semi join (
        select distinct listing_id, session_date from {{ trades }} where {{ is_new('int_trades__versioned') }}
    ) as changed_sessions using (listing_id, session_date)
    where bar_interval = '{{ bar_interval }}' and {{ in_dates('event_date', dates) }}
{%- endmacro %}

{#- Between which times the trades of the touched bars lie, where a bar is of a fixed length: as literals, by which files are
    pruned. In a live build these are the last minutes of a day that is long. -#}
{% macro in_touched_times(of_trade, of_bar, bar_interval, dates, bar_length) -%}
    {%- if not is_incremental() or not bar_length or not dates -%}{{- return("true") -}}{%- endif -%}
    {%- for first, last in ask(
        "select min(period)::varchar, (max(period) + " ~ bar_length ~ ")::varchar from ("
        ~ touched_bars(of_trade, of_bar, bar_interval, dates) ~ ") as touched having count(*) > 0"
    ) -%}
        {{- return("event_time >= '" ~ first ~ "' and event_time < '" ~ last ~ "'") -}}
    {%- endfor -%}
    {{- return("false") -}}
{%- endmacro %}

{#- Before the insert, in its transaction: the touched bars of the table are forgotten, and made anew by the model. -#}
{% macro forget_touched_bars(of_trade, of_bar, bar_interval, period) -%}
    {%- if is_incremental() -%}
    {%- set dates = changed_dates() -%}
    delete from {{ this }}
    where {{ in_dates(period, dates) }} and (listing_id, {{ period }}) in (
        select (listing_id, period) from ({{ touched_bars(of_trade, of_bar, bar_interval, dates) }})
    )
    {%- else -%}
    select 1
    {%- endif -%}
{%- endmacro %}

{#-
    The versions of the touched bars: `versions_on_grid`, made of trades, and of the vendor's bars for sessions of which
    no trade is known. `bar_end`: an expression for the period's end; `eligible`: which trades belong to such a bar;
    `bar_length`: the interval of event time that a bar spans, where it is a fixed one; `of_minutes`: a model of minute
    bars, of which the days of venues that never close are put together (a day of trades is read once, not at each build).
-#}
{% macro bar_versions(of_trade, of_bar, bar_interval, bar_end, eligible, bar_length='', of_minutes='') %}
{%- set dates = changed_dates() -%}
{%- set in_changed_dates = in_dates('event_date', dates) -%}
{%- set order = "struct_pack(a := event_time, b := coalesce(sequence, -1), c := coalesce(try_cast(trade_id as hugeint), -1), d := trade_id, e := coalesce(exchange, ''), f := price, g := size)" %}

touched as (
    {{ touched_bars(of_trade, of_bar, bar_interval, dates) }}
),

sessions as (
    select * from {{ ref('sessions') }}
),

feeds as (
    select * replace (knowledge_lag::interval as knowledge_lag) from {{ ref('feeds') }}
),

{{ trade_rules() }},

trades as (
    select
        trades.listing_id,
        touched.period,
        event_time,
        sequence,
        trade_id,
        exchange,
        price,
        size,
        trades.known_from,
        trades.known_to,
        sessions.open_at,
        sessions.close_at,
        feeds.calendar,
        feeds.knowledge_lag,
        coalesce(event_time >= sessions.open_at and event_time < sessions.close_at, feeds.calendar = 'utc') as is_in_session,
        coalesce(list_contains(trades.conditions, '8'), false) and event_time >= sessions.close_at as is_closing_print,
        not list_has_any(
            coalesce(trades.conditions, []),
            coalesce(case when is_in_session then no_open_close else no_open_close_outside end, [])
        ) as sets_open_close,
        not list_has_any(
            coalesce(trades.conditions, []),
            coalesce(case when is_in_session then no_high_low else no_high_low_outside end, [])
        ) as sets_high_low,
        not list_has_any(coalesce(trades.conditions, []), coalesce(no_volume, [])) as sets_volume
    from {{ ref('int_trades__versioned') }} as trades
    inner join touched on trades.listing_id = touched.listing_id and {{ of_trade }} = touched.period
    inner join feeds on trades.feed = feeds.feed
    left join conditions on trades.feed = conditions.feed
    left join sessions on feeds.calendar = sessions.calendar and trades.session_date = sessions.session_date
    where not is_duplicate
        and not is_deletion
        and not is_cancelled
        and price > 0
        and size > 0
        and {{ in_changed_dates }}
        and {{ in_touched_times(of_trade, of_bar, bar_interval, dates, bar_length) }}
        {{ "and feeds.calendar != 'utc'" if of_minutes }}
),

-- What a bar is put together from, and what each may set.
pieces_said as (
    select
        listing_id,
        period,
        known_from,
        known_to,
        knowledge_lag,
        {{ bar_end }} as bar_end,
        {{ order }} as place,
        case when sets_open_close then price end as open,
        case when sets_high_low then price end as high,
        case when sets_high_low then price end as low,
        case when sets_open_close then price end as close,
        case when sets_volume then size end as volume,
        case when sets_volume then price * size end as dollar_volume,
        sets_volume::bigint as trade_count,
        case when sets_open_close then event_time end as first_trade_at,
        case when sets_open_close then event_time end as last_trade_at
    from trades
    where {{ eligible }}
    {%- if of_minutes %}
    union all by name
    select
        minutes.listing_id,
        touched.period,
        minutes.known_from,
        minutes.known_to,
        calendar.knowledge_lag,
        (touched.period + 1)::timestamp_ns as bar_end,
        struct_pack(a := bar_start, b := -1::bigint, c := -1::hugeint, d := '', e := '', f := 0::double, g := 0::double) as place,
        minutes.open,
        minutes.high,
        minutes.low,
        minutes.close,
        minutes.volume,
        minutes.dollar_volume,
        minutes.trade_count,
        minutes.first_trade_at,
        minutes.last_trade_at
    from {{ ref(of_minutes) }} as minutes
    inner join touched on minutes.listing_id = touched.listing_id and minutes.bar_start::date = touched.period
    inner join (
        select distinct venue, knowledge_lag from feeds where calendar = 'utc'
    ) as calendar on minutes.venue = calendar.venue
    where minutes.bar_source = 'trades' and {{ in_dates('minutes.bar_start', dates) }}
    {%- endif %}
),

-- From which cell until which each is part of the bar.
pieces as (
    select
        *,
        {{ cell_end('greatest(known_from, bar_end + knowledge_lag)') }} as shown_from,
        case when known_to is not null then {{ cell_end('greatest(known_to, bar_end + knowledge_lag)') }} end as shown_to
    from pieces_said
),

-- Most bars have all their pieces from one cell on, for ever: such a bar has one version.
bars_of_all_pieces as (
    select
        listing_id,
        period,
        min(shown_from) as known_from,
        min(shown_from) = max(shown_from) and count(shown_to) = 0 as has_one_version,
        {{ bar_of_pieces() }}
    from pieces
    group by listing_id, period
),

-- The others have a version for each cell in which a piece comes or goes.
changing_pieces as (
    select *, coalesce(shown_to, 'infinity'::timestamp_ns) as shown_until
    from pieces
    semi join (select listing_id, period from bars_of_all_pieces where not has_one_version) as changing
        using (listing_id, period)
),

cells as (
    select listing_id, period, shown_from as known_from from changing_pieces
    union
    select listing_id, period, shown_to as known_from from changing_pieces where shown_to is not null
),

trade_bars as (
    select * exclude (has_one_version) from bars_of_all_pieces where has_one_version
    union all by name
    select cells.listing_id, cells.period, cells.known_from, {{ bar_of_pieces() }}
    from cells
    left join changing_pieces as pieces
        on cells.listing_id = pieces.listing_id
        and cells.period = pieces.period
        and pieces.shown_from <= cells.known_from
        and pieces.shown_until > cells.known_from
    group by cells.listing_id, cells.period, cells.known_from
),

-- Since when a trade of the session has been known, which ends the use of the vendor's bars.
traded_sessions as (
    select listing_id, session_date, {{ cell_end('min(known_from)') }} as traded_from
    from {{ ref('int_trades__versioned') }}
    where not is_duplicate
        and not is_deletion
        and {{ in_changed_dates }}
        and (listing_id, session_date) in (
            select (listing_id, session_date)
            from touched
            semi join (select distinct listing_id, session_date from {{ ref('int_bars__versioned') }}) using (listing_id, session_date)
        )
    group by listing_id, session_date
),

vendor_versions as (
    select
        bars.*,
        touched.period,
        {{ cell_end('bars.known_from') }} as shown_from,
        least({{ cell_end('bars.known_to') }}, traded_from) as shown_to
    from {{ ref('int_bars__versioned') }} as bars
    inner join touched on bars.listing_id = touched.listing_id and {{ of_bar }} = touched.period
    left join traded_sessions on bars.listing_id = traded_sessions.listing_id and bars.session_date = traded_sessions.session_date
    where bar_interval = '{{ bar_interval }}' and not is_duplicate and not is_deletion and {{ in_changed_dates }}
),

vendor_bars as (
    select
        listing_id,
        period,
        shown_from as known_from,
        open,
        high,
        low,
        close,
        volume,
        null::double as vwap,
        close * volume as dollar_volume,
        trade_count,
        null::timestamp_ns as first_trade_at,
        null::timestamp_ns as last_trade_at,
        'vendor' as bar_source,
        true as is_there
    from vendor_versions
    where shown_to is null or shown_to > shown_from
    union all by name
    select listing_id, period, shown_to as known_from, 'vendor' as bar_source, false as is_there
    from vendor_versions
    where shown_to > shown_from
),

-- Where a version ends as another begins, the one that is there stands; trades before the vendor.
states as (
    select * from trade_bars
    union all by name
    select *
    from vendor_bars
    anti join trade_bars using (listing_id, period, known_from)
    qualify row_number() over (partition by listing_id, period, known_from order by is_there desc) = 1
),

{{ on_grid(
    'states',
    key=['listing_id', 'period'],
    numbers=['open', 'high', 'low', 'close', 'volume', 'vwap', 'dollar_volume'],
    others=['trade_count', 'first_trade_at', 'last_trade_at', 'bar_source']
) }},

-- Before an instrument master knows better, the instrument is the listing's own.
named as (
    select
        versions_on_grid.*,
        versions_on_grid.listing_id as instrument_id,
        split_part(versions_on_grid.listing_id, ':', 1) as venue,
        versions_on_grid.listing_id[length(split_part(versions_on_grid.listing_id, ':', 1)) + 2:] as symbol
    from versions_on_grid
)
{%- endmacro %}

{#- What a trade's sale conditions forbid. Those that mark extended hours forbid nothing outside the session. -#}
{% macro trade_rules() -%}
conditions as (
    select
        feed,
        coalesce(list(code) filter (not updates_open_close), []) as no_open_close,
        coalesce(list(code) filter (not updates_open_close and not marks_extended_hours), []) as no_open_close_outside,
        coalesce(list(code) filter (not updates_high_low), []) as no_high_low,
        coalesce(list(code) filter (not updates_high_low and not marks_extended_hours), []) as no_high_low_outside,
        coalesce(list(code) filter (not updates_volume), []) as no_volume
    from {{ ref('trade_conditions') }}
    group by feed
)
{%- endmacro %}

{#- A bar, of the pieces of a group. -#}
{% macro bar_of_pieces() -%}
    arg_min(open, place) filter (open is not null) as open,
    max(high) as high,
    min(low) as low,
    arg_max(close, place) filter (close is not null) as close,
    coalesce(sum(volume), 0) as volume,
    sum(dollar_volume) / sum(volume) as vwap,
    coalesce(sum(dollar_volume), 0) as dollar_volume,
    coalesce(sum(trade_count), 0)::bigint as trade_count,
    min(first_trade_at) as first_trade_at,
    max(last_trade_at) as last_trade_at,
    'trades' as bar_source,
    coalesce(bool_or(open is not null), false) as is_there
{%- endmacro %}
