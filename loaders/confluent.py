"""confluent-kafka (librdkafka) as the loader's Consumer: the extra market-data-platform[fast].

    group ── assigned ──▶ noted as fresh ── seek ──▶ given to the client, with its position ── consume ──▶ columns

A partition that was assigned is not given to the client before it is sought, and is taken back and given anew
whenever it is sought again: so that nothing of an older position can be left in the client's queue. How far a
partition was read is known from its records, and past transaction markers from the client's end-of-partition events.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Consumer as Client
from confluent_kafka import IsolationLevel, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from loaders.consumers import (
    FETCH_BYTES,
    PARTITION_FETCH_BYTES,
    POLL_RECORDS,
    REFUSED,
    REQUEST_SECONDS,
    UNKNOWN_CA,
    Batch,
    BrokerError,
    Changes,
    Headers,
    Membership,
    OutOfRange,
    Partition,
    StreamError,
    Topic,
)
from loaders.settings import KafkaSecurity

GATHER_RECORDS, GATHER_SECONDS = 100, 0.01
"""How long more records are waited for when there is one: few large polls cost less than many small ones."""
QUEUE_KIB = 16 << 10
"""What the client may have read ahead, of each partition."""

_OUT_OF_RANGE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
_FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
_LOCKED_OUT = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
}
_NOBODY = {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE}

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Confluent:
    """confluent-kafka as a Consumer."""

    def __init__(self, membership: Membership) -> None:
        self._bootstrap = membership.bootstrap
        self._trouble: KafkaError | None = None
        """What reading met in the background and was not told of yet."""
        self._trouble_asking: KafkaError | None = None
        """The same of what the brokers are asked."""
        shared: dict[str, Any] = {
            **client_options(membership.bootstrap, membership.security),
            "socket.timeout.ms": REQUEST_SECONDS * 1000,
            "reconnect.backoff.max.ms": 2000,
            "log_level": 0,
        }
        session_ms = int(membership.session_seconds * 1000)
        try:
            self._admin = AdminClient({**shared, "error_cb": self._met_asking})
            self._consumer = Client(
                {
                    **shared,
                    "error_cb": self._met,
                    "group.id": membership.group or "mdp-without-group",
                    "session.timeout.ms": session_ms,
                    "heartbeat.interval.ms": int(membership.heartbeat_seconds * 1000),
                    "partition.assignment.strategy": "cooperative-sticky",
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "error",
                    "isolation.level": "read_committed",
                    "allow.auto.create.topics": False,
                    "enable.partition.eof": True,
                    "check.crcs": True,
                    "fetch.max.bytes": FETCH_BYTES,
                    "max.partition.fetch.bytes": PARTITION_FETCH_BYTES,
                    "queued.max.messages.kbytes": QUEUE_KIB,
                    "fetch.queue.backoff.ms": 10,
                }
            )
        except KafkaException as error:
            raise StreamError(f"Kafka's client cannot be set up: {error.args[0].str()}") from error
        self._assigned: set[Partition] = set()
        self._fresh: set[Partition] = set()
        self._positions: dict[Partition, int] = {}
        """Where the next poll reads on, of the partitions that were given to the client."""

    def topic(self, name: str) -> Topic | None:
        try:
            asked = self._admin.describe_topics(TopicCollection([name]), request_timeout=REQUEST_SECONDS)
            found = self._answer(asked[name])
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return None
            raise self._told(error.args[0]) from error
        cluster = self._asked(lambda: self._admin.describe_cluster(request_timeout=REQUEST_SECONDS))
        topic_id = uuid.UUID(bytes=base64.b64decode(f"{found.topic_id}=="))
        return Topic(str(cluster.cluster_id), str(topic_id), tuple(sorted(part.id for part in found.partitions)))

    def join(self, topics: Iterable[str]) -> None:
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    def take(self, partition: Partition) -> None:
        self._give_back(self._assigned)
        self._assigned = {partition}

    def poll(self, seconds: float) -> dict[Partition, Batch]:
        try:
            messages = self._consumer.consume(1, seconds)
            size, full = 0, bool(messages)
            while full and len(messages) < POLL_RECORDS and size < PARTITION_FETCH_BYTES:
                more = self._consumer.consume(GATHER_RECORDS, GATHER_SECONDS)
                full = len(more) == GATHER_RECORDS
                size += len(more) * len(more[0]) if more else 0  # as if all were like the first
                messages += more
        except KafkaException as error:
            raise self._told(error.args[0]) from error
        events = [message for message in messages if message.error() is not None]
        for event in events:
            self._take_event(event)
        if events:
            messages = [message for message in messages if message.error() is None]
        # What was met since the last poll, also while something else was asked of the brokers: it is told once.
        trouble = self._trouble_asking if self._trouble is None else self._trouble
        self._trouble = self._trouble_asking = None
        if not messages and trouble is not None:
            raise self._told(trouble)
        return self._batches(messages)

    def changes(self) -> Changes:
        assigned = frozenset(self._assigned)
        fresh, self._fresh = self._fresh, set()
        return Changes(assigned, frozenset(fresh) & assigned)

    def seek(self, partition: Partition, position: int, *, still: bool = False) -> None:
        if partition not in self._assigned:
            return  # it was taken away meanwhile
        self._give_back([partition])
        if not still:
            self._consumer.incremental_assign([TopicPartition(*partition, position)])
            self._positions[partition] = position

    def position(self, partition: Partition) -> int | None:
        return self._positions.get(partition)

    def bounds(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, int]]:
        partitions = list(partitions)
        first = self._offsets(partitions, OffsetSpec.earliest())
        last = self._offsets(partitions, OffsetSpec.latest())
        return {partition: (first[partition], last[partition]) for partition in partitions}

    def at_time(self, partitions: Iterable[Partition], time_ms: int) -> dict[Partition, int | None]:
        found = self._offsets(list(partitions), OffsetSpec.for_timestamp(time_ms))
        return {partition: offset if offset >= 0 else None for partition, offset in found.items()}

    def commit(self, positions: Mapping[Partition, int]) -> None:
        offsets = [TopicPartition(*partition, next_) for partition, next_ in positions.items()]
        try:  # without waiting: where the brokers are away, that would last until they are back
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            log.info("the group did not take the offsets, which are advisory: %s", error.args[0].str())

    def close(self) -> None:
        def leave() -> None:
            with suppress(KafkaException, RuntimeError):  # where the brokers are gone, there is no group to leave
                self._consumer.close()

        # It waits for commits that were not answered, up to the session's end.
        leaving = threading.Thread(target=leave, daemon=True)
        leaving.start()
        leaving.join(REQUEST_SECONDS)

    # The client's callbacks, called while it is polled.

    def _on_assign(self, client: Client, partitions: list[TopicPartition]) -> None:
        client.incremental_assign([])  # the group goes on; the partitions wait until they are sought
        found = {Partition(str(at.topic), at.partition) for at in partitions}
        self._assigned |= found
        self._fresh |= found

    def _on_revoke(self, client: Client, partitions: list[TopicPartition]) -> None:
        gone = {Partition(str(at.topic), at.partition) for at in partitions}
        self._assigned -= gone
        if not self._give_back(gone):
            client.incremental_unassign([])

    def _met(self, error: KafkaError) -> None:
        self._trouble = _worse(self._trouble, error)

    def _met_asking(self, error: KafkaError) -> None:
        self._trouble_asking = _worse(self._trouble_asking, error)

    # What is asked of the brokers, and what comes.

    def _give_back(self, partitions: Iterable[Partition]) -> bool:
        """Take partitions back from the client, as far as they were given to it; say whether any was."""
        given = [TopicPartition(*partition) for partition in partitions if partition in self._positions]
        for at in given:
            del self._positions[Partition(at.topic, at.partition)]
        if given:
            self._consumer.incremental_unassign(given)
        return bool(given)

    def _offsets(self, partitions: list[Partition], which: OffsetSpec) -> dict[Partition, int]:
        if not partitions:
            return {}
        try:
            asked = self._admin.list_offsets(
                {TopicPartition(*partition): which for partition in partitions},
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=REQUEST_SECONDS,
            )
            return {Partition(at.topic, at.partition): self._answer(future).offset for at, future in asked.items()}
        except KafkaException as error:
            for topic in {partition.topic for partition in partitions}:
                with suppress(KafkaException):  # who leads the partitions is remembered, and may have changed
                    self._admin.list_topics(topic, REQUEST_SECONDS)
            raise self._told(error.args[0]) from error

    def _asked(self, ask: Callable[[], Future[Result]]) -> Result:
        try:
            return self._answer(ask())
        except KafkaException as error:
            raise self._told(error.args[0]) from error

    def _answer(self, asked: Future[Result]) -> Result:
        """Wait for an answer. Raises at once what the client meets that no waiting mends."""
        self._trouble_asking = None  # what reading met stays: the client may not tell of it again
        deadline = time.monotonic() + REQUEST_SECONDS + 5
        while not asked.done() and time.monotonic() < deadline:
            wait([asked], 0.05)
            self._admin.poll(0)
            met = self._trouble_asking
            if met is not None and isinstance(error := self._told(met), StreamError):
                raise error
        if not asked.done():
            raise BrokerError(f"no answer from {self._bootstrap} within {REQUEST_SECONDS} s")
        return asked.result()

    def _take_event(self, event: Message) -> None:
        partition, error = Partition(str(event.topic()), event.partition() or 0), event.error()
        if error is None or partition not in self._positions:
            return
        if error.code() == KafkaError._PARTITION_EOF:
            self._positions[partition] = max(self._positions[partition], event.offset() or 0)
        elif error.code() in _OUT_OF_RANGE:
            raise OutOfRange(f"{partition.topic}/{partition.number}: {error.str()}")
        else:
            raise self._told(error)

    def _batches(self, messages: list[Message]) -> dict[Partition, Batch]:
        if not messages:
            return {}
        topics = set(map(Message.topic, messages))  # a partition that was taken away meanwhile is here still
        groups: dict[Partition, list[Message]] = {}
        if len(topics) == 1:
            where = list(map(Message.partition, messages))
            for number in set(where):
                whole = where.count(number) == len(messages)
                of_it = messages if whole else [it for it, at in zip(messages, where, strict=True) if at == number]
                groups[Partition(messages[0].topic(), number)] = of_it
        else:
            for message in messages:
                groups.setdefault(Partition(message.topic(), message.partition()), []).append(message)
        return {at: self._batch(at, group) for at, group in groups.items() if at in self._positions}

    def _batch(self, partition: Partition, messages: list[Message]) -> Batch:
        """Gather the columns: every part of a record is a call of the client's own, so none is made twice."""
        offsets = list(map(Message.offset, messages))
        headers: list[Headers] = []
        try:
            headers.extend(found or () for found in map(Message.headers, messages))
        except (UnicodeDecodeError, SystemError) as error:  # the next call for this message would not even fail
            raise StreamError(
                f"{partition.topic}/{partition.number}, offset {offsets[len(headers)]}: a header's name is not UTF-8, "
                f"which confluent-kafka cannot read; --client kafka-python reads it, and goes on where this one stopped"
            ) from error
        # The end of the partition may have been told by the same poll, and lie behind what Kafka leaves out.
        self._positions[partition] = max(self._positions[partition], offsets[-1] + 1)
        return Batch(
            offsets,
            [time for _, time in map(Message.timestamp, messages)],
            list(map(Message.key, messages)),
            list(map(Message.value, messages)),
            headers,
        )

    def _told(self, error: KafkaError) -> Exception:
        """Return the client's error as ours."""
        code, said = error.code(), error.str()
        if code == KafkaError._SSL:
            return StreamError(UNKNOWN_CA.format(self._bootstrap, said))
        if code in _LOCKED_OUT:
            return StreamError(f"{REFUSED}: {said}")
        if code in _FORBIDDEN:
            return StreamError(f"Kafka refuses: {said}")
        return BrokerError(f"{error.name()}: {said}")


def _worse(known: KafkaError | None, met: KafkaError) -> KafkaError:
    """Return which of two troubles to remember: what is worse than brokers that are away stays."""
    return met if known is None or known.code() in _NOBODY else known


def client_options(bootstrap: str, security: KafkaSecurity) -> dict[str, Any]:
    """Return what confluent-kafka's clients of every kind are told of the brokers.

    Raises StreamError where a file is not there.
    """
    options: dict[str, Any] = {"bootstrap.servers": bootstrap, "security.protocol": security.protocol}
    files = {
        "ssl.ca.location": ("MDP_KAFKA_CA", security.ca),
        "ssl.certificate.location": ("MDP_KAFKA_CERT", security.cert),
        "ssl.key.location": ("MDP_KAFKA_KEY", security.key),
    }
    for option, (variable, path) in files.items():
        if path is not None:
            if not Path(path).is_file():
                raise StreamError(f"{variable} ({path}) cannot be used: there is no such file")
            options[option] = path
    if security.sasl:
        options["sasl.mechanism"] = security.mechanism
        options["sasl.username"] = security.user
        options["sasl.password"] = security.password
    return options
