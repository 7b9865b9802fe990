"""Compaction, expiry and restores over a small lake of its own, without dbt: whatever comes after what, rows stay.

random steps: builds that are published, fail or are killed; compactions, published or not; maintenance
     └── after each: the head and every version that is kept have the rows that they had
         └── in the end: `mdp releases` says of each what tells its rows from those of the kept version before
"""

from __future__ import annotations

import datetime as dt
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import pytest
from click.testing import CliRunner

from loaders import failpoints
from loaders.settings import Settings
from loaders.store import LocalStore, StoreError
from market_data import bookkeeping, cli, lake, lock, maintenance, publishing, releases
from market_data.releases import Change

SEED = int(os.environ.get("MDP_TEST_SEED", "1"))
TABLES = ("research.bars", "versioned.facts")
STEPS = ("build", "build", "failed build", "killed build", "compact", "compact, unpublished", "maintain")
Rows = dict[str, "Counter[tuple[Any, ...]]"]


@dataclass
class Lake:
    """A lake with a table that is partitioned and sorted, one that is neither, and what each version must hold."""

    root: Path
    chance: random.Random
    versions: dict[int, Rows] = field(default_factory=dict)
    key: int = 0

    @property
    def settings(self) -> Settings:
        return Settings(
            raw=str(self.root / "raw"), lake=str(self.root / "lake.sqlite"), lake_data=str(self.root / "lake")
        )

    @contextmanager
    def writer(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with lock.writers_lock(self.settings), lake.open_for_writing(self.settings) as connection:
            yield connection

    def make(self) -> None:
        with self.writer() as connection:
            bookkeeping.create_tables(connection)
            connection.execute("create schema lake.research; create schema lake.versioned")
            # The catalog holds few rows of what is in `observability`; one of these tables stands for that.
            connection.execute("call lake.set_option('data_inlining_row_limit', 10, schema => 'versioned')")
            for table in TABLES:
                connection.execute(f"create table lake.{table} (key bigint, day date, value double, note varchar[])")
            connection.execute("alter table lake.research.bars set partitioned by (day)")
            connection.execute("alter table lake.research.bars set sorted by (value)")
            self.write(connection)
            self.publish(connection)

    def write(self, connection: duckdb.DuckDBPyConnection) -> None:
        """What a build may do to a table: rows that come, change and go; few, which the catalog holds, or many."""
        publishing.note(connection, "", "started", "by hand")
        for table in TABLES:
            for first in (True, *(False for _ in range(self.chance.randint(0, 2)))):
                what = "insert" if first else self.chance.choice(["insert", "delete", "update"])
                every = self.chance.choice([2, 7, 40])
                if what == "insert":
                    rows = self.chance.choice([30, 90] if first else [3, 30])
                    connection.execute(
                        f"insert into lake.{table} select {self.key} + i, date '2024-01-01' + (i % 2)::int,"
                        f" (i * 37) % {rows}, [i::varchar, null] from range({rows}) as numbers (i)"
                    )
                    self.key += rows
                elif what == "delete":
                    connection.execute(f"delete from lake.{table} where key % {every} = 0")
                else:
                    connection.execute(f"update lake.{table} set value = value + 1000 where key % {every} = 1")

    def publish(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Two versions for each day of the past, so that one of them is not kept."""
        publishing.note(connection, "", "succeeded", "by hand")
        version = publishing.publish(connection, self.settings, "code")
        connection.execute(
            "update lake.observability.releases set published_at = now()::timestamp - to_days(?) where version = ?",
            [100 - len(self.versions) // 2, version],
        )
        self.versions[version] = rows_of(connection, None)

    def step(self, what: str) -> None:
        with self.writer() as connection:
            if what.endswith("build"):
                publishing.restore_if_unfinished(connection, self.settings)
                assert rows_of(connection, None) == self.last, "restored"
                self.write(connection)
                if what == "build":
                    self.publish(connection)
                elif what == "failed build":
                    publishing.note(connection, "", "failed", "by hand")
            elif what.startswith("compact"):
                before = rows_of(connection, None)
                done = maintenance.compact(connection, min_files=self.chance.choice([1, 3]))
                assert rows_of(connection, None) == before
                if done and what == "compact":
                    self.versions[publishing.publish_again(connection, self.settings)] = before
        if what == "maintain":
            self.maintain(keep_days=self.chance.choice([0, 1000]))

    def maintain(self, keep_days: float = 1000) -> maintenance.Maintained:
        last = self.last
        done = maintenance.maintain(self.settings, keep_days=keep_days, grace=dt.timedelta(0))
        assert done.version is not None
        self.versions[done.version] = last
        with self.writer() as connection:
            kept = maintenance.kept_versions(connection, keep_days)
        self.versions = {version: rows for version, rows in self.versions.items() if version in kept}
        return done

    @property
    def last(self) -> Rows:
        return self.versions[max(self.versions)]

    def check(self) -> None:
        """Every version that is kept is there, with the rows that it had; a row id is one row's only."""
        with self.writer() as connection:
            for version, rows in self.versions.items():
                assert rows_of(connection, version) == rows, f"version {version}"
            for table in TABLES:
                query = f"select count(*), count(distinct rowid) from lake.{table}"
                (found,) = connection.execute(query).fetchall()
                assert found[0] == found[1]
            events = connection.execute("select happened_at from lake.observability.runs order by rowid").fetchall()
            assert events == sorted(events)

    def told(self) -> dict[int, Change | None]:
        """What `mdp releases` says of the bars of each kept version."""
        with self.writer() as connection:
            found = releases.published(connection, len(self.versions))
        return {one.version: one.changes.get("research.bars") for one in found}

    def check_told(self) -> None:
        """For every version but the first that is kept, by the rows of it and of the one before."""
        told = self.told()
        for before, version in pairwise(sorted(self.versions)):
            now, then = (self.versions[one]["research.bars"] for one in (version, before))
            came, went = (now - then).total(), (then - now).total()
            revised = min(came, went)
            change = Change(came - revised, revised, went - revised) if came or went else None
            assert told[version] == change, f"version {version} after {before}"


def rows_of(connection: duckdb.DuckDBPyConnection, version: int | None) -> Rows:
    at = "" if version is None else f"at (version => {version})"
    return {
        table: Counter(
            connection.execute(f"select * replace (note::varchar as note) from lake.{table} {at}").fetchall()
        )
        for table in TABLES
    }


@contextmanager
def small_files() -> Iterator[None]:
    """Tiers and limits of a lake whose files have some hundred rows."""
    with (
        mock.patch.object(maintenance, "TIERS", (0, 1200, 2000, 10_000)),
        mock.patch.object(maintenance, "FLUSH_ROWS", 20),
        mock.patch.object(maintenance, "AT_ONCE", 5_000),
        mock.patch.object(maintenance, "MIB", 900),
    ):
        yield


@pytest.mark.parametrize("seed", [SEED, *(pytest.param(SEED + n, marks=pytest.mark.long) for n in range(1, 60))])
def test_every_kept_version_keeps_its_rows(tmp_path: Path, seed: int) -> None:
    made = Lake(tmp_path, random.Random(seed))
    made.make()
    told = []
    with small_files():
        for _ in range(12):
            told.append(made.chance.choice(STEPS))
            made.step(told[-1])
            try:
                made.check()
            except (AssertionError, duckdb.Error) as error:
                raise AssertionError(f"seed {seed}, after {' > '.join(told)}") from error
        made.step("build")
        made.check_told()
        made.maintain()
        made.check()
        made.check_told()


@pytest.fixture(scope="module")
def lake_of_all(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = Lake(tmp_path_factory.mktemp("lake"), random.Random(SEED))
    made.make()
    return made


@pytest.fixture
def crumbled(lake_of_all: Lake) -> Lake:
    """A lake with small files, deletions and rows that the catalog holds. Tests go on from each other's."""
    for _ in range(3):
        lake_of_all.step("build")
    return lake_of_all


@pytest.mark.parametrize(
    "point",
    [
        point if point in ("after-compaction", "between-expiries") else pytest.param(point, marks=pytest.mark.long)
        for point in failpoints.MAINTENANCE_POINTS
    ],
)
def test_killed_between_any_two_steps(crumbled: Lake, point: str) -> None:
    last = crumbled.last
    settings = crumbled.settings
    places = {"MDP_RAW": settings.raw, "MDP_LAKE": settings.lake, "MDP_LAKE_DATA": settings.lake_data}
    killed = subprocess.run(
        [sys.executable, "-m", "market_data.cli", "maintain", "--keep-days", "0", "--grace", "0"],
        env={**os.environ, **places, "MDP_FAILPOINT": point},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    with crumbled.writer() as connection:
        release = publishing.published(connection)
        assert release is not None
        assert rows_of(connection, release.version) == rows_of(connection, None) == last
        left = {version for (version,) in connection.execute("select snapshot_id from lake.snapshots()").fetchall()}
    crumbled.versions = {version: rows for version, rows in crumbled.versions.items() if version in left}
    if point in failpoints.MAINTENANCE_POINTS[::2]:  # the next build goes on, or the next maintenance
        crumbled.step("build")
    crumbled.maintain(keep_days=0)
    crumbled.check()
    with crumbled.writer() as connection:
        assert maintenance.tasks(connection, 1) == []


def test_what_killed_loaders_left_in_the_raw_zone_goes_and_is_told(crumbled: Lake) -> None:
    raw = Path(crumbled.settings.raw)
    old, young = raw / ".tmp" / ("a" * 32), raw / ".tmp" / ("b" * 32)
    whole = raw / "binance_spot" / "ingest_date=2024-06-04" / "0a-0.parquet"
    for path in (old, young, whole):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    for path in (old, whole):
        os.utime(path, (time.time() - 90_000, time.time() - 90_000))
    settings = {"MDP_RAW": str(raw), "MDP_LAKE": crumbled.settings.lake, "MDP_LAKE_DATA": crumbled.settings.lake_data}

    def said(*arguments: str) -> str:
        done = CliRunner(env=settings).invoke(cli.main, ["maintain", "--keep-days", "1000", *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    assert "would remove 1 unfinished file that killed loaders left in the raw zone" in said("--dry-run")
    assert old.exists()
    assert "\nremoved 1 unfinished file that killed loaders left in the raw zone" in said()
    assert (old.exists(), young.exists(), whole.exists()) == (False, True, True)
    assert "unfinished" not in said()
    with mock.patch.object(LocalStore, "remove_unfinished", side_effect=StoreError(13, "not allowed")):
        assert "looked for nothing that killed loaders left in the raw zone: [Errno 13] not allowed" in said()
    crumbled.maintain()
    crumbled.check()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("delete from {table} where rowid = (select max(rowid) from {table})", marks=pytest.mark.long),
        pytest.param("insert into {table} select * from {table} limit 1", marks=pytest.mark.long),
        "update {table} set value = value + 1e-9 where rowid = (select max(rowid) from {table})",
    ],
)
def test_a_difference_is_an_error_and_changes_nothing(crumbled: Lake, fault: str) -> None:
    write_again = maintenance._write_again

    def go_wrong(connection: duckdb.DuckDBPyConnection, table: str, files: str) -> None:
        write_again(connection, table, files)
        if "facts" in table:
            connection.execute(fault.format(table=table))

    with crumbled.writer() as connection:
        for first in (10_000, 20_000):
            values = f"select {first} + i, date '2024-01-01', i, [] from range(90) as numbers (i)"
            connection.execute(f"insert into lake.versioned.facts {values}")
        crumbled.publish(connection)
        release = publishing.published(connection)
        before = rows_of(connection, None)
        with (
            mock.patch.object(maintenance, "_write_again", go_wrong),
            pytest.raises(maintenance.MaintenanceError, match=r"versioned\.facts would have changed its rows"),
        ):
            maintenance.compact(connection, min_files=1)
        assert rows_of(connection, None) == before
        assert publishing.published(connection) == release
        assert publishing.last_event(connection) == "published"
        assert maintenance.compact(connection, min_files=1), "it can be done again"
        assert rows_of(connection, None) == before


def test_no_further_step_begins_after_its_time(crumbled: Lake) -> None:
    with crumbled.writer() as connection:
        due = maintenance.tasks(connection, 1)
        assert due
        assert maintenance.compact(connection, min_files=1, seconds=-1) == []
        assert {(task.kind, task.name) for task in maintenance.tasks(connection, 1)} == {
            (task.kind, task.name) for task in due
        }
        assert maintenance.compact(connection, min_files=1)


def test_a_look_that_takes_long_does_not_use_up_the_time(crumbled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    look = maintenance.tasks

    def slow(*arguments: Any) -> list[maintenance.Task]:
        time.sleep(0.3)
        return look(*arguments)

    monkeypatch.setattr(maintenance, "tasks", slow)
    with crumbled.writer() as connection:
        assert maintenance.compact(connection, min_files=1, seconds=0.2)


def test_files_above_the_last_tier_stay_until_they_crumble(crumbled: Lake) -> None:
    with crumbled.writer() as connection, mock.patch.object(maintenance, "TIERS", (0, 1)):

        def joined() -> list[maintenance.Task]:
            return [task for task in maintenance.compact(connection, min_files=1) if task.kind == "join"]

        assert joined() == []
        table = "lake.versioned.facts"
        connection.execute(
            f"insert into {table} select hash(i) % 1000000000, '2024-01-01', i, [] from range(200000) as numbers (i)"
        )
        connection.execute(f"delete from {table} where value % 5 = 0")
        with mock.patch.object(maintenance, "why_not", lambda _: None), mock.patch.object(maintenance, "MIB", 100_000):
            assert joined() == []
            connection.execute(f"delete from {table} where value % 5 = 1")
            (task,) = joined()
            assert (task.name, len(task.files)) == ("versioned.facts", 1)
            assert joined() == []


def test_a_flush_after_compaction_gives_no_row_back(tmp_path: Path) -> None:
    """Deletions that the catalog holds go to files before the files that they are of are put together, or end."""
    made = Lake(tmp_path, random.Random(SEED))
    made.make()
    with made.writer() as connection:
        table = "lake.versioned.facts"
        for keys in ("range(30)", "range(100, 130)"):
            connection.execute(f"insert into {table} select i, '2024-01-01', i, [] from {keys} as numbers (i)")
        made.publish(connection)
        connection.execute(f"delete from {table} where key % 100 in (1, 2)")
        made.publish(connection)
        kinds = []
        for _ in range(4):
            kinds += [task.kind for task in maintenance.compact(connection, min_files=1) if task.table == "facts"]
            made.versions[publishing.publish_again(connection, made.settings)] = made.last
        assert kinds == ["flush", "join"]
        connection.execute(f"insert into {table} select 500, '2024-01-01', 0, []")
        made.publish(connection)
        connection.execute(
            "call ducklake_flush_inlined_data('lake', schema_name => 'versioned', table_name => 'facts')"
        )
    made.check()


BARS = "lake.research.bars"
KEY = 10**9


def test_releases_tell_of_rows_that_went_from_a_file_in_turns(lake_of_all: Lake) -> None:
    """DuckLake keeps the deletions from a file together, those of after a version with those of before."""
    with lake_of_all.writer() as connection:
        connection.execute(
            f"insert into {BARS} select i, '2024-01-01', i, [] from range({KEY}, {KEY + 30}) as numbers (i)"
        )
        for number, more in enumerate((0, 1, 3)):
            first = KEY + 2 * number
            connection.execute(f"delete from {BARS} where key in ({first}, {first + 1})")
            connection.execute(
                f"insert into {BARS} select {first}, '2024-01-01', -i, [] from range({more}) as numbers (i)"
            )
            # What the version was, the feed that begins with it tells too.
            version = publishing.publish_again(connection, lake_of_all.settings)
            lake_of_all.versions[version] = rows_of(connection, version)
    assert list(lake_of_all.told().values())[:3] == [Change(1, 2, 0), Change(0, 1, 1), Change(28, 0, 0)]


SUMS = [
    ("update {bars} set value = value * (1 + 3e-16) where key in (1, 2)", None),
    ("delete from {bars} where key = 4; insert into {bars} values (4, '2024-01-01', null, null)", None),
    ("update {bars} set value = 7 where key = 1; update {bars} set value = 0.3 where key = 1", None),
    ("update {bars} set value = value * (1 + 2e-12) where key in (1, 2)", (0, 2, 0)),
    ("update {bars} set value = 1e-300 where key = 3", (0, 1, 0)),
    ("update {bars} set value = null where key = 1", (0, 1, 0)),
    ("update {bars} set value = value * (1 + 3e-16), note = ['x'] where key = 2", (0, 1, 0)),
    # Of rows that are there twice.
    ("insert into {bars} select * replace (value * (1 + 3e-16) as value) from {bars} where key = 5", (2, 0, 0)),
    ("delete from {bars} where key = 5; insert into {bars} values (5, '2024-01-01', 5, null)", (0, 0, 3)),
]


def test_releases_count_no_row_that_a_sum_in_another_order_made(lake_of_all: Lake) -> None:
    with lake_of_all.writer() as connection:
        values = "(1, 0.3), (2, 0.1), (3, 0), (4, null), (5, 5), (5, 5)) as bars (key, value)"
        connection.execute(f"delete from {BARS}")
        connection.execute(f"insert into {BARS} select key, '2024-01-01', value, null from (values {values}")
        lake_of_all.publish(connection)
        for statements, change in SUMS:
            connection.execute(statements.format(bars=BARS))
            lake_of_all.publish(connection)
            (told,) = releases.published(connection, 1)
            assert told.changes.get("research.bars") == (Change(*change) if change else None), statements


def test_releases_tell_what_views_show(lake_of_all: Lake) -> None:
    """Of trades deletions are rows, of quotes they are not, of neither how the row is kept; a view's parts are one."""
    stored = {
        "canonical.trades": ("int_trades__versioned",),
        "canonical.quotes": ("int_quotes__versioned",),
        "research.universe": ("int_universe_top", "int_universe_membership__versioned"),
    }
    tables = [f"lake.versioned.{table}" for parts in stored.values() for table in parts]
    with lake_of_all.writer() as connection:
        connection.execute("create schema if not exists lake.canonical")
        for view in stored:
            connection.execute(f"create view lake.{view} as select 1 as id")
        for table in tables:
            connection.execute(
                f"create table {table} (id bigint, slot varchar, is_duplicate boolean, is_deletion boolean)"
            )
            connection.execute(f"insert into {table} values (1, 'a', false, false), (2, 'a', false, false)")
        lake_of_all.publish(connection)

        def told_after(*statements: str) -> dict[str, Change]:
            for statement in statements:
                connection.execute(statement)
            lake_of_all.publish(connection)
            (told,) = releases.published(connection, 1)
            return {view: told.changes[view] for view in stored if view in told.changes}

        assert told_after(*(f"update {table} set slot = 'b'" for table in tables)) == {}
        rows = "values (3, 'a', false, false), (4, 'a', true, false), (5, 'a', false, true), (6, 'a', true, true)"
        assert told_after(*(f"insert into {table} {rows}" for table in tables[:2])) == {
            "canonical.trades": Change(2, 0, 0),
            "canonical.quotes": Change(1, 0, 0),
        }
        assert told_after(
            f"delete from {tables[2]} where id = 1", f"insert into {tables[3]} values (7, 'a', false, false)"
        ) == {"research.universe": Change(0, 1, 0)}


def test_releases_tell_new_loads_from_those_read_again_and_from_refusals(lake_of_all: Lake) -> None:
    """By what each version has read: all are entered before the first of them is."""
    entered = ["loaded", "refused", "loaded", "loaded", "sealed", "loaded"]
    with lake_of_all.writer() as connection:
        outcomes = ", ".join(f"({number}, '{outcome}')" for number, outcome in enumerate(entered, start=1))
        connection.execute(
            "insert into lake.observability.loads (load_seq, load_id, outcome)"
            f" select number, 'load ' || number, outcome from (values {outcomes}) as entered (number, outcome)"
        )

        def publish(last: int) -> None:
            connection.execute(f"insert into lake.observability.progress values ('a_model', {last}, '')")
            lake_of_all.publish(connection)

        publish(3)
        publish(6)
        connection.execute("update lake.observability.loads set load_seq = load_seq + 6 where load_seq in (1, 4)")
        connection.execute(
            "insert into lake.observability.loads (load_seq, load_id, outcome) values (11, 'n', 'loaded')"
        )
        publish(11)
        told = [(one.loads, one.read_again, one.refused) for one in releases.published(connection, 3)]
    assert told == [(1, 2, 0), (2, 0, 0), (2, 0, 1)]
