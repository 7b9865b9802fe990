{#- A book that claims to be valid has its best bid below its best ask, and its levels in order. -#}
{% test valid_books_are_not_crossed(model) %}

select *
from {{ model }}
where (is_valid and bid_prices[1] >= ask_prices[1])
    or bid_prices != list_reverse_sort(bid_prices)
    or ask_prices != list_sort(ask_prices)
    or greatest(len(bid_prices), len(ask_prices)) > depth
    or len(bid_prices) != len(bid_sizes)
    or len(ask_prices) != len(ask_sizes)

{% endtest %}
