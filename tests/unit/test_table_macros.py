"""Table macros of research on rows that are made up: the models' own SQL, rendered as dbt renders it.

dbt_project/models/research/<macro>.sql ── rendered ──> create macro ──> asked
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import duckdb
import jinja2
import pytest
from worlds.warehouse import REPOSITORY

PROJECT = REPOSITORY / "dbt_project"
MACROS = ("engine/time", "research/grid", "research/point_in_time")


def made(model: str, parameters: str, rows: str) -> duckdb.DuckDBPyConnection:
    """A database with a table of these rows, `given`, which the model's macro, `asked`, reads."""
    files = [PROJECT / "macros" / f"{name}.sql" for name in MACROS] + [PROJECT / "models" / "research" / f"{model}.sql"]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    given: dict[str, Any] = {"ref": lambda name: "given", "config": lambda **settings: ""}
    given["this"] = SimpleNamespace(database="memory", schema="main")
    body = jinja2.Environment().from_string(text).render(given)
    connection = duckdb.connect()
    connection.execute(f"create table given as {rows}")
    connection.execute(f"create macro asked({parameters}) as table {body}")
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


def ask_days() -> duckdb.DuckDBPyConnection:
    """Closes of three sessions, each known on the next day."""
    return made(
        "point_in_time",
        "decisions, features, lag, max_age",
        """
        select
            'A' as instrument_id, day::date as session_date, day as session_close, close::double as close,
            (day + interval 1 day)::timestamp_ns as known_from, null::timestamp_ns as known_to
        from (values
            (timestamp '2024-01-08', 1), (timestamp '2024-01-09', 2), (timestamp '2024-01-10', 3)
        ) as days (day, close)
        """,
    )
