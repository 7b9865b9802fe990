{#- Nothing is known before it happened, by the venue's or vendor's own clock. -#}
{% test not_known_before_it_happened(model, happened) %}

select * from {{ model }} where known_from < {{ happened }}

{% endtest %}
