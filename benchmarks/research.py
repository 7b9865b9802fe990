"""A million look-ups at points in time over 13 million versions, against Polars' join_asof on presorted data.

    5,000 instruments × 2,520 sessions, 4 % of them revised, five features ── a lake ── Client.features ──┐
                                      └── in memory, sorted ── Polars' join_asof on known_from ───────────┴─ seconds
    every version looked at for every decision (DuckDB) ── the answer that must be ── mismatches

    .venv/bin/python benchmarks/research.py                                  some five minutes, 4 GB
    .venv/bin/python benchmarks/research.py --instruments 200 --decisions 40000

Told are the first question, which reads the table from the lake, and the next ones, which have it in memory and sorted,
as Polars has it from the beginning; each the least of three. Mismatches are counted over all decisions and features;
Polars' too, whose join answers with an old session where an old session was revised last. Wanted: the next ones at most
twice Polars', no mismatch. The exit code is 1 where it is not so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from loaders.settings import Settings
from market_data import lake, publishing
from market_data.client import Client

FEATURES = ["close_to_close_20", "parkinson_20", "garman_klass_20", "rogers_satchell_20", "yang_zhang_20"]
REVISED_PERCENT = 4
REPEATS = 3


def make_lake(settings: Settings, instruments: int, sessions: int) -> int:
    """A lake with one table of versions, sorted as the real ones are; the version to read."""
    connection = lake.open_for_writing(settings)
    values = ", ".join(f"hash(instrument, session, {n}) / 2 ** 64 as {name}" for n, name in enumerate(FEATURES))
    connection.execute(
        f"""
        create schema lake.research;
        create table lake.research.volatility_1d (
            instrument_id varchar, session_date date, session_close timestamp_ns,
            {", ".join(f"{name} double" for name in FEATURES)}, known_from timestamp_ns, known_to timestamp_ns
        );
        alter table lake.research.volatility_1d set sorted by (session_date, instrument_id);
        insert into lake.research.volatility_1d by name
        with facts as (
            select
                instrument,
                session,
                format('us_equities:S{{:05d}}', instrument) as instrument_id,
                date '2014-01-01' + session::int as session_date,
                session_date::timestamp + interval 21 hours as session_close,
                session_close + interval 19 hours as first_known,
                {values},
                hash(instrument, session) % 100 < {REVISED_PERCENT} as is_revised,
                first_known + to_days(1 + (hash(session, instrument) % 40)::int) as revised_at
            from range({instruments}) as instruments (instrument), range({sessions}) as sessions (session)
        )
        select * exclude (instrument, session, first_known, is_revised, revised_at),
            first_known as known_from, case when is_revised then revised_at end as known_to
        from facts
        union all by name
        select * exclude (instrument, session, first_known, is_revised, revised_at)
            replace ({", ".join(f"{name} + 1 as {name}" for name in FEATURES)}),
            revised_at as known_from, null as known_to
        from facts
        where is_revised
        order by session_date, instrument_id, known_from
        """
    )
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


def brute_force(connection: duckdb.DuckDBPyConnection, decisions: pa.Table) -> pa.Table:
    """Of all versions alive at each decision that of the newest session; no index, no as-of join."""
    connection.register("decisions", decisions)
    return connection.execute(
        f"""
        with versions as (
            select *, row_number() over (order by instrument_id, session_date, known_from) as place
            from lake.research.volatility_1d
        ),
        asked as (select *, row_number() over () as decision from decisions),
        found as (
            select decision, max(place) as place
            from asked
            inner join versions using (instrument_id)
            where known_from <= decision_time and (known_to is null or known_to > decision_time)
            group by decision
        )
        select {", ".join(FEATURES)}
        from asked left join found using (decision) left join versions using (place)
        order by decision
        """
    ).to_arrow_table()


def mismatches(answer: pa.Table, expected: pa.Table) -> int:
    """Cells that differ; nulls are equal."""
    total = 0
    for name in expected.column_names:
        mine, theirs = (np.asarray(table[name].to_numpy(), float) for table in (answer, expected))
        total += int(np.sum((mine != theirs) & ~(np.isnan(mine) & np.isnan(theirs))))
    return total


def polars_joins(client: Client, decisions: pa.Table) -> tuple[float, pa.Table]:
    """The plain join on known_from that a researcher would write, both sides sorted before."""
    columns = ", ".join(["instrument_id", "known_from", *FEATURES])
    versions = client.sql(f"select {columns} from research.volatility_1d").pl().sort("instrument_id", "known_from")
    asked = pl.DataFrame(decisions).with_row_index("decision").sort("instrument_id", "decision_time")
    took, joined = least(
        lambda: asked.join_asof(
            versions, left_on="decision_time", right_on="known_from", by="instrument_id", check_sortedness=False
        )
    )
    return took, joined.sort("decision").select(FEATURES).to_arrow()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instruments", type=int, default=5_000)
    parser.add_argument("--sessions", type=int, default=2_520)
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the results there as well")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="mdp-benchmark-"))
    settings = Settings(raw=str(place / "raw"), lake=str(place / "lake.sqlite"), lake_data=str(place / "lake"))
    names = [f"volatility_1d.{feature}" for feature in FEATURES]
    try:
        say("making the lake")
        version = make_lake(settings, arguments.instruments, arguments.sessions)
        decisions = make_decisions(arguments.instruments, arguments.sessions, arguments.decisions)

        def first() -> pa.Table:
            with Client(lake.open_version(settings, version), version) as fresh:
                return fresh.features(decisions, names).arrow

        say("asking for the first time")
        first_seconds, _ = least(first)
        say("asking again")
        with Client(lake.open_version(settings, version), version) as client:
            client.features(decisions, names)
            next_seconds, answer = least(lambda: client.features(decisions, names).arrow)
        with Client(lake.open_version(settings, version), version) as client:
            versions = len(client.sql("select 1 from research.volatility_1d"))
            say("asking Polars")
            polars_seconds, plain = polars_joins(client, decisions)
            say("looking at every version for every decision")
            expected = brute_force(client._connection, decisions)
    finally:
        shutil.rmtree(place)
    results = {
        "versions": versions,
        "decisions": arguments.decisions,
        "features": len(FEATURES),
        "first_seconds": round(first_seconds, 3),
        "next_seconds": round(next_seconds, 3),
        "polars_seconds": round(polars_seconds, 3),
        "ratio": round(next_seconds / polars_seconds, 3),
        "first_ratio": round(first_seconds / polars_seconds, 3),
        "mismatches": mismatches(answer.select(names).rename_columns(FEATURES), expected),
        "polars_mismatches": mismatches(plain, expected),
        "answered": int(expected.num_rows - expected[FEATURES[0]].null_count),
    }
    print(json.dumps(results, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if results["ratio"] <= 2 and results["mismatches"] == 0 and results["answered"] > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
