"""Spreads of quotes and trades that are revised, out of order and late, against loops over the facts known then.

worlds.quotes ── half of the deliveries, a build ── the rest, a build ──> liquidity_1d_as_of(K) ── equal ── loops
                                                                   └── mdp build --full-refresh ── equal
"""

from __future__ import annotations

import datetime as dt
import math
import random

import pytest
from worlds.quotes import World, draw_stock, draw_stream
from worlds.reference import DAY, File
from worlds.warehouse import Warehouse, differences

pytestmark = pytest.mark.long

TABLES = ("research.liquidity_1d", "versioned.int_spreads_1d")


@pytest.fixture(scope="module")
def spreads(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Warehouse]:
    world, warehouse, chance = World(), Warehouse(tmp_path_factory.mktemp("spreads")), random.Random(5)
    draw_stock(world, chance)
    draw_stream(world, chance)
    *of_days, first, second = world.files
    chance.shuffle(of_days)
    load(warehouse, [*of_days[::2], first])
    warehouse.build()
    load(warehouse, [*of_days[1::2], second])
    warehouse.build()
    return world, warehouse


def load(warehouse: Warehouse, files: list[File]) -> None:
    for file in files:
        path = warehouse.root / "files" / str(len(list((warehouse.root / "files").glob("*")))) / file.name
        path.parent.mkdir(parents=True)
        path.write_bytes(file.body)
        outcome = warehouse.load(path, file.feed, iso(file.delivered_at) if file.delivered_at else None)
        assert outcome.status in ("loaded", "redelivered"), outcome.message


def iso(time: int) -> str:
    seconds, nanoseconds = divmod(time, 10**9)
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def test_spreads_are_what_loops_say(spreads: tuple[World, Warehouse]) -> None:
    world, warehouse = spreads
    times = world.known_times()
    asked = [time + step for time in times[:: max(len(times) // 40, 1)] for step in (-1, 0)] + [times[-1] + 30 * DAY]
    wrong, compared = [], 0
    with warehouse.reader() as connection:
        for time in asked:
            expected = world.spreads_at(time)
            rows = connection.execute(
                "select symbol, session_date, quoted_spread_bps, effective_spread_bps"
                f" from research.liquidity_1d_as_of('{iso(time)}')"
            ).fetchall()
            for symbol, date, *found in rows:
                compared += 1
                wrong += [
                    f"{symbol} {date} as of {iso(time)}: {found}, expected {expected[symbol, date]}"
                    for a, b in zip(found, expected[symbol, date], strict=True)
                    if not (a is b is None) and (a is None or b is None or not math.isclose(a, b, rel_tol=1e-9))
                ]
    assert not wrong, "\n".join(wrong[:5])
    assert compared > 200


def test_a_trade_meets_the_quote_of_just_after_midnight(spreads: tuple[World, Warehouse]) -> None:
    """It was received after that quote, which came with a later load."""
    assert effective(spreads[1], "EARLYUSDT") == [("2024-01-03", 0.0)]


def test_a_trade_of_days_ago_meets_no_quote_of_today(spreads: tuple[World, Warehouse]) -> None:
    assert effective(spreads[1], "LATEUSDT") == [("2024-01-03", 0.0), ("2024-01-07", 0.0)]


def effective(warehouse: Warehouse, symbol: str) -> list[tuple[str, float]]:
    return warehouse.ask(
        "select session_date::varchar, effective_spread_bps from research.liquidity_1d_as_of('2100-01-01')"
        f" where symbol = '{symbol}' order by 1"
    )


def test_spreads_of_a_rebuild_are_equal(spreads: tuple[World, Warehouse]) -> None:
    _, warehouse = spreads
    before = warehouse.tables(TABLES)
    warehouse.build(full_refresh=True)
    assert differences(before, warehouse.tables(TABLES)) == []
