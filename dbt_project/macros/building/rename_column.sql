{#- Before the insert: a column of this table that an earlier version of the model called otherwise gets today's name, with what
    it holds. -#}
{% macro rename_column(old, new) -%}
    {%- set names = adapter.get_columns_in_relation(this) | map(attribute='name') | list if execute and is_incremental() else [] -%}
    {%- if old in names and new not in names -%}
    alter table {{ this }} rename column {{ adapter.quote(old) }} to {{ adapter.quote(new) }}
    {%- else -%}
    select 1
    {%- endif -%}
{%- endmacro %}
