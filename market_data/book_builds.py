"""Which books a build rebuilds, from where, and until when: the dbt model int_book_rebuilt.

    messages, lost or not, that this build wrote ──> per book: first date and place that changed
                                                  │
    states kept at each date's end ──> start: the state itself, where all that is new comes after it;
                                       else the last snapshot before the change; else the date before
                                                  │
           date by date, a million rows at a time: books.apply ──> rows, breaks, state
                                                  │
                       until the state at a date's end is what it was ──> the dates after it stand

A book is a listing and one of its books (`full`, or the venue's own `depth5`); its date and place among its messages
are `book_date` and `book_order` of int_book_updates__versioned and int_book_losses__versioned. A loss counts from a
book's first snapshot on, or behind a message of the book of the same date: a book of which nobody has read anything is
none.
A book's first snapshot of all goes on with the updates of the date before that it does not hold. Nothing here depends
on how records were cut into loads.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from market_data.books import NEVER_SEEN, NO_ID, Breaks, Rows, Shape, Shown, State, apply

ROWS_AT_ONCE = 1_000_000
DAY = 86_400_000_000_000
UPDATES = "lake.versioned.int_book_updates__versioned"
LOSSES = "lake.versioned.int_book_losses__versioned"
STATES = "lake.versioned.int_book_states"
CURRENT = "known_to is null and not is_duplicate and not is_deletion"

LEVELS = ("bid_prices", "bid_sizes", "ask_prices", "ask_sizes")
LINEAGE = ("feed", "schema_version", "load_id", "source", "source_partition", "source_position")
PRICES = pa.list_(pa.float64())
_OF_ALL = f"listing_id, book, book_date, book_order, message_id, event_time, known_from, {', '.join(LINEAGE)}"
MESSAGES = f"""(
    select {_OF_ALL}, update_id, first_update_id, is_snapshot, false as is_lost, levels from {UPDATES} where {CURRENT}
    union all
    select {_OF_ALL}, null, null, false, true, [] from {LOSSES} where {CURRENT}
)"""
"""What counts now: messages, and those lost, of which nothing is known but when they came."""
SCHEMA = pa.schema(
    [
        ("part", pa.string()),
        *((name, pa.string()) for name in ("listing_id", "venue", "symbol", "book")),
        ("book_date", pa.date32()),
        ("book_order", pa.int64()),
        ("event_time", pa.timestamp("ns")),
        ("known_from", pa.timestamp("ns")),
        ("depth", pa.int64()),
        *((name, PRICES) for name in LEVELS),
        ("update_id", pa.int64()),
        ("is_valid", pa.bool_()),
        ("has_snapshot", pa.bool_()),
        ("is_fresh", pa.bool_()),
        ("reason", pa.string()),
        ("expected_update_id", pa.int64()),
        ("first_update_id", pa.int64()),
        ("bid_price", pa.float64()),
        ("ask_price", pa.float64()),
        *((name, pa.string()) for name in LINEAGE[:4]),
        ("source_partition", pa.int32()),
        ("source_position", pa.int64()),
    ]
)
"""One table of four parts: `snapshot` and `break` rows, the `state` at a date's end, and the `start` after which all
that an earlier build made of a book's date is to be forgotten."""


class Book(NamedTuple):
    """A book, how it is shown, and where it was changed first on each date."""

    listing_id: str
    book: str
    venue: str
    symbol: str
    shape: Shape
    changed: dict[dt.date, int]


@dataclass
class _Work:
    """A book's part of one date: from which state, after which message, and what the state was before this build."""

    number: int
    state: State
    after: int = -1
    replays: bool = False
    """No date before has a snapshot: the first goes on with what the date before could not apply."""
    stored: State | None = None
    touched: int | None = None


def rebuild(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """Rebuild what changed since the mark in scratch.staging.books_mark; a table of SCHEMA."""
    mark, everything = _row(connection, "select mark, mark = 0 from scratch.staging.books_mark")
    books = _changed_books(connection, mark)
    out: list[pa.Table] = [SCHEMA.empty_table()]
    kept = {} if everything else _dates_kept(connection, books)
    lost = _dates_of_losses(connection, books)
    todo: dict[dt.date, set[int]] = {}
    for number, book in enumerate(books):
        for date in book.changed:
            todo.setdefault(date, set()).add(number)
    carried: dict[int, tuple[dt.date | None, State]] = {}  # of each book: its state at the end of the last date done
    is_carried: set[int] = set()  # whose next date is to be made anew: the state at that date's end is another one
    while todo:
        date = min(todo)
        numbers = sorted(todo.pop(date))
        work = _prepare(connection, books, numbers, date, kept, carried, is_carried)
        out += _rebuild_date(connection, books, work, date)
        for item in work:
            number = item.number
            is_there = item.state.order >= 0 and item.state is not NEVER_SEEN
            carried[number] = (date, item.state)
            dates = {*kept.get(number, ()), *books[number].changed, *lost.get(number, ())}
            later = [day for day in dates if day > date]
            # Where a book has no snapshot yet, the next date's may go on with what has changed here.
            is_replayed = (
                not item.state.has_snapshot and date in books[number].changed and date + dt.timedelta(days=1) in dates
            )
            if is_there or item.stored:
                is_carried.add(number)
            if item.state.equals(item.stored) and not is_replayed:
                is_carried.discard(number)
            if later and number in is_carried:
                todo.setdefault(min(later), set()).add(number)
    return pa.concat_tables(out)


def _changed_books(connection: duckdb.DuckDBPyConnection, mark: int) -> list[Book]:
    is_kept = mark > 0 and _is_there(connection)
    found = connection.execute(
        f"""
        with changed as (
            select listing_id, book, venue, symbol, feed, book_date, book_order from {UPDATES} where build_seq > $mark
        ),
        known as (
            select listing_id, book, venue, symbol from changed
            union
            select listing_id, book, venue, symbol from {STATES if is_kept else "changed"}
        ),
        lost as (
            select known.* exclude (named), feed, book_date, book_order
            from {LOSSES} as losses
            inner join (select *, unnest([listing_id, venue || ':']) as named from known) as known
                on losses.listing_id = known.named and losses.book = known.book
            where build_seq > $mark
        )
        select listing_id, book, venue, symbol, depth, grid, list(book_date), list(first_order)
        from (
            select listing_id, book, any_value(venue) as venue, any_value(symbol) as symbol, any_value(feed) as feed,
                book_date, min(book_order) as first_order
            from (from changed union all by name from lost)
            group by listing_id, book, book_date
        )
        inner join scratch.staging.books_shown using (feed)
        group by all
        order by listing_id, book
        """,
        {"mark": mark},
    ).fetchall()
    return [
        Book(listing, book, venue, symbol, Shape(_depth(book, depth), grid), dict(zip(dates, orders, strict=True)))
        for listing, book, venue, symbol, depth, grid, dates, orders in found
    ]


def _depth(book: str, depth: int) -> int:
    """How many levels a book shows: a venue's partial book as many as it has, `depth10` ten."""
    return int(book.removeprefix("depth")) if book.startswith("depth") else depth


def _dates_kept(connection: duckdb.DuckDBPyConnection, books: list[Book]) -> dict[int, list[dt.date]]:
    """The dates at whose end a state of a book is kept."""
    if not _is_there(connection):
        return {}
    _register(connection, "books_asked", books, list(range(len(books))))
    rows = connection.execute(
        f"select number, list(book_date order by book_date) from {STATES}"
        " inner join books_asked using (listing_id, book) group by number"
    ).fetchall()
    connection.unregister("books_asked")
    return dict(rows)


def _dates_of_losses(connection: duckdb.DuckDBPyConnection, books: list[Book]) -> dict[int, list[dt.date]]:
    """The dates on which messages were lost that were, or may have been, a book's."""
    _register(connection, "books_asked", books, list(range(len(books))))
    rows = connection.execute(
        f"select number, list(distinct book_date) from {LOSSES} inner join books_asked using (listing_id, book)"
        f" where {CURRENT} group by number"
    ).fetchall()
    connection.unregister("books_asked")
    return dict(rows)


def _is_there(connection: duckdb.DuckDBPyConnection) -> bool:
    try:
        connection.execute(f"from {STATES} limit 0")
    except duckdb.CatalogException:
        return False
    return True


def _prepare(
    connection: duckdb.DuckDBPyConnection,
    books: list[Book],
    numbers: list[int],
    date: dt.date,
    kept: dict[int, list[dt.date]],
    carried: dict[int, tuple[dt.date | None, State]],
    is_carried: set[int],
) -> list[_Work]:
    """Where each book starts on a date."""
    earlier = {number: [day for day in kept.get(number, ()) if day < date] for number in numbers}
    wanted: dict[dt.date, list[int]] = {}
    for number in numbers:
        done = carried.get(number, (None, NEVER_SEEN))[0]
        if date in kept.get(number, ()):
            wanted.setdefault(date, []).append(number)
        if earlier[number] and number not in is_carried and earlier[number][-1] != done:
            wanted.setdefault(earlier[number][-1], []).append(number)
    states = {day: _states(connection, books, day, asked) for day, asked in wanted.items()}
    work = []
    for number in numbers:
        last = earlier[number][-1] if earlier[number] else None
        before = states.get(last, {}).get(number) if last else None
        if before is None:
            before = carried.get(number, (None, NEVER_SEEN))[1]
        state, stored = replace(before, order=-1, time=0), states.get(date, {}).get(number)
        item = _Work(number, state, replays=not before.has_snapshot, stored=stored)
        if number not in is_carried:
            item.touched = books[number].changed[date]
            if item.stored is not None and item.touched > item.stored.order:
                item.state, item.after = item.stored, item.stored.order
        work.append(item)
    _start_at_snapshots(connection, books, [item for item in work if item.after < 0 and item.touched], date)
    return work


def _start_at_snapshots(
    connection: duckdb.DuckDBPyConnection, books: list[Book], work: list[_Work], date: dt.date
) -> None:
    """Let a book start at the last snapshot before its first change, where the date has one that applied."""
    if not work:
        return
    _register(
        connection,
        "books_asked",
        books,
        [item.number for item in work],
        touched=pa.array([item.touched for item in work], pa.int64()),
        update_id=pa.array([item.state.update_id for item in work], pa.int64()),
    )
    found = connection.execute(
        f"""
        with messages as (
            select
                number, book_order, bool_and(is_snapshot) as is_snapshot, count(distinct message_id) as messages,
                max({_time(date)}) as time,
                max(coalesce(v.update_id, asked.update_id)) >= max(asked.update_id) as applied
            from {MESSAGES} as v
            inner join books_asked as asked using (listing_id, book)
            where book_date = ? and book_order < touched
            group by number, book_order
        ),
        starts as (
            select number, max(book_order) as start
            from messages
            where is_snapshot and messages = 1 and applied
            group by number
        )
        select number, start, max(time) filter (book_order < start)
        from messages inner join starts using (number)
        group by number, start
        """,
        [date],
    ).fetchall()
    connection.unregister("books_asked")
    starts = {number: (start, time) for number, start, time in found}
    for item in work:
        if item.number in starts:
            start, time = starts[item.number]
            item.after = start - 1
            item.state = replace(item.state, order=item.after, time=time or 0)


def _time(date: dt.date) -> str:
    """An update's time on the grid: its event time, within the date that it counts to."""
    start = int(dt.datetime.combine(date, dt.time(), dt.UTC).timestamp()) * 10**9
    return f"least(greatest(epoch_ns(event_time), {start}), {start + DAY - 1})"


def _rebuild_date(
    connection: duckdb.DuckDBPyConnection, books: list[Book], work: list[_Work], date: dt.date
) -> Iterator[pa.Table]:
    """The tables that come of a date's work, whose states are moved on to the date's end."""
    states = {item.number: item.state for item in work}
    seen: set[int] = set()
    shapes = {item.number: books[item.number].shape for item in work}
    shown: list[pa.Table] = []
    for table in _read(connection, books, work, date):
        rows = Rows(**{name: _array(table[name]) for name in Rows.__dataclass_fields__})
        at_points, at_breaks, after = apply(rows, states, shapes)
        states |= after
        seen |= set(after)
        shown.append(_shown(table, at_points, books, date))
        yield _broken(table, at_breaks, books, date)
    points = _last_of_cells(pa.concat_tables(shown), shapes) if shown else None
    first: dict[int, int] = {}
    if points is not None:
        numbers, times = _array(points["number"]), _array(points["event_time"].cast(pa.int64()))
        where = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)])
        first = {int(numbers[place]): int(times[place]) for place in where}
        yield points.drop_columns(["number"]).cast(SCHEMA)
    starts, ends = [], []
    for item in work:
        item.state = states[item.number] if item.number in seen else item.state
        book = _said(books[item.number], date)
        grid = shapes[item.number].grid
        since = first.get(item.number) if grid else None
        starts.append(book | {"part": "start", "book_order": item.after, "event_time": since})
        if item.number in seen:
            ends.append(book | _state_row(item.state))
        elif item.after < 0:  # nothing of the date is left
            item.state = replace(item.state, order=-1)
        else:
            ends.append(book | _state_row(item.state))
    yield _table(starts)
    yield _table(ends)


def _read(
    connection: duckdb.DuckDBPyConnection, books: list[Book], work: list[_Work], date: dt.date
) -> Iterator[pa.Table]:
    """The level changes to apply, in the venue's order, in tables of whole messages."""
    replays = _first_snapshots(connection, books, [item for item in work if item.replays], date)
    dates = [date, date - dt.timedelta(days=1)] if replays else [date]
    _register(
        connection,
        "books_asked",
        books,
        [item.number for item in work],
        after=pa.array([item.after for item in work], pa.int64()),
        is_begun=pa.array([item.state.has_snapshot or item.after >= 0 for item in work]),
        first_snapshot=pa.array([replays.get(item.number) for item in work], pa.int64()),
    )
    reader = connection.execute(
        f"""
        with begun as (
            select number, min(book_order) as first_order
            from {UPDATES}
            inner join books_asked using (listing_id, book)
            where book_date = $date and {CURRENT}
            group by number
        ),
        messages as (
            select
                number as book, book_order as "order",
                hash(source, source_partition, source_position) as record,
                coalesce(update_id, {NO_ID}) as update_id, coalesce(first_update_id, {NO_ID}) as first_update_id,
                is_snapshot, is_lost, {_time(date)} as event_time, epoch_ns(known_from) as known_from,
                case when len(levels) > 0 then levels else [null] end as levels, {", ".join(LINEAGE)}
            from {MESSAGES}
            inner join books_asked using (listing_id, book)
            left join begun using (number)
            where book_date in ({", ".join(f"date '{day}'" for day in dates)}) and book_order > after
                and (book_date = $date or book_order > first_snapshot)
                and (not is_lost or is_begun or book_order > first_order)
        ),
        levels as (
            select * exclude (levels), unnest(levels) as level, generate_subscripts(levels, 1) as place
            from messages
        )
        select
            * exclude (level, place), coalesce(level.side = 'ask', false) as is_ask,
            coalesce(level.price, 'nan'::double) as price, coalesce(level.size, 0) as size
        from levels
        order by book, "order", source, source_partition, source_position, place
        """,
        {"date": date},
    ).to_arrow_reader(ROWS_AT_ONCE)
    rest: pa.Table | None = None
    for batch in reader:
        table = pa.Table.from_batches([batch])
        table = pa.concat_tables([rest, table]).combine_chunks() if rest is not None else table
        keys = [_array(table[name]) for name in ("book", "order", "record")]
        same = np.logical_and.reduce([key[:-1] == key[-1] for key in keys])
        others = np.flatnonzero(~same)
        cut = int(others[-1]) + 1 if len(others) else 0
        rest = table.slice(cut)
        if cut:
            yield table.slice(0, cut)
    if rest is not None and rest.num_rows:
        yield rest
    connection.unregister("books_asked")


def _first_snapshots(
    connection: duckdb.DuckDBPyConnection, books: list[Book], work: list[_Work], date: dt.date
) -> dict[int, int]:
    """The place of each book's first snapshot of a date, where its messages are numbered."""
    if not work:
        return {}
    _register(connection, "books_asked", books, [item.number for item in work])
    rows = connection.execute(
        f"select number, min(book_order) from {UPDATES} inner join books_asked using (listing_id, book)"
        f" where book_date = ? and is_snapshot and update_id is not null and {CURRENT} group by number",
        [date],
    ).fetchall()
    connection.unregister("books_asked")
    return dict(rows)


def _shown(table: pa.Table, shown: Shown, books: list[Book], date: dt.date) -> pa.Table:
    of = table.take(pa.array(shown.row))
    levels = [column for side in (shown.bids, shown.asks) for column in side.lists()]
    depth = [books[number].shape.depth for number in of["book"].to_pylist()]
    return _with_lineage(
        of,
        books,
        date,
        "snapshot",
        event_time=pa.array(shown.event_time).cast(pa.timestamp("ns")),
        known_from=pa.array(shown.known_from).cast(pa.timestamp("ns")),
        depth=pa.array(depth, pa.int64()),
        update_id=_ids(shown.update_id),
        is_valid=pa.array(shown.is_valid),
        **dict(zip(LEVELS, levels, strict=True)),
    ).append_column("number", of["book"])


def _broken(table: pa.Table, breaks: Breaks, books: list[Book], date: dt.date) -> pa.Table:
    of = table.take(pa.array(breaks.row))
    prices = {
        name: pa.array(values, mask=(breaks.reason != "crossed") | np.isnan(values))
        for name, values in (("bid_price", breaks.bid_price), ("ask_price", breaks.ask_price))
    }
    return _with_lineage(
        of,
        books,
        date,
        "break",
        event_time=pa.array(breaks.event_time).cast(pa.timestamp("ns")),
        known_from=pa.array(breaks.known_from).cast(pa.timestamp("ns")),
        update_id=_ids(_array(of["update_id"])),
        reason=pa.array(breaks.reason.tolist(), pa.string()),
        expected_update_id=_ids(breaks.expected_update_id),
        first_update_id=_ids(_array(of["first_update_id"])),
        **prices,
    ).cast(SCHEMA)


def _with_lineage(of: pa.Table, books: list[Book], date: dt.date, part: str, **columns: pa.Array) -> pa.Table:
    """A table of SCHEMA: the columns given, and of which book and message each row is."""
    numbers = of["book"].combine_chunks()
    names = {name: pa.array([getattr(book, name) for book in books], pa.string()) for name in SCHEMA.names[1:5]}
    columns |= {name: values.take(numbers) for name, values in names.items()}
    columns |= {name: of[name] for name in LINEAGE} | {"book_order": of["order"]}
    columns["part"] = pa.repeat(pa.scalar(part), of.num_rows)
    columns["book_date"] = pa.repeat(pa.scalar(date), of.num_rows)
    return pa.table(
        {
            item.name: columns[item.name] if item.name in columns else pa.nulls(of.num_rows, item.type)
            for item in SCHEMA
        },
        SCHEMA,
    )


def _last_of_cells(shown: pa.Table, shapes: dict[int, Shape]) -> pa.Table:
    """Without the points that the next table shows again, where a cell goes on from one table into the next."""
    shown = shown.combine_chunks()
    number, time = _array(shown["number"]), _array(shown["event_time"].cast(pa.int64()))
    on_grid = np.array([shapes[int(one)].grid > 0 for one in np.unique(number)], bool)
    is_again = np.zeros(len(number), bool)
    if len(number):
        is_again[:-1] = (number[1:] == number[:-1]) & (time[1:] == time[:-1])
        is_again &= on_grid[np.unique(number, return_inverse=True)[1]]
    return shown.filter(pa.array(~is_again))


def _said(book: Book, date: dt.date) -> dict[str, Any]:
    return {
        "listing_id": book.listing_id,
        "venue": book.venue,
        "symbol": book.symbol,
        "book": book.book,
        "book_date": date,
    }


def _state_row(state: State) -> dict[str, Any]:
    return {
        "part": "state",
        "book_order": state.order,
        "event_time": state.time,
        "known_from": state.known_from,
        "update_id": None if state.update_id == NO_ID else state.update_id,
        "is_valid": state.is_valid,
        "has_snapshot": state.has_snapshot,
        "is_fresh": state.is_fresh,
        **{name: getattr(state, name) for name in LEVELS},
    }


def _states(
    connection: duckdb.DuckDBPyConnection, books: list[Book], date: dt.date, numbers: list[int]
) -> dict[int, State]:
    """States as an earlier build kept them at a date's end."""
    _register(connection, "books_asked", books, numbers)
    rows = connection.execute(
        f"""
        select number, book_order, has_snapshot, coalesce(update_id, {NO_ID}) as update_id, is_fresh, is_valid,
            epoch_ns(known_from) as known_from, epoch_ns(event_time) as time, {", ".join(LEVELS)}
        from {STATES} inner join books_asked using (listing_id, book)
        where book_date = ?
        """,
        [date],
    ).to_arrow_table()
    connection.unregister("books_asked")
    levels = {name: rows[name].combine_chunks() for name in LEVELS}
    found = {}
    for place, row in enumerate(rows.drop_columns(list(LEVELS)).to_pylist()):
        sides = {name: levels[name][place].values.to_numpy(zero_copy_only=False) for name in LEVELS}
        number, order = row.pop("number"), row.pop("book_order")
        found[number] = State(order=order, **row, **sides)
    return found


def _register(
    connection: duckdb.DuckDBPyConnection, name: str, books: list[Book], numbers: list[int], **columns: pa.Array
) -> None:
    """Books to ask for. A loss is found by its book, or by the venue alone where it may have been any book's."""
    chosen = [books[number] for number in numbers]
    found = pa.table(
        {
            "number": pa.array(numbers, pa.int64()),
            "listing_id": pa.array([book.listing_id for book in chosen], pa.string()),
            "book": pa.array([book.book for book in chosen], pa.string()),
            **columns,
        }
    )
    venues = pa.array([f"{book.venue}:" for book in chosen], pa.string())
    connection.register(name, pa.concat_tables([found, found.set_column(1, "listing_id", venues)]))


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({item.name: pa.array([row.get(item.name) for row in rows], item.type) for item in SCHEMA}, SCHEMA)


def _ids(values: Any) -> pa.Array:
    return pa.array(values, pa.int64(), mask=values == NO_ID)


def _array(column: pa.ChunkedArray) -> Any:
    return column.combine_chunks().to_numpy(zero_copy_only=False)


def _row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None  # noqa: S101
    return row
