"""Loads are taken in whatever the clocks of those who made them, or of who takes them in, said."""

from __future__ import annotations

from pathlib import Path

import pytest
from worlds.warehouse import Warehouse

from loaders import ledger
from market_data import bookkeeping, lake

HOUR = 3600 * 10**9
NOW = 1_800_000_000 * 10**9


class Wrong:
    """A clock that says what it is told, and goes on by a second each time that it is looked at."""

    def __init__(self) -> None:
        self.now = NOW

    def time_ns(self) -> int:
        self.now += 10**9
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Wrong:
    clock = Wrong()
    for module in (ledger, bookkeeping):
        monkeypatch.setattr(module, "time", clock)
    return clock


def land(warehouse: Warehouse, name: str) -> None:
    path = warehouse.root / f"binance_spot_{name}"
    path.write_text(f'{NOW} {{"stream":"x@trade","data":{{"e":"trade","s":"{name}"}}}}\n')
    assert warehouse.load(path, "binance_spot").status == "loaded"


def entered(warehouse: Warehouse, *, whole: bool = False) -> int:
    with lake.open_for_writing(warehouse.settings) as connection:
        bookkeeping.create_tables(connection)
        return bookkeeping.enter_loads(connection, warehouse.settings, whole=whole)


def test_a_loader_whose_clock_is_ahead_hides_nothing_of_the_others(tmp_path: Path, clock: Wrong) -> None:
    warehouse = Warehouse(tmp_path)
    clock.now = NOW + HOUR
    land(warehouse, "ahead")
    clock.now = NOW
    assert entered(warehouse) == 1
    clock.now = NOW + HOUR // 2
    land(warehouse, "right")
    clock.now = NOW + 2 * HOUR
    assert entered(warehouse) == 1
    assert entered(warehouse) == 0


def test_a_machine_whose_own_clock_was_ahead_hides_nothing(tmp_path: Path, clock: Wrong) -> None:
    warehouse = Warehouse(tmp_path)
    land(warehouse, "before")
    assert entered(warehouse) == 1
    clock.now = NOW + HOUR
    land(warehouse, "ahead")
    assert entered(warehouse) == 1
    clock.now = NOW + 60 * 10**9
    land(warehouse, "right")
    assert entered(warehouse) == 1


def test_a_full_refresh_reads_the_whole_ledger(tmp_path: Path, clock: Wrong) -> None:
    """Where nobody built between two settings of the clock, what came between them is behind the last pointer."""
    warehouse = Warehouse(tmp_path)
    clock.now = NOW + HOUR
    land(warehouse, "ahead")
    assert entered(warehouse) == 1
    clock.now = NOW
    land(warehouse, "right")
    clock.now = NOW + 10 * HOUR
    assert entered(warehouse) == 0
    assert entered(warehouse, whole=True) == 1
