{#- The columns of this model's contract, in the contract's order, each cast to its type. (A unit test has no contract: it
    looks at the columns that it expects.) -#}
{% macro column_list() -%}
    {%- if model.resource_type == 'unit_test' -%}
    *
    {%- else -%}
    {%- for column in model.columns.values() %}
    {{ column.name }}::{{ column.data_type }} as {{ column.name }}{{ "," if not loop.last }}
    {%- endfor -%}
    {%- endif -%}
{%- endmacro %}

{#- What leads a canonical row back to its record. -#}
{% macro lineage(relation=none) -%}
    {%- set prefix = relation ~ '.' if relation else '' -%}
    {%- for column in ['load_seq', 'load_id', 'feed', 'schema_version', 'source', 'source_partition', 'source_position'] -%}
    {{ prefix }}{{ column }}{{ ", " if not loop.last }}
    {%- endfor -%}
{%- endmacro %}
