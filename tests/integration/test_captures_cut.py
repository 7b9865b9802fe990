"""The real captures of streams cut into loads anywhere, loaded in any order: what a build of the whole files gives.

captures ── cut into ten loads each ── shuffled ── four builds ── cut ──┬─ equal but for the loads ── whole: one build
                                                                        └─ equal ── a rebuild

MDP_TEST_SEED cuts elsewhere.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from worlds.warehouse import TABLES, Warehouse, differences, read_sorted

pytestmark = [pytest.mark.long, pytest.mark.captures]

SEED = int(os.environ.get("MDP_TEST_SEED", "1"))
LOADS = 10
BUILDS = 4
SAMPLE = 200
# The numbers of the pieces come first: among messages of one nanosecond, files stand in the order of their names.
CAPTURES = {
    "binance_spot": ("binance_spot_btcusdt_20240808.gz", "binance_spot_btcusdt_{}"),
    "coinbase_exchange": ("coinbase_exchange_ws_2021.txt.gz", "coinbase_exchange_ws_{}.txt"),
}
OF_LOADS = ("load_id", "source", "source_partition", "source_position", "first_copy")
COUNTED_BY_LOAD = {"observability.conservation", "observability.records_by_kind"}


@dataclass
class Cut:
    warehouse: Warehouse
    loads: dict[str, list[bytes]]
    """Of each load: the lines of its file."""


@pytest.fixture(scope="module")
def cut(captures: Path, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    chance = random.Random(SEED)
    made = Cut(Warehouse(tmp_path_factory.mktemp("cut")), {})
    pieces = [piece for feed in CAPTURES for piece in pieces_of(captures, feed, chance)]
    chance.shuffle(pieces)
    builds_after = {*chance.sample(range(1, len(pieces)), BUILDS - 1), len(pieces)}
    for number, (feed, name, lines) in enumerate(pieces, start=1):
        path = made.warehouse.root / name
        path.write_bytes(b"".join(lines))
        outcome = made.warehouse.load(path, feed)
        assert outcome.status == "loaded", outcome.message
        made.loads[outcome.entry.load_id] = lines
        if number in builds_after:
            made.warehouse.build()
    return made


def pieces_of(captures: Path, feed: str, chance: random.Random) -> Iterator[tuple[str, str, list[bytes]]]:
    capture, name = CAPTURES[feed]
    lines = gzip.decompress((captures / capture).read_bytes()).splitlines(keepends=True)
    ends = [0, *sorted(chance.sample(range(1, len(lines)), LOADS - 1)), len(lines)]
    for number in range(LOADS):
        yield feed, name.format(number), lines[ends[number] : ends[number + 1]]


@pytest.fixture(scope="module")
def whole(captures: Path, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    warehouse = Warehouse(tmp_path_factory.mktemp("whole"))
    for feed, (capture, _) in CAPTURES.items():
        assert warehouse.load(captures / capture, feed).status == "loaded"
    warehouse.build()
    return warehouse


def but_for_loads(warehouse: Warehouse) -> dict[str, Any]:
    listed = ", ".join(f"'{name}'" for name in OF_LOADS)
    with warehouse.reader() as connection:
        return {
            name: read_sorted(connection, f"(select columns(c -> c not in ({listed})) from {name})")
            for name in TABLES
            if name not in COUNTED_BY_LOAD
        }


def test_where_they_were_cut_and_in_what_order_they_came_leaves_no_trace(cut: Cut, whole: Warehouse) -> None:
    assert differences(but_for_loads(cut.warehouse), but_for_loads(whole)) == []


def test_every_load_is_conserved(cut: Cut, whole: Warehouse) -> None:
    rows = cut.warehouse.ask("select load_id, raw_records, is_conserved from observability.conservation")
    assert {load_id: (raw, conserved) for load_id, raw, conserved in rows} == {
        load_id: (len(lines), True) for load_id, lines in cut.loads.items()
    }
    sums = (
        "select feed, sum(raw_records), sum(canonical_records), sum(duplicates), sum(quarantined), sum(control),"
        " sum(unread) from observability.conservation group by feed order by feed"
    )
    assert cut.warehouse.ask(sums) == whole.ask(sums)


def test_rows_lead_back_to_their_lines(cut: Cut) -> None:
    """A sample of each table and venue: the line at the row's load and position says what the row says."""
    asked = {
        "trades": "trade_id, price, size",
        "quotes": "coalesce(update_id, sequence), bid_price, ask_price",
        "book_updates": "update_id, price, size",
    }
    for table, columns in asked.items():
        rows = cut.warehouse.ask(
            f"select venue, load_id, source_position, {columns} from canonical.{table}"
            f" qualify row_number() over (partition by venue"
            f" order by hash(load_id, source_position, {SEED})) <= {SAMPLE}"
        )
        assert {venue for venue, *_ in rows} == {"binance", "coinbase"} and len(rows) > SAMPLE
        for venue, load_id, position, *said in rows:
            line = cut.loads[load_id][position - 1]
            assert tuple(said) in set(facts(table, json.loads(line[line.index(b"{") :]))), (venue, table, line[:300])


def facts(table: str, message: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """What a venue's message says, as rows of a table tell it."""
    data = message.get("data", message)
    if table == "trades":
        names = ("t", "p", "q") if "t" in data else ("trade_id", "price", "size")
        yield str(data[names[0]]), float(data[names[1]]), float(data[names[2]])
    elif table == "quotes":
        names = ("u", "b", "a") if "u" in data else ("sequence", "best_bid", "best_ask")
        yield int(data[names[0]]), float(data[names[1]]), float(data[names[2]])
    else:
        update_id = data.get("u", data.get("lastUpdateId"))
        for name in ("b", "a", "bids", "asks", "changes"):
            for level in data.get(name, ()):
                yield update_id, float(level[-2]), float(level[-1])


def test_a_rebuild_gives_equal_tables(cut: Cut) -> None:
    before = cut.warehouse.tables()
    cut.warehouse.build(full_refresh=True)
    assert differences(before, cut.warehouse.tables()) == []
