"""How far the raw zone is behind Kafka, partition by partition.

    ledger: sources, heads, chains ── loaded up to ──┐
    brokers: start and end of each partition ────────┴──▶ lags, and what there is to note

The cost goes by the number of partitions, not by what was ever loaded. Where no stream was, no broker is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from loaders.chain import Chain, Source, Sources, partitions
from loaders.consumers import BrokerError, Membership, Partition, StreamError, Topic, connect
from loaders.settings import Settings
from loaders.store import open_store

ANSWER_SECONDS = 3.0


@dataclass(frozen=True)
class Lag:
    """One partition. Offsets are `[start, end)` of Kafka; None where it is not known, or nothing is there."""

    feed: str
    topic: str
    partition: int
    loaded: int | None
    """The offset up to which the ledger accounts for everything."""
    loaded_at: str | None
    """When that was committed: ISO text in UTC."""
    start: int | None = None
    end: int | None = None

    @property
    def behind(self) -> int | None:
        """Offsets that Kafka has and the ledger has not."""
        if self.start is None or self.end is None:
            return None
        return max(0, self.end - max(self.start, self.loaded or 0))


@dataclass
class Lags:
    """All partitions that were ever loaded, and those that Kafka has of the same topics."""

    partitions: list[Lag] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a person should know: that the brokers do not answer, that a topic is another one, that records are gone."""


def lags(settings: Settings, seconds: float = ANSWER_SECONDS) -> Lags:
    """Compare the ledger with the brokers, which have so many seconds to answer. Raises StoreError."""
    store, found = open_store(settings.raw, settings.s3), Lags()
    known, sources = Sources(store), []
    for feed, name in known.topics():
        try:
            if source := known.last(feed, name):
                sources.append(source)
        except StreamError as error:
            found.notes.append(str(error))
    if not sources:
        return found
    brokers = _Brokers(settings, [source.topic for source in sources])
    problem = brokers.ask(seconds)
    if problem is not None:
        found.notes.append(f"Kafka at {settings.kafka} cannot be reached ({problem}): this is what the ledger says")
    for source in sources:
        topic = brokers.topics.get(source.topic)
        same = topic is not None and (topic.cluster, topic.topic_id) == (source.cluster, source.topic_id)
        if problem is None and not same:
            what = "is not" if topic is None else "is another one than was loaded: mdp load kafka says more. It is"
            found.notes.append(f"topic {source.topic} of feed {source.feed} {what} on {settings.kafka}")
        numbers = {*partitions(store, source), *(topic.partitions if topic is not None and same else ())}
        for number in sorted(numbers):
            try:
                lag = _lag(Chain(store, source, number), source, brokers if same else None)
            except StreamError as error:
                found.notes.append(str(error))
                continue
            if lag.loaded is not None and lag.start is not None and lag.loaded < lag.start:
                gone = f"offsets {lag.loaded} to {lag.start - 1} were deleted before they were loaded"
                found.notes.append(f"{lag.topic}/{lag.partition}: {gone}")
            found.partitions.append(lag)
    return found


def _lag(chain: Chain, source: Source, brokers: _Brokers | None) -> Lag:
    loaded = chain.end()
    bounds = brokers.bounds.get(Partition(source.topic, chain.partition)) if brokers else None
    return Lag(source.feed, source.topic, chain.partition, loaded, chain.loaded_at, *(bounds or (None, None)))


class _Brokers:
    """What the brokers say of topics, if they say it in time."""

    def __init__(self, settings: Settings, names: Iterable[str]) -> None:
        self._membership, self._names = Membership.by(settings), list(dict.fromkeys(names))
        self.topics: dict[str, Topic] = {}
        self.bounds: dict[Partition, tuple[int, int]] = {}
        self._problem: str | None = None

    def ask(self, seconds: float) -> str | None:
        """Ask; return why there is no answer, None if there is one."""
        asking = threading.Thread(target=self._ask, daemon=True)
        asking.start()
        asking.join(seconds)
        return f"no answer within {seconds:.0f} s" if asking.is_alive() else self._problem

    def _ask(self) -> None:
        try:
            client = connect(self._membership)
            try:
                topics = {name: topic for name in self._names if (topic := client.topic(name)) is not None}
                wanted = [Partition(name, number) for name, topic in topics.items() for number in topic.partitions]
                self.bounds = client.bounds(wanted) if wanted else {}
                self.topics = topics
            finally:
                client.close()
        except (BrokerError, StreamError) as error:
            self._problem = str(error)
