"""Which client reads from Kafka, where it is not installed, and what they read of a header's name."""

from __future__ import annotations

import sys

import pytest

from loaders.consumers import Membership, StreamError, connect
from loaders.settings import Settings


def test_a_client_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    settings = Settings.from_env({"MDP_KAFKA_CLIENT": "confluent"})
    with pytest.raises(StreamError, match=r"pip install 'market-data-platform\[fast\]'"):
        connect(Membership.by(settings))


def test_a_membership_says_no_password() -> None:
    env = {"MDP_KAFKA_SECURITY": "SASL_SSL", "MDP_KAFKA_USER": "mdp", "MDP_KAFKA_PASSWORD": "canary"}
    assert "canary" not in repr(Membership.by(Settings.from_env(env)))
