{#- What readers see of a versioned table: its versions, without duplicates and without the deletions that close them. (In one
    step: over a filter in a step of its own, DuckDB 1.5 may fail where a reader asks for the last row of each key.) -#}
{% macro shown_versions(versioned_model) -%}
select
    {{ column_list() }}
from {{ ref(versioned_model) }}
where not is_duplicate and not is_deletion
{%- endmacro %}
