"""How far the raw zone is behind Kafka, where the ledger is damaged: it is told, and the rest is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders import lag
from loaders.chain import HEADS, SOURCES, Chain, Source, Sources
from loaders.consumers import BrokerError, Membership
from loaders.settings import Settings
from loaders.store import LocalStore

SOURCE = Source("f", "cluster", "topic", "id")


@pytest.fixture
def store(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """Two partitions that were loaded, and no brokers."""

    def away(_: Membership) -> None:
        raise BrokerError("nobody answers")

    monkeypatch.setattr(lag, "connect", away)
    store = LocalStore(Path(settings.raw))
    Sources(store).note(SOURCE)
    for number in (0, 1):
        chain = Chain(store, SOURCE, number)
        chain.begin(0)
        chain.skip(5, "lost")
        chain.remember(now=True)
    return store


def test_a_chain_that_is_damaged_is_told_beside_the_others(settings: Settings, store: LocalStore) -> None:
    head = store.root / HEADS / SOURCE.prefix / "0.json"
    head.write_bytes(b"")
    found = lag.lags(settings)
    assert [(part.partition, part.loaded) for part in found.partitions] == [(1, 5)]
    assert f"{head} is damaged" in found.notes[-1]


def test_what_topics_are_known_as_that_is_damaged_is_told(settings: Settings, store: LocalStore) -> None:
    (file,) = (store.root / SOURCES).rglob("*.json")
    file.write_bytes(b"")
    other = Source("f", "cluster", "other", "id")
    Sources(store).note(other)
    Chain(store, other, 0).begin(3)
    found = lag.lags(settings)
    assert [(part.topic, part.partition) for part in found.partitions] == [("other", 0)]
    assert f"{file} is damaged" in found.notes[0]
