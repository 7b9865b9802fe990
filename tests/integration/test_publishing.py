"""Publishing: readers see a version only after it was built and tested, whatever fails, dies or runs beside it.

published ──build──> head ──tests pass──> published
    ^                  │
    └──── restore ─────┘
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import pytest
from rich.console import Console
from worlds.code import changed_copy, other_code, use
from worlds.warehouse import REPOSITORY, Warehouse, differences

from market_data import bookkeeping, build, client, dbt_runs, lake, lock, publishing, status

T0 = 1_709_596_800_000  # 2024-03-05 00:00:00 UTC, ms


def capture(directory: Path, name: str, trades: list[tuple[int, str, str]], symbol: str = "BTCUSDT") -> Path:
    """A Binance capture of trades: id, price, size; one a minute, received at once."""
    lines = []
    for trade_id, price, size in trades:
        event = T0 + trade_id * 60_000
        lines.append(
            f'{event}000000 {{"stream":"x@trade","data":{{"e":"trade","E":{event},"s":"{symbol}","t":{trade_id},'
            f'"p":"{price}","q":"{size}","T":{event},"m":true,"M":true}}}}\n'
        )
    path = directory / name
    path.write_text("".join(lines))
    return path


def add(warehouse: Warehouse, name: str, trades: list[tuple[int, str, str]]) -> str:
    outcome = warehouse.load(capture(warehouse.root, name, trades), "binance_spot")
    assert outcome.status == "loaded", outcome.message
    return outcome.entry.load_id


def trade_count(warehouse: Warehouse) -> int:
    ((count,),) = warehouse.ask("select count(*) from canonical.trades")
    return int(count)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """One published version with three trades. Tests copy it."""
    warehouse = Warehouse(tmp_path_factory.mktemp("built"))
    add(warehouse, "binance_spot_1", [(1, "100.5", "1"), (2, "101", "2"), (3, "99", "0.5")])
    warehouse.build()
    return warehouse


BAD_TEST = "select * from {{ ref('trades') }} where price = 13"


def with_a_failing_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a copy of the dbt project with one test more, which fails for a price of 13."""
    project = tmp_path / "checkout" / "dbt_project"
    shutil.copytree(REPOSITORY / "dbt_project", project, ignore=shutil.ignore_patterns("target", "logs"))
    shutil.copy(REPOSITORY / "profiles.yml", project.parent)
    (project / "tests" / "assert_no_price_is_13.sql").write_text(BAD_TEST)
    monkeypatch.setattr(dbt_runs, "PROJECT", project)


def test_no_table_of_a_published_version_is_without_statistics(built: Warehouse) -> None:
    """Not those either that never had a row: DuckLake would ask for each of their columns again and again."""
    with lake.open_for_writing(built.settings) as head:
        rows = head.execute(
            """
            select table_name
            from __ducklake_metadata_lake.ducklake_table
            anti join __ducklake_metadata_lake.ducklake_table_stats using (table_id)
            where end_snapshot is null
            """
        ).fetchall()
    assert rows == []


def test_a_failing_test_publishes_nothing_and_its_loads_count_as_unseen(
    built: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = client.published_version(built.settings)
    before = built.tables()
    load_id = add(built, "binance_spot_2", [(4, "13", "1"), (1, "100.5", "1")])
    script = publishing.connect_script(built.settings).read_text()
    with monkeypatch.context() as patch:
        with_a_failing_test(tmp_path, patch)
        with pytest.raises(build.BuildFailedError, match="assert_no_price_is_13"):
            built.build()
    assert client.published_version(built.settings) == version
    assert publishing.connect_script(built.settings).read_text() == script
    assert differences(before, built.tables()) == []
    # The head holds what failed; nobody may publish it as it is.
    with built.reader(head_of(built)) as connection:
        assert connection.execute("select count(*) from canonical.trades").fetchone() == (4,)
    with pytest.raises(build.BuildFailedError, match="mdp build"):
        build.publish(built.settings)
    # The next build takes it back, counts the load as unseen, and goes on.
    outcome = built.build()
    assert outcome.restored
    assert outcome.new_loads == 1
    assert outcome.version > version
    assert trade_count(built) == 4
    assert built.ask(
        "select raw_records, canonical_records, duplicates from observability.conservation where load_id = ?",
        load_id,
    ) == [(2, 1, 1)]


def head_of(warehouse: Warehouse) -> int:
    with lake.open_version(warehouse.settings, None) as connection:
        return publishing.head(connection)


def dbt(warehouse: Warehouse, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Plain dbt, in a process of its own, as a person would run it."""
    places = ["--project-dir", str(REPOSITORY / "dbt_project"), "--profiles-dir", str(REPOSITORY)]
    target = ["--target-path", str(warehouse.root / "target"), "--log-path", str(warehouse.root / "logs")]
    return warehouse.run([sys.executable, "-m", "dbt.cli.main", *arguments, *places, *target])


def test_plain_dbt_publishes_nothing_and_mdp_publish_does(built: Warehouse) -> None:
    """In a lake that was made before one of the registry's columns was there, and another seed's had its type."""
    version, count = client.published_version(built.settings), trade_count(built)
    clocks = "select feed, quote_clock, grid from reference.feeds left join reference.books using (feed) order by feed"
    before = built.ask(clocks)
    with lock.writers_lock(built.settings), lake.open_for_writing(built.settings) as head:
        head.execute("alter table lake.reference.feeds drop column quote_clock")
        head.execute("alter table lake.reference.books drop column grid")
        head.execute("alter table lake.reference.books add column grid bigint")
    add(built, "binance_spot_3", [(5, "100", "1")])
    for command in ("seed", "run", "test"):
        done = dbt(built, command)
        assert done.returncode == 0, done.stdout[-3000:]
        assert client.published_version(built.settings) == version
        assert trade_count(built) == count
    outcome = build.publish(built.settings)
    assert outcome.version > version
    assert client.published_version(built.settings) == outcome.version
    assert trade_count(built) == count + 1
    assert built.ask(clocks) == before
    assert build.publish(built.settings).version == outcome.version
    assert not built.build().built


def test_the_documentation_is_made_without_a_warning_and_shows_all_tables(built: Warehouse) -> None:
    """dbt's own: `dbt docs generate`, on a lake that stays as it was."""
    version = client.published_version(built.settings)
    silenced = '["ConfigTargetPathDeprecation", "ConfigLogPathDeprecation", "DeprecationsSummary"]'
    done = dbt(built, "--warn-error-options", f'{{"error": "all", "silence": {silenced}}}', "docs", "generate")
    assert done.returncode == 0, done.stdout[-3000:]
    catalog = json.loads((built.root / "target" / "catalog.json").read_text())
    assert catalog["errors"] is None
    shown = {(node["metadata"]["schema"], node["metadata"]["name"]) for node in catalog["nodes"].values()}
    there = built.ask(
        "select schema_name, table_name from duckdb_tables() where database_name = 'lake'"
        " and schema_name in ('canonical', 'research', 'versioned')"
    )
    assert set(there) <= shown and len(shown) > 50
    assert client.published_version(built.settings) == version


def test_tables_that_may_lag_stay_behind_and_take_in_all_kinds_that_they_missed(built: Warehouse) -> None:
    """Quotes come, then trades alone: when the tables catch up, no quote is staged any more."""

    def rows() -> tuple[int, ...]:
        """Of which none, the minutes and the daily tables may lag."""
        tables = ("canonical.trades", "research.bars_1m", "research.bars_1d", "versioned.int_spreads_1d")
        return tuple(
            built.ask(f"select count(*) from {table} where listing_id = 'binance:LAGS'")[0][0] for table in tables
        )

    def add_trades(number: int) -> None:
        path = capture(built.root, f"binance_spot_lags_{number}", [(number, "100", "1")], symbol="LAGS")
        assert built.load(path, "binance_spot").status == "loaded"

    def add_quote(number: int) -> None:
        path = built.root / f"binance_spot_lags_quote_{number}"
        quote = f'{{"u":{number},"s":"LAGS","b":"99","B":"1","a":"101","A":"1"}}'
        path.write_text(f'{T0}000000 {{"stream":"lags@bookTicker","data":{quote}}}\n')
        assert built.load(path, "binance_spot").status == "loaded"

    add_quote(1)
    build.build(built.settings, leave=60)
    add_trades(1)
    build.build(built.settings, leave=60)
    assert rows() == (1, 0, 0, 0)
    build.build(built.settings, leave=600)
    assert rows() == (1, 1, 0, 0)
    add_trades(2)
    built.build()
    assert rows() == (2, 2, 1, 1)
    # A trade is published that the daily tables have not seen; no load since then reaches the table of trades.
    add_trades(3)
    build.build(built.settings, leave=600)
    add_quote(2)
    built.build()
    ((trades,),) = built.ask("select sum(trade_count) from research.bars_1d where listing_id = 'binance:LAGS'")
    assert trades == 3


def test_the_catalog_itself_holds_rows_of_bookkeeping_alone(built: Warehouse) -> None:
    """DuckLake makes a table in the catalog for each whose small inserts stay there, and each costs every look-up."""
    with contextlib.closing(sqlite3.connect(built.settings.lake)) as catalog:
        rows = catalog.execute(
            "select distinct schema_name from ducklake_inlined_data_tables"
            " inner join ducklake_table using (table_id) inner join ducklake_schema using (schema_id)"
        ).fetchall()
    assert rows == [("observability",)]


SYMBOLS_ARE_KNOWN = """
{% test symbols_are_known(model) %}
select * from {{ model }} where symbol = 'UNKNOWN'
{% endtest %}
"""


@pytest.mark.long
def test_daily_tables_that_catch_up_are_tested(
    built: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made of loads that were published before, which other tables hold already."""
    path = capture(built.root, "binance_spot_unknown", [(1, "100", "1")], symbol="UNKNOWN")
    assert built.load(path, "binance_spot").status == "loaded"
    build.build(built.settings, leave=600)
    name = "models/research/daily/_daily.yml"
    text = (REPOSITORY / "dbt_project" / name).read_text()
    start = text.index("  - name: returns_1d\n")
    model = text[start : text.index("    data_tests:\n", start)] + "    data_tests:\n"
    use(changed_copy(tmp_path, {name: [(model, f"{model}      - symbols_are_known\n")]}), monkeypatch)
    (tmp_path / "dbt_project" / "tests" / "generic" / "symbols_are_known.sql").write_text(SYMBOLS_ARE_KNOWN)
    with pytest.raises(build.BuildFailedError, match="symbols_are_known"):
        built.build()


def test_a_model_follows_all_tables_that_may_lag_as_long(built: Warehouse) -> None:
    """By its mark a build sees how far they have come."""
    nodes = dbt_runs.Project(built.settings).manifest.nodes

    def ancestors(name: str) -> set[str]:
        return {name}.union(*(ancestors(parent) for parent in nodes[name].depends_on_nodes if parent in nodes))

    lags = {name: node.config.meta["may_lag"] for name, node in nodes.items() if "may_lag" in node.config.meta}
    assert set(lags.values()) == set(publishing.LAST_LAGGING)
    for seconds, last in publishing.LAST_LAGGING.items():
        followed = set().union(*(ancestors(f"model.market_data_platform.{model}") for model in last))
        assert {name for name, lag in lags.items() if lag == seconds} <= followed
    staging = {name for name, node in nodes.items() if "feed" in node.config.meta}
    assert not [name for name in lags if not staging.isdisjoint(nodes[name].depends_on_nodes)]


@pytest.mark.long
def test_each_load_stays_noted_by_the_code_that_read_it(
    built: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever publishes it, and when: `mdp build` after plain dbt, and `mdp publish` after a refresh of something."""
    add(built, "binance_spot_3a", [(8, "100", "1")])
    done = dbt(built, "run")
    assert done.returncode == 0, done.stdout[-3000:]
    other_code(tmp_path, monkeypatch, {"models/staging/stg_binance_spot.sql": [("price <= 0", "price < 0")]})
    ((loads,),) = built.ask("select count(*) + 1 from observability.loads where outcome = 'loaded'")
    outcome = built.build()
    assert (outcome.other_code, outcome.read_otherwise) == (True, (("binance_spot", loads),))
    done = dbt(built, "seed", "--full-refresh")
    assert done.returncode == 0, done.stdout[-3000:]
    build.publish(built.settings)
    assert status.overview(built.settings).read_otherwise == (("binance_spot", loads),)
    assert "mdp reprocess --feed binance_spot" in told_by_status(built)


def told_by_status(warehouse: Warehouse) -> str:
    screen = Console(width=200, record=True, quiet=False, file=io.StringIO())
    status.show(status.overview(warehouse.settings), screen)
    return screen.export_text()


@pytest.mark.long
def test_records_of_before_keep_a_renamed_column(built: Warehouse) -> None:
    """A lake of the time when `arrived_at` was called `source_time`."""
    add(built, "binance_spot_5", [(9, "no number", "1")])
    built.build()
    both = "select {} from canonical.{} order by all"
    before = built.ask(both.format("arrived_at", "quarantine"))
    assert len(before) == 1
    with lock.writers_lock(built.settings):
        connection = lake.open_for_writing(built.settings)
        connection.execute("alter table lake.canonical.quarantine rename column arrived_at to source_time")
        publishing.publish_again(connection, built.settings)
        connection.close()
    add(built, "binance_spot_6", [(10, "no number", "1")])
    built.build()
    after = built.ask(both.format("arrived_at", "quarantine"))
    assert len(after) == 2
    assert set(before) < set(after)
    assert built.ask(both.format("source_time", "quarantine_v1")) == after


BUILD = "from loaders.settings import Settings; from market_data.build import build; print(build(Settings.from_env()))"


@pytest.mark.long
def test_three_builds_at_once_and_a_reader_beside_them(built: Warehouse) -> None:
    """All end well or refuse with a clear message; no key is there twice; a reader keeps its version throughout."""
    version, count = client.published_version(built.settings), trade_count(built)
    load_id = add(built, "binance_spot_4", [(6, "100", "1"), (7, "100", "1"), (2, "101.5", "2")])
    reader = built.reader()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD],
            env={**built.environment, "MDP_LOCK_WAIT": wait},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for wait in ("300", "300", "0.5")
    ]
    reads = 0
    while any(process.poll() is None for process in processes):
        assert reader.execute("select count(*) from canonical.trades").fetchone() == (count,)
        with built.reader() as other:
            assert other.execute("select count(*) from canonical.trades").fetchone() in [
                (count,),
                (count + 3,),
            ]
        reads += 1
        threading.Event().wait(0.3)
    assert reads > 3
    assert reader.execute("select count(*) from canonical.trades").fetchone() == (count,)
    reader.close()
    ends = [(process.wait(), *process.communicate()) for process in processes]
    refused = [error for code, _, error in ends if code]
    assert all("LakeBusyError: the lake is being written to by" in error for error in refused), refused
    assert len(refused) < 3
    assert sum("built=True" in out for _, out, _ in ends) == 1, ends
    assert client.published_version(built.settings) > version
    assert trade_count(built) == count + 3
    assert built.ask(
        "select count(*) from"
        " (select listing_id, trade_id, revision from canonical.trades group by all having count(*) > 1)"
    ) == [(0,)]
    assert built.ask(
        "select canonical_records, is_conserved from observability.conservation where load_id = ?", load_id
    ) == [(3, True)]


@pytest.mark.long
def test_a_second_warehouse_is_not_touched(built: Warehouse, tmp_path: Path) -> None:
    other = Warehouse(tmp_path / "other")
    other.root.mkdir()
    ours = {path: path.stat().st_mtime_ns for path in built.root.rglob("*") if path.is_file()}
    add(other, "binance_spot_1", [(1, "1", "1")])
    with lock.writers_lock(built.settings):  # the other has a lock of its own
        other.build()
    assert trade_count(other) == 1
    changed = {
        path.name for path in built.root.rglob("*") if path.is_file() and ours.get(path) != path.stat().st_mtime_ns
    }
    assert changed <= {"writer.lock", "lake.sqlite-shm", "lake.sqlite-wal"}


def test_readers_cannot_write(built: Warehouse) -> None:
    with built.reader() as connection, pytest.raises(duckdb.Error):
        connection.execute("delete from canonical.trades")
    with client.connect(built.settings) as connection, pytest.raises(duckdb.Error):
        connection.sql("drop table research.bars_1m")


def test_a_damaged_head_is_found_and_not_published(built: Warehouse) -> None:
    """What was written past dbt, under the lock, is caught by the tests of the head."""
    version = client.published_version(built.settings)
    with lock.writers_lock(built.settings):
        connection = lake.open_for_writing(built.settings)
        connection.execute(
            "insert into lake.versioned.int_trades__versioned"
            " select * from lake.versioned.int_trades__versioned limit 1"
        )
        publishing.note(connection, "", "succeeded", "by hand")
        connection.close()
    with pytest.raises(build.BuildFailedError):
        build.verify_tables(built.settings)
    assert client.published_version(built.settings) == version


def test_the_bookkeeping_tells_what_happened(built: Warehouse) -> None:
    with lake.open_version(built.settings, None) as connection:
        events = [
            event for (event,) in connection.execute("select event from observability.runs order by rowid").fetchall()
        ]
        releases = bookkeeping.scalar(connection, "select count(*) from observability.releases")
    assert events.count("published") == releases
    assert {"started", "failed", "restored", "succeeded", "published"} <= set(events)
    assert os.environ.get("MDP_LAKE") != built.settings.lake, "a build leaves the environment as it was"
