{#-
    The body of a table macro that looks up many points in time: each decision with the newest period of its key that was
    known at decision_time - lag, in the version known then; nulls where there is none, or none since max_age.

    A plain as-of join on known_from would answer with an old period whenever an old period was revised last. So a version
    counts until its known_to, or until a newer row became known that is still alive today, whichever comes first. The
    versions whose period lives on then tile a key's time: the latest one known is the newest, and an as-of join finds it.
    Those whose period was taken back later are few, and looked for by their intervals.

    `decisions` is the name of a table, or of a common table expression, with a column decision_time. `versions` is what
    stands in FROM; `key`, `period` and `aged_from` are its columns, `asked_key` is of the decisions.
-#}
{% macro point_in_time(versions, key, period, aged_from, asked_key) -%}
    with numbered as (
        select *, row_number() over () as asked_place from query_table(decisions)
    ),

    -- Of an Arrow table DuckDB expects one row, and would compare each with all versions: the second table has one row,
    -- and is expected to have hundreds.
    asked as (
        select
            numbered.*,
            {{ asked_key }} as asked_key,
            case
                when epoch_ns(max_age::interval) < 0
                    then error('max_age ' || max_age::varchar || ' is negative: nothing is so young')
                when epoch_ns(lag::interval) >= 0
                    then make_timestamp_ns(epoch_ns({{ asked_time('decision_time') }}) - epoch_ns(lag::interval))
                when lag is null then error('lag is null: write interval ''0 minutes'' for what is known at the decision')
                else error('lag ' || lag::varchar || ' is negative: a decision would see what became known after it')
            end as asked_as_of
        from numbered
        cross join (select n from range(1000) as numbers (n) where n % 1000 = 0) as one_row
    ),

    marked as (
        select
            *,
            {{ key }} as its_key,
            {{ period }} as its_period,
            known_to is not null and coalesce(
                lead(known_from) over (partition by {{ key }}, {{ period }} order by known_from) != known_to, true
            ) as ends
        from {{ versions }}
        where {{ key }} in (select asked_key from asked)
    ),

    lasting as (
        select
            *,
            not max(ends) over (
                partition by its_key, its_period order by known_from rows between current row and unbounded following
            ) as lives
        from marked
    ),

    shown as (
        select
            *,
            least(known_to, min(case when lives then known_from end) over (
                partition by its_key order by its_period desc, known_from desc rows between unbounded preceding and 1 preceding
            )) as shown_until
        from lasting
    ),

    steps as (
        select * from shown where lives and (shown_until is null or shown_until > known_from)
    ),

    found as (
        select asked_place, asked_as_of, steps.*
        from asked
        asof inner join steps on asked_key = its_key and asked_as_of >= known_from
        union all by name
        select asked_place, asked_as_of, shown.*
        from asked
        inner join shown on asked_key = its_key and asked_as_of >= known_from and asked_as_of < shown_until
        where not lives
    ),

    newest as (
        select * from found qualify row_number() over (partition by asked_place order by its_period desc, known_from desc) = 1
    ),

    -- Here rather than in the last join, which would compare each decision with each answer.
    young as (
        select * from newest
        where max_age is null or epoch_ns(asked_as_of) - epoch_ns({{ aged_from }}::timestamp_ns) <= epoch_ns(max_age::interval)
    )

    select
        asked.* exclude (asked_place, asked_key, asked_as_of),
        young.* exclude (asked_place, asked_as_of, its_key, its_period, ends, lives, shown_until, {{ key }})
        replace (null::timestamp_ns as known_to)
    from asked
    left join young on asked.asked_place = young.asked_place
    order by asked.asked_place
{%- endmacro %}
