"""Order books from snapshots and deltas, by the venues' documented procedures, a column at a time.

    rows of level changes ── Rows ──> messages ── follow ──> which apply, which break the chain, spans between snapshots
       in the venue's order              │                                          │
       State of each book before ────────┴── lifetimes ──> each level from a write to the next of its price
                                                 │
                     best prices after each message, top levels at each grid point, State after

A *span* begins with a snapshot that applies, and its levels are those of the snapshot and of all writes since. So a
level of size 0 is a level that ends, and nothing depends on where one batch of rows ends and the next begins: all
that a batch needs of those before it is in a `State`. Times are nanoseconds since 1970, UTC; prices and sizes doubles
as sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Strings = npt.NDArray[np.str_]

NO_ID = -1
"""Stands for the update id of a venue that numbers nothing, and of a book before its first snapshot."""
BLOCK = 256
"""Grid points that are looked at together."""

NOTHING = np.empty(0)


@dataclass(frozen=True)
class State:
    """A book after a message: all that later messages need."""

    order: int = -1
    has_snapshot: bool = False
    update_id: int = NO_ID
    is_fresh: bool = False
    """Whether the last message applied was the snapshot itself: the next may overlap it."""
    is_valid: bool = False
    known_from: int = 0
    time: int = 0
    """The latest event time of its date so far."""
    bid_prices: Floats = field(default_factory=lambda: NOTHING)
    bid_sizes: Floats = field(default_factory=lambda: NOTHING)
    ask_prices: Floats = field(default_factory=lambda: NOTHING)
    ask_sizes: Floats = field(default_factory=lambda: NOTHING)
    """Levels in the order of their prices, ascending on both sides."""

    @property
    def is_crossed(self) -> bool:
        return bool(len(self.bid_prices) and len(self.ask_prices) and self.bid_prices[-1] >= self.ask_prices[0])

    def equals(self, other: State | None) -> bool:
        """Whether all that follows would be the same."""
        return other is not None and all(
            np.array_equal(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)
        )


NEVER_SEEN = State()


class Shape(NamedTuple):
    """How a book is shown: so many levels, on so wide a grid of event time; a grid of 0 is every update."""

    depth: int
    grid: int


@dataclass(frozen=True)
class Rows:
    """Level changes in the venue's order, book by book: columns of one length.

    `record` tells messages of one `order` apart; a message without levels is one row whose price is NaN.
    """

    book: Ints
    order: Ints
    record: npt.NDArray[np.uint64]
    update_id: Ints
    first_update_id: Ints
    is_snapshot: Bools
    is_lost: Bools
    """Nobody can read what the message changed."""
    event_time: Ints
    known_from: Ints
    is_ask: Bools
    price: Floats
    size: Floats


class Shown(NamedTuple):
    """The books at their grid points, in order: a row of `rows` whose message each shows last, and what is in it."""

    row: Ints
    event_time: Ints
    known_from: Ints
    update_id: Ints
    is_valid: Bools
    bids: Levels
    asks: Levels


class Levels(NamedTuple):
    """Levels of one side, best first: those of grid point i are [offsets[i], offsets[i + 1])."""

    offsets: Ints
    prices: Floats
    sizes: Floats

    def lists(self) -> tuple[pa.ListArray, pa.ListArray]:
        """Prices and sizes as Arrow lists."""
        offsets = pa.array(self.offsets, pa.int32())
        return pa.ListArray.from_arrays(offsets, self.prices), pa.ListArray.from_arrays(offsets, self.sizes)


class Breaks(NamedTuple):
    """Where books became unusable: a row of `rows`, and why."""

    row: Ints
    event_time: Ints
    known_from: Ints
    reason: Strings
    """gap, unreadable or crossed."""
    expected_update_id: Ints
    bid_price: Floats
    ask_price: Floats


@dataclass(frozen=True)
class _Messages:
    """Columns over messages, and where each book's messages and each span begin."""

    first_row: Ints
    of_row: Ints
    book: Ints
    update_id: Ints
    is_snapshot: Bools
    starts: Ints
    """Of each book: its first message."""
    part: Ints
    """Of each message: which of the books here it is of, from 0."""
    ends: Ints


def apply(
    rows: Rows, states: Mapping[int, State], shapes: Mapping[int, Shape]
) -> tuple[Shown, Breaks, dict[int, State]]:
    """Apply level changes to books; what they show, where they broke, and their states afterwards.

    `rows` must hold whole messages. A book that is not in `states` has not been seen yet.
    """
    messages = _messages_of(rows)
    before = [states.get(int(messages.book[start]), NEVER_SEEN) for start in messages.starts]
    here = [shapes[int(messages.book[start])] for start in messages.starts]
    part, starts, count = messages.part, messages.starts, len(messages.book)

    # By the update ids: what is old, what applies, where an id is missing.
    before_id = np.array([state.update_id for state in before])
    last_id = _shifted(messages.update_id, starts, before_id)
    last_id = np.maximum(last_id, before_id[part])
    is_numbered = messages.update_id != NO_ID
    is_stale = messages.is_snapshot & is_numbered & (messages.update_id < before_id[part])
    is_base = messages.is_snapshot & ~is_stale
    opens_span = is_base.copy()
    opens_span[starts] = True
    span = np.cumsum(opens_span) - 1
    span_start = np.flatnonzero(opens_span)
    is_carried = ~is_base[span_start]  # a span that began before these rows, or a book without a snapshot so far
    of_span = part[span_start]
    span_end = np.append(span_start[1:], count)
    span_has = ~is_carried | np.array([state.has_snapshot for state in before])[of_span]
    has_snapshot = span_has[span]
    is_old = ~messages.is_snapshot & is_numbered & has_snapshot & (messages.update_id <= last_id)
    is_dropped = is_old | is_stale
    applies = has_snapshot & ~is_dropped

    last_applied = np.maximum.accumulate(np.where(applies, np.arange(count), -1))
    last_applied[last_applied < starts[part]] = -1  # of the book before
    before_fresh = np.array([state.is_fresh for state in before])
    fresh_after = np.where(last_applied >= 0, is_base[last_applied], before_fresh[part])
    is_fresh = _shifted(fresh_after, starts, before_fresh)
    first_id = rows.first_update_id[messages.first_row]
    expected = last_id + 1
    is_gap = applies & ~messages.is_snapshot & is_numbered
    is_gap &= np.where(is_fresh, first_id > expected, first_id != expected)
    is_lost = applies & rows.is_lost[messages.first_row]

    # By the prices.
    levels, prices = _lifetimes(rows, messages, applies, before, span, span_end, is_carried)
    is_bid = levels.side == 0
    best_bid = _highest_cover(levels.start[is_bid], levels.end[is_bid], levels.code[is_bid], count)
    worst = len(prices)
    best_ask = (
        worst - 1 - _highest_cover(levels.start[~is_bid], levels.end[~is_bid], worst - 1 - levels.code[~is_bid], count)
    )
    is_crossed = (best_bid >= 0) & (best_bid >= best_ask)
    before_crossed = np.array([state.is_crossed for state in before])
    was_crossed = _shifted(is_crossed, span_start, is_carried & before_crossed[of_span])
    becomes_crossed = is_crossed & ~was_crossed

    broken_before = is_carried & ~np.array([state.is_valid for state in before])[of_span]
    is_broken = is_gap | is_lost | is_crossed
    breaks = np.cumsum(is_broken)
    at_start = breaks[span_start] - is_broken[span_start]
    is_valid = has_snapshot & (breaks == at_start[span]) & ~broken_before[span]

    # By the clocks. What is dropped changes nothing that anybody could know.
    known = np.maximum.reduceat(rows.known_from, messages.first_row)
    before_known = np.where(is_carried, np.array([state.known_from for state in before])[of_span], 0)
    known = _running_max(np.where(is_dropped, 0, known), span_start, before_known)
    time = np.maximum.reduceat(rows.event_time, messages.first_row)
    time = _running_max(time, starts, np.array([state.time for state in before]))
    applied_id = np.where(last_applied >= 0, messages.update_id[last_applied], before_id[part])
    applied_id[~has_snapshot] = NO_ID

    # Grid points: the last message of each cell [g - grid, g).
    grid = np.array([shape.grid for shape in here])[part]
    point = np.where(grid > 0, (time // np.maximum(grid, 1) + 1) * np.maximum(grid, 1), time)
    shown = np.flatnonzero(~is_dropped)
    is_last = np.ones(len(shown), bool)
    is_last[:-1] = (
        (grid[shown[:-1]] == 0) | (part[shown[1:]] != part[shown[:-1]]) | (point[shown[1:]] != point[shown[:-1]])
    )
    shown = shown[is_last]
    bids, asks = _top(levels, prices, shown, part, [shape.depth for shape in here])
    at_points = Shown(
        messages.first_row[shown],
        point[shown],
        np.maximum(known[shown], point[shown]),
        applied_id[shown],
        is_valid[shown],
        bids,
        asks,
    )

    causes = {"gap": is_gap, "unreadable": is_lost, "crossed": becomes_crossed}
    broke = np.concatenate([np.flatnonzero(cause) for cause in causes.values()])
    reason = np.repeat(list(causes), [np.count_nonzero(cause) for cause in causes.values()])
    at_breaks = Breaks(
        messages.first_row[broke],
        time[broke],
        np.maximum(known[broke], time[broke]),
        reason,
        np.where(reason == "gap", expected[broke], NO_ID),
        _price_at(prices, best_bid[broke]),
        _price_at(prices, best_ask[broke]),
    )

    order = rows.order[messages.first_row]
    after = {}
    for book, last, held in zip(
        messages.book[starts], messages.ends - 1, _standing(levels, prices, span, messages.ends), strict=True
    ):
        after[int(book)] = State(
            order=int(order[last]),
            has_snapshot=bool(has_snapshot[last]),
            update_id=int(applied_id[last]),
            is_fresh=bool(fresh_after[last]),
            is_valid=bool(is_valid[last]),
            known_from=int(known[last]),
            time=int(time[last]),
            bid_prices=held[0],
            bid_sizes=held[1],
            ask_prices=held[2],
            ask_sizes=held[3],
        )
    return at_points, at_breaks, after


def _messages_of(rows: Rows) -> _Messages:
    is_first = np.ones(len(rows.book), bool)
    is_first[1:] = (
        (rows.book[1:] != rows.book[:-1]) | (rows.order[1:] != rows.order[:-1]) | (rows.record[1:] != rows.record[:-1])
    )
    first_row = np.flatnonzero(is_first)
    book = rows.book[first_row]
    starts = np.flatnonzero(np.append(True, book[1:] != book[:-1]))
    is_start = np.zeros(len(book), np.int64)
    is_start[starts] = 1
    return _Messages(
        first_row=first_row,
        of_row=np.cumsum(is_first) - 1,
        book=book,
        update_id=rows.update_id[first_row],
        is_snapshot=rows.is_snapshot[first_row],
        starts=starts,
        part=np.cumsum(is_start) - 1,
        ends=np.append(starts[1:], len(book)),
    )


def _shifted(values: npt.NDArray[Any], starts: Ints, before: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Each value's predecessor within its segment; `before` stands in front of each segment."""
    found = np.empty_like(values)
    found[1:] = values[:-1]
    found[starts] = before
    return found


def _running_max(values: Ints, starts: Ints, before: Ints) -> Ints:
    """The greatest value so far within each segment, `before` included."""
    is_start = np.zeros(len(values), np.int64)
    is_start[starts] = 1
    known, ranks = np.unique(np.concatenate([values, before]), return_inverse=True)
    ranks, first = ranks[: len(values)], ranks[len(values) :]
    ranks[starts] = np.maximum(ranks[starts], first)
    # A segment's number above the rank makes every later segment start anew.
    segments = (np.cumsum(is_start) - 1) << 32
    found: Ints = known[np.maximum.accumulate(segments | ranks) & 0xFFFFFFFF]
    return found


class _Lifetimes(NamedTuple):
    """Levels with a size, sorted by span, side and price: there after the messages [start, end)."""

    span: Ints
    side: Ints
    code: Ints
    """The price's place among all prices."""
    size: Floats
    start: Ints
    end: Ints


def _lifetimes(
    rows: Rows,
    messages: _Messages,
    applies: Bools,
    before: Sequence[State],
    span: Ints,
    span_end: Ints,
    is_carried: Bools,
) -> tuple[_Lifetimes, Floats]:
    """The life of each level, and all prices in ascending order."""
    written = np.flatnonzero(applies[messages.of_row] & ~np.isnan(rows.price))
    time = [messages.of_row[written]]
    side = [rows.is_ask[written].astype(np.int64)]
    price = [rows.price[written]]
    size = [rows.size[written]]
    for start, state in zip(messages.starts, before, strict=True):
        if state.has_snapshot and is_carried[span[start]]:
            for number, (prices, sizes) in enumerate(
                ((state.bid_prices, state.bid_sizes), (state.ask_prices, state.ask_sizes))
            ):
                time.append(np.full(len(prices), start))
                side.append(np.full(len(prices), number))
                price.append(prices)
                size.append(sizes)
    # What is carried was written before: in front, so that the stable sort keeps it so.
    times, sides = np.concatenate(time[1:] + time[:1]), np.concatenate(side[1:] + side[:1])
    all_prices, code = np.unique(np.concatenate(price[1:] + price[:1]), return_inverse=True)
    sizes = np.concatenate(size[1:] + size[:1])
    spans = span[times] if len(times) else np.empty(0, np.int64)
    level = (spans * 2 + sides) * max(len(all_prices), 1) + code
    order = np.argsort(level, kind="stable")
    level, times, spans, sizes = level[order], times[order], spans[order], sizes[order]
    end = span_end[spans]
    is_rewritten = level[1:] == level[:-1]
    end[:-1][is_rewritten] = times[1:][is_rewritten]
    alive = np.flatnonzero((sizes > 0) & (times < end))
    kept = order[alive]
    return _Lifetimes(spans[alive], sides[kept], code[kept], sizes[alive], times[alive], end[alive]), all_prices


def _highest_cover(start: Ints, end: Ints, value: Ints, count: int) -> Ints:
    """For each place, the highest value of the intervals [start, end) that cover it; -1 where none does.

    A segment tree, all intervals at once: each is cut into the O(log n) nodes that cover it exactly, from the leaves
    up; then every place takes the highest of its ancestors.
    """
    size = 1 << max(count - 1, 0).bit_length()
    tree = np.full(2 * size, -1, np.int64)
    left, right = start + size, end + size
    while len(left):
        is_odd = (left & 1).astype(bool)
        np.maximum.at(tree, left[is_odd], value[is_odd])
        is_odd_end = (right & 1).astype(bool)
        np.maximum.at(tree, right[is_odd_end] - 1, value[is_odd_end])
        left, right = (left + 1) >> 1, right >> 1
        goes_on = left < right
        left, right, value = left[goes_on], right[goes_on], value[goes_on]
    first = 1
    while first < size:
        parents = tree[first : 2 * first]
        children = tree[2 * first : 4 * first].reshape(-1, 2)
        np.maximum(children, parents[:, None], out=children)
        first *= 2
    return tree[size : size + count]


def _price_at(prices: Floats, code: Ints) -> Floats:
    """Prices by their places; NaN where there is none."""
    found = np.full(len(code), np.nan)
    there = (code >= 0) & (code < len(prices))
    found[there] = prices[code[there]]
    return found


def _standing(
    levels: _Lifetimes, prices: Floats, span: Ints, ends: Ints
) -> Iterable[tuple[Floats, Floats, Floats, Floats]]:
    """Of each book: prices and sizes of the bids, then of the asks, that stand after its last message."""
    sides = levels.span * 2 + levels.side
    for end in ends:
        found: list[Floats] = []
        for side in (0, 1):
            of_side = slice(*np.searchsorted(sides, [span[end - 1] * 2 + side, span[end - 1] * 2 + side + 1]))
            stands = levels.end[of_side] == end
            found += [prices[levels.code[of_side][stands]], levels.size[of_side][stands]]
        yield found[0], found[1], found[2], found[3]


def _top(levels: _Lifetimes, prices: Floats, shown: Ints, part: Ints, depths: Sequence[int]) -> tuple[Levels, Levels]:
    """The best levels of each side after each message shown."""
    start, end = np.searchsorted(shown, levels.start), np.searchsorted(shown, levels.end)
    is_seen = start < end
    book = part[levels.start]
    bounds = np.searchsorted(part[shown], np.arange(len(depths) + 1))
    found = []
    for side in (0, 1):
        of_side = np.flatnonzero(is_seen & (levels.side == side))
        # Books follow each other, and so do their levels, for spans do.
        cuts = np.searchsorted(book[of_side], np.arange(len(depths) + 1))
        counts = np.zeros(len(shown), np.int64)
        codes: list[Ints] = []
        sizes: list[Floats] = []
        for number, depth in enumerate(depths):
            mine = of_side[cuts[number] : cuts[number + 1]]
            if len(mine):
                # Best first on both sides: bids are counted from above.
                code = levels.code[mine] if side else len(prices) - 1 - levels.code[mine]
                there, rank = np.unique(code, return_inverse=True)
                first, last = int(bounds[number]), int(bounds[number + 1])
                for block in _best(start[mine], end[mine], rank, levels.size[mine], first, last, depth):
                    counts[block.first : block.first + len(block.counts)] = block.counts
                    codes.append(there[block.ranks])
                    sizes.append(block.sizes)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        all_codes = np.concatenate(codes) if codes else np.empty(0, np.int64)
        places = all_codes if side else len(prices) - 1 - all_codes
        found.append(Levels(offsets, prices[places], np.concatenate(sizes) if sizes else NOTHING))
    return found[0], found[1]


class _Block(NamedTuple):
    first: int
    counts: Ints
    ranks: Ints
    sizes: Floats


def _best(start: Ints, end: Ints, rank: Ints, size: Floats, first: int, last: int, depth: int) -> Iterable[_Block]:
    """The `depth` levels of least rank at each grid point of [first, last), of levels that are there at [start, end).

    Grid points are taken in blocks. A block is a matrix, points by ranks, that holds what is written where, filled
    forward; it is only as wide as needed for every point to have enough levels.
    """
    # A level ends before another of its price begins.
    at = np.concatenate([end, start])
    order = np.argsort(at, kind="stable")
    at = at[order]
    ranks, sizes = np.concatenate([rank, rank])[order], np.concatenate([np.zeros(len(size)), size])[order]
    width = int(rank.max()) + 1
    standing = np.zeros(width)
    cuts = np.searchsorted(at, [*range(first, last, BLOCK), last])
    for block, begin in enumerate(range(first, last, BLOCK)):
        written = slice(cuts[block], cuts[block + 1])
        points = min(BLOCK, last - begin)
        row, column, value = at[written] - begin + 1, ranks[written], sizes[written]
        held = np.flatnonzero(standing)
        added = column[value > 0]
        lowest = min(int(held[0]) if len(held) else width, int(added.min()) if len(added) else width)
        enough = 2 * depth
        while True:
            highest = int(held[enough - 1]) if enough <= len(held) else width - 1
            is_near = (column >= lowest) & (column <= highest)
            near = np.zeros((points + 1, max(highest - lowest + 1, 0)))
            near[0] = standing[lowest : highest + 1]
            source = np.zeros(near.shape, np.int32)
            place = row[is_near], column[is_near] - lowest
            near[place] = value[is_near]
            source[place] = row[is_near]
            near = np.take_along_axis(near, np.maximum.accumulate(source, axis=0), axis=0)[1:]
            is_there = near > 0
            so_far = np.cumsum(is_there, axis=1, dtype=np.int32)
            if highest == width - 1 or so_far[:, -1].min() >= depth:
                break
            enough *= 4
        is_there &= so_far <= depth
        yield _Block(begin, np.count_nonzero(is_there, axis=1), np.nonzero(is_there)[1] + lowest, near[is_there])
        standing[column] = value
