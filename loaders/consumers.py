"""What the loader asks of a Kafka client.

                                                ┌── loaders/kafka_python.py ── kafka-python ──────┐
    loader ── join, poll, seek, … ──▶ Consumer ◀┤                                                 ├──▶ brokers
                                                └── loaders/confluent.py ───── confluent-kafka ───┘

A partition that was just assigned stands still until the loader has sought its position, so that the group's
own offsets are never read from. Only committed records are seen, and nothing is ever reset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from loaders.settings import MIB, PLAINTEXT, KafkaClient, KafkaSecurity, Settings

POLL_RECORDS = 10_000
FETCH_BYTES, PARTITION_FETCH_BYTES = 16 * MIB, 4 * MIB
"""Bytes of one answer of a broker, and of one partition in it: what is in memory besides segments."""
REQUEST_SECONDS = 10
FIRST_ANSWER_SECONDS = 3
"""How long a first attempt to reach the brokers may take; the loader tries again."""
REFUSED = "Kafka does not let us in; check MDP_KAFKA_USER, MDP_KAFKA_PASSWORD and MDP_KAFKA_SASL_MECHANISM"
UNKNOWN_CA = (
    "the certificate of broker {} cannot be trusted ({}): set MDP_KAFKA_CA to the PEM file of who signed it, and "
    "name the broker in MDP_KAFKA as its certificate does"
)


class StreamError(Exception):
    """Loading must stop; the message says what is wrong, what is missing, and how to go on."""


class BrokerError(Exception):
    """The brokers did not answer as they should; trying again may help."""


class OutOfRange(Exception):
    """Kafka does not have what a partition's position asks for."""


class Partition(NamedTuple):
    topic: str
    number: int


Headers = Sequence[tuple[str, bytes | None]]


class Batch(NamedTuple):
    """Records of one partition, column by column, in the order of their offsets. Timestamps in ms, -1 for none.

    A header's name that is not UTF-8 holds its bytes as surrogate escapes (PEP 383).
    """

    offsets: Sequence[int]
    timestamps: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers]


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
    """How a consumer joins: by which client, brokers as host:port,…, the group (None to take partitions without one),
    for how long it may be silent, and how the brokers are spoken to."""

    bootstrap: str
    group: str | None
    session_seconds: float = 45.0
    client: KafkaClient = "kafka-python"
    security: KafkaSecurity = PLAINTEXT

    @property
    def heartbeat_seconds(self) -> float:
        """How often it says that it lives, which is also how soon it hears that partitions are to be shared anew."""
        return min(1.0, self.session_seconds / 6)

    @classmethod
    def by(cls, settings: Settings, group: str | None = None, session_seconds: float = 45.0) -> Membership:
        """Return the membership that the settings give."""
        return cls(settings.kafka, group, session_seconds, settings.kafka_client, settings.kafka_security)


def connect(membership: Membership) -> Consumer:
    """Return a consumer.

    Raises StreamError where its client is not installed or the brokers refuse us, BrokerError where none answers.
    """
    if membership.client == "kafka-python":
        from loaders.kafka_python import KafkaPython

        return KafkaPython(membership)
    try:
        import confluent_kafka  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise StreamError(
            "the client confluent needs confluent-kafka, which is not installed: run pip install "
            "'market-data-platform[fast]', or load with --client kafka-python"
        ) from error
    from loaders.confluent import Confluent

    return Confluent(membership)
