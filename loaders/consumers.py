"""What the loader asks of a Kafka client, and the client that does it: kafka-python.

    loader ── join, poll, seek, … ──▶ Consumer ◀── KafkaPython ── kafka-python ──▶ brokers

A partition that was just assigned stands still until the loader has sought its position, so that the group's
own offsets are never read from. Only committed records are seen, and nothing is ever reset.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from loaders.settings import MIB

POLL_RECORDS = 10_000
FETCH_BYTES, PARTITION_FETCH_BYTES = 16 * MIB, 4 * MIB
"""Bytes of one answer of a broker, and of one partition in it: what is in memory besides segments."""
REQUEST_SECONDS = 10
FIRST_ANSWER_SECONDS = 3
"""How long a first attempt to reach the brokers may take; the loader tries again."""

log = logging.getLogger(__name__)


class StreamError(Exception):
    """Loading must stop; the message says what is wrong, what is missing, and how to go on."""


class BrokerError(Exception):
    """The brokers did not answer as they should; trying again may help."""


class OutOfRange(Exception):
    """Kafka does not have what a partition's position asks for."""


class Partition(NamedTuple):
    topic: str
    number: int


class Batch(NamedTuple):
    """Records of one partition, column by column, in the order of their offsets. Timestamps in ms, -1 for none."""

    offsets: Sequence[int]
    timestamps: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Sequence[tuple[str, bytes | None]]]


@dataclass(frozen=True)
class Topic:
    """A topic as the brokers know it now."""

    cluster: str
    topic_id: str
    partitions: tuple[int, ...]


@dataclass(frozen=True)
class Changes:
    """What a rebalance changed: all that is assigned now, and what of it must be sought first."""

    assigned: frozenset[Partition]
    fresh: frozenset[Partition]


class Consumer(Protocol):
    """A member of a consumer group. Its methods raise BrokerError where trying again may help, else StreamError."""

    def topic(self, name: str) -> Topic | None:
        """Ask the brokers for a topic; None where they know none of that name."""

    def join(self, topics: Iterable[str]) -> None:
        """Join the group; partitions are assigned during polls."""

    def take(self, partition: Partition) -> None:
        """Read one partition, without a group."""

    def poll(self, seconds: float) -> Mapping[Partition, Batch]:
        """Return records as soon as there are some, waiting for at most so long. Raises OutOfRange too."""

    def changes(self) -> Changes:
        """Return what was assigned since the last call."""

    def seek(self, partition: Partition, position: int, *, still: bool = False) -> None:
        """Read a partition from a position on; or, if `still`, not at all."""

    def position(self, partition: Partition) -> int | None:
        """Return from where the next poll reads on: behind all that was polled or that Kafka leaves out."""

    def bounds(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, int]]:
        """Return the first position that Kafka has, and the one behind the last committed record."""

    def at_time(self, partitions: Iterable[Partition], time_ms: int) -> dict[Partition, int | None]:
        """Return the first position whose timestamp is at or after a time; None where there is none."""

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Tell the group how far the ledger is: advisory, so a failure is only logged."""

    def close(self) -> None:
        """Leave the group."""


@dataclass(frozen=True)
class Membership:
    """How a consumer joins: brokers as host:port,…, the group (None to take partitions without one), and for how
    long it may be silent."""

    bootstrap: str
    group: str | None
    session_seconds: float = 45.0


class KafkaPython:
    """kafka-python as a Consumer."""

    def __init__(self, membership: Membership) -> None:
        from kafka import KafkaConsumer
        from kafka.admin import KafkaAdminClient
        from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

        logging.getLogger("kafka").setLevel(logging.CRITICAL)
        shared = {
            "bootstrap_servers": membership.bootstrap.split(","),
            "bootstrap_timeout_ms": FIRST_ANSWER_SECONDS * 1000,
            "request_timeout_ms": REQUEST_SECONDS * 1000,
            "reconnect_backoff_max_ms": 2000,
        }
        with _told(), ExitStack() as undo:
            self._admin = KafkaAdminClient(**shared)
            undo.callback(self._admin.close)
            self._consumer = KafkaConsumer(
                **shared,
                group_id=membership.group,
                session_timeout_ms=int(membership.session_seconds * 1000),
                heartbeat_interval_ms=int(membership.session_seconds * 1000 / 6),
                partition_assignment_strategy=[CooperativeStickyAssignor],
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed",
                allow_auto_create_topics=False,
                max_poll_records=POLL_RECORDS,
                fetch_max_bytes=FETCH_BYTES,
                max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
                metrics_enabled=False,
            )
            undo.pop_all()
        self._lock = threading.Lock()
        self._fresh: set[Partition] = set()

    def topic(self, name: str) -> Topic | None:
        with _told():
            (found,) = self._admin.describe_topics([name])
            if found["error_code"] == 3:
                return None
            if found["error_code"]:
                raise BrokerError(f"the brokers cannot describe topic {name} (error {found['error_code']})")
            cluster = self._admin.describe_cluster()["cluster_id"]
        numbers = sorted(part["partition_index"] for part in found["partitions"])
        return Topic(str(cluster), str(found["topic_id"]), tuple(numbers))

    def join(self, topics: Iterable[str]) -> None:
        self._consumer.subscribe(list(topics), listener=_listener(self))

    def take(self, partition: Partition) -> None:
        self._consumer.assign([_at(partition)])
        self.hold([_at(partition)])

    def poll(self, seconds: float) -> dict[Partition, Batch]:
        with _told():
            polled = self._consumer.poll(int(seconds * 1000))
        return {Partition(*where): _batch(records) for where, records in polled.items()}

    def changes(self) -> Changes:
        with self._lock:
            assigned = frozenset(Partition(*where) for where in self._consumer.assignment())
            fresh, self._fresh = self._fresh, set()
        return Changes(assigned, frozenset(fresh) & assigned)

    def seek(self, partition: Partition, position: int, *, still: bool = False) -> None:
        where = _at(partition)
        if where not in self._consumer.assignment():
            return  # it was taken away meanwhile
        self._consumer.seek(where, position)
        (self._consumer.pause if still else self._consumer.resume)(where)

    def position(self, partition: Partition) -> int | None:
        where = _at(partition)
        if where not in self._consumer.assignment():
            return None
        with _told():
            found: int | None = self._consumer.position(where, REQUEST_SECONDS * 1000)
        return found

    def bounds(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, int]]:
        wanted = [_at(partition) for partition in partitions]
        with _told():
            first = self._consumer.beginning_offsets(wanted)
            last = self._consumer.end_offsets(wanted)
        return {Partition(*where): (first[where], last[where]) for where in wanted}

    def at_time(self, partitions: Iterable[Partition], time_ms: int) -> dict[Partition, int | None]:
        with _told():
            found = self._consumer.offsets_for_times({_at(partition): time_ms for partition in partitions})
        return {Partition(*where): at and at.offset for where, at in found.items()}

    def commit(self, positions: Mapping[Partition, int]) -> None:
        from kafka.errors import KafkaError
        from kafka.structs import OffsetAndMetadata

        offsets = {_at(at): OffsetAndMetadata(next_, "", -1) for at, next_ in positions.items()}
        try:
            self._consumer.commit(offsets, REQUEST_SECONDS * 1000)
        except KafkaError as error:
            log.info("the group did not take the offsets, which are advisory: %s", error)

    def close(self) -> None:
        with suppress(Exception):  # where the brokers are gone, there is no group to leave
            self._consumer.close(autocommit=False, timeout_ms=REQUEST_SECONDS * 1000)
        with suppress(Exception):
            self._admin.close()

    def hold(self, partitions: Iterable[Any]) -> None:
        """Let newly assigned partitions stand still until they are sought."""
        partitions = list(partitions)
        with self._lock:
            self._consumer.pause(*partitions)
            for where in partitions:
                self._consumer.seek(where, 0)
            self._fresh |= {Partition(*where) for where in partitions}


def _at(partition: Partition) -> Any:
    from kafka import TopicPartition

    return TopicPartition(*partition)


def _listener(client: KafkaPython) -> Any:
    from kafka import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        """Called on the client's own thread: it only lets new partitions wait."""

        def on_partitions_revoked(self, revoked: object) -> None:
            pass

        def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
            client.hold(assigned)

    return Listener()


def _batch(records: list[Any]) -> Batch:
    _, _, _, offsets, timestamps, _, keys, values, headers, *_ = zip(*records, strict=True)
    return Batch(offsets, timestamps, keys, values, headers)


@contextmanager
def _told() -> Iterator[None]:
    """Turn the client's errors into ours."""
    from kafka import errors

    try:
        yield
    except errors.OffsetOutOfRangeError as error:
        raise OutOfRange(str(error)) from error
    except (errors.AuthorizationError, errors.KafkaConfigurationError, errors.LogTruncationError) as error:
        raise StreamError(f"Kafka refuses: {error or type(error).__name__}") from error
    except UnicodeDecodeError as error:
        raise StreamError(f"a record has a header whose name is not UTF-8, which cannot be read: {error}") from error
    except errors.KafkaError as error:
        raise BrokerError(f"{type(error).__name__}: {error}".rstrip(": ")) from error
