{#- Text as a whole number, null where it is anything else: a plain cast rounds 1.7 and reads 1_000. (What is written as the cast
    number is, needs no look by the slower pattern.) -#}
{% macro whole_number(text) -%}
    case
        when try_cast({{ text }} as bigint)::varchar = {{ text }} or regexp_full_match({{ text }}, '-?[0-9]+')
            then try_cast({{ text }} as bigint)
    end
{%- endmacro %}

{#- A number's first twelve digits, whatever its size: sums of doubles in another order have the same, but for those on the
    edge between two. -#}
{% macro twelve_digits(number) -%}
    format('{:.11e}', {{ number }})::double
{%- endmacro %}
