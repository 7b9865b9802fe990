"""A build reads by what is new: the hours of history that can hold a key, and backlogs in slices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from worlds.warehouse import TABLES, Warehouse, differences

import market_data
from market_data import build, lake, lake_plugin, publishing, status
from market_data.dbt_runs import BuildFailedError, Project
from market_data.releases import published

pytestmark = pytest.mark.long

HOUR = 3600 * 10**9
DAY = 24 * HOUR
START = 1_717_200_000 * 10**9  # 2024-06-01
IDS = (100, 250_000, 500_000)
"""Ids of the three hours: each lies in a part of its own, and none between two others."""

IN_BARS = """
    select
        (select count(*) from canonical.trades where known_to is null) as trades,
        (select coalesce(sum(trade_count), 0) from research.bars_1m where known_to is null) as in_bars
"""


class Trade(NamedTuple):
    number: int
    price: str
    at: int
    symbol: str = "BTCUSDT"


def add(warehouse: Warehouse, name: str, trades: Sequence[Trade], received: int) -> None:
    path = warehouse.root / name
    with path.open("w") as file:
        for trade in trades:
            data = {"e": "trade", "E": trade.at // 10**6, "s": trade.symbol, "t": trade.number, "p": trade.price}
            data |= {"q": "1", "T": trade.at // 10**6, "m": False, "M": True}
            file.write(f"{received} {json.dumps({'stream': f'{trade.symbol.lower()}@trade', 'data': data})}\n")
    assert warehouse.load(path, "binance_spot").status == "loaded"


def hours_read(warehouse: Warehouse) -> str:
    """The condition on earlier trades of the last build."""
    compiled = next(warehouse.settings.state_dir.rglob("compiled/**/int_trades__versioned.sql")).read_text()
    return compiled.split("where scope is null and not is_deletion and ")[1].splitlines()[0].strip()


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Three days with an hour of trades each, of two symbols, built one by one."""
    warehouse = Warehouse(tmp_path_factory.mktemp("grown"))
    for number, first in enumerate(IDS):
        at = START + number * DAY
        trades = [
            Trade(first + n, f"{100 + n}", at + n * 10**9, symbol)
            for n in range(5)
            for symbol in ("BTCUSDT", "ETHUSDT")
        ]
        add(warehouse, f"day{number}", trades, at + HOUR)
        warehouse.build()
    return warehouse


def test_only_hours_that_can_hold_a_key_are_read(grown: Warehouse) -> None:
    late = START + 3 * DAY
    add(grown, "repeat", [Trade(IDS[0] + 1, "101", START + 10**9)], late)
    grown.build()
    assert hours_read(grown) == "((event_time >= '2024-06-01 00:00:00' and event_time < '2024-06-01 01:00:00'))"
    assert grown.ask("select count(*) from versioned.int_trades__versioned where is_duplicate") == [(1,)]

    # The same trade with another time and price: its key is that of another day.
    add(grown, "revised", [Trade(IDS[1] + 2, "7", late + 5)], late + HOUR)
    grown.build()
    assert hours_read(grown) == "((event_time >= '2024-06-02 00:00:00' and event_time < '2024-06-02 01:00:00'))"
    assert grown.ask(
        "select price, revision from canonical.trades where trade_id = ? and symbol = 'BTCUSDT' order by revision",
        str(IDS[1] + 2),
    ) == [(102.0, 0), (7.0, 1)]

    # It is known in its new hour too, from where it is revised again.
    add(grown, "again", [Trade(IDS[1] + 2, "8", late + DAY), Trade(9_000_000, "9", late + DAY)], late + 2 * DAY)
    grown.build()
    assert "'2024-06-02 00:00:00'" in hours_read(grown)
    assert "'2024-06-04 00:00:00'" in hours_read(grown)
    assert "'2024-06-01" not in hours_read(grown)
    assert "'2024-06-03" not in hours_read(grown)

    # A new id has no earlier records.
    add(grown, "new", [Trade(8_000_000, "9", late + DAY, "ETHUSDT")], late + 2 * DAY)
    grown.build()
    assert hours_read(grown) == "false"


def test_ids_that_are_no_numbers_are_found_anywhere(grown: Warehouse) -> None:
    at = START + 6 * DAY
    add(grown, "word", [Trade("x1", "5", at, "SOLUSDT")], at + HOUR)  # type: ignore[arg-type]
    grown.build()
    add(grown, "word again", [Trade("x1", "6", at + 3 * DAY, "SOLUSDT"), Trade(1, "6", at, "BTCUSDT")], at + 4 * DAY)  # type: ignore[arg-type]
    grown.build()
    revisions = "select price, revision from canonical.trades where symbol = 'SOLUSDT' order by revision"
    assert grown.ask(revisions) == [(5.0, 0), (6.0, 1)]


def test_it_equals_a_warehouse_made_in_one_build_and_one_that_forgot_its_extents(
    grown: Warehouse, tmp_path: Path
) -> None:
    twin = grown.copy(tmp_path)
    twin.build()
    assert differences(twin.tables(), grown.tables()) == []
    with lake.open_for_writing(grown.settings) as connection:
        kept = "select * exclude (build_seq) from lake.observability.extents order by all"
        before = connection.execute(kept).fetchall()
        connection.execute("delete from lake.observability.extents")  # as a lake of earlier code has none
    add(grown, "after", [Trade(IDS[2], "100", START + 2 * DAY)], START + 9 * DAY)
    grown.build()
    assert hours_read(grown) == "true"
    with lake.open_for_writing(grown.settings) as connection:
        assert connection.execute(kept).fetchall() == before


def backlog(directory: Path) -> Warehouse:
    """Five hours of four trades each, the last of one again the next one's first, behind a built and empty lake."""
    warehouse = Warehouse(directory)
    warehouse.root.mkdir()
    warehouse.build()
    for number in range(5):
        at = START + number * HOUR
        add(warehouse, f"hour{number}", [Trade(number * 3 + n, "100", at + n) for n in range(4)], at + HOUR)
    return warehouse


def releases(warehouse: Warehouse) -> list[tuple[int, int]]:
    """The versions with the last load that each holds; the published one does not hold its own row."""
    query = "select version, last_load_seq from observability.releases order by version"
    with warehouse.reader() as connection:
        return [(version, load_seq) for version, load_seq in connection.execute(query).fetchall()]


def test_a_backlog_is_built_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars wait for every third slice, as it is here, and the last."""
    sliced = backlog(tmp_path / "sliced")
    whole = sliced.copy(tmp_path / "whole")
    whole.build()
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "SLICE_RECORDS", 4)
        patch.setattr(build, "COMPLETE_EVERY", 3)
        outcome = sliced.build()
    versions = releases(sliced)
    assert [load_seq for _, load_seq in versions] == [0, 1, 2, 3, 4], "of an empty lake, and each slice but the last"
    in_step = []
    for version in [version for version, _ in versions[1:]] + [outcome.version]:
        with market_data.at(version, sliced.settings) as reader:
            trades, in_bars = reader.sql(IN_BARS).arrow.to_pylist()[0].values()
            in_step.append(trades == in_bars)
    assert in_step == [False, False, True, False, True]
    assert (outcome.new_loads, outcome.quarantined) == (5, 0)
    with lake.open_version(sliced.settings, None) as connection:
        told = [(one.loads, one.read_again) for one in published(connection, 10)]
    assert told == [(1, 0)] * 5 + [(0, 0)], "each slice's own, though all were entered with the first"
    assert differences(whole.tables(TABLES), sliced.tables(TABLES)) == []
    assert not sliced.build().built


def test_what_a_backlog_left_behind_is_made_up_for_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = backlog(tmp_path / "failing")
    run = Project.run

    def fail_at_the_third_slice(project: Project, arguments: list[str], progress: Any = None) -> None:
        with project.connection() as connection:
            (last,) = connection.execute("select max(load_seq) from lake.observability.progress").fetchone() or (0,)
        if last == 2 and lake_plugin._last_load_seq != 2:
            raise BuildFailedError(["the third slice"])
        run(project, arguments, progress)

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "SLICE_RECORDS", 4)
        patch.setattr(Project, "run", fail_at_the_third_slice)
        with pytest.raises(BuildFailedError, match="the third slice"):
            failing.build()
    with market_data.connect(failing.settings) as reader:
        trades, in_bars = reader.sql(IN_BARS).arrow.to_pylist()[0].values()
    assert trades == in_bars == 7, "of two hours"
    found = status.overview(failing.settings)
    assert ([feed.loads for feed in found.feeds], found.waiting) == ([2], 3)
    whole = failing.copy(tmp_path / "whole")
    assert failing.build().new_loads == 3
    whole.build()
    assert differences(whole.tables(TABLES), failing.tables(TABLES)) == []
