"""Records with their envelope, written as Parquet segments.

    tables from a reader ── cut at 100,000 rows or 64 MiB ── envelope ── sort by instrument ──▶ segment files

A segment's name begins with its load_id and holds the attempt, so that a stalled loader that wakes up late
can never write over files that a ledger entry already names.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loaders.ledger import DataFile
from loaders.settings import MIB
from loaders.store import Store, StoreError
from loaders.times import day

MAX_ROWS = 100_000
MAX_BYTES = 64 * MIB
ROW_GROUP_ROWS = 20_000
"""Small groups, whose statistics of `instrument` let a reader skip most of a file."""

UNLIKE = ("payload", "document", "source_position", "source_time")
"""Columns whose values hardly repeat: a dictionary of them would cost time and save nothing."""

TIME = pa.timestamp("ns")
HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))
ENVELOPE = pa.schema(
    [
        ("feed", pa.string()),
        ("source", pa.string()),
        ("source_partition", pa.int32()),
        ("source_position", pa.int64()),
        ("source_time", TIME),
        ("headers", HEADERS),
        ("schema_version", pa.string()),
        ("instrument", pa.string()),
        ("document", pa.string()),
        ("loaded_at", TIME),
        ("load_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class Load:
    """What all records of a load share. Times are nanoseconds since 1970-01-01 UTC."""

    feed: str
    source: str
    load_id: str
    loaded_at: int
    source_time: int | None
    schema_version: str
    attributes: Mapping[str, str]


def write_file(
    store: Store, path: str, table: pa.Table, *, row_group_rows: int, statistics: Sequence[str] = ()
) -> DataFile:
    """Write one Parquet file of the raw zone. `statistics`: columns that get them beside those that all files have."""
    buffer = pa.BufferOutputStream()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        compression_level=1,
        row_group_size=row_group_rows,
        use_dictionary=[name for name in table.column_names if name not in UNLIKE],
        write_statistics=["source_position", "source_time", "instrument", *statistics],
        store_schema=False,
    )
    data = buffer.getvalue()
    with store.open_write(path) as sink:
        sink.write(data)
    digest = hashlib.sha256(data).hexdigest()
    return DataFile(path=path, rows=table.num_rows, bytes=data.size, sha256=digest)


def header_lists(rows: int, constants: Mapping[str, str], varying: Mapping[str, pa.Array] | None = None) -> pa.Array:
    """Return each row's headers: the constants, then those of the varying ones that are not null there."""
    varying = varying or {}
    names = [*constants, *varying]
    columns: Sequence[pa.Array] = [
        *(pa.repeat(pa.scalar(value.encode(), pa.binary()), rows) for value in constants.values()),
        *varying.values(),
    ]
    if not names:
        return pa.ListArray.from_arrays(pa.array(np.zeros(rows + 1, np.int32)), pa.array([], HEADERS.value_type))
    by_column = pa.concat_arrays([column.cast(pa.binary()) for column in columns])
    row_major = np.arange(rows * len(names)).reshape(len(names), rows).T.ravel()
    values = by_column.take(pa.array(row_major))
    keys = pa.array(names, pa.string()).take(pa.array(np.tile(np.arange(len(names)), rows)))
    there = np.asarray(values.is_valid())
    offsets = np.concatenate([[0], np.cumsum(there.reshape(rows, len(names)).sum(axis=1))])
    mask = pa.array(there)
    pairs = pa.StructArray.from_arrays([keys.filter(mask), values.filter(mask)], fields=list(HEADERS.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pairs)


class SegmentWriter:
    """Writes a load's records. Nothing is seen by readers before the ledger names `files`."""

    def __init__(self, store: Store, load: Load) -> None:
        self._store, self._load = store, load
        self._attempt = secrets.token_hex(3)
        self._pending: list[pa.Table] = []
        self.files: list[DataFile] = []
        self.records = 0

    def add(self, table: pa.Table) -> None:
        """Take records: their own columns, source_position, instrument, and what else differs by row."""
        while table.num_rows:
            room = MAX_ROWS - sum(part.num_rows for part in self._pending)
            self._pending.append(table.slice(0, room))
            table = table.slice(room)
            if table.num_rows or sum(part.nbytes for part in self._pending) >= MAX_BYTES:
                self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()

    def discard(self) -> None:
        """Remove what was written, as far as possible: the load was refused, or was made by another."""
        for file in self.files:
            with suppress(StoreError):
                self._store.delete(file.path)
        self.files, self._pending = [], []

    def _flush(self) -> None:
        if not self._pending:
            return
        table = self._sealed(pa.concat_tables(self._pending).combine_chunks())
        self._pending = []
        name = f"{self._load.load_id}-{self._attempt}-{len(self.files):05d}.parquet"
        path = f"{self._load.feed}/ingest_date={day(self._load.loaded_at)}/{name}"
        self.files.append(write_file(self._store, path, table, row_group_rows=ROW_GROUP_ROWS))
        self.records += table.num_rows

    def _sealed(self, records: pa.Table) -> pa.Table:
        """Return the records with the whole envelope, sorted by instrument; the sort is stable."""
        order = pc.sort_indices(records, [("instrument", "ascending")])
        if not np.array_equal(order, np.arange(records.num_rows)):
            records = records.take(order)
        own = [name for name in records.column_names if name not in ENVELOPE.names]
        columns = [records[name] for name in own]
        for field in ENVELOPE:
            given = field.name in records.column_names
            columns.append(records[field.name] if given else self._constant(field, records.num_rows))
        return pa.table(columns, names=own + ENVELOPE.names)

    def _constant(self, field: pa.Field, rows: int) -> pa.Array:
        load = self._load
        if field.name == "headers":
            return header_lists(rows, load.attributes)
        value = {
            "feed": load.feed,
            "source": load.source,
            "source_time": load.source_time,
            "schema_version": load.schema_version,
            "loaded_at": load.loaded_at,
            "load_id": load.load_id,
        }.get(field.name)
        return pa.repeat(pa.scalar(value, field.type), rows)
