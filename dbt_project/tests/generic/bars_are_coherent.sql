{#- The low is below, and the high above, open and close; volume is not negative; nothing is known before the bar began. -#}
{% test bars_are_coherent(model, bar_start) %}

select *
from {{ model }}
where low > least(open, close)
    or high < greatest(open, close)
    or volume < 0
    or known_from < {{ bar_start }}::timestamp_ns

{% endtest %}
