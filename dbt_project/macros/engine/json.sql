{#-
    Reading JSON text fast and safely: all fields of a message in one parse, as a list of texts, whose members are taken
    by position. Paths tell `t` from `T` and take the first of a name that an object gives twice. (A struct would not do:
    DuckDB finds struct fields by name without regard to case, even where they were asked for by position; and a MAP
    refuses a name that is there twice.) Numbers stay text until they are cast.
-#}

{#- The text of a payload, null where it is not UTF-8. -#}
{% macro utf8_text(blob) -%}
    try(decode({{ blob }}))
{%- endmacro %}

{#- The fields of a JSON object as a list of texts; null where the text is not JSON. `members` maps the names that columns
    get to the fields' JSON pointers, below the pointer `within`. (To try is to go record by record where one is malformed:
    a message that was cut off is better seen beforehand. A member that is not there costs as much as one that is.) -#}
{% macro json_fields(text, members, within='') -%}
    try(json_extract_string(case when suffix({{ text }}, '}') or json_valid({{ text }}) then {{ text }} end, [
        {%- for path in members.values() %}'{{ within }}/{{ path }}'{{ ", " if not loop.last }}{% endfor -%}
    ]))
{%- endmacro %}

{#- Such a list as columns; an empty text is a missing one. -#}
{% macro json_columns(fields, members) -%}
    {% for column in members -%}
        nullif({{ fields }}[{{ loop.index }}], '') as {{ column }}
        {%- if not loop.last %},
        {% endif -%}
    {%- endfor %}
{%- endmacro %}

{#- A payload's text where it is a JSON document, else null. -#}
{% macro json_text(payload) -%}
    case when json_valid({{ utf8_text(payload) }}) then {{ utf8_text(payload) }} end
{%- endmacro %}
