"""Which client reads from Kafka, where it is not installed, and what the clients are told of trouble."""

from __future__ import annotations

import socket
import sys
from concurrent.futures import Future

import pytest

from loaders.consumers import Membership, Partition, StreamError, connect
from loaders.kafka_python import client_options
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


def test_kafka_python_takes_few_large_records_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog that compresses well is small on its way, and must not fill the memory."""
    import kafka
    from kafka.consumer.fetcher import ConsumerRecord

    from loaders import kafka_python
    from loaders.consumers import PARTITION_FETCH_BYTES, POLL_RECORDS

    left = {"large": 30_000, "small": 30_000}
    value = {"large": bytes(1 << 16), "small": b"1"}

    class Backlog:
        """kafka-python's consumer, which has all records at hand."""

        def __init__(self, **_options: object) -> None: ...

        def close(self) -> None: ...

        def poll(self, _milliseconds: int, most: int) -> dict[kafka.TopicPartition, list[ConsumerRecord]]:
            topic = "large" if left["large"] else "small"
            taken = min(most, left[topic])
            left[topic] -= taken
            of: dict[str, object] = {name: 0 if name.endswith("size") else None for name in ConsumerRecord._fields}
            of |= {
                "value": value[topic],
                "serialized_key_size": -1,
                "serialized_value_size": len(value[topic]),
                "serialized_header_size": -1,
                "headers": (),
            }
            return {kafka.TopicPartition(topic, 0): [ConsumerRecord(**of)] * taken} if taken else {}

    monkeypatch.setattr(kafka, "KafkaConsumer", Backlog)
    monkeypatch.setattr(kafka.admin, "KafkaAdminClient", Backlog)
    client = kafka_python.KafkaPython(Membership.by(Settings.from_env({})))
    sizes = []
    while polled := client.poll(0):
        batches = polled.values()
        values = [one or b"" for batch in batches for one in batch.values]
        sizes.append((len(values), sum(map(len, values))))
    assert sum(count for count, _ in sizes) == 60_000
    assert sizes[0] == (kafka_python.MOST_AT_ONCE, kafka_python.MOST_AT_ONCE * len(value["large"]))
    assert all(size <= 2 * PARTITION_FETCH_BYTES for _, size in sizes[1:])
    assert sizes[-3] == sizes[-2] == (POLL_RECORDS, POLL_RECORDS)


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
