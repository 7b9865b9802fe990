"""Books from columns are those of plain Python: for any messages, any cut into batches, any grid and depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds.books import DAY, SECOND, Message, current, messages_of, rebuild, with_replays

from market_data.books import NO_ID, Breaks, Rows, Shape, Shown, State, apply

Found = tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]


def rows_of(messages: Sequence[tuple[int, Message]], number: int = 0) -> Rows:
    """Messages as columns; `number` is that of the first of them."""
    flat = [
        (book, message, level, place)
        for place, (book, message) in enumerate(messages, start=number)
        for level in message.levels or (("bid", float("nan"), 0.0),)
    ]

    def order(message: Message) -> int:
        return message.received if message.last_id is None else 2 * message.last_id + message.is_snapshot

    return Rows(
        book=np.array([book for book, *_ in flat], np.int64),
        order=np.array([order(message) for _, message, *_ in flat], np.int64),
        record=np.array([place for *_, place in flat], np.uint64),
        update_id=np.array([NO_ID if m.last_id is None else m.last_id for _, m, *_ in flat], np.int64),
        first_update_id=np.array([NO_ID if m.first_id is None else m.first_id for _, m, *_ in flat], np.int64),
        is_snapshot=np.array([m.is_snapshot for _, m, *_ in flat], bool),
        is_lost=np.array([m.is_lost for _, m, *_ in flat], bool),
        event_time=np.array([min(max(m.event_time, m.date), m.date + DAY - 1) for _, m, *_ in flat], np.int64),
        known_from=np.array([m.known for _, m, *_ in flat], np.int64),
        is_ask=np.array([level[0] == "ask" for *_, level, _ in flat], bool),
        price=np.array([level[1] for *_, level, _ in flat]),
        size=np.array([level[2] for *_, level, _ in flat]),
    )


def said(rows: Rows, shown: Shown, breaks: Breaks) -> Found:
    sides = []
    for levels in (shown.bids, shown.asks):
        pairs = list(zip(levels.prices.tolist(), levels.sizes.tolist(), strict=True))
        sides.append([pairs[a:b] for a, b in zip(levels.offsets[:-1], levels.offsets[1:], strict=True)])
    ids = [None if one == NO_ID else one for one in shown.update_id.tolist()]
    books = rows.book[shown.row].tolist()
    columns = (books, shown.event_time.tolist(), shown.known_from.tolist(), ids, shown.is_valid.tolist(), *sides)
    expected = [None if one == NO_ID else one for one in breaks.expected_update_id.tolist()]
    broken = (rows.book[breaks.row].tolist(), breaks.event_time.tolist(), breaks.reason.tolist(), expected)
    return list(zip(*columns, strict=True)), list(zip(*broken, strict=True))


def expected(books: Sequence[Sequence[Message]], grid: int, depth: int) -> Found:
    found: Found = ([], [])
    for book, messages in enumerate(books):
        points, breaks = rebuild(messages, grid, depth)
        found[0].extend((book, p.time, p.known, p.last_id, p.is_valid, p.bids, p.asks) for p in points)
        found[1].extend((book, broken.time, broken.reason, broken.expected) for broken in breaks)
    return found


def by_date(books: Sequence[Sequence[Message]]) -> list[list[tuple[int, Message]]]:
    numbered = [(book, message) for book, messages in enumerate(books) for message in with_replays(messages)]
    dates = sorted({message.date for _, message in numbered})
    return [[(book, message) for book, message in numbered if message.date == date] for date in dates]


def without_early_losses(messages: list[Message]) -> list[Message]:
    """Until there is a book, a date begins with a message that can be read."""
    kept: list[Message] = []
    is_there = False
    for message in messages:
        if message.is_lost and not is_there and (not kept or kept[-1].date != message.date):
            continue
        is_there = is_there or message.is_snapshot
        kept.append(message)
    return kept


@st.composite
def some_books(draw: st.DrawFn) -> list[list[Message]]:
    return [
        without_early_losses(current(messages_of(draw, numbered=draw(st.booleans()))))
        for _ in range(draw(st.integers(1, 3)))
    ]


@settings(max_examples=100, deadline=None)
@given(some_books(), st.sampled_from([0, SECOND, 250_000_000]), st.sampled_from([1, 2, 20]), st.data())
def test_any_cut_of_any_messages_gives_the_books_of_plain_python(
    books: list[list[Message]], grid: int, depth: int, data: st.DataObject
) -> None:
    states: dict[int, State] = {}
    found: Found = ([], [])
    for left in by_date(books):
        messages = left
        states = {book: State(**{**vars(state), "time": 0}) for book, state in states.items()}
        while messages:
            cut = data.draw(st.integers(1, len(messages)))
            rows = rows_of(messages[:cut])
            messages = messages[cut:]
            shown, breaks, after = apply(rows, states, dict.fromkeys(range(len(books)), Shape(depth, grid)))
            points, broken = said(rows, shown, breaks)
            if grid:  # a cell that goes on is shown anew
                again = {point[:2] for point in points}
                found = ([point for point in found[0] if point[:2] not in again], found[1])
            found = (found[0] + points, found[1] + broken)
            states |= after
    want = expected(books, grid, depth)
    # Points of one time keep the order of their messages.
    assert sorted(found[0], key=lambda one: one[0]) == sorted(want[0], key=lambda one: one[0])
    assert sorted(found[1], key=str) == sorted(want[1], key=str)


@pytest.mark.parametrize("levels", [1, 700, 5_000])
def test_a_wide_book_shows_its_best_levels(levels: int) -> None:
    """Best levels vanish one after the other, in blocks of points and far beyond the levels that were near before."""
    bids = tuple(("bid", 1_000.0 - number, 1.0) for number in range(levels))
    snapshot = Message(True, SECOND, SECOND, bids, 1)
    gone = [
        Message(False, SECOND + number, SECOND + number, (("bid", 1_000.0 - number, 0.0),), 2 + number, 2 + number)
        for number in range(min(levels, 1_500))
    ]
    messages = [snapshot, *gone]
    rows = rows_of([(0, message) for message in messages])
    shown, breaks, _ = apply(rows, {}, {0: Shape(20, 0)})
    assert said(rows, shown, breaks) == expected([messages], 0, 20)
