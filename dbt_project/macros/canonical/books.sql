{#-
    Order books (docs/books.md). The model int_book_rebuilt rebuilds what new records change (market_data/book_builds.py):
    one table with a row for each grid point, break, state and start, told apart by `part`. The tables of books take theirs
    from it, and first forget what they hold of a book's date after its start.
-#}

{#- What int_book_rebuilt must know of this build: since which load its readers have to be brought on, and how books are shown. -#}
{% macro note_books_mark() -%}
    {%- if not execute -%}{{- return("select 1") -}}{%- endif -%}
    create or replace table scratch.staging.books_mark as select {{ least_mark_downstream() }}::bigint as mark
{%- endmacro %}

{% macro note_books_shown() -%}
    {%- set grid = "'" ~ var('book_grid') ~ "'" if var('book_grid') else "coalesce(grid, '1 second')" -%}
    create or replace table scratch.staging.books_shown as
    select
        feed,
        coalesce(depth, 20) as depth,
        case when {{ grid }} = 'every update' then 0 else (epoch(({{ grid }})::interval) * 1000000000)::bigint end as grid
    from {{ ref('feeds') }}
    left join {{ ref('books') }} using (feed)
{%- endmacro %}

{#- A part of what this build has rebuilt. -#}
{% macro rebuilt_books(part) -%}
    {%- if execute and flags.WHICH in ('run', 'build') and 'int_book_rebuilt' not in selected_models() -%}
        {%- do exceptions.raise_compiler_error(
            model.name ~ " needs what int_book_rebuilt makes in the same run; select it too: dbt build --select +" ~ model.name
        ) -%}
    {%- endif -%}
    (select * from {{ ref('int_book_rebuilt') }} where part = '{{ part }}')
{%- endmacro %}

{#- Before the insert, in its transaction. Where a grid is set, the cell that goes on is shown anew. -#}
{% macro forget_rebuilt_books(whole_dates=false) -%}
    {%- if not is_incremental() -%}{{- return("select 1") -}}{%- endif -%}
    {%- set starts = ref('int_book_rebuilt') ~ " where part = 'start'" -%}
    {%- set dates = ask_values("select distinct book_date::varchar from " ~ starts) -%}
    {%- if not dates -%}{{- return("select 1") -}}{%- endif -%}
    delete from {{ this }} as stands
    using (select * from {{ starts }}) as starts
    where stands.listing_id = starts.listing_id
        and stands.book = starts.book
        and stands.book_date = starts.book_date
        {% if not whole_dates -%}
        and (stands.book_order > starts.book_order or stands.event_time >= starts.event_time)
        {%- endif %}
        and {{ in_dates('stands.book_date', dates) }}
{%- endmacro %}
