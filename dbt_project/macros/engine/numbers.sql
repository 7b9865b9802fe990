{#- Text as a whole number, null where it is anything else: a plain cast rounds 1.7 and reads 1_000. -#}
{% macro whole_number(text) -%}
    case when regexp_full_match({{ text }}, '-?[0-9]+') then try_cast({{ text }} as bigint) end
{%- endmacro %}
