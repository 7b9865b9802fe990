{#-
    Spreads of a session, from quotes and trades. Their clock is the venue's where it stamps its quotes, else the receive
    clock for both; the registry says which.
-#}

{% macro quote_clock() -%}
    case when {{ of_feed('quote_clock') }} = 'received' then received_time else event_time end
{%- endmacro %}

{#- When trades of a session stop to meet quotes: one whose clock is later was held up on its way, or is a correction,
    and the quotes of its clock say nothing of when it was made. -#}
{% macro last_clock_of_session() -%}
    close_at + interval '1 hour'
{%- endmacro %}

{#- Sessions that quotes new since this model's mark may touch: a trade may meet a quote of the day before its own, and,
    by the receive clock, one of the first hour of the day after. -#}
{% macro sessions_of_new_quotes() -%}
    select
        listing_id,
        unnest(case
            when {{ quote_clock() }} < session_date + interval '1 hour'
                then [session_date - 1, session_date, session_date + 1]
            else [session_date, session_date + 1]
        end) as session_date
    from {{ ref('int_quotes__versioned') }}
    where {{ is_new('int_quotes__versioned') }}
{%- endmacro %}

{#- Sessions whose spreads may have changed since this model's mark. -#}
{% macro touched_quote_sessions() -%}
    {{ sessions_of_new_quotes() }}
    union
    select listing_id, session_date from {{ ref('int_trades__versioned') }} where {{ is_new('int_trades__versioned') }}
{%- endmacro %}

{#- The partitions in which their quotes and trades lie. -#}
{% macro touched_quote_dates() -%}
    {{- return(ask_values(
        "select distinct unnest([session_date - 1, session_date, session_date + 1])::varchar as changed from ("
        ~ touched_quote_sessions() ~ ")"
    ) if execute else []) -}}
{%- endmacro %}

{% macro forget_touched_spreads() -%}
    {%- if is_incremental() -%}
    delete from {{ this }}
    where {{ in_dates('session_date', touched_quote_dates()) }}
        and (listing_id, session_date) in (select (listing_id, session_date) from ({{ touched_quote_sessions() }}))
    {%- else -%}
    select 1
    {%- endif -%}
{%- endmacro %}

{#- The later of two quotes at one time, by the venue's number for it, first. -#}
{% macro in_quote_order(quotes) -%}
    struct_pack(
        {% for column in ['sequence', 'update_id', 'known_from', 'ask_price', 'bid_price', 'ask_size', 'bid_size'] -%}
        {{ column }} := {{ quotes }}.{{ column }}{{ ", " if not loop.last }}
        {%- endfor %}
    ) desc
{%- endmacro %}
