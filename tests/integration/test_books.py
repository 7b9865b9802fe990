"""Order books, end to end: the real captures against the venues' own best prices, and generated streams in any loads.

the captures, whole, in one build ───────────────────────────── whole ─┐
    cut in two, a build each; the first half last; … ───────── others ─┴─ equal
the captures with the grid set to every update ── best prices ──> bookTicker, at every update id that both have

generated books ── records dealt to loads at random ── builds in between ─┬─ plain Python
                                                                         └─ a rebuild, and another order
"""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from worlds.books import Message, binance_line, coinbase_line, current, messages_of, rebuild
from worlds.warehouse import Warehouse, differences

from market_data import bookkeeping, fingerprints, lock, publishing
from market_data.build import NO_UNIT_TESTS
from market_data.dbt_runs import Project

BINANCE = "binance_spot_btcusdt_20240808.gz"
COINBASE = "coinbase_exchange_ws_2021.txt.gz"
TABLES = (
    "canonical.book_updates",
    "canonical.book_snapshots",
    "versioned.int_book_states",
    "observability.book_gaps",
)
SECOND = 1_000_000_000
SEED = int(os.environ.get("MDP_TEST_SEED", "1"))


def lines_of(path: Path) -> list[bytes]:
    return gzip.decompress(path.read_bytes()).splitlines(keepends=True)


def load(warehouse: Warehouse, name: str, feed: str, lines: list[bytes]) -> str:
    """Load lines as a capture of this name; the load's id."""
    path = warehouse.root / "files" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(lines))
    outcome = warehouse.load(path, feed)
    assert outcome.status == "loaded", outcome.message
    return outcome.entry.load_id


def build_books(warehouse: Warehouse, variables: str) -> None:
    """Build books and what they are made of, and publish them, with variables of dbt."""
    project = Project(warehouse.settings)
    with lock.writers_lock(warehouse.settings):
        with project.connection() as connection:
            bookkeeping.enter_loads(connection, warehouse.settings)
        assert project.manifest  # parsed without the variables, as every other build has it
        books = ["--indirect-selection", "cautious", "--select", "+book_snapshots", "+book_gaps"]
        project.run(["build", *NO_UNIT_TESTS, *books, "--vars", variables])
        with project.connection() as connection:
            publishing.publish(connection, warehouse.settings, fingerprints.code_fingerprint())


def without_loads(table: Any) -> Any:
    """A table but for what tells of the files that its records came in."""
    return table.drop_columns([name for name in ("load_id", "source", "source_position") if name in table.column_names])


def book_tables(warehouse: Warehouse) -> dict[str, Any]:
    return {name: without_loads(table) for name, table in warehouse.tables(TABLES).items()}


# The real captures


@pytest.fixture(scope="module")
def whole(captures: Path, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Both captures' messages of books, in one build."""
    warehouse = Warehouse(tmp_path_factory.mktemp("whole"), leave=1)
    load(warehouse, "binance_spot_btcusdt_1", "binance_spot", of_books(lines_of(captures / BINANCE)))
    load(warehouse, "coinbase_exchange_ws_1.txt", "coinbase_exchange", of_books(lines_of(captures / COINBASE)))
    warehouse.build()
    return warehouse


def of_books(lines: list[bytes]) -> list[bytes]:
    kinds = (b'"depthUpdate"', b'"lastUpdateId"', b'"snapshot"', b'"l2update"')
    return [line for line in lines if any(kind in line for kind in kinds)]


def test_best_prices_are_those_of_the_venue_at_every_update(captures: Path, tmp_path: Path) -> None:
    """With the grid set to every update: no gap, nothing crossed, and bookTicker at each id that both have."""
    warehouse = Warehouse(tmp_path, leave=1)
    load(warehouse, "binance_spot_btcusdt_1", "binance_spot", of_books(lines_of(captures / BINANCE)))
    build_books(warehouse, "{book_grid: every update}")
    messages = [json.loads(line.partition(b" ")[2]) for line in lines_of(captures / BINANCE)]
    tickers = {}
    deltas = []
    for message in messages:
        data = message.get("data", message)
        if message.get("stream", "").endswith("@bookTicker"):
            tickers[data["u"]] = (float(data["b"]), float(data["a"]))
        elif "lastUpdateId" in message:
            last_id = message["lastUpdateId"]
        elif data.get("e") == "depthUpdate":
            deltas.append(data)
    rows = warehouse.ask(
        "select update_id, bid_prices[1], ask_prices[1], is_valid, len(bid_prices), len(ask_prices)"
        " from canonical.book_snapshots order by update_id nulls first"
    )
    early = [data for data in deltas if data["u"] <= last_id]
    applied = [last_id, *sorted(data["u"] for data in deltas if data["u"] > last_id)]
    assert [row[0] for row in rows] == [None] * len(early) + applied
    assert [row[3] for row in rows] == [False] * len(early) + [True] * len(applied)
    assert {row[4:] for row in rows[len(early) :]} == {(20, 20)}
    best = {update_id: (bid, ask) for update_id, bid, ask, *_ in rows if update_id in tickers}
    assert len(best) == 564
    assert best == {update_id: tickers[update_id] for update_id in best}
    assert warehouse.ask("from observability.book_gaps") == []


def test_ten_valid_books_of_coinbase(whole: Warehouse, captures: Path) -> None:
    """The last book of each product is what its snapshot and updates say, level by level."""
    books: dict[str, dict[tuple[str, float], float]] = {}
    for line in lines_of(captures / COINBASE):
        message = json.loads(line[line.index(b"{") :]) if b"{" in line else {}
        if message.get("type") == "snapshot":
            books[message["product_id"]] = {
                (side, float(price)): float(size)
                for side, name in (("buy", "bids"), ("sell", "asks"))
                for price, size in message[name]
            }
        elif message.get("type") == "l2update":
            for side, price, size in message["changes"]:
                books[message["product_id"]][side, float(price)] = float(size)
    expected = {}
    for product, levels in books.items():
        bids = sorted(((price, size) for (side, price), size in levels.items() if side == "buy" and size), reverse=True)
        asks = sorted((price, size) for (side, price), size in levels.items() if side == "sell" and size)
        expected[product] = (True, bids[:20], asks[:20])
    rows = whole.ask(
        "select symbol, is_valid, bid_prices, bid_sizes, ask_prices, ask_sizes from canonical.book_snapshots"
        " where venue = 'coinbase' qualify row_number() over (partition by symbol order by event_time desc) = 1"
    )
    assert len(expected) == 10
    assert {
        symbol: (is_valid, list(zip(bids, bid_sizes, strict=True)), list(zip(asks, ask_sizes, strict=True)))
        for symbol, is_valid, bids, bid_sizes, asks, ask_sizes in rows
    } == expected
    assert whole.ask("select count(*) from canonical.book_snapshots where not is_valid") == [(0,)]
    assert whole.ask("select count(*) from observability.book_gaps") == [(0,)]


Deal = Callable[[list[bytes]], list[list[bytes]]]
"""How lines are dealt to captures, in the order in which they are loaded, each with a build of its own."""


def in_two(lines: list[bytes]) -> list[list[bytes]]:
    return [lines[: len(lines) // 2], lines[len(lines) // 2 :]]


def second_half_first(lines: list[bytes]) -> list[list[bytes]]:
    return in_two(lines)[::-1]


def snapshots_last(lines: list[bytes]) -> list[list[bytes]]:
    snapshots = [line for line in lines if b'"lastUpdateId"' in line or b'"snapshot"' in line]
    return [[line for line in lines if line not in snapshots], snapshots]


def one_delta_late(lines: list[bytes]) -> list[list[bytes]]:
    late = lines[len(lines) // 3]
    return [[line for line in lines if line != late], [late]]


def snapshot_late_and_a_delta_later(lines: list[bytes]) -> list[list[bytes]]:
    deltas, snapshots = snapshots_last(lines)
    first, second = in_two(deltas)
    (second, late) = one_delta_late(second)
    return [first, second + snapshots, late]


def build_in_steps(warehouse: Warehouse, binance: list[list[bytes]], coinbase: list[list[bytes]]) -> list[set[Any]]:
    """Load and build batch by batch; after each, what stands of (venue, is_valid)."""
    found = []
    for number, batches in enumerate(zip_longest(binance, coinbase, fillvalue=[])):
        names = (f"binance_spot_btcusdt_{number}", f"coinbase_exchange_ws_{number}.txt")
        for name, feed, lines in zip(names, ("binance_spot", "coinbase_exchange"), batches, strict=True):
            if lines:
                load(warehouse, name, feed, lines)
        warehouse.build()
        found.append(set(warehouse.ask("select distinct venue, is_valid from canonical.book_snapshots")))
    return found


def test_how_a_capture_was_cut_leaves_no_trace(whole: Warehouse, captures: Path, tmp_path: Path) -> None:
    """Coinbase's books carry over from load to load. Of Binance come first deltas, then the snapshot before them and
    more, and last a delta from their midst."""
    warehouse = Warehouse(tmp_path, leave=1)
    binance = snapshot_late_and_a_delta_later(of_books(lines_of(captures / BINANCE)))
    found = build_in_steps(warehouse, binance, in_two(of_books(lines_of(captures / COINBASE))))
    assert found == [
        {("binance", False), ("coinbase", True)},
        {("binance", True), ("binance", False), ("coinbase", True)},
        {("binance", True), ("coinbase", True)},
    ]
    assert differences(book_tables(warehouse), book_tables(whole)) == []


@pytest.mark.long
@pytest.mark.parametrize("deal", [in_two, second_half_first, snapshots_last, one_delta_late])
def test_no_other_cut_leaves_a_trace(whole: Warehouse, captures: Path, tmp_path: Path, deal: Deal) -> None:
    warehouse = Warehouse(tmp_path, leave=1)
    build_in_steps(warehouse, *(deal(of_books(lines_of(captures / name))) for name in (BINANCE, COINBASE)))
    assert differences(book_tables(warehouse), book_tables(whole)) == []


# Generated books


@dataclass(frozen=True)
class Stream:
    """A listing's messages, with the file and line that each was dealt to."""

    symbol: str
    numbered: bool
    copies: tuple[Message, ...]

    @property
    def listing(self) -> str:
        return f"{'binance' if self.numbered else 'coinbase'}:{self.symbol}"


FILES = 4


def streams(count: int, chance: int) -> list[Stream]:
    """Streams whose messages are repeated, corrected and dealt to files in no order."""
    found = []
    for number in range(count):
        numbered = number % 3 != 2
        deal = random.Random(chance * 1_000 + number)
        said = [
            replace(one, received=one.received + 100 * number, event_time=one.event_time + 100 * number)
            if one.is_lost  # no two books lose anything at the same nanosecond
            else one
            for one in drawn(numbered, chance * 1_000 + number)
        ]
        copies = tuple(replace(one, file=deal.randrange(FILES)) for one in said)
        found.append(Stream(f"{'B' if numbered else 'C'}{number}", numbered, copies))
    return found


def drawn(numbered: bool, chance: int) -> list[Message]:
    found: list[list[Message]] = []

    @seed(chance)
    @settings(
        max_examples=2,  # the first is the simplest
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        messages = messages_of(data.draw, numbered=numbered, most=40)
        found.append([*messages, *again(data.draw, messages)])

    collect()
    return found[-1]


def again(draw: Any, messages: list[Message]) -> list[Message]:
    """Messages said once more, later or earlier by the recorder's clock, at times with more levels, fewer or others."""
    repeats = []
    for message in messages:
        what = draw(st.sampled_from(["", "", "", "", "", "repeat", "correction"]))
        if not what or (message.is_snapshot and message.last_id is None):
            continue
        if message.is_lost:
            repeats.append(message)
            continue
        levels = message.levels
        if what == "correction" and message.last_id is not None:
            added = (("bid", 97.0, 1.0), ("ask", 105.0, 1.0))
            levels = tuple((side, price, size + 0.25) for side, price, size in (*levels, *added))
            levels = levels[draw(st.integers(0, 2)) : draw(st.integers(0, len(levels)))]
        received = message.received + draw(st.sampled_from([-40, 3, 5_000])) * 1_000_000 + 500_000
        time = received if message.is_snapshot else message.event_time
        repeats.append(replace(message, received=received, event_time=time, levels=levels))
    return repeats


def of_book(stream: Stream, all_streams: list[Stream]) -> list[Message]:
    """The messages of a book as they are known at last, and what Coinbase said of books that nobody can name."""
    unnamed = [
        message
        for other in all_streams
        if other != stream and not stream.numbered
        for message in current(other.copies)
        if not message.is_named
    ]
    return sorted([*current(stream.copies), *unnamed], key=lambda message: message.place)


def files_of(found: list[Stream]) -> tuple[list[list[tuple[str, str, list[bytes]]]], list[Stream]]:
    """The captures of each round (name, feed, lines), and the streams with the place of each message."""
    rounds: list[list[tuple[str, str, list[bytes]]]] = [[] for _ in range(FILES)]
    placed = []
    for stream in found:
        copies = []
        for number in range(FILES):
            of_file = [message for message in stream.copies if message.file == number]
            lines = []
            for position, message in enumerate(of_file, start=1):
                copies.append(replace(message, position=position))
                line = binance_line if stream.numbered else coinbase_line
                lines.append(line(message, stream.symbol) + b"\n")
            if lines:
                feed = "binance_spot" if stream.numbered else "coinbase_exchange"
                name = f"binance_spot_{stream.symbol}_{number}" if stream.numbered else (
                    f"coinbase_exchange_ws_{number}{stream.symbol}.txt"
                )  # fmt: skip
                rounds[number].append((name, feed, lines))
        placed.append(replace(stream, copies=tuple(copies)))
    return rounds, placed


@dataclass
class Built:
    warehouse: Warehouse
    streams: list[Stream]
    rounds: list[list[tuple[str, str, list[bytes]]]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Generated books, loaded a file of each at a time in an order by chance, with a build after each round but one."""
    rounds, placed = files_of(streams(12, SEED))
    warehouse = Warehouse(tmp_path_factory.mktemp("built"), leave=1)
    order = random.Random(SEED).sample(range(FILES), FILES)
    for done, number in enumerate(order):
        for name, feed, lines in rounds[number]:
            load(warehouse, name, feed, lines)
        if done != 1:
            warehouse.build()
    return Built(warehouse, placed, rounds)


def test_generated_books_are_those_of_plain_python(built: Built) -> None:
    points, breaks = [], []
    for stream in built.streams:
        found_points, found_breaks = rebuild(of_book(stream, built.streams), SECOND, 20)
        for point in found_points:
            prices = [[price for price, _ in side] for side in (point.bids, point.asks)]
            sizes = [[size for _, size in side] for side in (point.bids, point.asks)]
            lineage = (point.message.file, point.message.position)
            points.append(
                (stream.listing, point.time, point.known, point.last_id, point.is_valid, prices[0], sizes[0],
                 prices[1], sizes[1], *lineage)
            )  # fmt: skip
        for broken in found_breaks:
            breaks.append((stream.listing, broken.time, broken.reason, broken.expected, broken.message.file,
                           broken.message.position))  # fmt: skip
    file = "regexp_extract(source, '_([0-9])', 1)::int"
    found = built.warehouse.ask(
        "select listing_id, epoch_ns(event_time), epoch_ns(known_from), update_id, is_valid, bid_prices, bid_sizes,"
        f" ask_prices, ask_sizes, {file}, source_position from canonical.book_snapshots"
    )
    assert len(points) > 50
    check(found, points)
    found = built.warehouse.ask(
        f"select listing_id, epoch_ns(event_time), reason, expected_update_id, {file}, source_position"
        " from observability.book_gaps"
    )
    assert {reason for _, _, reason, *_ in breaks} == {"gap", "unreadable", "crossed"}
    check(found, breaks)


def check(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    left, right = sorted(map(repr, found)), sorted(map(repr, expected))
    wrong = [f"found only {row}" for row in left if row not in set(right)][:3]
    wrong += [f"expected only {row}" for row in right if row not in set(left)][:3]
    assert left == right, "\n".join(wrong)


def test_generated_books_are_conserved(built: Built) -> None:
    lines = sum(len(lines) for files in built.rounds for _, _, lines in files)
    found = built.warehouse.ask(
        "select sum(raw_records), sum(canonical_records + duplicates + quarantined), bool_and(is_conserved)"
        " from observability.conservation"
    )
    assert found == [(lines, lines, True)]
    assert built.warehouse.ask("select sum(duplicates) > 0 from observability.conservation") == [(True,)]


def another_order(built: Built, root: Path) -> Warehouse:
    """The same records, loaded in the order of the files, all before the first build."""
    fresh = Warehouse(root, leave=1, from_nothing=True)
    for files in built.rounds:
        for name, feed, lines in files:
            load(fresh, name, feed, lines)
    fresh.build()
    return fresh


@pytest.mark.long
def test_another_order_gives_equal_books(built: Built, tmp_path: Path) -> None:
    assert differences(built.warehouse.tables(TABLES), another_order(built, tmp_path).tables(TABLES)) == []


@pytest.mark.long
def test_a_rebuild_gives_equal_books(built: Built, tmp_path: Path) -> None:
    fresh = another_order(built, tmp_path)
    fresh.build(full_refresh=True)
    assert differences(built.warehouse.tables(TABLES), fresh.tables(TABLES)) == []
    assert set(fresh.ask("select distinct known_to from canonical.book_snapshots")) == {(None,)}


@dataclass
class Small:
    warehouse: Warehouse
    late: bytes
    """A message that has not come yet."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A book of two days with four snapshots, which lacks a delta; and a venue's partial books."""
    warehouse = Warehouse(tmp_path_factory.mktemp("small"))
    midnight = 1_709_596_800 * SECOND
    lines, late = [], b""
    for second in range(-40, 20):
        time, number = midnight + second * SECOND, 100 + second
        if second in (-40, -30, -10, 5):
            levels = (("bid", 99.0, 1.0), ("ask", 101.0, 1.0))
            message = Message(True, time, time + 1, levels, number)
        else:
            message = Message(False, time, time, (("bid", 98.0, 1.0 + second % 3),), number, number)
        line = binance_line(message, "LATEUSDT") + b"\n"
        if second == -20:
            late = line
        else:
            lines.append(line)
    load(warehouse, "binance_spot_LATEUSDT_1", "binance_spot", lines)
    start = 1_709_550_000 * SECOND
    whole = Message(True, start, start, (("bid", 99.0, 1.0), ("ask", 101.0, 1.0)), 10)
    delta = Message(False, start, start + 1, (("bid", 98.0, 2.0),), 11, 11)
    sides = {"bid": range(99, 89, -1), "ask": range(101, 111)}
    levels = tuple((side, float(price), 1.0) for side, prices in sides.items() for price in prices)
    partial = [
        Message(True, start, start + 10, levels[:5] + levels[10:15], 10, book="depth5"),
        Message(True, start, start + 2 * SECOND, levels[1:6] + levels[11:16], 12, book="depth5"),
        Message(True, start, start + 10, levels, 10, book="depth10"),
    ]
    lines = [binance_line(message, "PARTUSDT") + b"\n" for message in (whole, delta, *partial)]
    load(warehouse, "binance_spot_PARTUSDT_1", "binance_spot", lines)
    warehouse.build()
    return Small(warehouse, late)


def test_partial_books_are_shown_as_they_are(small: Small) -> None:
    """They stand beside the full book, each with the levels it has, and mix with nothing."""
    found = small.warehouse.ask(
        "select book, depth, update_id, is_valid, bid_prices, ask_prices from canonical.book_snapshots"
        " where symbol = 'PARTUSDT' order by all"
    )
    assert found == [
        ("depth10", 10, 10, True, [float(one) for one in range(99, 89, -1)], [float(one) for one in range(101, 111)]),
        ("depth5", 5, 10, True, [99.0, 98.0, 97.0, 96.0, 95.0], [101.0, 102.0, 103.0, 104.0, 105.0]),
        ("depth5", 5, 12, True, [98.0, 97.0, 96.0, 95.0, 94.0], [102.0, 103.0, 104.0, 105.0, 106.0]),
        ("full", 20, 11, True, [99.0, 98.0], [101.0]),
    ]


def test_a_late_delta_rebuilds_its_span_and_no_more(small: Small) -> None:
    """It comes between the second snapshot and the third: what stands before it and after, on the next day too, is not
    written again."""
    warehouse = small.warehouse
    assert warehouse.ask("select reason, expected_update_id from observability.book_gaps") == [("gap", 80)]
    invalid = "select count(*) from canonical.book_snapshots where not is_valid"
    assert warehouse.ask(invalid) == [(9,)]
    load(warehouse, "binance_spot_LATEUSDT_2", "binance_spot", [small.late])
    warehouse.build()
    assert warehouse.ask("select count(*) from observability.book_gaps") == [(0,)]
    assert warehouse.ask(invalid) == [(0,)]
    written = warehouse.ask(
        "select min(event_time)::varchar, max(event_time)::varchar from versioned.int_book_snapshots"
        " where build_seq = (select max(build_seq) from versioned.int_book_snapshots)"
    )
    assert written == [("2024-03-04 23:59:31", "2024-03-05 00:00:00")]


def test_a_quarantined_update_of_coinbase_breaks_its_book(small: Small) -> None:
    """From its receipt to the next snapshot; one that names no product breaks all, and a trade none."""
    warehouse, start = small.warehouse, 1_709_550_000 * SECOND
    levels = (("bid", 99.0, 1.0), ("ask", 101.0, 1.0))

    def at(second: int, text: str) -> bytes:
        return b"%d.0: %s\n" % (start // SECOND + second, text.encode())

    lines = []
    for symbol in ("ONE-USD", "TWO-USD"):
        for second in (0, 40):
            time = start + second * SECOND
            lines.append(coinbase_line(Message(True, time, time, levels), symbol) + b"\n")
        for second in (10, 20, 30, 50):
            time = start + second * SECOND
            lines.append(coinbase_line(Message(False, time, time, (("bid", 98.0, second),)), symbol) + b"\n")
    load(warehouse, "coinbase_exchange_ws_1.txt", "coinbase_exchange", lines)
    warehouse.build()
    valid = (
        "select symbol, (epoch_ns(event_time) - ?) // 1_000_000_000, is_valid from canonical.book_snapshots"
        " where venue = 'coinbase' and epoch_ns(event_time) - ? > 11_000_000_000 order by all"
    )
    assert {row[2] for row in warehouse.ask(valid, start, start)} == {True}
    match = '{"type":"match","product_id":"TWO-USD","price":"0"}'
    bad = [
        at(15, '{"type":"l2update","product_id":"ONE-USD","changes":[["buy","x","1"]],"time":"2024-03-04T11:00:15Z"}'),
        at(25, '{"type":"l2update","product_id":"O'),
        at(55, match),
    ]
    load(warehouse, "coinbase_exchange_ws_2.txt", "coinbase_exchange", bad)
    warehouse.build()
    assert warehouse.ask(valid, start, start) == [
        *[("ONE-USD", second, second > 40) for second in (16, 21, 26, 31, 41, 51)],
        *[("TWO-USD", second, not 25 < second < 40) for second in (21, 26, 31, 41, 51)],
    ]
    gaps = "select symbol, reason, source_position from observability.book_gaps where venue = 'coinbase' order by all"
    assert warehouse.ask(gaps) == [
        ("ONE-USD", "unreadable", 1),
        ("ONE-USD", "unreadable", 2),
        ("TWO-USD", "unreadable", 2),
    ]


def test_a_build_with_nothing_for_books_leaves_them_alone(small: Small) -> None:
    """Another feed's records reach no model of books; trades of their own feed write nothing there."""
    warehouse = small.warehouse
    reached = Project(warehouse.settings).affected_by({"massive_trades"})
    assert [name for name in reached.nodes if "book" in name] == []
    assert {"int_book_updates__versioned", *(name.split(".")[1] for name in TABLES[2:])} <= set(reached.passed_over)
    of_kind = Project(warehouse.settings).affected_by({"binance_spot"}, staged={"stg_binance_spot": {"trade"}})
    assert {"int_trades__versioned", "conservation"} <= set(of_kind.nodes)
    assert [name for name in of_kind.nodes if "book" in name or "quotes" in name or name.startswith("stg_")] == []
    assert [name for name in of_kind.nodes if name.startswith("quarantine")] == []
    of_bad = Project(warehouse.settings).affected_by({"binance_spot"}, staged={"stg_binance_spot": {"quarantined"}})
    assert {"quarantine.v2", "conservation"} <= set(of_bad.nodes) and "int_trades__versioned" not in of_bad.nodes
    last_written = "select max(build_seq) from versioned.int_book_snapshots"
    ran = "select model, invocation_id from observability.progress where model like 'int_%' order by all"
    ran_before = dict(warehouse.ask(ran))
    before = book_tables(warehouse), warehouse.ask(last_written)
    trade = b'{"e":"trade","s":"LATEUSDT","t":1,"p":"99.5","q":"1","T":1709596800000,"m":true}'
    load(warehouse, "binance_spot_LATEUSDT_3", "binance_spot", [b"%d %s\n" % (1_709_596_801 * SECOND, trade)])
    warehouse.build()
    assert warehouse.ask("select count(*) from canonical.trades") == [(1,)]
    assert (differences(before[0], book_tables(warehouse)), warehouse.ask(last_written)) == ([], before[1])
    ran_again = {name for name, run in warehouse.ask(ran) if run != ran_before[name]}
    assert ran_again >= {"int_trades__versioned"}
    assert ran_again.isdisjoint({"int_quotes__versioned", "int_book_updates__versioned", "int_book_states"})
    assert warehouse.ask("select count(distinct load_seq) from observability.progress") == [(1,)]
