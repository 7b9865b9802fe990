"""A range of a stream again from Kafka: what is in the raw zone stays untouched, holes are filled.

    range ── the chain's links ──┬── loaded: counted
                                 └── a hole ── its own chain ── Kafka still has it ──▶ files, entries
                                                             └─ it does not: counted as missing

A hole that the range touches is filled as a whole, as far as Kafka has it: its chain starts where Kafka did when it
was first replayed, and is as exact as any other, whoever replays beside whom. What Kafka has deleted since then is a
hole in that chain. What lies behind the partition's chain is left to `mdp load kafka`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loaders.chain import Chain, Source, Sources, other_topic
from loaders.consumers import BrokerError, Consumer, Membership, OutOfRange, Partition, StreamError, connect
from loaders.instruments import Instruments
from loaders.lanes import Lane, SegmentLimits
from loaders.ledger import Stream
from loaders.records import records_table
from loaders.registry import Feed
from loaders.settings import Settings
from loaders.store import Store, open_store
from loaders.until import time_ms

POLL_SECONDS, POLLS = 1.0, 30
"""How often in a row a poll may give nothing, before the brokers count as not answering."""


@dataclass(frozen=True)
class Bound:
    """One end of a range: an offset, the same in every partition, or a time, by Kafka's timestamps."""

    offset: int | None = None
    time_ms: int | None = None


@dataclass
class Replayed:
    """What a replay found in one partition, in offsets; holes are counted whole. `records` were landed now, `unloaded`
    are behind what was loaded so far."""

    partition: int
    first: int
    stop: int
    there: int = 0
    filled: int = 0
    missing: int = 0
    unloaded: int = 0
    records: int = 0


def parse_bound(text: str) -> Bound:
    """Read an offset (digits) or an ISO time. Raises ValueError where it is neither."""
    if text.isascii() and text.isdigit():
        return Bound(offset=int(text))
    try:
        return Bound(time_ms=time_ms(text))
    except ValueError:
        raise ValueError(f"{text!r} is neither an offset such as 120000 nor an ISO time such as 2024-08-08") from None


def replay(
    feed: Feed,
    settings: Settings,
    first: Bound,
    stop: Bound,
    limits: SegmentLimits | None = None,
    connect: Callable[[Membership], Consumer] = connect,
) -> list[Replayed]:
    """Replay a range of all partitions of a feed's topic, `stop` not included.

    Raises StreamError where the topic is not there or is another than was loaded, BrokerError where the brokers fail,
    StoreError where the raw zone does. What was landed until then stays; the same replay again goes on from there.
    """
    store = open_store(settings.raw, settings.s3)
    client = connect(Membership.by(settings))
    try:
        topic = client.topic(feed.topic)
        if topic is None:
            raise StreamError(f"topic {feed.topic} of feed {feed.name} is not on {settings.kafka}")
        source = Source(feed.name, topic.cluster, feed.topic, topic.topic_id)
        known = Sources(store).last(feed.name, feed.topic)
        if known is not None and known != source:
            raise StreamError(
                f"{other_topic(store, known, source, topic.partitions)}. Holes can be filled from that one only: where "
                f"other brokers still have it, set MDP_KAFKA to them. To go on with the new one, run mdp load kafka "
                f"--accept new-topic"
            )
        replayed = []
        for number in topic.partitions:
            partition = Partition(feed.topic, number)
            chain = Chain(store, source, number)
            begin, end = _position(client, partition, first), _position(client, partition, stop)
            job = _Job(client, store, feed, chain, partition, limits or SegmentLimits())
            replayed.append(job.run(begin, end))
        return replayed
    except OutOfRange as error:
        raise BrokerError(f"Kafka deleted records of topic {feed.topic} before they were read ({error})") from error
    finally:
        client.close()


def _position(client: Consumer, partition: Partition, bound: Bound) -> int:
    """Return a bound as a position of a partition, none behind the partition's end."""
    end = client.bounds([partition])[partition][1]
    if bound.time_ms is not None:
        found = client.at_time([partition], bound.time_ms)[partition]
        return end if found is None else min(found, end)
    return min(bound.offset or 0, end)


@dataclass
class _Job:
    """The replay of one partition."""

    client: Consumer
    store: Store
    feed: Feed
    chain: Chain
    partition: Partition
    limits: SegmentLimits

    def run(self, first: int, stop: int) -> Replayed:
        done = Replayed(self.partition.number, first, max(first, stop))
        at = first
        for entry in self.chain.links(first, stop):
            assert entry.stream is not None  # noqa: S101 (links yields no other)
            done.missing += max(0, entry.stream.first - at)  # before the chain's start, or a link that is gone
            at = entry.stream.next
            if entry.kind == "hole":
                self._fill(entry.stream, done)
            else:
                done.there += min(entry.stream.next, stop) - max(entry.stream.first, first)
        end = self.chain.end() or 0
        done.missing += max(0, min(stop, end) - at)
        done.unloaded = max(0, stop - max(first, end))
        return done

    def _fill(self, hole: Stream, done: Replayed) -> None:
        """Land what Kafka has of a hole and no replay has landed yet."""
        start, end = self.client.bounds([self.partition])[self.partition]
        chain = Chain(self.store, self.chain.source, self.partition.number, hole=hole.first)
        there, stop = _landed(chain, hole), min(hole.next, end)
        if start < stop:
            while (at := chain.begin(max(hole.first, start))) < start:
                chain.skip(start, f"deleted from Kafka before they were replayed: offsets {at} to {start - 1}")
            if at < stop:
                self._read(chain, at, stop, done)
        landed = _landed(chain, hole)
        done.there += there
        done.filled += landed - there
        done.missing += hole.next - hole.first - landed

    def _read(self, chain: Chain, at: int, stop: int, done: Replayed) -> None:
        """Land the records from a position up to `stop`."""
        lane = Lane(self.feed, chain, Instruments(self.feed.instrument_path, {}), stop=stop)
        lane.restart(at)
        self.client.take(self.partition)
        self.client.seek(self.partition, at)
        empty = 0
        while lane.first < stop:
            batch = self.client.poll(POLL_SECONDS).get(self.partition)
            if batch is not None:
                lane.add(records_table(batch, self.partition.number, lane.instruments))
            lane.advance(self.client.position(self.partition) or 0)
            empty = 0 if batch is not None or lane.reached else empty + 1
            if empty >= POLLS:
                raise BrokerError(f"no records of {self.partition.topic}/{self.partition.number} from {lane.next} on")
            if lane.is_due(self.limits):
                entry = lane.write(self.store)
                if entry is None:  # another replay was faster
                    lane.restart(chain.end() or at)
                    self.client.seek(self.partition, lane.next)
                else:
                    done.records += entry.records
        chain.remember(now=True)


def _landed(chain: Chain, hole: Stream) -> int:
    """Return how many offsets of a hole replays have landed."""
    links = (link.stream for link in chain.links(hole.first, hole.next) if link.kind == "stream")
    return sum(stream.next - stream.first for stream in links if stream is not None)
