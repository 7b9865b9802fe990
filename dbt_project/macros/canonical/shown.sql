{#- What readers see of a versioned table: its versions, without duplicates and without the deletions that close them. -#}
{% macro shown_versions(versioned_model) -%}
with versions as (
    select * from {{ ref(versioned_model) }}
),

shown as (
    select * from versions where not is_duplicate and not is_deletion
)

select
    {{ column_list() }}
from shown
{%- endmacro %}
