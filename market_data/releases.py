"""Published versions: which are kept, what changed from one to the next, and pins, which keep one for ever.

    observability.releases ──┬─ those whose snapshot still exists ── DuckLake's change feed ──> what changed
    observability.pins ──────┘        ^
            └── mdp maintain keeps these, whatever their age

A pin is a name for a version: of a paper, a backtest, an audit.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import duckdb

from loaders.settings import Settings
from loaders.texts import few
from market_data import bookkeeping, lake, lock
from market_data.names import unknown

PINS = "create table if not exists lake.observability.pins (name varchar, version bigint)"
_METADATA = "__ducklake_metadata_lake"
_NO_CONTENT = (
    *("build_seq", "load_seq", "is_last", "first_event_time", "last_event_time"),
    *("first_copy", "delivered_at", "rule_known_from", "self_dated"),
    *("scope", "load_scope", "identity_scope", "slot", "quote_number"),
)
"""Columns of stored tables that say nothing of what is known: views do not show them."""
_NUMBERS = ("DOUBLE", "FLOAT")
_PAIRS = "feed in (select feed from lake.reference.feeds where asset_class = 'crypto')"
_PARTS = {
    "canonical.book_snapshots": {"int_book_snapshots": "true"},
    "canonical.instruments": {"int_listings": _PAIRS},
    "canonical.symbology": {"int_listings": _PAIRS},
    "research.universe": {
        "int_universe_top": "true",
        "int_universe_membership__versioned": "not is_duplicate and not is_deletion",
    },
}
"""Views, and which rows of which tables of ``versioned`` they show, beside those of int_<name>__versioned."""


class NotPublishedError(RuntimeError):
    """The lake has no published version yet, or not the one that was asked for."""


class PinError(ValueError):
    """A pin of that name exists, or does not."""


@dataclass(frozen=True)
class Change:
    """What changed in a table since the kept version before."""

    added: int
    """Rows more than before: new facts, and new versions of known ones."""
    revised: int
    """Rows that were there and say something else now: as a rule their known_to, since a new version follows."""
    removed: int
    """Rows less than before; none but for tables that were made anew by other code."""
    is_new: bool = False
    """The table was made, or made anew, since then."""


@dataclass(frozen=True)
class Published:
    """A version that was published and is kept."""

    version: int
    published_at: dt.datetime
    """UTC."""
    loads: int
    """How many loads it has read that the kept version before had not."""
    read_again: int
    """How many that the one before had, and that were read again since (market_data/reprocessing.py)."""
    refused: int
    """How many files were refused since; they are no loads."""
    code_fingerprint: str
    pins: tuple[str, ...] = ()
    changes: dict[str, Change] = field(default_factory=dict)
    """By public name, those of canonical and research that changed since the kept version before. A view is told by the
    stored rows that it shows, features_1d by those of the daily tables that it joins."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"published_at": self.published_at.isoformat() + "Z"}


def kept_version(connection: duckdb.DuckDBPyConnection, version: int | str) -> int:
    """The number of a published version that is kept, given as it is, as text, or by the name of a pin.

    ``connection`` reads the head. Raises ``NotPublishedError`` where there is none, naming the nearest.
    """
    if isinstance(version, str) and not version.isdecimal():
        pinned = pins(connection)
        if version not in pinned:
            raise NotPublishedError(unknown("pin", version, pinned, "this lake"))
        version = pinned[version]
    version = int(version)
    rows = connection.execute(
        "select version, version in (select snapshot_id from lake.snapshots()) from lake.observability.releases"
    ).fetchall()
    is_kept = dict(rows)
    if version not in is_kept:
        last = few([str(other) for other in sorted(is_kept, reverse=True) if is_kept[other]], 5)
        raise NotPublishedError(f"version {version} was not published; the last that are kept: {last}")
    if not is_kept[version]:
        kept = [other for other in is_kept if is_kept[other]]
        earlier = max((other for other in kept if other < version), default=None)
        later = min((other for other in kept if other > version), default=None)
        nearest = " and ".join(str(other) for other in (earlier, later) if other is not None)
        raise NotPublishedError(f"version {version} is not kept any more; the nearest that are: {nearest}")
    return version


def pins(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """The version of each pin, by its name. ``connection`` reads the head."""
    if not bookkeeping.are_there(connection, ["pins"]):
        return {}
    return dict(connection.execute("select name, version from lake.observability.pins order by all").fetchall())


def pin(settings: Settings, name: str, version: int | str | None = None) -> int:
    """Keep a version, by default the last published one, for ever under a name; which it is.

    Waits for the lake's writers' lock. Raises ``PinError`` where the name is taken by another version, and
    ``NotPublishedError`` where there is no such version.
    """
    if not name or name != name.strip() or name.isdecimal():
        raise PinError(f"{name!r} is no name for a pin: say what it is for, not as a number, without blanks around")
    with lock.writers_lock(settings), lake.open_for_writing(settings) as connection:
        pinned = pins(connection)
        if version is None:
            row = connection.execute("select max(version) from lake.observability.releases").fetchone()
            version = row[0] if row else None
            if version is None:
                raise NotPublishedError("nothing is published in this lake yet")
        number = kept_version(connection, version)
        if pinned.get(name, number) != number:
            raise PinError(f"{name} pins version {pinned[name]} already; unpin it first, or take another name")
        if name not in pinned:
            connection.execute(PINS)
            connection.execute("insert into lake.observability.pins values (?, ?)", [name, number])
        return number


def unpin(settings: Settings, name: str) -> int:
    """Take a pin away; the version that it kept, whose age decides from now on. ``PinError`` where there is none."""
    with lock.writers_lock(settings), lake.open_for_writing(settings) as connection:
        pinned = pins(connection)
        if name not in pinned:
            raise PinError(unknown("pin", name, pinned, "this lake"))
        connection.execute("delete from lake.observability.pins where name = ?", [name])
        return pinned[name]


def kept_count(connection: duckdb.DuckDBPyConnection) -> int:
    """How many published versions are kept. ``connection`` reads the head."""
    query = "select count(distinct version) from lake.observability.releases"
    return bookkeeping.scalar(connection, f"{query} where version in (select snapshot_id from lake.snapshots())")


def published(connection: duckdb.DuckDBPyConnection, last: int) -> list[Published]:
    """The last published versions that are kept, newest first, each with what changed since the kept one before.

    ``connection`` reads the head. Costs by what changed between them.
    """
    rows = connection.execute(
        """
        select version, any_value(published_at), any_value(last_load_seq), any_value(code_fingerprint)
        from lake.observability.releases
        where version in (select snapshot_id from lake.snapshots())
        group by version
        order by version desc
        limit ?
        """,
        [last + 1],
    ).fetchall()
    names: dict[int, tuple[str, ...]] = {}
    for name, version in pins(connection).items():
        names[version] = (*names.get(version, ()), name)
    before_all = (None, None, 0, None)
    return [
        Published(
            version,
            published_at,
            *_loads(connection, before[0], before[2], version, last_load),
            code,
            names.get(version, ()),
            dict(_changes(connection, before[0], version)),
        )
        for (version, published_at, last_load, code), before in list(pairwise([*rows, before_all]))[:last]
    ]


def _loads(
    connection: duckdb.DuckDBPyConnection, before: int | None, last_before: int, version: int, last: int
) -> tuple[int, int, int]:
    """How many loads are new, were read again (they have new numbers), and how many files were refused, since before.

    Entries after the ``last`` that a version has read are not its own yet.
    """
    known = "select load_id from lake.observability.loads"
    known += " where false" if before is None else f" at (version => {before}) where load_seq <= {last_before}"
    ((new, again, refused),) = connection.execute(
        f"""
        select
            count(*) filter (outcome = 'loaded' and not is_known),
            count(*) filter (outcome = 'loaded' and is_known),
            count(*) filter (outcome = 'refused')
        from (
            select outcome, load_id in ({known}) as is_known
            from lake.observability.loads at (version => {version})
            where load_seq > {last_before} and load_seq <= {last}
        )
        """
    ).fetchall()
    return new, again, refused


@dataclass(frozen=True)
class _Stored:
    """A table of a version, as it is stored."""

    schema: str
    table: str
    number: int
    """Tells a table from one made anew under its name."""
    shown: str
    """Which of its rows readers are shown, in SQL: not the repeats of what is known."""

    @property
    def name(self) -> str:
        return f"lake.{lake.identifier(self.schema)}.{lake.identifier(self.table)}"


def _changes(connection: duckdb.DuckDBPyConnection, before: int | None, version: int) -> Iterator[tuple[str, Change]]:
    then = {} if before is None else _tables(connection, before)
    for name, parts in sorted(_tables(connection, version).items()):
        earlier = then.get(name, {})
        came = went = 0
        is_new = False
        for table, stored in parts.items():
            if before is not None and earlier.get(table) == stored:
                moved = _between(connection, stored, before, version)
            else:
                moved, is_new = _made_anew(connection, earlier.get(table), before, stored, version), True
            came, went = came + moved[0], went + moved[1]
        if came or went or is_new:
            revised = min(came, went)
            yield name, Change(came - revised, revised, went - revised, is_new)


def _made_anew(
    connection: duckdb.DuckDBPyConnection, earlier: _Stored | None, before: int | None, stored: _Stored, version: int
) -> tuple[int, int]:
    """How many more rows a table has that was made since, and how many less; which are others is not looked at."""
    rows = _count(connection, stored, version)
    more = rows - (_count(connection, earlier, before) if earlier and before is not None else 0)
    return max(more, 0), max(-more, 0)


def _tables(connection: duckdb.DuckDBPyConnection, version: int) -> dict[str, dict[str, _Stored]]:
    """What people read of a version, by the names that they read it by, each with the tables that hold its rows.

    Of trades deletions are shown too, as cancels.
    """

    def alive(table: str) -> str:
        return f"{table}.begin_snapshot <= {version} and coalesce({table}.end_snapshot > {version}, true)"

    parts = [(view, table, shown) for view, tables in _PARTS.items() for table, shown in tables.items()]
    listed = ", ".join(f"({', '.join(map(lake.quoted, part))})" for part in parts)
    rows = connection.execute(
        f"""
        with names as (
            select schema_id, schema_name from {_METADATA}.ducklake_schema as s where {alive("s")}
        ),

        views as (
            select schema_name || '.' || view_name as name
            from {_METADATA}.ducklake_view as v
            inner join names using (schema_id)
            where {alive("v")}
        ),

        tables as (
            select
                schema_name,
                table_name,
                table_id,
                if(
                    table_id in (select table_id from {_METADATA}.ducklake_column where column_name = 'is_duplicate'),
                    'not is_duplicate' || if(table_name = 'int_trades__versioned', '', ' and not is_deletion'),
                    'true'
                ) as shown
            from {_METADATA}.ducklake_table as t
            inner join names using (schema_id)
            where {alive("t")}
        ),

        read_as as (
            select schema_name || '.' || table_name as name, tables.*
            from tables
            where schema_name in ('canonical', 'research') and not starts_with(table_name, 'int_')
            union all
            select 'canonical.' || regexp_extract(table_name, '^int_(.*)__versioned$', 1) as name, tables.*
            from tables
            where schema_name = 'versioned' and name in (select name from views)
            union all
            select parts.name, tables.* replace (parts.shown as shown)
            from tables
            inner join (values {listed}) as parts (name, part, shown) on tables.table_name = parts.part
            where schema_name = 'versioned' and parts.name in (select name from views)
        )

        select name, schema_name, table_name, table_id, shown from read_as
        """
    ).fetchall()
    found: dict[str, dict[str, _Stored]] = {}
    for name, *stored in rows:
        table = _Stored(*stored)
        found.setdefault(name, {})[table.table] = table
    return found


def _between(connection: duckdb.DuckDBPyConnection, stored: _Stored, before: int, version: int) -> tuple[int, int]:
    """How many rows of a table that stood came, and how many went. What came and went again, and what was made anew
    alike, is no change.

    Alike are two rows whose numbers differ by no more than sums do that were made in another order (docs/time.md).
    """
    facts, numbers = _content(connection, stored, version)
    place = f"{lake.quoted(stored.schema)}, {lake.quoted(stored.table)}"
    # The feed begins a version too early, since the snapshot after it may have expired; what it says of that one weighs
    # nothing. A condition instead would pass over files of deletions, which are put down to the first one in them.
    # It may name a deletion twice.
    came, went = connection.execute(
        f"""
        with moved as (
            select 1 as weight, snapshot_id, rowid, *
            from ducklake_table_insertions('lake', {place}, {before}, {version})
            union all
            select distinct -1 as weight, snapshot_id, rowid, *
            from ducklake_table_deletions('lake', {place}, {before}, {version})
        ),

        changed as (
            select {", ".join([*facts, *numbers])}, sum(if(snapshot_id > {before}, weight, 0))::bigint as balance
            from moved
            where {stored.shown}
            group by all
            having balance != 0
        ),

        pairs as (
            select
                sum(greatest(balance, 0)) as came,
                sum(greatest(-balance, 0)) as went,
                {" and ".join(["came = 1", "went = 1", *map(_is_alike, numbers)])} as is_alike
            from changed
            group by {", ".join(facts)}
        )

        select coalesce(sum(came), 0), coalesce(sum(went), 0) from pairs where not is_alike
        """
    ).fetchall()[0]
    return int(came), int(went)


def _content(connection: duckdb.DuckDBPyConnection, stored: _Stored, version: int) -> tuple[list[str], list[str]]:
    """The columns that say what is known, as identifiers: those that are equal or not, among them lists and maps, whose
    numbers are no sums, and the numbers that may be close."""
    columns = connection.execute(f"describe select * from {stored.name} at (version => {version})").fetchall()
    kinds = {lake.identifier(name): kind for name, kind, *_ in columns if name not in _NO_CONTENT}
    numbers = [name for name, kind in kinds.items() if kind in _NUMBERS]
    return [name for name in kinds if name not in numbers], numbers


def _is_alike(number: str) -> str:
    """Whether a column's two numbers do not differ, by the rule of dbt_project/macros/research/grid.sql."""
    most, least = f"max({number})", f"min({number})"
    is_close = f"{most} - {least} <= 1e-12 * greatest(abs({most}), abs({least}))"
    return f"count({number}) != 1 and coalesce({most} = {least} or {is_close}, true)"


def _count(connection: duckdb.DuckDBPyConnection, stored: _Stored, version: int) -> int:
    query = f"select count(*) from {stored.name} at (version => {version}) where {stored.shown}"
    return bookkeeping.scalar(connection, query)
