{#-
    A book that claims to be valid has its best bid below its best ask; levels are in order, no more than are shown, and each has
    a size; nothing is known before the book's time; and no message is shown twice. (One test for all: each costs every build.)
-#}
{% test books_are_coherent(model) %}

with incoherent as (
    select listing_id, book, event_time
    from {{ model }}
    where (is_valid and bid_prices[1] >= ask_prices[1])
        or bid_prices != list_reverse_sort(bid_prices)
        or ask_prices != list_sort(ask_prices)
        or greatest(len(bid_prices), len(ask_prices)) > depth
        or len(bid_prices) != len(bid_sizes)
        or len(ask_prices) != len(ask_sizes)
        or known_from < event_time
),

repeated as (
    select listing_id, book, event_time
    from {{ model }}
    group by listing_id, book, event_time, book_order, load_id, source_position
    having count(*) > 1
)

select * from incoherent
union all
select * from repeated

{% endtest %}
