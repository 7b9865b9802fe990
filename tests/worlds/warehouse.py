"""A warehouse of a test's own, and the definition of "equal" for what it holds.

    Warehouse(directory) ── .load() ── .build() ── .tables() ── differences(a, b) ── [] where they are equal

Two tables are equal when every row and column is; floats to 1e-12 relative. (load_seq and build_seq count
loads and builds: they are no columns of the contract.)
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from loaders.files import Outcome, load
from loaders.settings import Settings
from market_data import client, fingerprints, lake, releases
from market_data.build import Outcome as BuildOutcome
from market_data.build import build

REPOSITORY = Path(__file__).resolve().parents[2]
CODE = fingerprints.code_fingerprint()
CANONICAL = (
    "trades",
    "quotes",
    "book_updates",
    "bars",
    "macro_observations",
    "corporate_actions",
    "universe_membership",
)
DAILY = (
    "bars_1d_adjusted",
    "returns_1d",
    "volatility_1d",
    "momentum_1d",
    "liquidity_1d",
    "universe",
    "features_1d",
    "features_1d_at_decision",
)
RESEARCH = ("bars_1m", "bars_1d", "macro_series", *DAILY)
MASTERS = ("symbology", "instruments")
SNAPSHOTS = ("ticker_changes", "figi_listings")
JOINED = ("research.features_1d",)
"""Views of other tables, of which `mdp releases` names those."""
COUNTERS = {"load_seq", "build_seq", "loaded_at"}
TABLES = (
    *(f"canonical.{table}" for table in (*CANONICAL, "book_snapshots", "quarantine")),
    *(f"versioned.int_{table}__versioned" for table in CANONICAL),
    *(f"canonical.{table}" for table in MASTERS),
    *(f"versioned.int_{table}__versioned" for table in (*MASTERS, *SNAPSHOTS)),
    *(f"snapshots.{table}" for table in SNAPSHOTS),
    "versioned.int_listings",
    "versioned.int_last_trades",
    *(f"research.{table}" for table in RESEARCH),
    "versioned.int_book_states",
    "observability.book_gaps",
    "versioned.int_bars_1d__chained",
    "versioned.int_spreads_1d",
    "observability.conservation",
    "observability.records_by_kind",
    "observability.unknown_fields",
)


@dataclass(frozen=True)
class Warehouse:
    """A raw zone and a lake below one directory.

    Its first build goes on from a lake that is built and empty, which takes half as long; with `from_nothing` it makes
    all tables. With `leave` its builds leave tables behind that may lag by so many seconds (meta.may_lag).
    """

    root: Path
    leave: int | None = None
    from_nothing: bool = False

    @property
    def settings(self) -> Settings:
        return Settings(
            raw=str(self.root / "raw"), lake=str(self.root / "lake.sqlite"), lake_data=str(self.root / "lake")
        )

    @property
    def environment(self) -> dict[str, str]:
        """For a process of its own."""
        places = {"MDP_RAW": self.settings.raw, "MDP_LAKE": self.settings.lake}
        return {**os.environ, **places, "MDP_LAKE_DATA": self.settings.lake_data}

    def load(
        self,
        path: Path,
        feed: str,
        delivered_at: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Load one file; its outcome."""
        (outcome,) = load([path], feed, settings=self.settings, delivered_at=delivered_at, attributes=attributes or {})
        return outcome

    def build(self, *, full_refresh: bool = False) -> BuildOutcome:
        begins = not Path(self.settings.lake).exists() and "://" not in self.settings.lake_data
        if begins and not full_refresh and not self.from_nothing and fingerprints.code_fingerprint() == CODE:
            self._begin_empty()
        return build(self.settings, full_refresh=full_refresh, leave=self.leave)

    def _begin_empty(self) -> None:
        empty = empty_lake()
        for name in ("lake", "lake.sqlite.state"):
            shutil.copytree(empty.root / name, self.root / name, dirs_exist_ok=True)
        with (
            contextlib.closing(sqlite3.connect(empty.settings.lake)) as source,
            contextlib.closing(sqlite3.connect(self.settings.lake)) as catalog,
        ):
            source.backup(catalog)
            place = (f"{self.settings.lake_data}/",)
            catalog.execute("update ducklake_metadata set value = ? where key = 'data_path'", place)
            catalog.commit()

    def reader(self, version: int | None = None) -> duckdb.DuckDBPyConnection:
        """A connection to a version, by default the published one."""
        return lake.open_version(self.settings, version or client.published_version(self.settings))

    def ask(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows that the published version answers with."""
        with self.reader() as connection:
            return connection.execute(query, parameters).fetchall()

    def tables(
        self, names: Iterable[str] = TABLES, *, version: int | None = None, where: str = "true"
    ) -> dict[str, pa.Table]:
        """Whole tables of a version, by default the published one, in an order of their own rows."""
        with self.reader(version) as connection:
            return {name: read_sorted(connection, f"(from {name} where {where})") for name in names}

    def copy(self, to: Path) -> Warehouse:
        """Another raw zone of the same loads, with no lake yet."""
        shutil.copytree(self.root / "raw", to / "raw")
        return Warehouse(to, self.leave, from_nothing=True)

    def mdp(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run mdp in a process of its own."""
        return self.run([sys.executable, "-m", "market_data.cli", *arguments], timeout=timeout)

    def run(self, command: Sequence[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@functools.cache
def empty_lake() -> Warehouse:
    """What a build of no loads makes, once for all processes of a run: the first makes it, the others wait for it."""
    root = Path(os.environ["PYTEST_SHARED"]) / "empty"
    root.mkdir(exist_ok=True)
    empty = Warehouse(root, from_nothing=True)
    with (root / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        empty.build()
    return empty


def read_sorted(connection: duckdb.DuckDBPyConnection, relation: str) -> pa.Table:
    """All rows of a relation, ordered by what is exact before what is a float."""
    columns = [
        (name, kind)
        for name, kind, *_ in connection.execute(f"describe from {relation}").fetchall()
        if name not in COUNTERS
    ]
    exact = [f'"{name}"' for name, kind in columns if kind != "DOUBLE"]
    floats = [f'"{name}"' for name, kind in columns if kind == "DOUBLE"]
    listed = ", ".join(f'"{name}"' for name, _ in columns)
    return connection.execute(f"select {listed} from {relation} order by {', '.join(exact + floats)}").to_arrow_table()


def differences(left: Mapping[str, pa.Table], right: Mapping[str, pa.Table]) -> list[str]:
    """What tells two warehouses apart, table by table; nothing where they are equal."""
    return [f"{name}: {what}" for name in left for what in table_differences(left[name], right[name])]


def told_wrongly(warehouse: Warehouse) -> list[str]:
    """Where `mdp releases` says of the last version other than its rows, and those of the kept version before, do.

    Of book_updates it tells the messages that are stored, of which the view shows the levels.
    """
    others = {*JOINED, "canonical.book_updates"}
    names = [name for name in TABLES if name.startswith(("canonical.", "research.")) and name not in others]
    with lake.open_version(warehouse.settings, None) as connection:
        last, before = releases.published(connection, 2)
    now, then = (warehouse.tables(names, version=one.version) for one in (last, before))
    wrong = []
    for name in names:
        came, went = _moved(now[name], then[name])
        revised = min(came, went)
        told, change = last.changes.get(name), releases.Change(came - revised, revised, went - revised)
        if (told or releases.Change(0, 0, 0)) != change:
            wrong.append(f"{name}: {told}, but {came} rows came and {went} went")
    return wrong


def _moved(now: pa.Table, then: pa.Table) -> tuple[int, int]:
    """How many rows came and went, but for those that came in the place of an equal one."""
    rows, rows_then = _facts_and_floats(now), _facts_and_floats(then)
    came, went = list((rows - rows_then).elements()), list((rows_then - rows).elements())
    gone: dict[str, list[tuple[float | None, ...]]] = defaultdict(list)
    for facts, floats in went:
        gone[facts].append(floats)
    equal = 0
    for facts, floats in came:
        before = next((before for before in gone[facts] if all(map(same, floats, before))), None)
        if before is not None:
            gone[facts].remove(before)
            equal += 1
    return len(came) - equal, len(went) - equal


def _facts_and_floats(table: pa.Table) -> Counter[tuple[str, tuple[float | None, ...]]]:
    """The rows, each as what is exact of it, as text, and its floats."""
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    return Counter(
        (repr({name: cell for name, cell in row.items() if name not in floats}), tuple(row[name] for name in floats))
        for row in table.to_pylist()
    )


def table_differences(left: pa.Table, right: pa.Table) -> list[str]:
    """What tells two tables apart that `read_sorted` gave: columns, number of rows, or the first cells."""
    if left.column_names != right.column_names:
        return [f"columns {left.column_names} and {right.column_names}"]
    if left.num_rows != right.num_rows:
        return [f"{left.num_rows} and {right.num_rows} rows", *_lone_rows(left, right)]
    found = []
    for name in left.column_names:
        if left[name].equals(right[name]):
            continue
        pairs = zip(left[name].to_pylist(), right[name].to_pylist(), strict=True)
        unequal = [(row, a, b) for row, (a, b) in enumerate(pairs) if not same(a, b)]
        if unequal:
            row, a, b = unequal[0]
            found.append(f"{name} of {len(unequal)} rows, as of row {row}: {a!r} and {b!r}")
    return found + (_lone_rows(left, right) if found else [])


def _lone_rows(left: pa.Table, right: pa.Table, most: int = 3) -> list[str]:
    rows = [{repr(sorted(row.items())) for row in table.to_pylist()} for table in (left, right)]
    return [
        f"only {side}: {row}"
        for side, mine, other in (("left", *rows), ("right", *reversed(rows)))
        for row in sorted(mine - other)[:most]
    ]


VERSIONED = {
    "bars_1m": ("listing_id", "bar_start"),
    "bars_1d": ("listing_id", "session_date"),
    "macro_series": ("series_id", "observation_date"),
    "universe": ("universe", "instrument_id", "valid_from"),
    **{table: ("instrument_id", "session_date") for table in DAILY if table not in ("universe", "features_1d")},
}
"""The tables of research, and what tells one row from another at any time. features_1d is cut where they are."""


def needless_versions(warehouse: Warehouse) -> list[str]:
    """Versions of research's tables that say what the one before said, that overlap it, or that nobody ever saw."""
    found = []
    with warehouse.reader() as connection:
        for table, key in VERSIONED.items():
            columns = connection.execute(f"describe from research.{table}").fetchall()
            unequal = [
                f"abs({name} - before.{name}) > 1e-12 * greatest(abs({name}), abs(before.{name}))"
                f" or ({name} is null) != (before.{name} is null)"
                if kind == "DOUBLE"
                else f"{name} is distinct from before.{name}"
                for name, kind, *_ in columns
                if name not in {*key, "known_from", "known_to", *COUNTERS}
            ]
            rows = connection.execute(
                f"""
                with several as (
                    from research.{table}
                    qualify count(*) over (partition by {", ".join(key)}) > 1 or known_to <= known_from
                ),
                versions as (
                    select *, lag(v) over (partition by {", ".join(key)} order by known_from) as before
                    from several as v
                )
                select {", ".join(key)}, known_from, case
                    when known_to <= known_from then 'ends before it begins'
                    when before.known_to is null or before.known_to > known_from then 'overlaps the one before'
                    else 'says what the one before said'
                end
                from versions
                where known_to <= known_from
                    or (before is not null and coalesce(before.known_to > known_from, true))
                    or (before.known_to = known_from and not coalesce({" or ".join(unequal)}, false))
                """
            ).fetchall()
            found += [f"{table}: {row}" for row in rows]
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two cells are equal; floats to 1e-12 relative."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12, abs_tol=0) or (math.isnan(a) and math.isnan(b))
    return bool(a == b)
