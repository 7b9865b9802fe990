"""Which client reads from Kafka, where it is not installed, and what the clients are told of trouble."""

from __future__ import annotations

import socket
import sys
from concurrent.futures import Future

import pytest

from loaders.consumers import Membership, StreamError, connect
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
