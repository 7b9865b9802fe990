{#-
    The levels of an order book message, as a list of {side, price, size} in the venue's order, bids before asks; a size of 0
    deletes the level. Null where a text is no list; a level that cannot be read has a null price or size.
-#}

{#- From the texts of two lists [[price, size], …]. -#}
{% macro book_levels(bids_text, asks_text) -%}
    -- (Of two lists of which one is null, DuckDB makes the other.)
    case
        when {{ texts_of_lists(bids_text) }} is not null and {{ texts_of_lists(asks_text) }} is not null
            then list_concat({{ levels_of_side(bids_text, 'bid') }}, {{ levels_of_side(asks_text, 'ask') }})
    end
{%- endmacro %}

{% macro levels_of_side(text, side) -%}
    list_transform(
        {{ texts_of_lists(text) }},
        lambda l: struct_pack(side := '{{ side }}', price := try_cast(l[1] as double), size := try_cast(l[2] as double))
    )
{%- endmacro %}

{#- From the text of one list [[side, price, size], …], as Coinbase calls the sides. -#}
{% macro book_changes(text) -%}
    list_transform(
        {{ texts_of_lists(text) }},
        lambda l: struct_pack(
            side := case l[1] when 'buy' then 'bid' when 'sell' then 'ask' end,
            price := try_cast(l[2] as double),
            size := try_cast(l[3] as double)
        )
    )
{%- endmacro %}

{#- A JSON list of lists as lists of texts; null where it is anything else. -#}
{% macro texts_of_lists(text) -%}
    case when json_valid({{ text }}) then try(from_json({{ text }}, '[["VARCHAR"]]')) end
{%- endmacro %}

{#- Half a message would make another book: one level that cannot be read, or cannot be, sets the whole record aside. -#}
{% macro refuse_unusable_levels() -%}
                when levels is null then 'invalid_value: the levels are no lists of levels'
                when list_bool_or(list_transform(levels, lambda l:
                l.side is null or l.price is null or l.size is null or not isfinite(l.price) or not isfinite(l.size)
                )) then 'invalid_value: a level does not read as side, price and size'
                when list_bool_or(list_transform(levels, lambda l: l.price <= 0 or l.size < 0))
                    then 'impossible_value: a level has a price of 0 or below, or a size below 0'
{%- endmacro %}
