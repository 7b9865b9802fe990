"""Maintenance: fewer files, fewer versions, and not a row less, whoever reads, writes or dies beside it.

builds ──> many small files ── maintain ──> few files, the same rows in every version that is kept
"""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pytest
from worlds.warehouse import TABLES, Warehouse, differences

import market_data
from loaders import failpoints
from loaders.files import load
from loaders.settings import S3Settings, Settings
from market_data import client, lake, lock, maintenance, publishing
from market_data.build import build

if TYPE_CHECKING:
    from conftest import PostgresServer, S3Server

pytestmark = pytest.mark.long
"""Compaction itself is tested by tests/integration/test_compaction.py, at once."""

T0 = 1_709_596_800_000  # 2024-03-05 00:00:00 UTC, ms
NOW = dt.timedelta(0)


def add(warehouse: Warehouse, number: int, trades: int = 60) -> None:
    """Load trades, one a minute: two thirds in minutes of their own, the rest in the minutes of the load before."""
    lines = []
    for trade in range(trades):
        event = T0 + (number * trades * 2 // 3 + trade) * 60_000
        lines.append(
            f'{event}000000 {{"stream":"x@trade","data":{{"e":"trade","E":{event},"s":"BTCUSDT",'
            f'"t":{number * trades + trade},"p":"{100 + trade % 7}","q":"1","T":{event},"m":true,"M":true}}}}\n'
        )
    path = warehouse.root / f"binance_spot_{number}"
    path.write_text("".join(lines))
    assert warehouse.load(path, "binance_spot").status == "loaded"


@contextmanager
def writer(warehouse: Warehouse) -> Iterator[duckdb.DuckDBPyConnection]:
    with lock.writers_lock(warehouse.settings), lake.open_for_writing(warehouse.settings) as connection:
        yield connection


def files_of(warehouse: Warehouse) -> dict[str, int]:
    with writer(warehouse) as connection:
        return {name: files.count for name, files in maintenance.census(connection).items()}


def on_disk(warehouse: Warehouse) -> set[Path]:
    return set(Path(warehouse.settings.lake_data).rglob("*.parquet"))


def versions(warehouse: Warehouse) -> list[int]:
    """The published versions that are there, oldest first."""
    with lake.open_version(warehouse.settings, None) as connection:
        rows = connection.execute(
            "select version from observability.releases"
            " where version in (select snapshot_id from lake.snapshots()) order by 1"
        ).fetchall()
    return [version for (version,) in rows]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Five builds, each with files of its own. Tests go on from each other's."""
    warehouse = Warehouse(tmp_path_factory.mktemp("grown"))
    for number in range(5):
        add(warehouse, number)
        warehouse.build()
    return warehouse


def test_compaction_leaves_the_rows_of_every_version(grown: Warehouse) -> None:
    before = {version: grown.tables(version=version) for version in versions(grown)}
    last = client.published_version(grown.settings)
    _, first, *_ = sorted(before)  # the one before it is of the empty lake
    counts, present = files_of(grown), on_disk(grown)
    with grown.reader(first) as reader, grown.reader(last) as latest:
        open_rows = reader.execute("from canonical.trades")
        assert open_rows.fetchone() is not None
        script = grown.mdp("maintain", "--dry-run")
        assert script.returncode == 0, script.stderr
        assert "would join versioned.int_trades__versioned: 5 files" in script.stdout
        assert "would join research.bars_1m: 5 files" in script.stdout
        assert (files_of(grown), client.published_version(grown.settings)) == (counts, last)

        done = maintenance.maintain(grown.settings)
        assert done.published
        assert done.version is not None
        assert done.version > last
        # Readers that had opened a version go on, in a query under way and in new ones.
        open_rows.fetchall()
        assert reader.execute("select count(*) from canonical.trades").fetchone() == (60,)
        assert latest.execute("select count(*) from canonical.trades").fetchone() == (300,)
    assert present <= on_disk(grown), "no file goes before its time: a query may still read it"
    assert done.removed == 0

    now = files_of(grown)
    assert counts["versioned.int_trades__versioned"] == 5
    assert now["versioned.int_trades__versioned"] == now["research.bars_1m"] == 1
    assert sum(now.values()) < sum(counts.values())
    assert set(before) <= set(versions(grown)), "all are of the last seven days"
    for version, tables in before.items():
        assert differences(tables, grown.tables(version=version)) == []
    assert differences(before[last], grown.tables()) == []

    with writer(grown) as connection:
        assert publishing.last_event(connection) == "published"
        assert maintenance.compact(connection, min_files=1) == []
    again = maintenance.maintain(grown.settings)
    assert (again.published, again.version, again.tables) == (False, done.version, {})
    assert not grown.build().built, "the code and the loads of the version are those of the one before"


def damage(connection: duckdb.DuckDBPyConnection) -> None:
    """What a failed build may have done: rows removed, changed and added, in files that were compacted."""
    for table, column in (("versioned.int_trades__versioned", "build_seq"), ("research.bars_1m", "close")):
        name = f"lake.{table}"
        connection.execute(f"delete from {name} where rowid % 5 = 0")
        connection.execute(f"update {name} set {column} = {column} + 1000 where rowid % 7 = 0")
        connection.execute(f"insert into {name} select * from {name} where rowid % 3 = 0")
    connection.execute("update lake.observability.loads set records = 0")
    publishing.note(connection, "", "failed", "by hand")


@pytest.mark.parametrize("is_published", [True, False])
def test_a_restore_after_compaction(grown: Warehouse, is_published: bool) -> None:
    """Also to the version before: compaction may have been killed before it was published."""
    for number in (10, 11) if is_published else (12, 13):
        add(grown, number)
        grown.build()
    tables = grown.tables()
    exact = rows_with_ids(grown)
    with writer(grown) as connection:
        compacted = [task for _ in maintenance.TIERS for task in maintenance.compact(connection, min_files=1)]
        assert {"versioned.int_trades__versioned", "research.bars_1m"} <= {task.name for task in compacted}
        if is_published:
            publishing.publish_again(connection, grown.settings)
        assert maintenance.tasks(connection, 1) == []
        damage(connection)
        assert publishing.restore_if_unfinished(connection, grown.settings)
        publishing.note(connection, "", "published", "by hand")
        publishing.publish_again(connection, grown.settings)
    assert differences(tables, grown.tables()) == []
    assert rows_with_ids(grown)[1:] == exact[1:]
    add(grown, 20 if is_published else 21)
    assert grown.build().built


def rows_with_ids(warehouse: Warehouse) -> list[object]:
    """Counters too, which are no columns of the contract."""
    return [
        warehouse.ask(f"select count(*), sum(hash(t)) from (select * from {table}) as t")
        for table in ("versioned.int_trades__versioned", "research.bars_1m", "observability.loads")
    ]


def test_large_files_are_left_alone(grown: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge takes only files of its tier, and only where there are more than it was told."""
    maintenance.maintain(grown.settings)
    with writer(grown) as connection:
        (large,) = paths(connection)
    monkeypatch.setattr(maintenance, "TIERS", (0, large[1]))
    for number in (30, 31):
        add(grown, number)
        grown.build()
    with writer(grown) as connection:
        assert maintenance.compact(connection, min_files=20) == []
        assert len(paths(connection)) == 3
        assert maintenance.compact(connection, min_files=1, seconds=-1) == []
        assert maintenance.compact(connection, min_files=1)
        publishing.publish_again(connection, grown.settings)
        assert large in paths(connection)
        assert len(paths(connection)) == 2


def paths(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, int]]:
    return connection.execute(
        "select data_file, data_file_size_bytes"
        " from ducklake_list_files('lake', 'int_trades__versioned', schema => 'versioned')"
    ).fetchall()


def test_rows_that_the_catalog_holds_go_to_a_file(grown: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of events, by which all else goes, is that of their row ids."""
    monkeypatch.setattr(maintenance, "FLUSH_ROWS", 5)
    query = "select event, command from observability.runs order by rowid"
    with grown.reader(None) as connection:
        events = connection.execute(query).fetchall()
    assert maintenance.maintain(grown.settings).published
    with lake.open_version(grown.settings, None) as connection:
        now = connection.execute(query).fetchall()
        assert now[: len(events)] == events
        assert publishing.last_event(connection) == "published"
    assert files_of(grown)["observability.runs"] >= 1


def answer(warehouse: Warehouse, version: int | str, known_at: market_data.KnownAt) -> tuple[str, pa.Table, pa.Table]:
    """What a backtest puts down: its header, and the bars and trades that it saw."""
    with market_data.at(version, warehouse.settings) as md:
        bars = md.bars("BTCUSDT", known_at=known_at, interval="1m").arrow
        return str(md.header(known_at)), bars, md.trades("BTCUSDT", known_at=known_at).arrow


def test_what_is_kept_and_what_is_refused(grown: Warehouse) -> None:
    """A backtest's header with its version pinned answers as before: after expiry, and after new loads."""
    there = versions(grown)
    assert len(there) > 6
    old, pinned, *_, last = there
    days = {old: "2020-01-01 10:00", there[2]: "2020-01-01 23:59:59", pinned: "2020-01-01 11:00"}
    with writer(grown) as connection:
        for version, at in days.items():
            connection.execute(
                f"update lake.observability.releases set published_at = '{at}' where version = {version}"
            )
        connection.execute("create table lake.observability.pins (name varchar, version bigint)")
        connection.execute(f"insert into lake.observability.pins values ('paper', {pinned})")
    tables = {version: grown.tables(version=version) for version in there}
    # The moment at which a bar became known, by which a bound that is open differs from one that is closed.
    ((known_at,),) = grown.ask("select max(known_from) from research.bars_1m where trade_count = 2")
    header = market_data.Header.parse(answer(grown, pinned, f"{known_at}")[0])
    before = answer(grown, header.version, header.known_at)
    assert before[1].num_rows > 50 and before[2].num_rows > 50
    done = maintenance.maintain(grown.settings, grace=NOW)
    assert done.expired >= 1
    assert done.removed > 0
    assert versions(grown)[: len(there) - 1] == there[1:], "the last of its day, the pinned one, and the last week's"
    with pytest.raises(client.NotPublishedError, match=rf"version {old} is not kept .* are: {pinned}$"):
        client.connect(grown.settings, version=old)
    for version in there[1:]:
        assert differences(tables[version], grown.tables(version=version)) == []

    done = maintenance.maintain(grown.settings, keep_days=0, grace=NOW)
    kept = versions(grown)
    with writer(grown) as connection:
        snapshots = len(connection.execute("select snapshot_id from lake.snapshots()").fetchall())
    assert (done.kept, done.later) == (len(kept), snapshots - len(kept))
    assert kept == [pinned, there[2], client.published_version(grown.settings)]
    gone = there[3]
    with pytest.raises(client.NotPublishedError, match=rf"version {gone} .* are: {there[2]} and {kept[-1]}$"):
        client.connect(grown.settings, version=gone)
    with pytest.raises(client.NotPublishedError, match=rf"version 1 was not published; .* kept: {kept[-1]}, "):
        client.connect(grown.settings, version=1)
    for version in kept[:-1]:
        assert differences(tables[version], grown.tables(version=version)) == []
    assert differences(tables[last], grown.tables()) == []
    assert answer(grown, "paper", header.known_at) == before
    add(grown, 50)
    assert grown.build().built
    assert answer(grown, header.version, header.known_at) == answer(grown, "paper", header.known_at) == before


def test_an_unfinished_head_is_not_compacted(grown: Warehouse) -> None:
    add(grown, 51)
    grown.build()
    version, counts = client.published_version(grown.settings), files_of(grown)
    with writer(grown) as connection:
        publishing.note(connection, "", "failed", "by hand")
    done = grown.mdp("maintain", "--keep-days", "0")
    assert done.returncode == 0, done.stderr
    assert "files were left as they are: the last run failed" in done.stdout
    assert "expired" in done.stdout
    assert client.published_version(grown.settings) == version
    now = files_of(grown)
    assert now["versioned.int_trades__versioned"] == counts["versioned.int_trades__versioned"]
    add(grown, 52)
    assert grown.build().restored
    add(grown, 53)
    with writer(grown) as connection:
        publishing.note(connection, "", "incomplete", "by hand")
        assert maintenance.compact(connection, min_files=1) == []
    grown.build()


def test_leavings_of_killed_writers_go_by_age(grown: Warehouse) -> None:
    data = Path(grown.settings.lake_data)
    old, young, foreign = (data / name for name in ("ducklake-old.parquet", "ducklake-young.parquet", "mine.parquet"))
    for path in (old, young, foreign):
        path.write_bytes(b"PAR1")
    two_days_ago = dt.datetime.now().timestamp() - 2 * 86400
    for path in (old, foreign, *on_disk(grown)):
        if path != young:
            os.utime(path, (two_days_ago, two_days_ago))
    tables = grown.tables()
    done = maintenance.maintain(grown.settings)
    assert done.why_no_orphans is not None
    assert "mine.parquet" in done.why_no_orphans
    assert old.exists()
    foreign.unlink()
    assert maintenance.maintain(grown.settings, dry_run=True).orphans == 1
    assert old.exists()
    assert maintenance.maintain(grown.settings).orphans == 1
    assert (old.exists(), young.exists()) == (False, True)
    young.unlink()
    assert differences(tables, grown.tables()) == []


@pytest.mark.parametrize("point", failpoints.MAINTENANCE_POINTS)
def test_killed_between_any_two_steps(grown: Warehouse, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = 60 + 2 * failpoints.MAINTENANCE_POINTS.index(point)
    add(grown, number)
    grown.build()
    tables, version = grown.tables(), client.published_version(grown.settings)
    with monkeypatch.context() as patch:
        patch.setenv("MDP_FAILPOINT", point)
        killed = grown.mdp("maintain", "--keep-days", "0")
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert client.published_version(grown.settings) >= version
    assert differences(tables, grown.tables()) == []
    if number % 4:  # the next build goes on, or the next maintenance
        add(grown, number + 1)
        assert grown.build().built
        tables = grown.tables()
    done = maintenance.maintain(grown.settings, keep_days=0, grace=NOW)
    assert done.why_not_compacted is None
    assert differences(tables, grown.tables()) == []
    assert not grown.build().built
    with writer(grown) as connection:
        assert maintenance.tasks(connection, 1) == []


def test_readers_and_a_writer_beside_it(grown: Warehouse) -> None:
    """Queries begin and go on while files are merged, versions expire and files go; each sees its whole version."""
    version = client.published_version(grown.settings)
    expected = {version: grown.tables(TABLES[:1], version=version)["canonical.trades"].num_rows}
    stop, failures, reads = threading.Event(), [], []

    def read() -> None:
        with grown.reader(version) as kept:
            while not stop.is_set():
                try:
                    for connection in (kept, grown.reader()):
                        (count,) = connection.execute("select count(price) from canonical.trades").fetchone() or (0,)
                        connection.execute("from research.bars_1m").fetchall()
                        reads.append(count)
                        if connection is not kept:
                            connection.close()
                except Exception as error:
                    failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    for number in (80, 81, 82):
        add(grown, number)
        builder = threading.Thread(target=grown.build)
        builder.start()
        done = grown.mdp("maintain", "--keep-days", "1")
        builder.join()
        assert done.returncode == 0, done.stderr
    stop.set()
    for thread in readers:
        thread.join()
    assert failures == []
    assert expected[version] in reads
    assert max(reads) > expected[version]


@pytest.mark.services
def test_with_postgresql_and_s3(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PGPASSWORD", postgres_server.password)
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    dsn = postgres_server.dsn_of(postgres_server.new_database()).partition(" password=")[0]
    settings = Settings(
        raw=str(tmp_path / "raw"),
        lake=f"postgres:{dsn}",
        lake_data=f"s3://{s3_server.new_bucket()}/lake",
        s3=S3Settings(
            access_key=s3_server.access_key,
            secret_key=s3_server.secret_key,
            region="us-east-1",
            endpoint=s3_server.endpoint,
        ),
    )
    for number in range(3):
        days = range(number * 20, number * 20 + 20)
        vintages = [
            {
                "realtime_start": "2024-04-25",
                "realtime_end": "9999-12-31",
                "date": str(dt.date(2024, 1, 1) + dt.timedelta(days=day)),
                "value": str(day),
            }
            for day in days
        ]
        file = tmp_path / f"alfred_X{number}_fetched_2024-06-01.json"
        file.write_text(json.dumps({"observations": vintages}))
        load([file], "alfred_observations", settings=settings)
        build(settings)
    question = "from canonical.macro_observations order by all"
    with market_data.connect(settings) as before:
        rows = before.sql(question).arrow
        assert len(rows) == 60
        done = maintenance.maintain(settings)
        assert done.published
        assert done.tables["versioned.int_macro_observations__versioned"][1].count == 1
        assert (done.removed, done.waiting > 0) == (0, True)
        assert before.sql(question).arrow == rows
    done = maintenance.maintain(settings, keep_days=0, grace=NOW)
    assert done.expired > 0
    assert done.removed > 0
    assert not done.published
    with market_data.connect(settings) as after:
        assert after.sql(question).arrow == rows
    assert not build(settings).built
