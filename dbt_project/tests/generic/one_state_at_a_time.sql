{#- A snapshot's rows of a key follow each other without gap or overlap, and the last is open. -#}
{% test one_state_at_a_time(model, key) %}

with states as (
    select *, lead(dbt_valid_from) over (partition by {{ key }} order by dbt_valid_from) as next_valid_from
    from {{ model }}
)

select * from states where dbt_valid_to is distinct from next_valid_from

{% endtest %}
