"""Which client reads from Kafka, where it is not installed, and what the clients are told of trouble."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import takewhile
from types import SimpleNamespace
from typing import Any

import pytest

from loaders.consumers import (
    PARTITION_FETCH_BYTES,
    POLL_RECORDS,
    Batch,
    BrokerError,
    Membership,
    Partition,
    StreamError,
    connect,
)
from loaders.kafka_python import MOST_AT_ONCE, KafkaPython, client_options
from loaders.settings import Settings


def test_a_client_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    settings = Settings.from_env({"MDP_KAFKA_CLIENT": "confluent"})
    with pytest.raises(StreamError, match=r"pip install 'market-data-platform\[fast\]'"):
        connect(Membership.by(settings))


def test_a_membership_says_no_password() -> None:
    env = {"MDP_KAFKA_SECURITY": "SASL_SSL", "MDP_KAFKA_USER": "mdp", "MDP_KAFKA_PASSWORD": "canary"}
    assert "canary" not in repr(Membership.by(Settings.from_env(env)))


def test_kafka_python_takes_what_comes_right_before_the_end() -> None:
    """Why a broker lets nobody in is said with the closing of the connection."""
    from kafka.net import transport

    settings = Settings.from_env({})
    client_options(settings.kafka, settings.kafka_security)
    broker, ours = socket.socketpair()
    ours.setblocking(False)
    broker.sendall(b"wrong password")
    broker.close()
    link = transport.KafkaTCPTransport(None, ours)
    assert link._sock_recv() == (b"wrong password", None)
    nothing, error = link._sock_recv()
    assert (nothing, "disconnected" in str(error)) == (b"", True)
    ours.close()


class Backlog:
    """kafka-python's consumer, which has all records at hand, of these sizes; None for one that cannot be read."""

    def __init__(self, sizes: Sequence[int | None]) -> None:
        self.sizes, self.place = sizes, 0

    def poll(self, _milliseconds: int, most: int) -> dict[Any, list[Any]]:
        from kafka import TopicPartition
        from kafka.consumer.fetcher import ConsumerRecord
        from kafka.errors import CorruptRecordError

        found = list(takewhile(lambda size: size is not None, self.sizes[self.place : self.place + most]))
        if not found and self.place < len(self.sizes):
            raise CorruptRecordError
        records = [
            ConsumerRecord("t", 0, 0, self.place + at, 1, 0, None, bytes(size or 0), (), None, -1, size, -1)
            for at, size in enumerate(found)
        ]
        self.place += len(found)
        return {TopicPartition("t", 0): records} if records else {}

    def assign(self, _partitions: object) -> None: ...

    pause = assign

    def seek(self, _partition: object, _offset: int) -> None: ...


def reading(backlog: Backlog, monkeypatch: pytest.MonkeyPatch) -> KafkaPython:
    import kafka

    monkeypatch.setattr(kafka, "KafkaConsumer", lambda **_: backlog)
    monkeypatch.setattr(kafka.admin, "KafkaAdminClient", lambda **_: SimpleNamespace(close=lambda: None))
    return KafkaPython(Membership.by(Settings.from_env({})))


def values(polled: dict[Partition, Batch]) -> list[int]:
    return [len(value or b"") for batch in polled.values() for value in batch.values]


KIB = 1 << 10


@pytest.mark.parametrize(
    "sizes",
    [
        [64 * KIB] * 3_000,
        [60 * KIB] * 3_000,
        [1, 256 * KIB] * 500,
        [1] * 3_000 + [64 * KIB] * 3_000,
        [1, 1, 1, 1, 512 * KIB] * 100,
    ],
)
def test_kafka_python_takes_few_large_records_at_once(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog that compresses well is small on its way, and must not fill the memory."""
    client = reading(Backlog(sizes), monkeypatch)
    polls = []
    while found := values(client.poll(0)):
        polls.append(found)
    assert [size for poll in polls for size in poll] == sizes
    # A key that is missing, and headers, count as -1.
    surprising = [poll for poll in polls if sum(poll) > PARTITION_FETCH_BYTES + max(sizes) + 2 * len(poll)]
    assert len(surprising) <= 1
    assert all(sum(size > 1 for size in poll) <= MOST_AT_ONCE for poll in surprising)


def test_few_small_records_are_no_reason_to_ask_for_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = reading(Backlog(([512 * KIB] * 20 + [1] * 20) * 20), monkeypatch)
    client.poll(0)  # how large they are is not known yet
    while found := values(client.poll(0)):
        assert sum(found) <= 4 * PARTITION_FETCH_BYTES


def test_kafka_python_takes_many_small_records_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = reading(Backlog([1] * 30_000), monkeypatch)
    assert [len(values(client.poll(0))) for _ in range(4)] == [POLL_RECORDS] * 3 + [0]


def test_what_kafka_python_says_is_told_once() -> None:
    from kafka.errors import KafkaTimeoutError

    from loaders.kafka_python import _told

    with pytest.raises(BrokerError) as told, _told():
        raise KafkaTimeoutError("nobody answers")
    assert str(told.value) == "KafkaTimeoutError: nobody answers"


def test_what_kafka_python_meets_is_told_behind_the_good_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else records before one that cannot be read would never be loaded; and it would be told of another partition."""
    client = reading(Backlog([1] * 3_000 + [None]), monkeypatch)
    assert len(values(client.poll(0))) == 3_000
    with pytest.raises(BrokerError, match="CorruptRecord"):
        client.poll(0)

    backlog = Backlog([1, None, 1])
    client = reading(backlog, monkeypatch)
    assert values(client.poll(0)) == [1]
    client.take(Partition("t", 1))
    backlog.place = 2
    assert values(client.poll(0)) == [1]


def test_confluent_tells_what_reading_met_whatever_is_asked_meanwhile() -> None:
    from confluent_kafka import KafkaError

    from loaders.confluent import Confluent

    client = Confluent(Membership.by(Settings.from_env({"MDP_KAFKA": "127.0.0.1:9"})))
    answer: Future[str] = Future()
    answer.set_result("there")
    client._met(KafkaError(KafkaError._AUTHENTICATION, "locked out"))
    assert client._answer(answer) == "there"
    with pytest.raises(StreamError, match="locked out"):
        client.poll(0)
    client.close()


def test_confluent_waits_for_no_broker_to_take_what_is_advisory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a loader would be deaf for a session's length when a broker dies at the wrong moment."""
    from loaders import confluent

    monkeypatch.setattr(confluent, "REQUEST_SECONDS", 1)
    client = confluent.Confluent(Membership.by(Settings.from_env({"MDP_KAFKA": "127.0.0.1:9"}), "some group"))
    started = time.monotonic()
    client.commit({Partition("t", 0): 5})
    client.close()
    assert time.monotonic() - started < 10


def test_confluent_keeps_topics_apart_when_one_is_taken_away_during_a_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    from confluent_kafka import Message, TopicPartition

    from loaders.confluent import Confluent

    class Polled:
        """librdkafka: it has read records of one topic when the group takes that topic away, then ends the poll."""

        def __init__(self) -> None:
            self.answers = [[record(1, b"first")], [record(2, b"second")]]

        def consume(self, _count: int, _seconds: float) -> list[Message]:
            if len(self.answers) == 1:
                client._on_revoke(client._consumer, [TopicPartition("taken", 0)])
            return self.answers.pop(0) if self.answers else []

        def incremental_assign(self, _partitions: list[TopicPartition]) -> None:
            pass

        incremental_unassign = incremental_assign

    def record(offset: int, value: bytes) -> Message:
        return Message(topic="taken", partition=0, offset=offset, value=value, timestamp=(1, 0))

    client = Confluent(Membership.by(Settings.from_env({"MDP_KAFKA": "127.0.0.1:9"})))
    client.close()
    monkeypatch.setattr(client, "_consumer", Polled())
    client._on_assign(client._consumer, [TopicPartition("taken", 0), TopicPartition("kept", 0)])
    for partition in client.changes().fresh:
        client.seek(partition, 0)
    assert client.poll(0) == {}
    assert client.position(Partition("kept", 0)) == 0
