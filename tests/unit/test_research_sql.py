"""Rules of research on rows that are made up: the project's own SQL, rendered as dbt renders it, and no lake.

models/research/*.sql, macros/ ── rendered ──> SQL ──> asked, with made-up rows for what it reads
"""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace

import duckdb
import jinja2
import pyarrow as pa
import pytest
from worlds.warehouse import REPOSITORY

PROJECT = REPOSITORY / "dbt_project"
MACROS = (
    *("engine/registry", "engine/time", "research/grid", "research/point_in_time"),
    *("research/bars", "research/days", "research/spreads"),
)


def rendered(text: str, **settings: str | int) -> str:
    """SQL of the project, in which every model is the table `given`, and `settings` are dbt's variables."""
    macros = [(PROJECT / "macros" / f"{name}.sql").read_text(encoding="utf-8") for name in MACROS]
    template = jinja2.Environment(extensions=["jinja2.ext.do"]).from_string("\n".join([*macros, text]))
    this = SimpleNamespace(database="memory", schema="main")
    return template.render(ref=lambda name: "given", config=lambda **_: "", var=settings.__getitem__, this=this)


def model(name: str) -> str:
    return (PROJECT / "models" / "research" / f"{name}.sql").read_text(encoding="utf-8")


def made(name: str, parameters: str, rows: str) -> duckdb.DuckDBPyConnection:
    """A database with a model's table macro, `asked`, and the rows that it reads."""
    connection = duckdb.connect()
    connection.execute(f"create table given as {rows}")
    connection.execute(f"create macro asked({parameters}) as table {rendered(model(name))}")
    return connection


@pytest.mark.parametrize(
    ("asset_class", "known_at", "members"),
    [
        ("crypto", "2024-01-31 23:59", ["old"]),
        ("crypto", "2024-02-01 00:00", []),
        ("crypto", "2024-02-01 00:15", ["new"]),
        ("equity", "2024-02-01 04:59", ["new", "old"]),
        ("equity", "2024-02-01 05:00", ["new"]),
    ],
)
def test_a_universe_ends_with_its_markets_day(asset_class: str, known_at: str, members: list[str]) -> None:
    """A month of crypto ends at 00:00 UTC; the next month's members are known a quarter of an hour later."""
    connection = made(
        "universe_as_of",
        "known_at",
        f"""
        select '{asset_class}' as asset_class, null::timestamp_ns as known_to, *
        from (values
            ('old', date '2024-01-01', date '2024-02-01', timestamp_ns '2024-01-01 00:15'),
            ('new', date '2024-02-01', date '2024-03-01', timestamp_ns '2024-02-01 00:15')
        ) as members (instrument_id, valid_from, valid_to, known_from)
        """,
    )
    asked = f"select instrument_id from asked('{known_at}') where valid_to is null order by all"
    assert [name for (name,) in connection.execute(asked).fetchall()] == members


ASKED = "with decisions as (select 'A' as instrument_id, '2024-01-10 12:00' as decision_time) select close from asked"


@pytest.mark.parametrize(
    ("lag", "close"), [("interval '0 minutes'", 2.0), ("interval '1 minute'", 2.0), ("'1 day'", 1.0)]
)
def test_a_lag_looks_back(lag: str, close: float) -> None:
    rows = ask_days().execute(f"{ASKED}('decisions', 'given', {lag}, null)").fetchall()
    assert rows == [(close,)]


@pytest.mark.parametrize(
    ("lag", "message"),
    [
        ("interval '-3 days'", "lag -3 days is negative: a decision would see what became known after it"),
        ("'-1 microsecond'", "is negative"),
        ("null", "lag is null: write interval '0 minutes'"),
    ],
)
def test_a_lag_never_looks_ahead(lag: str, message: str) -> None:
    with pytest.raises(duckdb.Error, match=message):
        ask_days().execute(f"{ASKED}('decisions', 'given', {lag}, null)").fetchall()


def test_an_age_is_never_negative() -> None:
    with pytest.raises(duckdb.Error, match="max_age -1 day is negative: nothing is so young"):
        ask_days().execute(f"{ASKED}('decisions', 'given', interval '0 minutes', interval '-1 day')").fetchall()


def test_decisions_in_memory_are_not_compared_each_with_each() -> None:
    """Of whose number DuckDB knows nothing: ten times as many would take a hundred times as long."""
    connection = ask_days()
    connection.register("many", pa.table({"instrument_id": ["A"], "decision_time": [dt.datetime(2024, 1, 10, 12)]}))
    ((_, plan),) = connection.execute(
        "explain select close from asked('many', 'given', interval '1 minute', interval '9 days')"
    ).fetchall()
    assert "ASOF_JOIN" in plan
    assert "BLOCKWISE_NL_JOIN" not in plan
    assert "NESTED_LOOP_JOIN" not in plan


NO_TIMES = [
    ("'2024-13-40'", r"'2024-13-40' (VARCHAR)"),
    ("'yesterday'", "'yesterday' (VARCHAR)"),
    ("''", "'' (VARCHAR)"),
    ("null", "null"),
    ("null::timestamp", "null"),
    ("20240110", "'20240110' (INTEGER)"),
    ("2024.5", "'2024.5' (DECIMAL(5,1))"),
    ("timestamp '3000-01-01'", "'3000-01-01 00:00:00' (TIMESTAMP)"),
]


@pytest.mark.parametrize(("given", "named"), NO_TIMES)
def test_what_is_no_time_is_refused_by_name(given: str, named: str) -> None:
    """Of a comparison with null no row would be left; an as-of join would answer null with the newest there is."""
    forms = "give a TIMESTAMP (UTC), a TIMESTAMPTZ, a DATE or text such as '2024-03-08 16:00:00' or"
    asked = f"with decisions as (select 'A' as instrument_id, {given} as decision_time) select close from asked"
    for argument, connection, query in (
        ("known_at", closes_as_of(), f"from asked({given})"),
        ("decision_time", ask_days(), f"{asked}('decisions', 'given', interval '0 minutes', null)"),
    ):
        with pytest.raises(duckdb.Error) as refused:
            connection.execute(query).fetchall()
        assert f"{argument} is no time from 1677 to 2262: {named}; {forms}" in str(refused.value)


@pytest.mark.parametrize(
    "known_at", ["'2024-01-10'", "date '2024-01-10'", "timestamp '2024-01-10'", "timestamptz '2024-01-10 00:00:00+00'"]
)
def test_a_time_is_read_once_and_files_are_pruned_by_it(known_at: str) -> None:
    ((_, plan),) = closes_as_of().execute(f"explain select close from asked({known_at})").fetchall()
    assert "known_from<='2024-01-10 00" in plan
    assert "FILTER" not in plan
    assert "error" not in plan


def test_each_row_may_ask_with_a_time_of_its_own() -> None:
    asked = (
        "select day, count(*) from (select unnest([{}]) as day) as days, lateral asked(day) group by day order by day"
    )
    connection = closes_as_of()
    found = connection.execute(asked.format("date '2024-01-11', date '2024-01-09', date '2024-01-01'"))
    assert found.fetchall() == [(dt.date(2024, 1, 9), 1), (dt.date(2024, 1, 11), 3)]
    with pytest.raises(duckdb.Error, match="known_at is no time from 1677 to 2262: 'tomorrow'"):
        connection.execute(asked.format("'2024-01-11', 'tomorrow'")).fetchall()


DAYS = """
    select
        'A' as instrument_id, day::date as session_date, day as session_close, close::double as close,
        (day + interval 1 day)::timestamp_ns as known_from, null::timestamp_ns as known_to
    from (values
        (timestamp '2024-01-08', 1), (timestamp '2024-01-09', 2), (timestamp '2024-01-10', 3)
    ) as days (day, close)
"""
"""Closes of three sessions, each known on the next day."""


def closes_as_of() -> duckdb.DuckDBPyConnection:
    return made("returns_1d_as_of", "known_at", DAYS)


def ask_days() -> duckdb.DuckDBPyConnection:
    return made("point_in_time", "decisions, features, lag, max_age", DAYS)


@pytest.mark.parametrize(
    ("lag", "grid", "decision"),
    [
        ("15 minutes", 60, "2024-01-31 21:15:00"),
        ("90 seconds", 60, "2024-01-31 21:02:00"),
        ("90 seconds", 10, "2024-01-31 21:01:30"),
        ("1 day", 60, "2024-02-01 21:00:00"),
        ("7 minutes", 300, "2024-01-31 21:10:00"),
    ],
)
def test_a_decision_is_made_after_the_lag_at_the_end_of_a_cell(lag: str, grid: int, decision: str) -> None:
    connection = duckdb.connect()
    connection.execute("""
        create table given as
        select 'XNYS' as calendar, date '2024-01-31' as session_date, 7::bigint as session_seq,
            timestamp '2024-01-31 14:30' as open_at, timestamp '2024-01-31 21:00' as close_at
    """)
    sessions = rendered(model("inputs/int_sessions"), decision_lag=lag, knowledge_grid_seconds=grid)
    asked = f"select decision_time::varchar from ({sessions}) where calendar = 'XNYS'"
    assert connection.execute(asked).fetchall() == [(decision,)]


@pytest.mark.parametrize(("calendar", "year", "month"), [("XNYS", 252, 21), ("utc", 365, 30)])
def test_a_calendar_has_its_sessions_a_year_and_a_month(calendar: str, year: int, month: int) -> None:
    asked = rendered("select {{ sessions_a_year() }}, {{ sessions_a_month() }} from (select ? as calendar)")
    assert duckdb.execute(asked, [calendar]).fetchall() == [(year, month)]


@pytest.mark.parametrize(("says", "clock"), [("'received'", "received"), ("'event'", "event"), ("null", "event")])
def test_quotes_and_trades_meet_by_the_clock_that_the_registry_says(says: str, clock: str) -> None:
    asked = f"""
        with given as (from (values ('mine', {says}), ('another', 'received')) as feeds (feed, quote_clock))
        select {rendered("{{ quote_clock() }}")}
        from (select 'mine' as feed, 'event' as event_time, 'received' as received_time)
    """
    assert duckdb.execute(asked).fetchall() == [(clock,)]


# Sale conditions by the consolidated rules of CTA and UTP, in Massive's codes.
VOLUME_ONLY = {"2", "7", "12", "13", "20", "21", "37", "52", "53"}
NO_OPEN_OR_CLOSE = {"5", "10", "22", "29", "33"}
NO_VOLUME = {"38"}
NOTHING = {"15", "16"}
EXTENDED_HOURS = {"12", "13"}


def test_each_sale_condition_forbids_what_the_consolidated_rules_say() -> None:
    connection = duckdb.connect()
    connection.read_csv(str(PROJECT / "seeds" / "trade_conditions.csv"), dtype={"code": "varchar"}).create("given")
    columns = ("no_open_close", "no_high_low", "no_volume", "no_open_close_outside", "no_high_low_outside")
    rules = connection.execute(f"with {rendered('{{ trade_rules() }}')} select {', '.join(columns)} from conditions")
    ((*forbidden,),) = rules.fetchall()
    high_low = VOLUME_ONLY | NOTHING
    open_close = high_low | NO_OPEN_OR_CLOSE
    assert dict(zip(columns, map(set, forbidden), strict=True)) == {
        "no_open_close": open_close,
        "no_high_low": high_low,
        "no_volume": NO_VOLUME | NOTHING,
        "no_open_close_outside": open_close - EXTENDED_HOURS,
        "no_high_low_outside": high_low - EXTENDED_HOURS,
    }
    assert connection.execute("select count(*), count(distinct code) from given").fetchall() == [(17, 17)]
