"""A million look-ups at points in time over 13 million versions a table, against Polars' join_asof on presorted data.

    an empty build ── two daily tables: 5,000 instruments × 2,520 sessions, 4 % of them revised; a macro series ──┐
        Client.features, research.point_in_time ───────────────────────────────────────────────────────┐          │
        in memory, sorted ── Polars' join_asof on known_from, table by table ──────────────────────────┴─ seconds ┘
    every version looked at for every decision (DuckDB) ── the answer that must be ── mismatches

    .venv/bin/python benchmarks/research.py                                  some eight minutes
    .venv/bin/python benchmarks/research.py --instruments 500 --decisions 100000

Asked are five features of one table, and one feature each of two tables and a macro series. Told of Client.features are
the first question, which reads the tables from the lake, and the next ones, which have them in memory and sorted, as
Polars has them from the beginning; of the SQL macro, which keeps nothing, the five features of one table. Each time is
the least of three. Mismatches are counted over all decisions and features; Polars' too, whose join answers with an old
session where an old session was revised last. Wanted: the next ones at most twice Polars', no mismatch. The exit code
is 1 where it is not so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from loaders.settings import Settings
from market_data import lake, publishing
from market_data.build import build
from market_data.client import Client

REVISED_PERCENT = 4
REPEATS = 3
SERIES, QUARTERS, PRINTS = "GDP", 48, 4


@dataclass(frozen=True)
class Asked:
    """Columns of one table: of the newest row of a key."""

    table: str
    columns: tuple[str, ...]
    key: str = "instrument_id"
    period: str = "session_date"

    @property
    def names(self) -> list[str]:
        """As ``Client.features`` calls them; the value of a series has the series' name."""
        return [f"{self.table}.{SERIES if self.key == 'series_id' else column}" for column in self.columns]


ESTIMATORS = ("close_to_close_20", "parkinson_20", "garman_klass_20", "rogers_satchell_20", "yang_zhang_20")
ONE_TABLE = (Asked("volatility_1d", ESTIMATORS),)
TWO_TABLES_AND_A_SERIES = (
    Asked("volatility_1d", ("yang_zhang_20",)),
    Asked("returns_1d", ("return_total",)),
    Asked("macro_series", ("value",), "series_id", "observation_date"),
)

DAYS = """
insert into lake.research.{table} by name
with facts as (
    select
        instrument,
        session,
        format('us_equities:S{{:05d}}', instrument) as instrument_id,
        date '2014-01-01' + session::int as session_date,
        session_date::timestamp + interval 21 hours as session_close,
        session_close + interval 19 hours as first_known,
        {values},
        hash(instrument, session, '{table}') % 100 < {revised} as is_revised,
        first_known + to_days(1 + (hash(session, instrument, '{table}') % 40)::int) as revised_at
    from range({instruments}) as instruments (instrument), range({sessions}) as sessions (session)
)

select * exclude (instrument, session, first_known, is_revised, revised_at),
    first_known as known_from, case when is_revised then revised_at end as known_to
from facts
union all by name
select * exclude (instrument, session, first_known, is_revised, revised_at) replace ({revised_values}),
    revised_at as known_from, null as known_to
from facts
where is_revised
order by session_date, instrument_id, known_from
"""

# A quarter is known a month after its end; its later prints come after the next quarter's first.
PRINTED = f"""
insert into lake.research.macro_series by name
select
    '{SERIES}' as series_id,
    date '2013-01-01' + to_months(3 * quarter::int) as observation_date,
    100 + quarter + print / 10 as value,
    (observation_date + to_months(4 + 4 * print::int))::date as published_on,
    published_on + interval 29 hours as known_from,
    lead(known_from) over (partition by quarter order by print) as known_to
from range({QUARTERS}) as quarters (quarter), range({PRINTS}) as prints (print)
"""


def make_lake(settings: Settings, instruments: int, sessions: int) -> int:
    """The lake of an empty build, its tables filled with versions, sorted as the real ones are; the version to read."""
    build(settings)
    connection = lake.open_for_writing(settings)
    for table, columns in (("volatility_1d", ESTIMATORS), ("returns_1d", ("return_total",))):
        values = ", ".join(f"hash(instrument, session, '{name}') / 2 ** 64 as {name}" for name in columns)
        revised_values = ", ".join(f"{name} + 1 as {name}" for name in columns)
        connection.execute(
            DAYS.format(
                table=table,
                values=values,
                revised_values=revised_values,
                revised=REVISED_PERCENT,
                instruments=instruments,
                sessions=sessions,
            )
        )
    connection.execute(PRINTED)
    version = publishing.head(connection)
    connection.close()
    return version


def make_decisions(instruments: int, sessions: int, count: int) -> pa.Table:
    """Decisions at any second of the history, in no order."""
    chance = np.random.default_rng(1)
    start = np.datetime64("2014-01-01", "ns")
    seconds = chance.integers(0, (sessions + 60) * 86_400, count)
    names = np.array([f"us_equities:S{number:05d}" for number in range(instruments)])
    return pa.table(
        {
            "instrument_id": names[chance.integers(0, instruments, count)],
            "decision_time": pa.array(start + seconds.astype("timedelta64[s]")),
        }
    )


def say(what: str) -> None:
    """Progress, on the error stream."""
    print(f"{time.strftime('%T')} {what}", file=sys.stderr, flush=True)


def least(work: Callable[[], Any]) -> tuple[float, Any]:
    """The shortest of some runs, in seconds, and the last one's answer."""
    took = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        answer = work()
        took.append(time.perf_counter() - started)
    return min(took), answer


def brute_force(client: Client, decisions: pa.Table, asked: Sequence[Asked]) -> pa.Table:
    """Of all versions alive at each decision those of the newest periods; no index, no as-of join."""
    client._connection.register("decisions", decisions)
    columns: dict[str, pa.ChunkedArray] = {}
    for one in asked:
        found = client.sql(
            f"""
            with versions as (
                select {one.key} as key, known_from, known_to, {", ".join(one.columns)},
                    row_number() over (order by {one.key}, {one.period}, known_from) as place
                from research.{one.table}
            ),
            asked as (select {asked_key(one)} as key, decision_time, row_number() over () as decision from decisions),
            found as (
                select decision, max(place) as place
                from asked
                inner join versions using (key)
                where known_from <= decision_time and (known_to is null or known_to > decision_time)
                group by decision
            )
            select {", ".join(one.columns)}
            from asked left join found using (decision) left join versions using (place)
            order by decision
            """
        ).arrow
        columns |= dict(zip(one.names, found.columns, strict=True))
    return pa.table(columns)


def asked_key(asked: Asked) -> str:
    return f"'{SERIES}'" if asked.key == "series_id" else asked.key


def mismatches(answer: pa.Table, expected: pa.Table) -> int:
    """Cells that differ; nulls are equal."""
    total = 0
    for name in expected.column_names:
        mine, theirs = (np.asarray(table[name].to_numpy(), float) for table in (answer, expected))
        total += int(np.sum((mine != theirs) & ~(np.isnan(mine) & np.isnan(theirs))))
    return total


def polars_joins(client: Client, decisions: pa.Table, asked: Sequence[Asked]) -> tuple[float, pa.Table]:
    """The plain joins on known_from that a researcher would write, all sides sorted before."""
    sides = []
    for one in asked:
        columns = ", ".join(
            f"{column} as {json.dumps(name)}" for column, name in zip(one.columns, one.names, strict=True)
        )
        key = [] if one.key == "series_id" else [one.key]
        read = f"select {', '.join([*key, 'known_from', columns])} from research.{one.table}"
        sides.append((client.sql(read).pl().sort(*key, "known_from"), key))
    rows = pl.DataFrame(decisions).with_row_index("decision")
    by_key, by_time = rows.sort("instrument_id", "decision_time"), rows.sort("decision_time")
    options: dict[str, Any] = {"left_on": "decision_time", "right_on": "known_from", "check_sortedness": False}
    took, joined = least(
        lambda: [(by_key if key else by_time).join_asof(side, by=key or None, **options) for side, key in sides]
    )
    in_order = [table.sort("decision").select(one.names) for table, one in zip(joined, asked, strict=True)]
    return took, pl.concat(in_order, how="horizontal").to_arrow()


def sql_macro(client: Client, decisions: pa.Table, asked: Asked) -> tuple[float, pa.Table]:
    """The same of the table macro, which reads the lake and sorts each time."""
    client._connection.register("decisions", decisions)
    query = (
        f"select {', '.join(asked.columns)}"
        f" from lake.research.point_in_time('decisions', '{asked.table}', interval '0 minutes', null)"
    )
    took, answer = least(lambda: client.sql(query).arrow)
    return took, answer.rename_columns(asked.names)


def measure(settings: Settings, version: int, decisions: pa.Table, asked: Sequence[Asked]) -> dict[str, Any]:
    """What one question costs, and how many of its cells are wrong."""
    names = [name for one in asked for name in one.names]

    def first() -> pa.Table:
        with Client(lake.open_version(settings, version), version) as fresh:
            return fresh.features(decisions, names).arrow

    say(f"asking for {', '.join(names)}")
    first_seconds, _ = least(first)
    with Client(lake.open_version(settings, version), version) as client:
        client.features(decisions, names)
        next_seconds, answer = least(lambda: client.features(decisions, names).arrow)
    with Client(lake.open_version(settings, version), version) as client:
        say("asking Polars")
        polars_seconds, plain = polars_joins(client, decisions, asked)
        say("asking the SQL macro")
        macro = sql_macro(client, decisions, asked[0]) if len(asked) == 1 else None
        say("looking at every version for every decision")
        expected = brute_force(client, decisions, asked)
    results = {
        "features": len(names),
        "first_seconds": round(first_seconds, 3),
        "next_seconds": round(next_seconds, 3),
        "polars_seconds": round(polars_seconds, 3),
        "ratio": round(next_seconds / polars_seconds, 3),
        "first_ratio": round(first_seconds / polars_seconds, 3),
        "mismatches": mismatches(answer, expected),
        "polars_mismatches": mismatches(plain, expected),
        "answered": min(int(expected.num_rows - column.null_count) for column in expected.columns),
    }
    if macro:
        results |= {"sql_seconds": round(macro[0], 3), "sql_mismatches": mismatches(macro[1], expected)}
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instruments", type=int, default=5_000)
    parser.add_argument("--sessions", type=int, default=2_520)
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the results there as well")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="mdp-benchmark-"))
    settings = Settings(raw=str(place / "raw"), lake=str(place / "lake.sqlite"), lake_data=str(place / "lake"))
    try:
        say("making the lake")
        version = make_lake(settings, arguments.instruments, arguments.sessions)
        decisions = make_decisions(arguments.instruments, arguments.sessions, arguments.decisions)
        with Client(lake.open_version(settings, version), version) as client:
            versions = len(client.sql("select 1 from research.volatility_1d"))
        measured = {
            "one_table": measure(settings, version, decisions, ONE_TABLE),
            "two_tables_and_a_series": measure(settings, version, decisions, TWO_TABLES_AND_A_SERIES),
        }
    finally:
        shutil.rmtree(place)
    results = {"versions": versions, "decisions": arguments.decisions, **measured}
    print(json.dumps(results, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(map(is_as_wanted, measured.values())) else 1


def is_as_wanted(measured: dict[str, Any]) -> bool:
    is_right = not (measured["mismatches"] or measured.get("sql_mismatches"))
    return is_right and measured["ratio"] <= 2 and measured["answered"] > 0


if __name__ == "__main__":
    sys.exit(main())
