"""One partition on its way to the raw zone: the records that wait, and the chain that they will extend.

    polled records ── add ──▶ waiting, up to `next` ── start ──▶ files ── finish ──▶ chain, up to `first`

While another thread writes the files of one segment, the next one gathers; entries are committed in their order, by
the thread that polls.
What waits is bounded by rows, bytes and age. Records at or behind `stop`, where there is one, are left alone.
"""

from __future__ import annotations

import time
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from loaders import VERSION, failpoints
from loaders.chain import Chain
from loaders.instruments import Instruments
from loaders.ledger import Entry, load_id
from loaders.registry import Feed
from loaders.segments import Load, SegmentWriter
from loaders.settings import MIB
from loaders.store import Store, StoreError
from loaders.times import iso


@dataclass(frozen=True)
class SegmentLimits:
    """When a segment is closed: whichever comes first. A quiet partition's too, by its age."""

    rows: int = 100_000
    bytes: int = 32 * MIB
    seconds: float = 5.0


@dataclass
class Lane:
    """A partition that this process reads."""

    feed: Feed
    chain: Chain
    instruments: Instruments
    stop: int | None = None
    first: int = 0
    next: int = 0
    rows: int = 0
    bytes: int = 0
    since: float | None = None
    """When the oldest of what waits came, by the monotonic clock; None if nothing waits."""
    ready: bool = False
    """Whether the client reads from `next` on; not after an assignment or an error, until it is sought."""
    placed: bool = False
    """Whether `first` is known, from the chain."""
    writing: Writing | None = None
    _started_at: int = 0
    _waiting: list[pa.Table] = field(default_factory=list)

    @property
    def reached(self) -> bool:
        """Whether nothing more is to be read."""
        return self.stop is not None and self.next >= self.stop

    def restart(self, position: int) -> None:
        """Forget what waits, and nothing may be in writing, and go on from a position, the chain's end."""
        self.first = self.next = position
        self.placed = True
        self.rows = self.bytes = 0
        self.since = None
        self._waiting = []

    def add(self, table: pa.Table) -> None:
        """Take records as they were polled, in the order of their offsets."""
        offsets = np.asarray(table["source_position"])
        start = int(np.searchsorted(offsets, self.next))
        end = len(offsets) if self.stop is None else int(np.searchsorted(offsets, self.stop))
        if start >= end:
            return
        table = table.slice(start, end - start)
        self._waiting.append(table)
        self.rows += table.num_rows
        self.bytes += table.nbytes
        self.advance(int(offsets[end - 1]) + 1)

    def advance(self, position: int) -> None:
        """Note that there are no more records before a position: Kafka may leave offsets out."""
        position = position if self.stop is None else min(position, self.stop)
        if position > self.next:
            self.next = position
            if self.since is None:
                self.since, self._started_at = time.monotonic(), time.time_ns()

    def is_due(self, limits: SegmentLimits) -> bool:
        """Say whether what waits is to be written now."""
        if self.since is None:
            return False
        full = self.rows >= limits.rows or self.bytes >= limits.bytes
        return full or self.reached or time.monotonic() - self.since >= limits.seconds

    @property
    def oldest(self) -> float | None:
        """When the oldest record came that is not committed yet, by the monotonic clock. For any thread."""
        writing = self.writing
        return self.since if writing is None else writing.since

    @property
    def held(self) -> int:
        """Bytes in memory, of what waits and of what is being written."""
        return self.bytes + (self.writing.bytes if self.writing else 0)

    def write(self, store: Store) -> Entry | None:
        """Write what waits and commit it; None if the chain had gone on without us. Raises StoreError."""
        self.start(store)
        return self.finish()

    def start(self, store: Store, pool: Executor | None = None) -> None:
        """Begin to write the files of what waits, by the pool if there is one. Nothing may be in writing."""
        assert self.writing is None  # noqa: S101
        key, loaded_at = self.chain.key(self.first), time.time_ns()
        load = Load(
            feed=self.feed.name,
            source=self.chain.source.topic,
            load_id=load_id(key),
            loaded_at=loaded_at,
            source_time=None,
            schema_version=self.feed.schema_version,
            attributes={},
        )
        writer, tables = SegmentWriter(store, load), self._waiting

        def files() -> None:
            failpoints.reach("before-files")
            for table in tables:
                writer.add(table)
            writer.close()
            failpoints.reach("after-files")

        done: Future[None] = pool.submit(files) if pool else Future()
        counts = self.next, self.rows, self.bytes, self.since, self._started_at
        self.writing = Writing(key, load, writer, done, tables, *counts)
        self.rows = self.bytes = 0
        self.since, self._waiting = None, []
        if pool is None:
            try:
                files()
                done.set_result(None)
            except StoreError as error:
                done.set_exception(error)

    def finish(self) -> Entry | None:
        """Wait for the files in writing and commit them; None if the chain had gone on without us.

        Raises StoreError: then what was in writing waits again.
        """
        assert self.writing is not None  # noqa: S101
        work, load = self.writing, self.writing.load
        try:
            work.done.result()
            entry = Entry(
                key=work.key,
                load_id=load.load_id,
                feed=load.feed,
                kind="stream",
                source=load.source,
                bytes=work.bytes,
                schema_version=load.schema_version,
                records=work.writer.records,
                files=tuple(work.writer.files),
                stream=self.chain.stream(self.first, work.next),
                started_at=iso(work.started_at),
                loaded_at=iso(load.loaded_at),
                loader_version=VERSION,
            )
            committed = self.chain.extend(entry)
        except StoreError:
            self.writing = None
            self._waiting = work.tables + self._waiting
            self.rows, self.bytes = self.rows + work.rows, self.bytes + work.bytes
            self.since, self._started_at = work.since, work.started_at
            raise
        self.writing = None
        if not committed:
            work.writer.discard()
            return None
        self.first = work.next
        return entry

    def abandon(self) -> None:
        """Give up what is in writing."""
        if self.writing is not None:
            wait([self.writing.done])
            self.writing.writer.discard()
            self.writing = None


@dataclass
class Writing:
    """A segment whose files are being written: what `Lane.finish` must know of it."""

    key: str
    load: Load
    writer: SegmentWriter
    done: Future[None]
    tables: list[pa.Table]
    next: int
    rows: int
    bytes: int
    since: float | None
    started_at: int
    begun: float = field(default_factory=time.monotonic)
