"""Level updates a second that books.apply rebuilds books from, against plain Python, from the same columns in one run.

    a walk of prices ──> messages of L levels, 10 a second ──> rows ──┬─ books.apply, a million rows at a time
                                                                      └─ a dict and a sorted list a side, row by row

Both check the update ids and for crossed books after every message, and show the best 20 levels a side at each grid
point; what they show must be equal. Shapes: `deep` has the 36 levels a message of Binance's depth stream, `shallow` the
one of Coinbase's. Wanted: 200,000 level updates a second or more, and at least the speed of plain Python.
"""

from __future__ import annotations

import argparse
import json
import time
from bisect import bisect_left, insort
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from market_data.books import NO_ID, Rows, Shape, State, apply

SECOND = 1_000_000_000
START = 1_709_596_800 * SECOND
DEPTH = 20
SHAPES = {"deep": 36, "shallow": 1}
COLUMNS = list(Rows.__dataclass_fields__)


def rows_of(updates: int, levels: int, seed: int = 1) -> pa.Table:
    """A snapshot of 1,000 levels a side, then messages about a walking price; a fifth of their levels are deletions."""
    chance = np.random.default_rng(seed)
    messages = updates // levels
    middle = 100_000 + np.cumsum(chance.integers(-2, 3, messages))
    message = np.repeat(np.arange(1, messages + 1), levels)
    is_ask = chance.random(len(message)) < 0.5
    away = np.minimum(chance.geometric(0.02, len(message)), 1_000)
    middles = middle[message - 1]
    price = np.where(is_ask, middles + away, middles - away).astype(float)
    size = np.where(chance.random(len(message)) < 0.2, 0.0, np.round(chance.random(len(message)) + 0.01, 4))
    # Before a side may move over a price, the other leaves it: all levels in the way of a walk by two.
    both = np.repeat(np.arange(1, messages + 1), 4)
    around = np.tile([-1, 0, 0, 1], messages)
    gone = (middle[both - 1] + around).astype(float)
    sides = np.tile([True, True, False, False], messages)
    first = np.arange(1, 1_001)
    table = {
        "order": np.concatenate([np.ones(2_000, np.int64), 2 * message, 2 * both]),
        "is_ask": np.concatenate([np.repeat([False, True], 1_000), is_ask, sides]),
        "price": np.concatenate([100_000.0 - 2 - first, 100_000.0 + 2 + first, price, gone]),
        "size": np.concatenate([np.ones(2_000), size, np.zeros(len(both))]),
    }
    order = np.argsort(table["order"], kind="stable")
    table = {name: values[order] for name, values in table.items()}
    update_id = table["order"] // 2
    table |= {
        "book": np.zeros(len(order), np.int64),
        "record": np.zeros(len(order), np.uint64),
        "update_id": update_id,
        "first_update_id": np.where(update_id == 0, NO_ID, update_id),
        "is_snapshot": update_id == 0,
        "is_lost": np.zeros(len(order), bool),
        "event_time": START + update_id * SECOND // 10,
        "known_from": START + update_id * SECOND // 10,
    }
    return pa.table({name: table[name] for name in COLUMNS})


def by_columns(table: pa.Table, grid: int) -> list[tuple[Any, ...]]:
    states: dict[int, State] = {}
    found: list[tuple[Any, ...]] = []
    for start in range(0, table.num_rows, 1_000_000):
        part = table.slice(start, 1_000_000).combine_chunks()
        rows = Rows(**{name: part[name].to_numpy() for name in COLUMNS})
        shown, _, states = apply(rows, states, {0: Shape(DEPTH, grid)})
        bids, asks = shown.bids, shown.asks
        for side in (bids, asks):
            side.lists()
        best = (bids.prices[bids.offsets[:-1]], asks.prices[asks.offsets[:-1]], bids.sizes[bids.offsets[1:] - 1])
        found += zip(shown.event_time.tolist(), shown.is_valid.tolist(), *(one.tolist() for one in best), strict=True)
    return list({row[0]: row for row in found}.values()) if grid else found


def by_rows(table: pa.Table, grid: int) -> list[tuple[Any, ...]]:
    """The same in plain Python, as one would write it well."""
    names = ("update_id", "first_update_id", "is_snapshot", "event_time", "is_ask", "price", "size")
    found: list[tuple[Any, ...]] = []
    sizes: tuple[dict[float, float], dict[float, float]] = ({}, {})
    prices: tuple[list[float], list[float]] = ([], [])
    last_id, is_valid, point = -1, False, 0
    lists = []

    def show() -> None:
        bids, asks = prices[0][: -DEPTH - 1 : -1], prices[1][:DEPTH]
        bid_sizes = [sizes[0][price] for price in bids]
        lists.append((bids, bid_sizes, asks, [sizes[1][price] for price in asks]))
        found.append((point, is_valid, bids[0], asks[0], bid_sizes[-1]))

    for update_id, first_id, is_snapshot, at, is_ask, price, size in zip(
        *(table[name].to_pylist() for name in names), strict=True
    ):
        if update_id != last_id:
            if last_id >= 0 and prices[0] and prices[1] and prices[0][-1] >= prices[1][0]:
                is_valid = False
            this_point = (at // grid + 1) * grid if grid else at
            if point and (not grid or this_point != point):
                show()
            point = this_point
            if is_snapshot:
                sizes, prices, is_valid = ({}, {}), ([], []), True
            elif first_id != last_id + 1:
                is_valid = False
            last_id = update_id
        levels, order = sizes[is_ask], prices[is_ask]
        if size:
            if price not in levels:
                insort(order, price)
            levels[price] = size
        elif price in levels:
            del levels[price]
            del order[bisect_left(order, price)]
    if prices[0] and prices[1] and prices[0][-1] >= prices[1][0]:
        is_valid = False
    show()
    pa.array([one[0] for one in lists]), pa.array([one[1] for one in lists])
    pa.array([one[2] for one in lists]), pa.array([one[3] for one in lists])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=2_000_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    for shape, levels in SHAPES.items():
        table = rows_of(arguments.updates, levels)
        for name, grid in (("1 second", SECOND), ("every update", 0)):
            seconds, answers = {}, {}
            for how, rebuild in (("columns", by_columns), ("python", by_rows)):
                started = time.perf_counter()
                answers[how] = rebuild(table, grid)
                seconds[how] = time.perf_counter() - started
            equal = answers["columns"] == answers["python"]
            rates = {how: round(table.num_rows / spent) for how, spent in seconds.items()}
            ratio = round(seconds["python"] / seconds["columns"], 2)
            valid = sum(row[1] for row in answers["columns"]) / len(answers["columns"])
            results[f"{shape}, {name}"] = {**rates, "ratio": ratio, "points": len(answers["columns"]), "equal": equal}
            print(
                f"{shape:8} {name:13} {table.num_rows:>10,} level updates  {rates['columns']:>10,} a second,"
                f" plain Python {rates['python']:>10,}: {ratio} times as fast; {valid:.0%} valid,"
                f" {'equal' if equal else 'NOT EQUAL'}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    if not all(result["equal"] for result in results.values()):
        raise SystemExit("the two do not agree")


if __name__ == "__main__":
    main()
