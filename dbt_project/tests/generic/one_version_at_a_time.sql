{#- A fact has one version at any time: versions of a key follow each other without overlap, and at most one is open. -#}
{% test one_version_at_a_time(model, key) %}

with versions as (
    select *, lead(known_from) over (partition by {{ key }} order by known_from, known_to nulls last) as next_known_from
    from {{ model }}
)

select *
from versions
where known_to < known_from
    or (next_known_from is not null and (known_to is null or known_to > next_known_from))

{% endtest %}
