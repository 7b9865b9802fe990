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
from market_data import bookkeeping, lake, lock
from market_data.names import unknown

PINS = "create table if not exists lake.observability.pins (name varchar, version bigint)"
_METADATA = "__ducklake_metadata_lake"
_COUNTERS = ("build_seq", "load_seq", "is_last")


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
    """How many loads it took in since the kept version before."""
    code_fingerprint: str
    pins: tuple[str, ...] = ()
    changes: dict[str, Change] = field(default_factory=dict)
    """By table, those of canonical and research that changed since the kept version before."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"published_at": self.published_at.isoformat() + "Z"}


def kept_version(connection: duckdb.DuckDBPyConnection, version: int | str) -> int:
    """The number of a published version that is kept, given as it is or by the name of a pin.

    ``connection`` reads the head. Raises ``NotPublishedError`` where there is none, naming the nearest.
    """
    if isinstance(version, str):
        pinned = pins(connection)
        if version not in pinned:
            raise NotPublishedError(unknown("pin", version, pinned, "this lake"))
        version = pinned[version]
    rows = connection.execute(
        "select version, version in (select snapshot_id from lake.snapshots()) from lake.observability.releases"
    ).fetchall()
    is_kept = dict(rows)
    if version not in is_kept:
        raise NotPublishedError(f"version {version} was not published; the last one is {max(is_kept)}")
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
    if not name.strip() or name.strip().isdecimal():
        raise PinError(f"{name!r} is no name for a pin: a version's number or nothing; say what it is for")
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
            loads - (before[2] or 0),
            code,
            names.get(version, ()),
            dict(_changes(connection, before[0], version)),
        )
        for (version, published_at, loads, code), before in pairwise([*rows, before_all])
    ][:last]


def _changes(connection: duckdb.DuckDBPyConnection, before: int | None, version: int) -> Iterator[tuple[str, Change]]:
    then = {} if before is None else _tables(connection, before)
    for (schema, table), table_id in sorted(_tables(connection, version).items()):
        # Canonical tables are views of versions, which hold duplicates too.
        is_versioned = schema == "versioned"
        name = f"canonical.{table.removeprefix('int_').removesuffix('__versioned')}" if is_versioned else None
        where = "not is_duplicate" if is_versioned else "true"
        change = (
            _between(connection, schema, table, before, version, where)
            if before is not None and then.get((schema, table)) == table_id
            else _made_anew(connection, schema, table, before, version, where, was_there=(schema, table) in then)
        )
        if change is not None:
            yield name or f"{schema}.{table}", change


def _tables(connection: duckdb.DuckDBPyConnection, version: int) -> dict[tuple[str, str], int]:
    """The tables of a version that people read, by the number that tells a table from one made anew under its name."""
    rows = connection.execute(
        f"""
        select schema_name, table_name, table_id
        from {_METADATA}.ducklake_table as tables
        inner join {_METADATA}.ducklake_schema as schemas using (schema_id)
        where tables.begin_snapshot <= $version and coalesce(tables.end_snapshot > $version, true)
            and schemas.begin_snapshot <= $version and coalesce(schemas.end_snapshot > $version, true)
            and schema_name in ('versioned', 'canonical', 'research')
        """,
        {"version": version},
    ).fetchall()
    return {(schema, table): table_id for schema, table, table_id in rows}


def _between(
    connection: duckdb.DuckDBPyConnection, schema: str, table: str, before: int, version: int, where: str
) -> Change | None:
    """What changed in a table that stood: rows that came and went again, and those made anew alike, are no change."""
    feed = f"ducklake_table_changes('lake', {lake.quoted(schema)}, {lake.quoted(table)}, {before}, {version})"
    columns = [name for name, *_ in connection.execute(f"describe from {feed}").fetchall()]
    content = [lake.identifier(name) for name in columns[3:] if name not in _COUNTERS]
    # The change feed begins with snapshot_id, rowid, change_type; the snapshot after `before` may have expired.
    came, went = connection.execute(
        f"""
        with changed as (
            select {", ".join(content)}, sum(if(change_type in ('insert', 'update_postimage'), 1, -1)) as balance
            from {feed}
            where snapshot_id > {before} and {where}
            group by all
        )

        select coalesce(sum(balance) filter (balance > 0), 0), -coalesce(sum(balance) filter (balance < 0), 0)
        from changed
        """
    ).fetchall()[0]
    if not came and not went:
        return None
    revised = min(came, went)
    return Change(int(came - revised), int(revised), int(went - revised))


def _made_anew(
    connection: duckdb.DuckDBPyConnection,
    schema: str,
    table: str,
    before: int | None,
    version: int,
    where: str,
    *,
    was_there: bool,
) -> Change | None:
    def rows(at: int | None) -> int:
        name = f"lake.{lake.identifier(schema)}.{lake.identifier(table)}"
        return bookkeeping.scalar(connection, f"select count(*) from {name} at (version => {at}) where {where}")

    more = rows(version) - (rows(before) if was_there else 0)
    return Change(max(more, 0), 0, max(-more, 0), is_new=True)
