"""What must always hold, on small adversarial worlds: many in one warehouse, checked against a plain reference.

    worlds ── files ──┬─ in a random order, three builds, the last killed once and done again ── whole
                      ├─ in another order, one build ───────────────────────────────────────── fresh
                      ├─ only what each world knew at a time of its own ────────────────────── cut
                      └─ worlds.reference.expect(files) ────────────────────────────────────── expected

MDP_TEST_SEED draws other worlds; `-m long` draws many.
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import io
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from worlds.adversarial import World, draw, files_of
from worlds.reference import Expected, File, Record, Version, alike, expect, new_york
from worlds.warehouse import TABLES, Warehouse, differences, needless_versions, read_sorted

from market_data import client, trace

SEED = int(os.environ.get("MDP_TEST_SEED", "1"))
COUNTS = {"binance": 14, "massive": 12, "alfred": 10, "membership": 8}


@dataclass
class Batch:
    """A warehouse of many worlds, and what must be in it."""

    worlds: list[World]
    files: list[File]
    expected: Expected
    warehouse: Warehouse
    chance: random.Random
    loads: dict[str, int] = field(default_factory=dict)  # load_id → the file's number
    before_the_kill: dict[str, pa.Table] = field(default_factory=dict)
    after_the_kill: dict[str, pa.Table] = field(default_factory=dict)
    restored: bool = False

    def loads_of(self) -> dict[int, str]:
        return {number: load_id for load_id, number in self.loads.items()}


def load(warehouse: Warehouse, files: list[File], numbers: list[int]) -> dict[str, int]:
    """Load files in the order of their numbers; their load ids."""
    loads = {}
    for number in numbers:
        file = files[number]
        path = warehouse.root / "files" / str(number) / file.name
        path.parent.mkdir(parents=True)
        path.write_bytes(file.body)
        outcome = warehouse.load(path, file.feed, iso(file.delivered_at))
        assert outcome.status in ("loaded", "redelivered"), outcome.message
        loads[outcome.entry.load_id] = number
    return loads


def iso(time: int | None) -> str | None:
    if time is None:
        return None
    seconds, nanoseconds = divmod(time, 10**9)
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


KILLED = """
import os, signal, sys
from loaders.settings import Settings
from market_data.build import build

def die(what, done, total):
    if done >= float(sys.argv[1]) * total:
        os.kill(os.getpid(), signal.SIGKILL)

build(Settings.from_env(), progress=die)
"""


def make_batch(root: Path, seed: int, counts: dict[str, int]) -> Batch:
    worlds = [world for kind, count in counts.items() for world in draw(kind, count, seed)]
    files = files_of(worlds)
    batch = Batch(worlds, files, expect(files), Warehouse(root), random.Random(seed))
    order = list(range(len(files)))
    batch.chance.shuffle(order)
    cuts = sorted(batch.chance.sample(range(1, len(files)), 2))
    for part in (order[: cuts[0]], order[cuts[0] : cuts[1]]):
        batch.loads |= load(batch.warehouse, files, part)
        batch.warehouse.build()
    batch.before_the_kill = batch.warehouse.tables()
    batch.loads |= load(batch.warehouse, files, order[cuts[1] :])
    killed = batch.warehouse.run([sys.executable, "-c", KILLED, str(batch.chance.uniform(0.05, 0.95))])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    batch.after_the_kill = batch.warehouse.tables()
    batch.restored = batch.warehouse.build().restored
    return batch


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    return make_batch(tmp_path_factory.mktemp("whole"), SEED, COUNTS)


# The canonical tables

TIMES = {"event_time", "received_time", "known_from", "known_to"}
LINEAGE = [
    "known_from", "known_to", "knowledge_basis", "revision", "feed", "schema_version", "load_id", "source",
    "source_partition", "source_position",
]  # fmt: skip
COLUMNS = {
    "trades": [
        "listing_id", "venue", "symbol", "exchange", "trade_id", "event_time", "received_time", "price", "size", "side",
        "conditions", "sequence", "is_cancelled",
    ],
    "quotes": [
        "listing_id", "venue", "symbol", "event_time", "received_time", "bid_price", "bid_size", "bid_exchange",
        "ask_price", "ask_size", "ask_exchange", "update_id", "conditions", "sequence",
    ],
    "macro_observations": ["series_id", "observation_date", "value", "published_on"],
    "universe_membership": ["index_name", "listing_id", "symbol", "valid_from", "valid_to"],
}  # fmt: skip


def canonical_row(table: str, version: Version, files: list[File], loads: dict[int, str]) -> str:
    """A version as the table must hold it, as text."""
    fact = version.fact
    row = dict(fact.row)
    if fact.is_deletion:
        row["is_cancelled"] = True
    row |= {"known_from": version.known_from, "known_to": version.known_to, "revision": version.revision}
    row |= {"feed": files[fact.record.file].feed, "schema_version": "1", "load_id": loads[fact.record.file]}
    row |= {"source": files[fact.record.file].name, "source_partition": None}
    row["source_position"] = None if fact.is_deletion else fact.record.position
    return repr(tuple(row[column] for column in COLUMNS[table] + LINEAGE))


@pytest.mark.parametrize("table", COLUMNS)
def test_canonical_tables_are_what_the_reference_says(batch: Batch, table: str) -> None:
    check_canonical(batch, table)


def check_canonical(batch: Batch, table: str) -> None:
    loads = batch.loads_of()
    expected = sorted(
        canonical_row(table, version, batch.files, loads)
        for version in batch.expected.versions[table]
        if table == "trades" or not version.fact.is_deletion
    )
    columns = COLUMNS[table] + LINEAGE
    asked = ", ".join(f"epoch_ns({column})" if column in TIMES else column for column in columns)
    found = sorted(map(repr, batch.warehouse.ask(f"select {asked} from canonical.{table}")))
    wrong = (sorted(set(found) - set(expected)), sorted(set(expected) - set(found)))
    assert found == expected, "\n".join(["found:", *wrong[0][:6], "expected:", *wrong[1][:6]])


def test_quarantine_gives_position_and_reason(batch: Batch) -> None:
    loads = batch.loads_of()
    expected = {(loads[record.file], record.position): reason for record, reason in batch.expected.quarantine.items()}
    rows = batch.warehouse.ask("select load_id, source_position, reason from canonical.quarantine")
    assert len(rows) == len(expected)
    assert {(load_id, position): reason for load_id, position, reason in rows} == expected


def test_every_load_is_conserved(batch: Batch) -> None:
    check_conservation(batch)


def check_conservation(batch: Batch) -> None:
    loads = batch.loads_of()
    rows = batch.warehouse.ask(
        "select load_id, raw_records, canonical_records, duplicates, quarantined, control, unread, is_conserved"
        " from observability.conservation"
    )
    expected = {(loads[file], *terms, True) for file, terms in batch.expected.conservation().items()}
    assert all(raw == sum(terms) for _, raw, *terms, _ in expected), "the reference itself loses records"
    assert len(rows) == len(expected)
    assert set(rows) == expected


# Lineage


def test_every_row_leads_to_its_record(batch: Batch) -> None:
    """Read raw at the row's load and position: it must be the very record, byte for byte or field by field."""
    found = raw_records(batch.warehouse)
    for (load_id, position), record in found.items():
        number = batch.loads[load_id]
        assert record == vendor_record(batch.files[number], position), f"{batch.files[number].name}, {position}"
    for table in COLUMNS:
        for load_id, position in batch.warehouse.ask(
            f"select load_id, source_position from canonical.{table} where source_position is not null"
        ):
            assert (load_id, position) in found


def raw_records(warehouse: Warehouse) -> dict[tuple[str, int], Any]:
    found: dict[tuple[str, int], Any] = {}
    with warehouse.reader() as connection:
        for load_id, feed, files in connection.execute(
            "select load_id, feed, files from observability.loads where outcome = 'loaded'"
        ).fetchall():
            paths = [f"{warehouse.settings.raw}/{file}" for file in files]
            rows = connection.execute(
                "from read_parquet(?, union_by_name = true, hive_partitioning = false)", [paths]
            ).to_arrow_table()
            fields = rows.column_names[: rows.column_names.index("payload")]
            for row in rows.to_pylist():
                is_row = feed in ("massive_trades", "index_membership") and row["payload"] is None
                record = [row[name] for name in fields] if is_row else row["payload"]
                assert (load_id, row["source_position"]) not in found
                found[load_id, row["source_position"]] = record
    return found


def vendor_record(file: File, position: int) -> Any:
    if file.feed == "binance_spot":
        return file.body.split(b"\n")[position - 1].partition(b" ")[2]
    if file.feed == "alfred_observations":
        return json.dumps(json.loads(file.body)["observations"][position - 1]).encode()
    lines = file.body.decode().splitlines()
    fields = next(csv.reader([lines[position]]))
    return fields if len(fields) == len(next(csv.reader([lines[0]]))) else lines[position].encode()


@pytest.mark.parametrize("table", [*COLUMNS, "quarantine"])
def test_a_trace_shows_the_vendors_record_and_file(batch: Batch, table: str) -> None:
    """Redeliveries, broken records and all: the text that the vendor sent, and the file that was delivered."""
    with client.connect(batch.warehouse.settings) as reader:
        rows = f"select * from canonical.{table} where source_position is not null"
        asked, traced = (
            found.arrow for found in (reader.sql(rows), trace.records(reader, batch.warehouse.settings, rows, 10**6))
        )
    assert len(asked) and traced.select(trace.PLACE).equals(asked.select(trace.PLACE))
    for row in traced.to_pylist():
        file, where = batch.files[batch.loads[row["load_id"]]], str(row)
        sent = vendor_record(file, row["source_position"])
        shown = list(json.loads(row["record"]).values()) if isinstance(sent, list) else row["record"]
        assert shown == (sent if isinstance(sent, list) else text_of(sent)), where
        assert Path(row["original_file"]).read_bytes() == file.body, where


def text_of(payload: bytes) -> str:
    """As DuckDB writes bytes: those that are UTF-8 as text, others with their number."""
    with contextlib.suppress(UnicodeDecodeError):
        return payload.decode()
    return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02X}" for byte in payload)


@pytest.mark.parametrize("table", COLUMNS)
def test_a_duplicate_leads_to_the_first_copy(batch: Batch, table: str) -> None:
    versions = {
        (batch.loads_of()[version.fact.record.file], version.fact.record.position): version
        for version in batch.expected.versions[table]
    }
    facts = {record: known for (record, _), known in batch.expected.known.items()}
    rows = batch.warehouse.ask(
        "select load_id, source_position, first_copy.load_id, first_copy.source_position"
        f" from versioned.int_{table}__versioned where is_duplicate and not is_deletion"
    )
    assert rows or table == "quotes"
    for load_id, position, first_load, first_position in rows:
        where = f"{table}: {batch.files[batch.loads[load_id]].name}, {position}"
        assert (first_load, first_position) in versions, where
        known = facts[Record(batch.loads[load_id], position)]
        assert versions[first_load, first_position].known_from <= known, where


# Research


def test_bars_of_minutes(batch: Batch) -> None:
    check_rows(bars(batch, "bars_1m", "epoch_ns(bar_start)"), batch.expected.bars_1m)


def test_bars_of_sessions(batch: Batch) -> None:
    check_rows(bars(batch, "bars_1d", "session_date"), batch.expected.bars_1d)


def bars(batch: Batch, table: str, period: str) -> list[tuple[Any, ...]]:
    return batch.warehouse.ask(
        f"select listing_id, {period}, open, high, low, close, volume, vwap, dollar_volume, trade_count,"
        " epoch_ns(first_trade_at), epoch_ns(last_trade_at), epoch_ns(known_from), epoch_ns(known_to)"
        f" from research.{table}"
    )


def test_macro_series(batch: Batch) -> None:
    found = batch.warehouse.ask(
        "select series_id, observation_date, value, first_print, revision, surprise, published_on,"
        " epoch_ns(known_from), epoch_ns(known_to) from research.macro_series"
    )
    check_rows(found, batch.expected.macro_series)


def check_rows(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    """Equal rows, floats to 1e-12; the last but one column, known_from, tells versions apart."""

    def order(row: tuple[Any, ...]) -> Any:
        return (*row[:2], row[-2])

    found, expected = sorted(found, key=order), sorted(expected, key=order)
    wrong = [f"found {a}\nexpected {b}" for a, b in zip(found, expected, strict=False) if not alike(a, b)]
    assert not wrong, "\n".join(wrong[:4])
    assert len(found) == len(expected)


# Properties 2, 3, 4, 7


def test_every_version_says_something_new(batch: Batch) -> None:
    assert needless_versions(batch.warehouse) == []


def test_a_killed_build_changes_nothing_for_readers_and_the_next_completes(batch: Batch) -> None:
    assert differences(batch.before_the_kill, batch.after_the_kill) == []


def test_building_again_changes_nothing(batch: Batch) -> None:
    version = client.published_version(batch.warehouse.settings)
    built = batch.warehouse.build()
    assert (built.version, built.built) == (version, False)


@pytest.fixture(scope="module")
def whole_tables(batch: Batch) -> dict[str, pa.Table]:
    return batch.warehouse.tables()


@pytest.fixture(scope="module")
def fresh_tables(batch: Batch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    fresh = Warehouse(tmp_path_factory.mktemp("fresh"), from_nothing=True)
    order = list(range(len(batch.files)))
    batch.chance.shuffle(order)
    assert load(fresh, batch.files, order) == batch.loads
    fresh.build()
    return fresh.tables()


@pytest.mark.parametrize("name", TABLES)
def test_another_order_in_one_build_gives_equal_tables(
    whole_tables: dict[str, pa.Table], fresh_tables: dict[str, pa.Table], name: str
) -> None:
    assert differences({name: whole_tables[name]}, fresh_tables) == []


# Property 5


def test_no_look_ahead(batch: Batch, tmp_path: Path) -> None:
    """For each world, a time of its own: what is answered as of then comes only of facts known by then."""
    cut = Warehouse(tmp_path)
    times = {world.name: a_time(world, batch) for world in batch.worlds}
    worlds = [cut_world(world, times[world.name]) for world in batch.worlds]
    files = files_of(worlds)
    load(cut, files, list(range(len(files))))
    cut.build()
    compared = 0
    with batch.warehouse.reader() as whole, cut.reader() as less:
        for world in batch.worlds:
            for table, condition in questions(world):
                asked = f"(select * from research.{table}_as_of('{iso(times[world.name])}') where {condition})"
                left, right = read_sorted(whole, asked), read_sorted(less, asked)
                assert differences({table: left}, {table: right}) == [], f"{world.name} {iso(times[world.name])}"
                compared += left.num_rows
    assert compared > len(batch.worlds)


def a_time(world: World, batch: Batch) -> int:
    """One of the times at which something of the world becomes known, or just before, or between."""
    times = sorted(set(expect(files_of([world])).known.values())) or [0]
    return batch.chance.choice(times) + batch.chance.choice([0, 0, -1, 61 * 10**9])


def questions(world: World) -> Iterator[tuple[str, str]]:
    kind, _, name = world.name.partition(":")
    literal = "'" + name.replace("'", "''") + "'"
    if kind == "binance":
        yield "bars_1m", f"symbol = {literal}"
        yield "bars_1d", f"symbol = {literal}"
    elif kind == "session":
        yield "bars_1m", f"venue = 'us_equities' and bar_start::date = {literal}"
        yield "bars_1d", f"venue = 'us_equities' and session_date = {literal}"
    elif kind == "series":
        yield "macro_series", f"series_id = {literal}"
    elif kind == "index":
        yield "universe", f"universe = {literal}"


def cut_world(world: World, time: int) -> World:
    """The world as its vendors' files would be with only the facts that were known by a time.

    Bad records stay in what a vendor delivers: for one, a delivery takes nothing back.
    """
    if world.lines:
        return replace(world, lines=tuple(line for line in world.lines if known_of(line[1]) <= time))
    expected = expect(world.files)

    def is_known(file: int, position: int, slot: str) -> bool:
        record = Record(file, position)
        return record in expected.quarantine or expected.known.get((record, slot), time + 1) <= time

    files = (cut_file(file, number, time, is_known) for number, file in enumerate(world.files))
    return replace(world, files=tuple(files))


def known_of(line: bytes) -> int:
    """When a line of a capture was known: on receipt, and not before what it tells of. Bad lines are left out."""
    received, _, payload = line.partition(b" ")
    try:
        data = json.loads(payload)["data"]
        return max(int(received), data.get("T", 0) * 10**6)
    except (ValueError, KeyError, TypeError, RecursionError):
        return 1 << 62


def cut_file(file: File, number: int, time: int, is_known: Any) -> File:
    if file.feed == "alfred_observations":
        document = json.loads(file.body)
        document["observations"] = [
            element
            for position, element in enumerate(document["observations"], start=1)
            if is_known(number, position, element.get("realtime_start", ""))
        ]
        return replace(file, body=json.dumps(document | {"title": file.name}).encode())
    header, *rows = csv.reader(io.StringIO(file.body.decode()))
    kept = [header]
    for position, row in enumerate(rows, start=1):
        if file.feed == "index_membership" and not is_known(number, position, "end"):
            # Whether or not another delivery said it before: one that left it out would take it back.
            if new_york(dt.date.fromisoformat(row[1])) <= time:
                kept.append([*row[:2], ""])
        elif file.feed == "index_membership" or is_known(number, position, ""):
            kept.append(row)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(kept)
    return replace(file, body=text.getvalue().encode())


# Property 4: last, for it makes the warehouse anew


@pytest.fixture(scope="module")
def rebuilt_tables(batch: Batch, whole_tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    before = client.published_version(batch.warehouse.settings)
    assert batch.warehouse.build(full_refresh=True).version > before
    return batch.warehouse.tables()


@pytest.mark.parametrize("name", TABLES)
def test_a_rebuild_gives_equal_tables(
    whole_tables: dict[str, pa.Table], rebuilt_tables: dict[str, pa.Table], name: str
) -> None:
    assert differences({name: whole_tables[name]}, rebuilt_tables) == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 110))
def test_many_more_worlds(seed: int, tmp_path: Path) -> None:
    batch = make_batch(tmp_path, seed, {kind: 4 * count for kind, count in COUNTS.items()})
    for table in COLUMNS:
        check_canonical(batch, table)
    check_conservation(batch)
    test_bars_of_minutes(batch)
    test_bars_of_sessions(batch)
    test_macro_series(batch)
    test_every_version_says_something_new(batch)
    assert differences(batch.before_the_kill, batch.after_the_kill) == []
    before = batch.warehouse.tables()
    batch.warehouse.build(full_refresh=True)
    assert differences(before, batch.warehouse.tables()) == []
