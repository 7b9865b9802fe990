"""What builds keep of books is what one build would make of all, in whatever order messages come and go.

messages, in steps of any order ── rows with the step's build_seq ── rebuild() ── forget, insert ── books kept ─┐
all messages left, in one step ─────────────────────────────────── rebuild() ────────────────────── books ──────┴─ equal
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds.books import MIDNIGHT, SECOND, Message, current, messages_of, rebuild

from market_data import book_builds

TABLES = """
    attach ':memory:' as lake;
    attach ':memory:' as scratch;
    create schema lake.versioned;
    create schema scratch.staging;
    create table lake.versioned.int_book_updates__versioned (
        listing_id varchar, venue varchar, symbol varchar, book varchar, event_time timestamp_ns,
        levels struct(side varchar, price double, size double)[], update_id bigint, first_update_id bigint,
        is_snapshot boolean, known_from timestamp_ns, known_to timestamp_ns, feed varchar, schema_version varchar,
        load_id varchar, source varchar, source_partition integer, source_position bigint, message_id varchar,
        book_date date, book_order bigint, is_deletion boolean, is_duplicate boolean, build_seq bigint
    );
    create table lake.versioned.int_book_losses__versioned as
    select * exclude (levels, update_id, first_update_id, is_snapshot) from lake.versioned.int_book_updates__versioned;
    create table scratch.staging.books_mark (mark bigint);
    create table scratch.staging.books_shown as select 'f' as feed, 20 as depth, {grid} as grid;
"""
PARTS = {"snapshot": "shown", "break": "breaks", "state": "int_book_states"}


class Lake:
    """The tables that rebuilding reads and those that dbt keeps of it."""

    def __init__(self, grid: int) -> None:
        self.connection = duckdb.connect()
        self.connection.execute("set threads = 1")
        self.connection.execute(TABLES.format(grid=grid))
        for name in PARTS.values():
            self.connection.register("empty", book_builds.SCHEMA.empty_table())
            self.connection.execute(f"create table lake.versioned.{name} as from empty")
        self.step = 0

    def build(self, come: Sequence[tuple[int, Message]], gone: Sequence[Message] = ()) -> None:
        """Messages of books come, and others turn out to be duplicates of them."""
        self.connection.execute("delete from scratch.staging.books_mark")
        self.connection.execute("insert into scratch.staging.books_mark values (?)", [self.step])
        self.step += 1
        for table, is_lost in (("int_book_updates__versioned", False), ("int_book_losses__versioned", True)):
            self.connection.execute(
                f"update lake.versioned.{table} set is_duplicate = true, build_seq = ?"
                " where list_contains(?::bigint[], source_position)",
                [self.step, [message.position for message in gone]],
            )
            rows = [self._row(book, message) for book, message in come if message.is_lost == is_lost]
            if rows:
                self.connection.register("rows", pa.Table.from_pylist(rows))
                self.connection.execute(f"insert into lake.versioned.{table} by name from rows")
        made = book_builds.rebuild(self.connection)
        self.connection.register("made", made)
        for part, name in PARTS.items():
            after = "and (stands.book_order > starts.book_order or stands.event_time >= starts.event_time)"
            self.connection.execute(
                f"delete from lake.versioned.{name} as stands using (from made where part = 'start') as starts"
                " where stands.listing_id = starts.listing_id and stands.book = starts.book"
                f" and stands.book_date = starts.book_date {'' if part == 'state' else after}"
            )
            self.connection.execute(f"insert into lake.versioned.{name} from made where part = '{part}'")

    def _row(self, book: int, message: Message) -> dict[str, Any]:
        numbered = message.last_id is not None
        order = 2 * (message.last_id or 0) + message.is_snapshot if numbered else message.received
        told = {} if message.is_lost else {
            "update_id": message.last_id, "first_update_id": message.first_id, "is_snapshot": message.is_snapshot,
            "levels": [{"side": side, "price": price, "size": size} for side, price, size in message.levels],
        }  # fmt: skip
        return told | {
            "listing_id": f"v:{book}" if message.is_named else "v:", "venue": "v", "symbol": str(book),
            "book": "full", "feed": "f",
            "event_time": pa.scalar(message.event_time, pa.timestamp("ns")).as_py(),
            "known_from": pa.scalar(message.known, pa.timestamp("ns")).as_py(), "source": "s",
            "source_position": message.position, "message_id": str(message.position), "book_order": order,
            "book_date": pa.scalar(message.date, pa.timestamp("ns")).as_py().date(), "is_deletion": False,
            "is_duplicate": False, "build_seq": self.step, "load_id": "l",
        }  # fmt: skip

    def kept(self) -> list[list[tuple[Any, ...]]]:
        return [
            self.connection.execute(f"from lake.versioned.{name} order by all").fetchall() for name in PARTS.values()
        ]


@st.composite
def two_books(draw: st.DrawFn) -> list[tuple[int, Message]]:
    """Of one venue, which numbers all of its messages or none: of those with numbers a gap tells what is lost."""
    found: list[tuple[int, Message]] = []
    numbered = draw(st.booleans())
    for book in (0, 1):
        # Whole microseconds, as Python's times are.
        for message in current(messages_of(draw, numbered=numbered, most=16)):
            received = message.received // 1_000 * 1_000 + 1_000 * len(found)
            time = received if message.is_snapshot else message.event_time
            values = {**vars(message), "received": received, "event_time": time, "position": len(found)}
            found.append((book, Message(**values)))
    return found


def run_of_builds(books: list[tuple[int, Message]], grid: int, data: st.DataObject) -> None:
    left = data.draw(st.permutations(books))
    kept, lake = Lake(grid), Lake(grid)
    there: list[tuple[int, Message]] = []
    while left:
        count = data.draw(st.integers(1, max(1, len(left) // 2)))
        gone = [one for one in there if data.draw(st.integers(0, 9)) == 0]
        kept.build(left[:count], [message for _, message in gone])
        there = [one for one in there if one not in gone] + left[:count]
        left = left[count:]
    lake.build(there)
    found, made = kept.kept(), lake.kept()
    assert found == made
    points, breaks = 0, 0
    for number in (0, 1):
        of_book = [message for book, message in there if book == number or not message.is_named]
        for parts in [rebuild(sorted(of_book, key=lambda message: message.place), grid, 20)]:
            points, breaks = points + len(parts[0]), breaks + len(parts[1])
    assert (len(made[0]), len(made[1])) == (points, breaks)


@pytest.mark.parametrize("grid", [0, SECOND])
@settings(max_examples=8, deadline=None)
@given(two_books(), st.data())
def test_builds_in_any_order_keep_what_one_would_make(
    grid: int, books: list[tuple[int, Message]], data: st.DataObject
) -> None:
    run_of_builds(books, grid, data)


@pytest.mark.long
@pytest.mark.parametrize("grid", [0, SECOND])
@settings(max_examples=300, deadline=None)
@given(two_books(), st.data())
def test_many_more_builds(grid: int, books: list[tuple[int, Message]], data: st.DataObject) -> None:
    run_of_builds(books, grid, data)


@pytest.mark.parametrize("is_late", [False, True])
def test_the_first_snapshot_after_midnight_goes_on_with_what_came_before_it(is_late: bool) -> None:
    """Deltas of the date before belong behind it, whichever comes first: there is no gap."""

    def delta(number: int, time: int) -> Message:
        return Message(False, time, time, (("bid", 98.0, float(number)),), number, number, position=number)

    levels = (("bid", 99.0, 1.0), ("ask", 101.0, 1.0))
    deltas = [
        delta(number, MIDNIGHT + at * 1_000_000)
        for number, at in ((99, -2_000), (100, -1_000), (101, -2), (102, -1), (103, 2_000))
    ]
    snapshot = Message(True, MIDNIGHT + SECOND // 2, MIDNIGHT + SECOND // 2, levels, 100, position=1)
    late = deltas[2] if is_late else snapshot
    lake = Lake(SECOND)
    lake.build([(0, message) for message in [snapshot, *deltas] if message != late])
    lake.build([(0, late)])
    shown = lake.connection.execute(
        "select book_date::varchar, update_id, is_valid, bid_sizes from lake.versioned.shown order by event_time"
    ).fetchall()
    assert shown == [
        ("2024-03-04", None, False, []),
        ("2024-03-04", None, False, []),
        ("2024-03-05", 102, True, [1.0, 102.0]),
        ("2024-03-05", 103, True, [1.0, 103.0]),
    ]
    assert lake.kept()[1] == []


def test_tables_of_a_million_rows_are_cut_between_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come in tables of so many; a message, and a cell of the grid, may go on in the next."""
    start = 1_709_550_000 * SECOND
    levels = tuple(("bid", float(price), 1.0) for price in range(90, 99))
    messages = [Message(True, start, start, levels, 1, position=0)]
    for number in range(2, 700):
        time = start + number * 10_000_000
        level = ("ask", float(100 + number % 50), float(number % 3))
        messages.append(Message(False, time, time, (level, level), number, number, position=number))
    books = [(0, message) for message in messages]
    for grid in (0, SECOND):
        whole, cut = Lake(grid), Lake(grid)
        whole.build(books)
        monkeypatch.setattr(book_builds, "ROWS_AT_ONCE", 16)
        cut.build(books)
        monkeypatch.undo()
        assert cut.kept() == whole.kept()
