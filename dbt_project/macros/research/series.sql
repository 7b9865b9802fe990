{#- The macro series with observations that changed since this model's mark. -#}
{% macro touched_series() -%}
    select distinct series_id from {{ ref('int_macro_observations__versioned') }} where {{ is_new('int_macro_observations__versioned') }}
{%- endmacro %}

{#- Before the insert, in its transaction: they are forgotten, and made anew by the model. -#}
{% macro forget_touched_series() -%}
    {%- if is_incremental() -%}
    delete from {{ this }} where series_id in ({{ touched_series() }})
    {%- else -%}
    select 1
    {%- endif -%}
{%- endmacro %}
