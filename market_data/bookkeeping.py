"""What the lake knows of its own making: schema ``observability``, tables that dbt does not build.

ledger of the raw zone ── enter_loads ─┬> loads      one row per ledger entry taken in, numbered by load_seq
                                       ├> readings   one row per load and time that its records were read: by which code
                                       └> sealed     one row per raw file that a seal has replaced
dbt models              ── note_progress ─> progress  one row per model: the last load_seq that it has processed
                        ── note_extents ──> extents   one row per large table, listing (or delivery's scope) and hour
dbt and mdp             ───────────────────> runs      one row per thing that happened to the head of the lake
mdp build, mdp publish  ───────────────────> releases  one row per published version
mdp releases pin        ───────────────────> pins      one row per name of a version that is kept for ever
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Mapping, Sequence

import duckdb
import msgspec
import pyarrow as pa

from loaders.ledger import POINTER_LIFE, Entry, Ledger, cursor_before
from loaders.settings import Settings
from loaders.store import open_store
from market_data import fingerprints

TABLES = """
create schema if not exists lake.observability;
call lake.set_option('data_inlining_row_limit', 0);
call lake.set_option('data_inlining_row_limit', 10, schema => 'observability');
create table if not exists lake.observability.loads (
    load_seq bigint, load_id varchar, feed varchar, outcome varchar, ledger_key varchar, ledger_cursor varchar,
    source varchar, source_time timestamp_ns, delivered_at timestamp_ns, records bigint, bytes bigint,
    files varchar[], attributes varchar, schema_version varchar, drift varchar, error varchar, loaded_at timestamp_ns
);
create table if not exists lake.observability.readings (
    load_seq bigint, load_id varchar, feed varchar, fingerprint varchar
);
create table if not exists lake.observability.sealed (file varchar, load_id varchar, seal_id varchar);
create table if not exists lake.observability.progress (model varchar, load_seq bigint, invocation_id varchar);
create table if not exists lake.observability.extents (
    model varchar, feed varchar, scope varchar, listing_id varchar, hour timestamp,
    first_number bigint, last_number bigint, has_other boolean, build_seq bigint
);
create table if not exists lake.observability.runs (
    invocation_id varchar, event varchar, command varchar, happened_at timestamp
);
create table if not exists lake.observability.releases (
    version bigint, published_at timestamp, last_load_seq bigint, code_fingerprint varchar
);
"""

FILE_OPTIONS = {"parquet_version": "V2", "parquet_compression": "zstd"}
"""How the lake's files are written, as DuckLake tells it."""

OVERLAP_SECONDS = 300
"""By how much the clocks of loaders may differ."""

NAMES = ("loads", "readings", "sealed", "progress", "extents", "runs", "releases")
# Tables of the head that a restore leaves as they are: they tell what happened, not what is known.
KEPT_BY_RESTORE = ("runs", "releases", "pins")

_LOAD_COLUMNS = (
    "load_id", "feed", "outcome", "ledger_key", "ledger_cursor", "source", "source_time", "delivered_at", "records",
    "bytes", "files", "attributes", "schema_version", "drift", "error", "loaded_at",
)  # fmt: skip


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the bookkeeping tables that are not there yet; the lake writes its files as FILE_OPTIONS say."""
    if not are_there(connection, NAMES):
        connection.execute(TABLES)
    said = dict(connection.execute("select option_name, value from lake.options()").fetchall())
    for name, value in FILE_OPTIONS.items():
        if said.get(name) != value:
            connection.execute(f"call lake.set_option('{name}', '{value.removeprefix('V')}')")


def begin_statistics(connection: duckdb.DuckDBPyConnection) -> None:
    """Give tables that never had a row the statistics of an empty one, as if they had lost what they had.

    DuckLake does not remember that a table has none: to plan a query it asks the catalog for each column of it again,
    some hundred times a model.
    """
    connection.execute("begin")
    try:
        connection.execute(_COLUMNS_WITHOUT_STATISTICS)
        connection.execute(_TABLES_WITHOUT_STATISTICS)
        connection.execute("commit")
    except BaseException:
        connection.execute("rollback")
        raise


_TABLES_WITHOUT_STATISTICS = """
insert into __ducklake_metadata_lake.ducklake_table_stats (table_id, record_count, next_row_id, file_size_bytes)
select table_id, 0, 0, 0
from __ducklake_metadata_lake.ducklake_table
where end_snapshot is null and table_id not in (select table_id from __ducklake_metadata_lake.ducklake_table_stats)
"""
_COLUMNS_WITHOUT_STATISTICS = """
insert into __ducklake_metadata_lake.ducklake_table_column_stats (table_id, column_id, contains_null, contains_nan)
select table_id, column_id, false, if(column_type in ('float32', 'float64'), false, null)
from __ducklake_metadata_lake.ducklake_column as columns
where end_snapshot is null
    and table_id in (select table_id from __ducklake_metadata_lake.ducklake_table where end_snapshot is null)
    and table_id not in (select table_id from __ducklake_metadata_lake.ducklake_table_stats)
    and not exists (
        from __ducklake_metadata_lake.ducklake_column as parts
        where parts.table_id = columns.table_id and parts.parent_column = columns.column_id
    )
"""


def are_there(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> bool:
    """Whether the lake has these tables of the schema ``observability``."""
    # Asking each by its name is far cheaper than duckdb_tables(), which looks at everything that is attached.
    try:
        for name in names:
            connection.execute(f"from lake.observability.{name} limit 0")
    except duckdb.CatalogException:
        return False
    return True


def scalar(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """The one whole number that a query answers; 0 for null."""
    row = connection.execute(query).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def enter_loads(connection: duckdb.DuckDBPyConnection, settings: Settings, *, whole: bool = False) -> int:
    """Enter into ``loads`` the ledger entries that the lake has not taken in; how many they were.

    Reads the ledger from a little before the last pointer seen, so that the cost follows what is new: an entry
    comes within POINTER_LIFE of its pointer, and the clocks of loaders differ. A pointer of a clock that is ahead by
    more counts as of now: it must not hide what others commit before its time has come. With ``whole`` all of the
    ledger is read.
    """
    fresh = unseen_entries(connection, settings, whole=whole)
    if not fresh:
        return 0
    now = cursor_before(time.time_ns())
    rows = pa.Table.from_pylist([_load_row(min(cursor, now), entry) for cursor, entry in fresh])
    connection.register("fresh_loads", rows)
    connection.begin()
    try:
        before = scalar(connection, "select max(load_seq) from lake.observability.loads")
        _insert_loads(connection)
        _insert_readings(connection, f"load_seq > {before}", fingerprints.by_feed())
        _insert_sealed(connection, [entry for _, entry in fresh if entry.sealed])
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        connection.unregister("fresh_loads")
    return len(fresh)


def _insert_loads(connection: duckdb.DuckDBPyConnection) -> None:
    columns = ", ".join(_LOAD_COLUMNS)
    connection.execute(
        f"""
        insert into lake.observability.loads by name
        select (select coalesce(max(load_seq), 0) from lake.observability.loads) + row_number() over (order by position)
                as load_seq,
            {columns}
        from (
            select * replace (source_time::timestamp_ns as source_time, delivered_at::timestamp_ns as delivered_at,
                loaded_at::timestamp_ns as loaded_at),
                row_number() over () as position
            from fresh_loads
        )
        """
    )


def note_readings(connection: duckdb.DuckDBPyConnection, condition: str, code: Mapping[str, str]) -> None:
    """Note by which code (``fingerprints.by_feed``, taken before it was read) the loads that a condition chooses are
    read, in place of what was noted of their numbers."""
    connection.execute(
        "delete from lake.observability.readings where load_seq in ("
        f"select load_seq from lake.observability.loads where outcome = 'loaded' and {condition})"
    )
    _insert_readings(connection, condition, code)


def _insert_readings(connection: duckdb.DuckDBPyConnection, condition: str, code: Mapping[str, str]) -> None:
    connection.register("feeds_code", pa.table({"feed": list(code), "fingerprint": list(code.values())}))
    connection.execute(
        "insert into lake.observability.readings by name"
        " select load_seq, load_id, feed, fingerprint"
        f" from (from lake.observability.loads where outcome = 'loaded' and {condition})"
        " inner join feeds_code using (feed)"
    )
    connection.unregister("feeds_code")


def read_otherwise(connection: duckdb.DuckDBPyConnection) -> tuple[tuple[str, int], ...]:
    """Feeds with loads that were read by other code than today's, and how many."""
    known = fingerprints.by_feed()
    rows = connection.execute(
        "select feed, fingerprint, count(*) from lake.observability.loads"
        " left join lake.observability.readings using (load_seq, load_id, feed)"
        " where outcome = 'loaded' group by all"
    ).fetchall()
    found: dict[str, int] = {}
    for feed, fingerprint, count in rows:
        if feed in known and fingerprint != known[feed]:
            found[feed] = found.get(feed, 0) + count
    return tuple(sorted(found.items()))


def waiting_loads(settings: Settings) -> int:
    """How many loads the raw zone holds, for a lake that has taken in none. Makes nothing; raises ``StoreError``."""
    entries = Ledger(open_store(settings.raw, settings.s3)).since(None)
    return len({entry.load_id for _, entry in entries if entry and entry.outcome == "loaded"})


def _insert_sealed(connection: duckdb.DuckDBPyConnection, seals: list[Entry]) -> None:
    """Enter where the rows of sealed loads stand now: in the files of the seal, under the load_id they came with."""
    if not seals:
        return
    moved = [(file, load.load_id, seal.load_id) for seal in seals for load in seal.sealed for file in load.files]
    files, load_ids, seal_ids = zip(*moved, strict=True)
    connection.register("fresh_seals", pa.table({"file": files, "load_id": load_ids, "seal_id": seal_ids}))
    connection.execute("insert into lake.observability.sealed by name from fresh_seals")
    connection.unregister("fresh_seals")


def unseen_entries(
    connection: duckdb.DuckDBPyConnection, settings: Settings, *, whole: bool = False
) -> list[tuple[str, Entry]]:
    """The ledger entries that this version of the lake has not taken in, each with its cursor, in order."""
    # This machine's own clock may have been ahead when it entered loads.
    row = connection.execute(
        "select max(ledger_cursor) from lake.observability.loads where ledger_cursor <= ?",
        [cursor_before(time.time_ns())],
    ).fetchone()
    ledger = Ledger(open_store(settings.raw, settings.s3))
    start = _a_little_before(row[0]) if row and row[0] and not whole else None
    recent = connection.execute("select load_id from lake.observability.loads where ledger_cursor > ?", [start or ""])
    found: dict[str, tuple[str, Entry]] = {}
    for cursor, entry in ledger.since(start, {load_id for (load_id,) in recent.fetchall()}):
        if entry is not None:
            found.setdefault(entry.load_id, (cursor, entry))
    if not found:
        return []
    known = connection.execute(
        "select load_id from lake.observability.loads where load_id in (select unnest(?))", [list(found)]
    ).fetchall()
    for (load_id,) in known:
        del found[load_id]
    return list(found.values())


def _a_little_before(cursor: str) -> str:
    """The cursor of a time before which no pointer can still lack its entry, as ``Ledger.since`` takes it."""
    seen = dt.datetime.strptime(cursor[:24], "%Y-%m-%d/%H%M%S.%f")
    return f"{seen - dt.timedelta(seconds=POINTER_LIFE + OVERLAP_SECONDS):%Y-%m-%d/%H%M%S.%f}"


def _load_row(cursor: str, entry: Entry) -> dict[str, object]:
    return {
        "load_id": entry.load_id,
        "feed": entry.feed,
        "outcome": entry.outcome,
        "ledger_key": entry.key,
        "ledger_cursor": cursor,
        "source": entry.source,
        "source_time": entry.source_time,
        "delivered_at": entry.delivered_at,
        "records": entry.records,
        "bytes": entry.bytes,
        "files": [file.path for file in entry.files],
        "attributes": json.dumps(entry.attributes, sort_keys=True),
        "schema_version": entry.schema_version,
        "drift": json.dumps(msgspec.to_builtins(entry.drift), sort_keys=True),
        "error": entry.error,
        "loaded_at": entry.loaded_at,
    }
