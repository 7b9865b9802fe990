"""A closed day of the raw zone made into few files: one an instrument, or one a bucket of instruments.

    open files of a day ─▶ hash of each, rows of each load ─▶ spill, by instrument ─▶ sorted, sealed files
            │                        │                                                   │
            │                        └──────────── equal? ◀── every row read back ◀──────┤
            │                                        │                                   │
            └─ removed after a grace period ◀── ledger entry `seal/<feed>/<day>/<n>` ◀───┘

    <raw>/<feed>/ingest_date=2024-06-03/0a1b….parquet                       open
    <raw>/<feed>/ingest_date=2024-06-03/instrument=BRK%2FB/2c3d….parquet    sealed, layout `instrument`
    <raw>/<feed>/ingest_date=2024-06-03/instrument_bucket=07/2c3d….parquet  sealed, layout `buckets:N`

The entry of a load names its open files for ever; that of a seal says which loads stand in its own files now, under
the load_id that they were written with. So nothing else changes: a delivery that points to bytes of long ago finds
them where they are. A load of that day that is committed afterwards stays open, for the next seal of the day. Nothing
is seen before the entry; a seal that dies begins anew, and one that finds its key taken removes what it wrote.

Memory is bounded by FILE_BYTES. The spill goes to the directory of temporary files and takes the room of the day.
"""

from __future__ import annotations

import hashlib
import io
import logging
import secrets
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import IO, Any, Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loaders import VERSION, failpoints, logs
from loaders.checksums import Totals
from loaders.ledger import ENTRIES, DataFile, Entry, Ledger, SealedLoad, cursor_before, load_id, load_id_at
from loaders.reading import in_threads
from loaders.registry import Feed
from loaders.segments import write_file
from loaders.settings import MIB, Settings
from loaders.store import Store, StoreError, open_store
from loaders.times import day, iso, parse_time

log = logging.getLogger(__name__)

FILE_ROWS = 2_000_000
FILE_BYTES = 128 * MIB
"""Of a sealed file at most, uncompressed: in memory it is there three times over."""
SPILL_BYTES = 48 * MIB
"""Rows that are gathered before they are parted by instrument."""
SPILLS = 64
ROW_GROUP_ROWS = 100_000
READ_ROWS = 100_000
THREADS = 4
AHEAD = 6
"""Open files that are fetched before they are asked for, each a few MiB."""
GRACE_DAYS = 7.0
LONGEST_NAME = 150
CLOCKS = 300 * 1_000_000_000
"""By how much a clock may have gone back between a load's files and its pointer, in ns."""

Status = Literal["sealed", "nothing", "outrun", "removed"]


class SealError(RuntimeError):
    """A day cannot be sealed, or its open files not be removed; the message says what is wrong with what."""


@dataclass(frozen=True)
class Outcome:
    """What became of one day; `message` is a line for a person. Files and bytes are those of the seal or removal."""

    day: str
    status: Status
    message: str
    loads: int = 0
    records: int = 0
    files: int = 0
    bytes: int = 0


@dataclass
class _Day:
    """A day as its directory and its seals say."""

    date: str
    open: set[str]
    seals: list[Entry]
    removed: set[str]
    """Keys of seals whose open files may go, or have gone."""

    @property
    def unsealed(self) -> set[str]:
        """Open files that no seal has taken in: of loads, or of none."""
        return self.open.difference(*({path for load in seal.sealed for path in load.files} for seal in self.seals))


def check_closed(date: str) -> str:
    """Return a date as it is written. Raises ValueError for one that is none, or not over yet."""
    if len(date) != 10 or day(parse_time(date)) != date:
        raise ValueError(f"{date!r} is not a date such as 2024-11-03")
    if date >= (today := day(time.time_ns())):
        raise ValueError(f"{date} is not over: it is {today} now (UTC), and only a day before that can be sealed")
    return date


def seal(
    feed: Feed, settings: Settings, date: str | None = None, *, grace_days: float = GRACE_DAYS
) -> Iterator[Outcome]:
    """Seal a day of ingestion (UTC), or all that are over; then remove open files that were sealed long enough ago.

    Yields what became of each day. May run beside loaders, builds and other seals. Raises ValueError for a day that is
    not over, SealError for one that cannot be sealed, StoreError where the raw zone fails; days before it stay sealed.
    """
    if date is not None:
        check_closed(date)
    return _Sealer(feed, settings, grace_days).run(date)


class _Sealer:
    def __init__(self, feed: Feed, settings: Settings, grace_days: float) -> None:
        self._feed = feed
        self._grace = int(grace_days * 86_400 * 1_000_000_000)
        self._store = open_store(settings.raw, settings.s3)
        self._ledger = Ledger(self._store)

    def run(self, date: str | None) -> Iterator[Outcome]:
        today = day(time.time_ns())
        days = [found for found in self._days() if found.date < today]
        to_seal = [found for found in days if found.unsealed and date in (None, found.date)]
        loads = self._loads(to_seal)
        if date is not None and date not in loads:
            yield self._nothing(date, next((found for found in days if found.date == date), None))
        with ThreadPoolExecutor(THREADS) as pool:
            for found in to_seal:
                if found.date in loads:
                    yield self._told(_Attempt(self._feed, self._store, found, loads[found.date], pool).run())
            for found in days:
                for entry in found.seals:
                    if outcome := self._remove(found, entry, pool):
                        yield self._told(outcome)

    def _told(self, outcome: Outcome) -> Outcome:
        logs.event(
            log,
            f"day-{outcome.status}",
            f"{self._feed.name}, {outcome.message}",
            on_screen=True,
            feed=self._feed.name,
            day=outcome.day,
            loads=outcome.loads,
            records=outcome.records,
            files=outcome.files,
            bytes=outcome.bytes,
        )
        return outcome

    def _nothing(self, date: str, found: _Day | None) -> Outcome:
        seals = found.seals if found else list(self._ledger.entries(_prefix(self._feed, date)))
        what = (
            "sealed already, and nothing has come since"
            if seals
            else "no record was loaded on that day (UTC), by which days are sealed"
        )
        return self._told(Outcome(date, "nothing", f"{date}: {what}"))

    # What there is.

    def _days(self) -> Iterator[_Day]:
        """Yield the days that have open files; sealed ones beside them are not listed, since their names come later."""
        folder = f"{self._feed.name}/ingest_date="
        after: str | None = None
        while first := next(self._store.list(folder, after), None):
            date = first[len(folder) :].partition("/")[0]
            prefix = f"{folder}{date}/"
            found = set()
            for name in self._store.list(prefix):
                if "/" in name[len(prefix) :]:
                    break
                found.add(name)
            if found:
                seals = list(self._ledger.entries(_prefix(self._feed, date)))
                removals = self._store.list(f"{ENTRIES}{_prefix(self._feed, date, 'removed')}")
                keys = {f"seal/{name[len(ENTRIES) :].removesuffix('.json').partition('/')[2]}" for name in removals}
                yield _Day(date, found, seals, keys)
            after = prefix + "~"

    def _loads(self, days: Collection[_Day]) -> dict[str, list[Entry]]:
        """Return each day's loads that are committed and not sealed, oldest first: one look at the log since then."""
        wanted = {path.rpartition("/")[2].partition("-")[0]: found for found in days for path in found.unsealed}
        if not wanted:
            return {}
        start = cursor_before(parse_time(min(found.date for found in days)) - CLOCKS)
        cursors = {
            load_id_at(cursor): cursor for cursor in self._ledger.pointers(start) if load_id_at(cursor) in wanted
        }
        loads: dict[str, dict[str, Entry]] = defaultdict(dict)
        with ThreadPoolExecutor(THREADS) as pool:
            for entry in in_threads(pool, self._ledger.at, cursors.values()):
                if entry is not None and entry.outcome == "loaded":
                    found = wanted[entry.load_id]
                    if not found.unsealed.isdisjoint(file.path for file in entry.files):
                        loads[found.date][entry.load_id] = entry
        return {
            date: sorted(entries.values(), key=lambda entry: (entry.loaded_at, entry.key))
            for date, entries in loads.items()
        }

    # Removal.

    def _remove(self, found: _Day, entry: Entry, pool: Executor) -> Outcome | None:
        """Remove what a seal has taken in, if that was long enough ago. The sealed files are read once more before."""
        there = sorted(found.open.intersection(path for load in entry.sealed for path in load.files))
        if not there or time.time_ns() - parse_time(entry.loaded_at) < self._grace:
            return None
        failpoints.reach("before-removal")
        if entry.key not in found.removed:
            for problem in in_threads(pool, self._problem, entry.files, AHEAD):
                if problem:
                    raise SealError(f"{problem}; the open files of {found.date} stay until it is restored from a copy")
            self._remove_leavings(found.date, entry)
            key = f"removed/{entry.key.partition('/')[2]}"
            now = iso(time.time_ns())
            self._ledger.commit(
                Entry(
                    key=key,
                    load_id=load_id(key),
                    feed=self._feed.name,
                    kind="removal",
                    outcome="removed",
                    source=f"ingest_date={found.date}",
                    started_at=now,
                    loaded_at=now,
                    loader_version=VERSION,
                )
            )
            failpoints.reach("after-removal-entry")
        for _ in in_threads(pool, self._delete, there, AHEAD):
            failpoints.reach("between-removed-files")
        failpoints.reach("after-removal")
        message = f"{found.date}: removed {len(there):,} open files, sealed on {entry.loaded_at[:10]}"
        return Outcome(found.date, "removed", message, loads=len(entry.sealed), files=len(there))

    def _delete(self, path: str) -> None:
        self._store.delete(path)

    def _problem(self, file: DataFile) -> str | None:
        try:
            is_whole = hashlib.sha256(self._store.get(file.path)).hexdigest() == file.sha256
        except KeyError:
            return f"the sealed file {file.path} is not there"
        return None if is_whole else f"the sealed file {file.path} does not hold the bytes that its entry says"

    def _remove_leavings(self, date: str, entry: Entry) -> None:
        """Remove what attempts at this seal left that died or lost: its key is taken, so they cannot commit it."""
        named = {file.path for file in entry.files}
        for path in self._store.list(f"{self._feed.name}/ingest_date={date}/instrument"):
            if path.rpartition("/")[2].startswith(f"{entry.load_id}-") and path not in named:
                self._store.delete(path)


def _prefix(feed: Feed, date: str, family: str = "seal") -> str:
    return f"{family}/{feed.name}/{date}/"


class _Attempt:
    """One attempt to seal one day."""

    def __init__(self, feed: Feed, store: Store, found: _Day, loads: list[Entry], pool: Executor) -> None:
        self._feed, self._store, self._day, self._loads, self._pool = feed, store, found, loads, pool
        number = int(found.seals[-1].key.rpartition("/")[2]) + 1 if found.seals else 0
        self._key = f"{_prefix(feed, found.date)}{number:04d}"
        self._before, self._after = Totals(), Totals()
        self._writer = _Writer(store, feed, found.date, load_id(self._key))
        self._started_at = iso(time.time_ns())

    def run(self) -> Outcome:
        try:
            failpoints.reach("before-sealed-files")
            self._write()
            failpoints.reach("after-sealed-files")
            self._prove()
            failpoints.reach("after-proof")
        except BaseException:
            self._writer.discard()
            raise
        date, entry = self._day.date, self._entry()
        # If this fails nobody knows whether it took effect: the files stay, for whoever sees the entry.
        if not Ledger(self._store).commit(entry):
            self._writer.discard()
            return Outcome(
                date, "outrun", f"{date}: another seal of this day was faster, and what it took in is sealed"
            )
        failpoints.reach("after-seal")
        opened = sum(len(load.files) for load in self._loads)
        message = (
            f"{date}: sealed {entry.records:,} records of {len(self._loads):,} loads, "
            f"{opened:,} files made into {len(entry.files):,}"
        )
        return Outcome(
            date,
            "sealed",
            message,
            len(self._loads),
            entry.records,
            len(entry.files),
            sum(f.bytes for f in entry.files),
        )

    def _write(self) -> None:
        """Read each open file once, and write its rows where they belong."""
        files = [(load, file) for load in self._loads for file in load.files]
        with ExitStack() as stack:
            spills = [_Spill(stack.enter_context(tempfile.TemporaryFile(prefix="mdp-seal-"))) for _ in range(SPILLS)]
            gathered = _Gathered()
            for table in in_threads(self._pool, lambda item: self._opened(*item), files, AHEAD):
                self._before.add(table)
                gathered.add(table)
                if gathered.bytes >= SPILL_BYTES:
                    self._spill(gathered, spills)
            self._spill(gathered, spills)
            for spill in spills:
                for table in spill.tables():
                    gathered.add(table)
                    if gathered.rows >= FILE_ROWS or gathered.bytes >= FILE_BYTES:
                        self._writer.write(gathered.take())
                self._writer.write(gathered.take())

    def _opened(self, load: Entry, file: DataFile) -> pa.Table:
        """Return an open file's rows. Raises SealError if it is not what its load's entry says. In a thread."""
        try:
            data = self._store.get(file.path)
        except KeyError:
            raise SealError(f"the open file {file.path} is not there: mdp verify says more") from None
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise SealError(f"the open file {file.path} does not hold the bytes that its entry says: see mdp verify")
        table = pq.read_table(pa.BufferReader(data), partitioning=None)
        if table.num_rows != file.rows or pc.any(pc.not_equal(table["load_id"], load.load_id)).as_py():
            raise SealError(f"the open file {file.path} does not hold the rows of its load {load.key}: see mdp verify")
        return table

    def _spill(self, gathered: _Gathered, spills: list[_Spill]) -> None:
        for table in gathered.take():
            names, codes = _folders(table["instrument"], self._feed.seal_buckets)
            parts = np.array([zlib.crc32(name.encode()) % SPILLS for name in names], np.int64)[codes]
            order = np.argsort(parts, kind="stable")
            ends = np.searchsorted(parts[order], np.arange(SPILLS + 1))
            parted = table.take(pa.array(order))
            for number in np.flatnonzero(np.diff(ends)).tolist():
                spills[number].add(parted.slice(ends[number], ends[number + 1] - ends[number]))

    def _prove(self) -> None:
        """Read back every sealed row. Raises SealError unless each load's are all there, and nothing else."""
        files = self._writer.files
        for file, data in zip(files, in_threads(self._pool, self._fetch, files, ahead=2), strict=True):
            if data is None or hashlib.sha256(data).hexdigest() != file.sha256:
                raise SealError(f"the file {file.path} did not come back as it was written; nothing was sealed")
            for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(READ_ROWS):
                self._after.add(pa.Table.from_batches([batch]))
        wrong = self._before.differences(self._after)
        wrong += [load.key for load in self._loads if self._before.rows.get(load.load_id, 0) != load.records]
        if wrong:
            raise SealError(
                f"{self._day.date}: the sealed files do not hold the records of {len(wrong):,} loads (the first is "
                f"{wrong[0]}); nothing was sealed, the open files are as they were"
            )

    def _fetch(self, file: DataFile) -> bytes | None:
        try:
            return self._store.get(file.path)
        except KeyError:
            return None

    def _entry(self) -> Entry:
        sealed = tuple(
            SealedLoad(
                load_id=load.load_id,
                rows=load.records,
                checksum=self._before.checksum(load.load_id),
                files=tuple(file.path for file in load.files),
            )
            for load in self._loads
        )
        return Entry(
            key=self._key,
            load_id=load_id(self._key),
            feed=self._feed.name,
            kind="seal",
            outcome="sealed",
            source=f"ingest_date={self._day.date}",
            bytes=sum(file.bytes for file in self._writer.files),
            records=sum(load.rows for load in sealed),
            files=tuple(self._writer.files),
            sealed=sealed,
            started_at=self._started_at,
            loaded_at=iso(time.time_ns()),
            loader_version=VERSION,
        )


class _Writer:
    """Writes sealed files. A name begins with the seal's load_id and holds the attempt, as those of segments do."""

    def __init__(self, store: Store, feed: Feed, date: str, name: str) -> None:
        self._store, self._buckets = store, feed.seal_buckets
        self._folder = f"{feed.name}/ingest_date={date}"
        self._name = f"{name}-{secrets.token_hex(3)}"
        self.files: list[DataFile] = []

    def write(self, tables: Iterable[pa.Table]) -> None:
        """Write rows, sorted by instrument and else in the order given: a file for each folder that they belong to."""
        for table in tables:
            names, codes = _folders(table["instrument"], self._buckets)
            keyed = table.append_column("__folder", pa.array(codes))
            order = pc.sort_indices(keyed, [("__folder", "ascending"), ("instrument", "ascending")])
            ordered, codes = table.take(order), codes[np.asarray(order)]
            ends = np.searchsorted(codes, np.arange(len(names) + 1))
            for number, name in enumerate(names):
                rows = int(ends[number + 1] - ends[number])
                if rows:
                    self._put(name, ordered.slice(ends[number], rows))

    def discard(self) -> None:
        """Remove what was written, as far as possible."""
        for file in self.files:
            with suppress(StoreError):
                self._store.delete(file.path)

    def _put(self, folder: str, table: pa.Table) -> None:
        path = f"{self._folder}/{folder}/{self._name}-{len(self.files):05d}.parquet"
        self.files.append(write_file(self._store, path, table, row_group_rows=ROW_GROUP_ROWS, statistics=["load_id"]))
        failpoints.reach("between-sealed-files")


def _folders(
    instruments: pa.ChunkedArray, buckets: int | None
) -> tuple[list[str], np.ndarray[Any, np.dtype[np.int64]]]:
    """Return the names of directories, and which of them each row belongs to."""
    encoded = instruments.combine_chunks().dictionary_encode(null_encoding="encode")
    folders = [folder_of(value, buckets) for value in encoded.dictionary.to_pylist()]
    names = sorted(set(folders))
    numbers = {name: number for number, name in enumerate(names)}
    codes = np.array([numbers[folder] for folder in folders], np.int64)
    return names, codes[np.asarray(encoded.indices)]


def folder_of(instrument: str | None, buckets: int | None) -> str:
    """Return the directory of an instrument's sealed rows, for people and for pruning; it is never read back.

    Each such name comes after those of open files, which begin with a hexadecimal digit.
    """
    if buckets is not None:
        number = 0 if instrument is None else zlib.crc32(instrument.encode()) % buckets
        return f"instrument_bucket={number:0{len(str(buckets - 1))}d}"
    if instrument is None:
        return "instrument_is_null"
    name = quote(instrument, safe="")
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}~{hashlib.sha256(instrument.encode()).hexdigest()[:16]}"
    return f"instrument={name}"


@dataclass
class _Gathered:
    """Tables that wait, by schema: a column that a load lacks stays lacking, as nothing else would be the same."""

    rows: int = 0
    bytes: int = 0
    _tables: dict[pa.Schema, list[pa.Table]] = field(default_factory=dict)

    def add(self, table: pa.Table) -> None:
        self._tables.setdefault(table.schema.remove_metadata(), []).append(table.replace_schema_metadata(None))
        self.rows += table.num_rows
        self.bytes += table.nbytes

    def take(self) -> list[pa.Table]:
        """Return what waits, a table for each schema, and forget it."""
        tables = [pa.concat_tables(parts).combine_chunks() for parts in self._tables.values()]
        self._tables, self.rows, self.bytes = {}, 0, 0
        return tables


class _Spill:
    """Tables of any schemas, put aside in a file that is gone when the process is."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sizes: list[int] = []

    def add(self, table: pa.Table) -> None:
        buffer = io.BytesIO()
        with pa.ipc.new_stream(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            writer.write_table(table)
        self._sizes.append(self._file.write(buffer.getbuffer()))

    def tables(self) -> Iterator[pa.Table]:
        self._file.seek(0)
        for size in self._sizes:
            yield pa.ipc.open_stream(self._file.read(size)).read_all()
