"""`mdp trace`: the raw records behind the rows of an answer, as they came, and the object and file that hold each.

load_id, source_partition, source_position of a row
    └─ observability.loads ── the load's objects, or those of the seal that replaced them ── raw zone ──> the record
"""

from __future__ import annotations

import duckdb
import pyarrow as pa

from loaders.settings import Settings
from market_data import bookkeeping, lake
from market_data.client import Answer, Client

PLACE = ("load_id", "source_partition", "source_position")
"""The columns that lead from a row to its record; all tables of facts in schema canonical have them."""

ENVELOPE = (
    *("feed", "source", "source_partition", "source_position", "source_time", "headers", "schema_version"),
    *("instrument", "document", "loaded_at", "load_id", "key", "payload", "raw_object"),
)
"""Columns of a raw object that are no field of a CSV row."""

# An object is of one load, or of a seal, which keeps the rows of many under the load_id that they were written with. A
# delivery of bytes that were there already points to the objects of the load that brought them.
OBJECTS = """
with asked as (
    select distinct load_id from rows_asked
),

said as (
    select load_id, feed, source, ledger_key, unnest(files) as file
    from lake.observability.loads
    semi join asked using (load_id)
    where outcome = 'loaded'
),

sealed as (
    select file, load_id as stored_load_id, seal_id from lake.observability.sealed
    union all by name
    select file, stored_load_id, seal_id from sealed_since
),

seals as (
    select load_id as seal_id, files from lake.observability.loads where outcome = 'sealed'
    union all by name
    select seal_id, files from seals_since
)

select distinct
    said.load_id,
    feed,
    source,
    $raw || unnest(coalesce(seals.files, [said.file])) as raw_object,
    stored_load_id,
    $raw || '_originals/' || feed || '/'
        || nullif(regexp_extract(ledger_key, '^file/[^/]+/([0-9a-f]{64})', 1), '') as original_file
from said
left join sealed using (file)
left join seals using (seal_id)
"""

RECORDS = """
insert into records
select
    asked.row_number,
    objects.feed,
    objects.source,
    objects.load_id,
    objects.raw_object,
    objects.original_file,
    {record} as record
from rows_asked as asked
inner join objects using (load_id)
inner join read_parquet({objects}, filename = 'raw_object', union_by_name = true, hive_partitioning = false) as raw
    on objects.raw_object = raw.raw_object
    and coalesce(objects.stored_load_id = raw.load_id, true)
    and asked.source_partition is not distinct from raw.source_partition
    and asked.source_position = raw.source_position
"""

NO_RECORDS = """
create temp table records (
    row_number bigint, feed varchar, source varchar, load_id varchar, raw_object varchar, original_file varchar,
    record varchar
)
"""

TRACED = """
select row_number, feed, source, source_partition, source_position, load_id, raw_object, original_file, record
from rows_asked
left join records using (row_number, load_id)
order by row_number
"""


class NotTraceableError(ValueError):
    """A question whose rows do not say which record they come from."""


def records(client: Client, settings: Settings, query: str, most: int) -> Answer:
    """The raw records of the first ``most`` rows that ``query`` answers, in its order.

    One row per row of the answer: row_number (from 1), feed, source (file or topic), source_partition, source_position
    (offset, or line or row from 1), load_id, raw_object (the Parquet object; null where the raw zone has no such
    record), original_file (the vendor's file as it came; null for streams) and record: the payload as text, null where
    there is none, or the fields of a CSV row as JSON. Raises ``NotTraceableError`` for an answer without ``load_id``,
    ``source_partition`` and ``source_position``, and duckdb.Error for what DuckDB refuses.
    """
    asked = client.sql(f"from (\n{query.strip().removesuffix(';')}\n) limit {most}").arrow
    missing = [name for name in PLACE if name not in asked.column_names]
    if missing:
        raise NotTraceableError(
            f"the answer has no {', '.join(missing)}, by which a record is found: ask for all columns of a table of"
            " schema canonical; docs/lineage.md shows the way from a bar to its trades"
        )
    rows = asked.select(PLACE).append_column("row_number", pa.array(range(1, len(asked) + 1), pa.int64()))
    with lake.open_version(settings, None) as connection:
        _keep(connection, "rows_asked", rows)
        _keep_seals(connection, settings)
        connection.execute(f"create temp table objects as {OBJECTS}", {"raw": settings.raw + "/"})
        connection.execute(NO_RECORDS)
        for (feed,) in connection.execute("select distinct feed from objects").fetchall():
            _add_records(connection, feed)
        return Answer(connection.execute(TRACED).to_arrow_table(), client.version, None)


def _keep(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """Make a temporary table of rows: of Arrow in place, a join may push filters into the scan that pyarrow has not."""
    connection.register("arrow_rows", rows)
    connection.execute(f"create temp table {name} as from arrow_rows")
    connection.unregister("arrow_rows")


def _keep_seals(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Make known what was sealed since the last build: whose rows stand in which objects now, under which load_id."""
    seals = [entry for _, entry in bookkeeping.unseen_entries(connection, settings) if entry.sealed]
    moved = [
        {"file": file, "stored_load_id": load.load_id, "seal_id": entry.load_id}
        for entry in seals
        for load in entry.sealed
        for file in load.files
    ]
    objects = [{"seal_id": entry.load_id, "files": [file.path for file in entry.files]} for entry in seals]
    text = pa.string()
    of_moved = pa.schema({"file": text, "stored_load_id": text, "seal_id": text})
    of_objects = pa.schema({"seal_id": text, "files": pa.list_(text)})
    _keep(connection, "sealed_since", pa.Table.from_pylist(moved, of_moved))
    _keep(connection, "seals_since", pa.Table.from_pylist(objects, of_objects))


def _add_records(connection: duckdb.DuckDBPyConnection, feed: str) -> None:
    """Add the records of one feed, whose objects are read together: what is null is no field of the record's file."""
    places = connection.execute("select distinct raw_object from objects where feed = ?", [feed]).fetchall()
    objects = f"[{', '.join(lake.quoted(place) for (place,) in places)}]"
    columns = connection.execute(
        f"describe from read_parquet({objects}, union_by_name = true, hive_partitioning = false)"
    )
    fields = [lake.identifier(name) for name, *_ in columns.fetchall() if name not in ENVELOPE]
    record = "coalesce(try(decode(raw.payload)), raw.payload::varchar)"
    if fields:
        packed = ", ".join(f"{name} := raw.{name}" for name in fields)
        record = f"coalesce({record}, json_merge_patch('{{}}', to_json(struct_pack({packed})))::varchar)"
    connection.execute(RECORDS.format(record=record, objects=objects))
