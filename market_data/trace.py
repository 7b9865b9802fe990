"""`mdp trace`: the raw records behind the rows of an answer, as they came, and the object and file that hold each.

load_id, source_partition, source_position of a row
    └─ observability.loads ── the load's objects, or those of the seal that replaced them ── raw zone ──> the record
"""

from __future__ import annotations

import duckdb
import pyarrow as pa

from loaders.settings import Settings
from market_data import lake
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

seals as (
    select load_id as seal_id, unnest(files) as file from lake.observability.loads where outcome = 'sealed'
)

select distinct
    said.load_id,
    feed,
    source,
    $raw || coalesce(seals.file, said.file) as raw_object,
    sealed.load_id as stored_load_id,
    $raw || '_originals/' || feed || '/'
        || nullif(regexp_extract(ledger_key, '^file/[^/]+/([0-9a-f]{64})', 1), '') as original_file
from said
left join lake.observability.sealed on said.file = sealed.file
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
    (offset, or line or row from 1), load_id, raw_object (the Parquet object), original_file (the vendor's file as it
    came; null for streams) and record: the payload as text, or the fields of a CSV row as JSON; null where the raw zone
    has none such. Raises ``NotTraceableError`` for an answer without ``load_id``, ``source_partition`` and
    ``source_position``, and duckdb.Error for what DuckDB refuses.
    """
    asked = client.sql(query).arrow.slice(0, most)
    missing = [name for name in PLACE if name not in asked.column_names]
    if missing:
        raise NotTraceableError(
            f"the answer has no {', '.join(missing)}, by which a record is found: ask for all columns of a table of"
            " schema canonical; docs/lineage.md shows the way from a bar to its trades"
        )
    rows = asked.select(PLACE).append_column("row_number", pa.array(range(1, len(asked) + 1), pa.int64()))
    with lake.open_version(settings, None) as connection:  # the head knows which objects a seal has replaced since
        connection.register("rows_asked", rows)
        connection.execute(f"create temp table objects as {OBJECTS}", {"raw": settings.raw + "/"})
        connection.execute(NO_RECORDS)
        for (feed,) in connection.execute("select distinct feed from objects").fetchall():
            _add_records(connection, feed)
        return Answer(connection.execute(TRACED).to_arrow_table(), client.version, None)


def _add_records(connection: duckdb.DuckDBPyConnection, feed: str) -> None:
    """Add the records of one feed, whose objects have the same fields."""
    places = connection.execute("select distinct raw_object from objects where feed = ?", [feed]).fetchall()
    objects = f"[{', '.join(lake.quoted(place) for (place,) in places)}]"
    columns = connection.execute(
        f"describe from read_parquet({objects}, union_by_name = true, hive_partitioning = false)"
    )
    fields = [lake.identifier(name) for name, *_ in columns.fetchall() if name not in ENVELOPE]
    record = "coalesce(try(decode(raw.payload)), raw.payload::varchar)"
    if fields:
        packed = ", ".join(f"{name} := raw.{name}" for name in fields)
        record = f"coalesce({record}, to_json(struct_pack({packed}))::varchar)"
    connection.execute(RECORDS.format(record=record, objects=objects))
