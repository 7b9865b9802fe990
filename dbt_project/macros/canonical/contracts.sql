{#- The columns of this model's contract, in the contract's order, each cast to its type. -#}
{% macro column_list() -%}
    {%- for column in model.columns.values() %}
    {{ column.name }}::{{ column.data_type }} as {{ column.name }}{{ "," if not loop.last }}
    {%- endfor -%}
{%- endmacro %}

{#- What leads a canonical row back to its record. -#}
{% macro lineage(relation=none) -%}
    {%- set prefix = relation ~ '.' if relation else '' -%}
    {%- for column in ['load_seq', 'load_id', 'feed', 'schema_version', 'source', 'source_partition', 'source_position'] -%}
    {{ prefix }}{{ column }}{{ ", " if not loop.last }}
    {%- endfor -%}
{%- endmacro %}
