"""Order books in plain Python, a message at a time, shared with no model; and streams of messages to rebuild them from.

    messages_of(draw) ──> messages ──┬── lines ──> captures, to load in any order
                                     └── current() ── rebuild() ──> what book_snapshots and book_gaps must hold

Times are nanoseconds since 1970, UTC.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
DAY = 86_400 * SECOND
MIDNIGHT = int(dt.datetime(2024, 3, 5, tzinfo=dt.UTC).timestamp()) * SECOND

Level = tuple[str, float, float]
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Message:
    """What a venue says of a book. Where it numbers nothing, `last_id` is None."""

    is_snapshot: bool
    event_time: int
    received: int
    levels: tuple[Level, ...]
    last_id: int | None = None
    first_id: int | None = None
    book: str = "full"
    is_lost: bool = False
    """The venue's words cannot be read; where `is_named` is false, not even of which book they are."""
    is_named: bool = True
    file: int = 0
    position: int = 0

    @property
    def known(self) -> int:
        return max(self.received, self.event_time)

    @property
    def date(self) -> int:
        """The start of the day to which it counts."""
        return (self.received if self.last_id is None else self.event_time) // DAY * DAY

    @property
    def place(self) -> tuple[Any, ...]:
        if self.last_id is None:
            return (self.date, self.received, self.file, self.position)
        return (self.date, self.last_id, self.is_snapshot)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two records the same message."""
        if self.last_id is not None:
            return (self.book, self.is_snapshot, self.last_id)
        if self.is_lost:
            return (self.is_named, self.received)
        return (self.book, self.is_snapshot, self.received if self.is_snapshot else self.event_time, self.levels)


@dataclass
class Point:
    """A book at a grid point, as (price, size), best first."""

    time: int
    known: int
    last_id: int | None
    is_valid: bool
    bids: list[tuple[float, float]]
    asks: list[tuple[float, float]]
    message: Message


@dataclass
class Broken:
    time: int
    reason: str
    message: Message
    expected: int | None = None


def current(copies: Iterable[Message]) -> list[Message]:
    """The messages as they are known at last: repeats gone, corrections in the place of what they correct."""
    by_key: dict[tuple[Any, ...], list[Message]] = defaultdict(list)
    for copy in sorted(copies, key=lambda one: (one.known, one.file, one.position)):
        by_key[copy.key].append(copy)
    messages = []
    for said in by_key.values():
        contents: list[tuple[Any, ...]] = []
        newest = said[0]
        for copy in said:
            content = (None if copy.is_snapshot else copy.event_time, copy.levels, copy.first_id)
            if content not in contents:
                contents.append(content)
                newest = copy
        messages.append(newest)
    return sorted(messages, key=lambda one: one.place)


def with_replays(messages: Sequence[Message]) -> list[Message]:
    """A book's first snapshot goes on with what the date before it could not apply, from the start of its own date."""
    first = next((message for message in messages if message.is_snapshot), None)
    if first is None or first.last_id is None:
        return list(messages)
    again = [
        replace(message, event_time=first.date)
        for message in messages
        if message.date == first.date - DAY and (message.last_id or 0) > first.last_id
    ]
    return sorted([*messages, *again], key=lambda message: message.place)


@dataclass
class _Book:
    bids: dict[float, float] = field(default_factory=dict)
    asks: dict[float, float] = field(default_factory=dict)
    last_id: int | None = None
    is_there: bool = False
    is_fresh: bool = False
    is_valid: bool = False
    was_crossed: bool = False
    known: int = 0


def rebuild(messages: Sequence[Message], grid: int, depth: int) -> tuple[list[Point], list[Broken]]:
    """Follow the venue's procedure, message by message, in the order given; the points of the grid, and the breaks."""
    book = _Book()
    points: list[Point] = []
    breaks: list[Broken] = []
    date = time = 0
    for message in with_replays(messages):
        # Until a book is there, a loss counts where its date has had a message that could be read.
        if message.is_lost and not book.is_there and message.date != date:
            continue
        if message.date != date:
            date = time = message.date
        time = max(time, min(max(message.event_time, date), date + DAY - 1))
        if message.is_snapshot:
            if book.is_there and message.last_id is not None and message.last_id < (book.last_id or 0):
                continue
            book = _Book(is_there=True, is_fresh=True, is_valid=True, last_id=message.last_id)
        elif book.is_there and message.last_id is not None:
            assert book.last_id is not None and message.first_id is not None
            if message.last_id <= book.last_id:
                continue
            expected = book.last_id + 1
            if message.first_id > expected or (message.first_id < expected and not book.is_fresh):
                breaks.append(Broken(time, "gap", message, expected))
                book.is_valid = False
            book.last_id = message.last_id
        if message.is_lost and book.is_there:
            breaks.append(Broken(time, "unreadable", message))
            book.is_valid = False
        if not message.is_snapshot:
            book.is_fresh = False
        book.known = max(book.known, message.known)
        if book.is_there:
            for side, price, size in message.levels:
                levels = book.bids if side == "bid" else book.asks
                levels.pop(price, None)
                if size > 0:
                    levels[price] = size
            is_crossed = bool(book.bids and book.asks) and max(book.bids) >= min(book.asks)
            if is_crossed and not book.was_crossed:
                breaks.append(Broken(time, "crossed", message))
            book.was_crossed = is_crossed
            book.is_valid = book.is_valid and not is_crossed
        point = (time // grid + 1) * grid if grid else time
        if grid and points and points[-1].time == point:
            points.pop()
        bids = sorted(book.bids.items(), reverse=True)[:depth]
        asks = sorted(book.asks.items())[:depth]
        points.append(Point(point, max(book.known, point), book.last_id, book.is_valid, bids, asks, message))
    return points, breaks


# Streams


def messages_of(draw: Draw, *, numbered: bool, most: int = 24) -> list[Message]:
    """A venue's messages around midnight, in the order in which it made them: with gaps, overlaps and crossed books, or
    where it numbers nothing with messages that cannot be read."""
    found: list[Message] = []
    time = MIDNIGHT - draw(st.sampled_from([SECOND // 2, SECOND, 3 * SECOND]))
    last_id = draw(st.integers(1, 3))
    for number in range(draw(st.integers(2, most))):
        time += draw(st.sampled_from([0, 1, 40, 400, 900, 2_500])) * MILLISECOND
        received = time + draw(st.sampled_from([-1_270, 1, 30, 700, 5_000])) * MILLISECOND + number
        kind = draw(
            st.sampled_from(["delta"] * 8 + ["snapshot", "old snapshot", "new snapshot", "gap", "overlap", "empty"])
        )
        if kind == "gap" and not numbered:
            is_named = draw(st.booleans())
            found.append(Message(False, received, received, (), is_lost=True, is_named=is_named))
            continue
        levels = tuple(
            (side, float(draw(prices)), draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])))
            for side, prices in SIDES
            for _ in range(0 if kind == "empty" else draw(st.integers(0, 3)))
        )
        if "snapshot" in kind:
            whole = tuple({(side, price): (side, price, size) for side, price, size in levels if size}.values())
            at = max(last_id + {"old snapshot": -3, "new snapshot": 2}.get(kind, 0), 0)
            found.append(Message(True, received, received, whole, at if numbered else None))
            continue
        first = last_id + {"gap": 3, "overlap": 0}.get(kind, 1)
        last_id = max(first, last_id + 1) + draw(st.integers(0, 2))
        ids = {"last_id": last_id, "first_id": first} if numbered else {}
        found.append(Message(False, time, received, levels, **ids))
    return found


SIDES = (
    ("bid", st.sampled_from([98, 98.5, 99, 99.5, 100, 102])),
    ("ask", st.sampled_from([101, 101.5, 102, 103, 104])),
)


def binance_line(message: Message, symbol: str) -> bytes:
    """A message as a line of a Binance capture."""
    sides = {side: [[f"{p:.8f}", f"{s:.8f}"] for s_, p, s in message.levels if s_ == side] for side in ("bid", "ask")}
    data: dict[str, Any] = {"lastUpdateId": message.last_id, "bids": sides["bid"], "asks": sides["ask"]}
    if not message.is_snapshot:
        data = {"e": "depthUpdate", "E": message.event_time // MILLISECOND, "s": symbol, "U": message.first_id}
        data |= {"u": message.last_id, "b": sides["bid"], "a": sides["ask"]}
    if message.is_snapshot and message.book == "full":
        return b"%d %s" % (message.received, json.dumps(data).encode())
    stream = f"{symbol.lower()}@{'depth@100ms' if message.book == 'full' else message.book}"
    return b"%d %s" % (message.received, json.dumps({"stream": stream, "data": data}).encode())


def coinbase_line(message: Message, symbol: str) -> bytes:
    """A message as a line of a Coinbase capture."""
    if message.is_lost:
        text = json.dumps({"type": "l2update", "product_id": symbol, "changes": [["buy", "x", "1"]], "time": "2024"})
        second, rest = divmod(message.received, SECOND)
        return b"%d.%09d: %s" % (second, rest, text[: None if message.is_named else 40].encode())
    said: dict[str, Any] = {"type": "snapshot" if message.is_snapshot else "l2update", "product_id": symbol}
    if message.is_snapshot:
        for name, side in (("bids", "bid"), ("asks", "ask")):
            said[name] = [[str(price), str(size)] for s, price, size in message.levels if s == side]
    else:
        names = {"bid": "buy", "ask": "sell"}
        said["changes"] = [[names[side], str(price), str(size)] for side, price, size in message.levels]
        second, rest = divmod(message.event_time, SECOND)
        said["time"] = f"{dt.datetime.fromtimestamp(second, dt.UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"
    second, rest = divmod(message.received, SECOND)
    return b"%d.%09d: %s" % (second, rest, json.dumps(said).encode())
