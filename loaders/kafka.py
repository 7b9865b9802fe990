"""Kafka into the raw zone, each record exactly once.

    join the group ──▶ assigned ── the chain says where ──▶ seek ── poll ──▶ lanes ── due ──▶ files
                          ▲                                                                     │
                          └── refused: the chain had gone on without us ◀── ledger entry ◀──────┘
                                                                                │
                                                             the group's offsets, advisory

Any number of processes share a group. Positions come from the chain (loaders/chain.py) and from nowhere else:
whatever a stale, stopped or killed loader does, of those that read the same records one commits. Where the
chain and Kafka do not fit together, loading stops and says what is missing.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from loaders import failpoints, logs
from loaders.chain import Chain, Source, Sources, other_topic
from loaders.consumers import BrokerError, Consumer, Membership, OutOfRange, Partition, StreamError, connect
from loaders.instruments import Instruments
from loaders.lanes import Lane, SegmentLimits
from loaders.ledger import zone_id
from loaders.metrics import Metrics, Reading
from loaders.records import records_table
from loaders.registry import Feed
from loaders.settings import MIB, Settings
from loaders.store import StoreError, open_store
from loaders.trouble import Trouble
from loaders.until import Until, targets

HELD_BYTES = 96 * MIB
"""What may wait in memory over all partitions; above it the largest is written, however young."""
POLL_SECONDS, WRITING_POLL_SECONDS = 0.5, 0.01
"""How long a poll waits for records; the second while a segment is written, which is to be committed then."""
LOOK_SECONDS = 1.0
"""How often the partitions of other loaders are looked at, while waiting for them."""
ANSWER_SECONDS = 2.0
"""How long who asks for metrics waits for the brokers."""
QUIET_SECONDS = 10.0
"""After so long without records, and without failures, the brokers are asked whether they are there and the same."""

Accept = Literal["lost-records", "new-topic"]

log = logging.getLogger(__name__)


def settle_memory() -> None:
    """Let this process spend less on memory: for programs that do nothing but load.

    A poll makes thousands of small objects, none of them in a cycle; and Arrow's own allocator keeps what its threads
    have freed, 80 MB and more.
    """
    gc.set_threshold(100_000, 20, 100)
    pa.set_memory_pool(pa.system_memory_pool())


@dataclass
class Totals:
    """What one process loaded; `refused` segments were committed by another before."""

    records: int = 0
    bytes: int = 0
    segments: int = 0
    refused: int = 0


class KafkaLoader:
    """One member of a group of loaders. `run` returns when `until` is reached, or after `stop`."""

    def __init__(
        self,
        feeds: Iterable[Feed],
        settings: Settings,
        *,
        group: str | None = None,
        until: Until | None = None,
        limits: SegmentLimits | None = None,
        accept: Iterable[Accept] = (),
        session_seconds: float = 45.0,
        give_up_after: float = 300.0,
        connect: Callable[[Membership], Consumer] = connect,
        metrics: Metrics | None = None,
    ) -> None:
        self._feeds = {feed.topic: feed for feed in feeds}
        self._settings, self._group, self._session_seconds = settings, group, session_seconds
        self._store = open_store(settings.raw, settings.s3)
        self._until, self._limits = until, limits or SegmentLimits()
        self._accept, self._connect = frozenset(accept), connect
        self._metrics, self._ends = metrics or Metrics(), _Ends(settings, connect)
        self._metrics.watch(self._readings, lambda: self._store.retries)
        self._stopping = False

        def patience(target: str) -> tuple[float, Callable[[], bool], Callable[[], object]]:
            return give_up_after, lambda: self._stopping, self._metrics.retries.labels(target).inc

        self._brokers = Trouble(f"reading from Kafka at {settings.kafka}", *patience("brokers"))
        self._zone = Trouble(f"writing to {settings.raw}", *patience("raw zone"))
        self._client: Consumer
        self._writers: Executor
        self._sources: dict[str, Source] = {}
        self._chains: dict[Partition, Chain] = {}
        self._lanes: dict[Partition, Lane] = {}
        self._targets: dict[Partition, int] = {}
        self._missing: set[Partition] = set()
        self._heard = self._looked = time.monotonic()
        self.totals = Totals()

    def stop(self) -> None:
        """Let `run` write what waits and leave the group. May be called from a signal handler."""
        self._stopping = True

    def run(self) -> Totals:
        """Load. Raises StreamError where loading cannot go on, or what waits when it is stopped cannot be written."""
        while not self._stopping:
            with self._guarded():
                self._load()
                break
        return self.totals

    def _load(self) -> None:
        # A group of its own for each choice of feeds: members wait for each other whenever partitions are shared anew.
        names = sorted(feed.name for feed in self._feeds.values())
        group = self._group or "-".join(["mdp", zone_id(self._store), *names])
        self._client = self._connect(Membership.by(self._settings, group, self._session_seconds))
        self._writers = ThreadPoolExecutor(1, "writer")
        try:
            self._find_topics()
            self._client.join(self._feeds)
            while not self._stopping and not self._finished():
                with self._guarded():
                    self._step()
            self._leave()
        finally:
            for lane in self._lanes.values():
                lane.abandon()
            self._writers.shutdown()
            self._client.close()
            self._ends.close()

    def _leave(self) -> None:
        """Write what waits, as much of it as can be written; raise what the rest meets."""
        met: list[Exception] = []
        for partition, lane in self._lanes.items():
            try:
                self._commit(partition, lane)
                if lane.since is not None and not any(isinstance(error, BrokerError) for error in met):
                    self._start(lane)
                    self._commit(partition, lane)
            except (StreamError, BrokerError, StoreError) as error:
                met.append(error)
                continue
            with suppress(StoreError):  # without a new head the chain is followed from the old one
                lane.chain.remember(now=True)
        if refused := next((error for error in met if isinstance(error, StreamError)), None):
            raise refused
        if met and self._stopping:
            raise StreamError(
                f"stopped, but not all that was read could be written ({met[0]}). Nothing is lost: what was committed "
                f"stays, and the next run reads the other records again"
            ) from met[0]
        if met:
            raise met[0]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Meet what may pass by itself: wait, then let every partition be sought anew."""
        try:
            yield
            return
        except OutOfRange as error:
            trouble, met = self._brokers, Exception(error)
        except BrokerError as error:
            trouble, met = self._brokers, error
        except StoreError as error:
            trouble, met = self._zone, error
        for lane in self._lanes.values():
            lane.ready = False
        trouble.meet(met)
        self._heard = time.monotonic()

    # Where to begin and to end.

    def _find_topics(self) -> None:
        sources = Sources(self._store)
        self._sources, self._chains, self._lanes = {}, {}, {}
        for name, feed in self._feeds.items():
            topic = self._client.topic(name)
            if topic is None:
                raise StreamError(
                    f"topic {name} of feed {feed.name} is not on {self._settings.kafka}: create it, or set MDP_KAFKA "
                    f"to the brokers that have it"
                )
            source = Source(feed.name, topic.cluster, name, topic.topic_id)
            known = sources.last(feed.name, name)
            if known is not None and known != source and "new-topic" not in self._accept:
                raise self._other_topic(known, source, topic.partitions)
            chains = {Partition(name, number): Chain(self._store, source, number) for number in topic.partitions}
            if known != source:
                # All chains begin before the topic counts as known: a partition without an origin came later, at 0.
                for partition, (start, _) in self._client.bounds(chains).items():
                    chains[partition].begin(start)
                sources.note(source)
            self._sources[name] = source
            self._chains |= chains
        self._brokers.over()
        if self._until is not None:
            self._targets = targets(self._until, self._client, self._chains)
            self._missing = set(self._targets)
            for partition, (start, end) in self._client.bounds(self._missing).items():
                position = self._chains[partition].end()
                if position is None and start >= self._targets[partition]:
                    self._missing.discard(partition)  # there is nothing
                elif position is not None:
                    self._check(partition, position, start, end)
            self._look()

    def _other_topic(self, known: Source, found: Source, partitions: Iterable[int]) -> StreamError:
        return StreamError(
            f"{other_topic(self._store, known, found, partitions)}. If {self._settings.kafka} are the wrong brokers, "
            f"set MDP_KAFKA to those that were loaded from. If the topic was made anew, what the old one held beyond "
            f"these offsets is missing; to load the new one from its start, beside what is there, run again with "
            f"--accept new-topic"
        )

    def _check(self, partition: Partition, position: int, start: int, end: int) -> None:
        """Raise StreamError if Kafka does not hold the chain's end."""
        where = f"partition {partition.number} of topic {partition.topic}"
        if position < start and "lost-records" not in self._accept:
            raise StreamError(
                f"{where} starts at offset {start} now, and was loaded up to {position}: the offsets from {position} "
                f"to {start - 1} have been deleted (retention) before they were loaded. To note them as lost and go "
                f"on at {start}, run again with --accept lost-records"
            )
        if position > end:
            raise StreamError(
                f"{where} ends at offset {end}, and was loaded up to {position}: the brokers have lost records that "
                f"were read from them, and new ones would take their offsets. Restore the topic, or make it anew and "
                f"run with --accept new-topic"
            )

    def _finished(self) -> bool:
        """Whether all partitions have reached `until` in the ledger, those of other loaders too."""
        if self._until is None:
            return False
        for partition, lane in self._lanes.items():
            if partition in self._missing and lane.ready and lane.first >= self._targets[partition]:
                self._missing.discard(partition)
        if self._missing and time.monotonic() - self._looked >= LOOK_SECONDS:
            with self._guarded():
                self._look()
        return not self._missing

    def _look(self) -> None:
        for partition in self._missing - self._lanes.keys():
            end = self._chains[partition].end()
            if end is not None and end >= self._targets[partition]:
                self._missing.discard(partition)
        self._looked = time.monotonic()
        self._zone_is_read()

    def _zone_is_read(self) -> None:
        """Note that the raw zone works, unless something waits that it may not take: that is known by the writing."""
        if all(lane.oldest is None for lane in self._lanes.values()):
            self._zone.over()

    # One round.

    def _step(self) -> None:
        self._seek()
        polled = self._client.poll(self._patience())
        self._take_changes()
        is_fed = bool(polled)
        for partition, batch in polled.items():
            lane = self._lanes.get(partition)
            if lane is not None and lane.ready:
                lane.add(records_table(batch, partition.number, lane.instruments))
        for partition, lane in self._lanes.items():
            position = self._client.position(partition) if lane.ready and not lane.reached else None
            if position is not None:
                is_fed = is_fed or position > lane.next
                lane.advance(position)
        if is_fed:
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard >= QUIET_SECONDS:
            self._ask_brokers()
        self._flush_due()
        if is_fed:
            self._brokers.over()

    def _patience(self) -> float:
        """Seconds for which a poll may wait, so that no segment grows older than it should."""
        if any(lane.writing for lane in self._lanes.values()):
            return WRITING_POLL_SECONDS
        waiting = [lane.since for lane in self._lanes.values() if lane.since is not None]
        if not waiting:
            return POLL_SECONDS
        return min(POLL_SECONDS, max(0.0, min(waiting) + self._limits.seconds - time.monotonic()))

    def _take_changes(self) -> None:
        changes = self._client.changes()
        for partition in changes.fresh:
            if partition not in self._chains:  # the topic was given more partitions
                source = self._sources[partition.topic]
                self._chains[partition] = Chain(self._store, source, partition.number)
            if partition not in self._lanes:
                feed = self._feeds[partition.topic]
                self._lanes[partition] = Lane(
                    feed=feed,
                    chain=self._chains[partition],
                    instruments=Instruments(feed.instrument_path, {}),
                    stop=self._targets.get(partition),
                )
                self._metrics.follow(feed.name, *partition)
            self._lanes[partition].ready = False
        for partition in self._lanes.keys() - changes.assigned:
            lane = self._lanes.pop(partition)
            self._commit(partition, lane)  # whether it still may, the chain says
            lane.chain.remember(now=True)

    def _seek(self) -> None:
        """Let partitions that were assigned, or that met an error, be read from the chain's end on."""
        lanes = {partition: lane for partition, lane in self._lanes.items() if not lane.ready}
        if not lanes:
            return
        for partition, lane in lanes.items():
            self._commit(partition, lane)
        bounds = self._client.bounds(lanes)
        for partition, lane in lanes.items():
            start, end = bounds[partition]
            position = lane.chain.begin(0)
            if position < start and lane.since is not None:  # what waits here is all that is left of it
                self._start(lane)
                self._commit(partition, lane)
                position = lane.chain.begin(0)
            self._check(partition, position, start, end)
            if position < start:
                self._note_loss(partition, lane.chain, position, start)
                position = lane.chain.begin(start)
            if lane.first != position or lane.since is None:
                lane.restart(position)
            self._client.seek(partition, lane.next, still=lane.reached)
            lane.ready = True
        self._zone_is_read()

    def _note_loss(self, partition: Partition, chain: Chain, position: int, start: int) -> None:
        why = f"deleted from Kafka before they were loaded; accepted: offsets {position} to {start - 1}"
        if chain.skip(start, why):
            logs.event(
                log,
                "records-lost",
                f"{partition.topic}/{partition.number}: lost: {why}",
                logging.WARNING,
                **_about(chain.source, partition),
                first=position,
                next=start,
            )

    def _ask_brokers(self) -> None:
        for source in self._sources.values():
            self._confirm(source)
        self._heard = time.monotonic()
        self._brokers.over()

    def _confirm(self, source: Source) -> None:
        """Make sure that what was read came from the topic that the chains are of, and not from a namesake."""
        topic = self._client.topic(source.topic)
        if topic is None:
            raise BrokerError(f"topic {source.topic} is not there")
        found = Source(source.feed, topic.cluster, source.topic, topic.topic_id)
        if found != source:
            raise self._other_topic(source, found, topic.partitions)

    # Writing.

    def _flush_due(self) -> None:
        for partition, lane in self._lanes.items():
            due = lane.ready and lane.is_due(self._limits)
            if due or (lane.writing and lane.writing.done.done()):
                self._commit(partition, lane)
            if due and lane.ready:
                self._start(lane)
        while sum(lane.held for lane in self._lanes.values()) > HELD_BYTES:
            partition, lane = max(self._lanes.items(), key=lambda item: item[1].held)
            if not lane.writing:
                self._start(lane)
            self._commit(partition, lane)

    def _start(self, lane: Lane) -> None:
        """Let the files of what waits be written, beside the polls that follow."""
        self._confirm(lane.chain.source)
        lane.start(self._store, self._writers)

    def _commit(self, partition: Partition, lane: Lane) -> None:
        """Commit what is in writing, if anything is, when its files are there."""
        if lane.writing is None:
            return
        begun = lane.writing.begun
        entry = lane.finish()
        seconds = time.monotonic() - begun
        self._zone.over()
        where, about = f"{partition.topic}/{partition.number}", _about(lane.chain.source, partition)
        labels = (lane.feed.name, partition.topic, partition.number)
        if entry is None or entry.stream is None:
            self.totals.refused += 1
            self._metrics.refused.labels(*labels).inc()
            lane.ready = False
            lane.restart(lane.first)
            message = f"{where}: another loader has committed from offset {lane.first} on; going on behind it"
            logs.event(log, "commit-refused", message, logging.WARNING, **about, first=lane.first)
            return
        if lane.reached and lane.ready:
            self._client.seek(partition, lane.next, still=True)
        self.totals.records += entry.records
        self.totals.bytes += entry.bytes or 0
        self.totals.segments += 1
        self._metrics.records.labels(*labels).inc(entry.records)
        self._metrics.bytes.labels(*labels).inc(entry.bytes or 0)
        self._metrics.segments.labels(*labels).inc()
        self._metrics.commit_seconds.labels(*labels[:2]).observe(seconds)
        logs.event(
            log,
            "segment-committed",
            f"{where}: {entry.records:,} records, offsets {entry.stream.first} to {entry.stream.next - 1}",
            **about,
            first=entry.stream.first,
            next=entry.stream.next,
            records=entry.records,
            bytes=entry.bytes,
            seconds=round(seconds, 6),
            load_id=entry.load_id,
        )
        self._client.commit({partition: entry.stream.next})
        failpoints.reach("after-offsets")
        lane.chain.remember()

    # Seeing it run.

    def _readings(self) -> list[Reading]:
        """Where the partitions are that this process reads. Called from the threads that metrics are asked on."""
        lanes = {partition: lane for partition, lane in list(self._lanes.items()) if lane.placed}
        ends = self._ends(lanes) if lanes else {}
        return [
            Reading(lane.feed.name, *partition, lane.first, ends.get(partition), lane.oldest)
            for partition, lane in lanes.items()
        ]


class _Ends:
    """Where partitions end in Kafka, over a connection of its own, asked for once a second at most."""

    def __init__(self, settings: Settings, connect: Callable[[Membership], Consumer]) -> None:
        self._membership, self._connect = Membership.by(settings), connect
        self._lock = threading.Lock()
        self._client: Consumer | None = None
        self._asking: threading.Thread | None = None
        self._asked_at = 0.0
        self._known: dict[Partition, int] = {}

    def __call__(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Return the ends that are known within ANSWER_SECONDS; none where the brokers do not answer."""
        with self._lock:
            asking = self._asking
            if asking is None or (not asking.is_alive() and time.monotonic() - self._asked_at >= LOOK_SECONDS):
                asking = self._asking = threading.Thread(target=self._ask, args=(list(partitions),), daemon=True)
                self._asked_at = time.monotonic()
                asking.start()
        asking.join(ANSWER_SECONDS)
        return {} if asking.is_alive() else self._known

    def close(self) -> None:
        """Give the connection back; who asks again opens another."""
        with self._lock:
            if self._asking is not None:
                self._asking.join(ANSWER_SECONDS)
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _ask(self, partitions: list[Partition]) -> None:
        try:
            self._client = self._client or self._connect(self._membership)
            self._known = {where: end for where, (_, end) in self._client.bounds(partitions).items()}
        except (BrokerError, StreamError):
            self._known = {}


def _about(source: Source, partition: Partition) -> dict[str, Any]:
    """What events say of the partition that they are about."""
    return {"feed": source.feed, "topic": partition.topic, "partition": partition.number}
