"""A range of a stream again: what of it is there, what holes are filled with, and what stays open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from worlds.made_up import AT, Brokers

from loaders import replay as replaying
from loaders.chain import Chain, Source, Sources
from loaders.consumers import BrokerError, OutOfRange, StreamError
from loaders.kafka_cli import replay_kafka
from loaders.ledger import Entry, Ledger, load_id
from loaders.registry import load_registry
from loaders.replay import Bound, Replayed, replay
from loaders.settings import Settings
from loaders.store import LocalStore, Store

FEED = load_registry()["binance_spot"]
SOURCE = Source(FEED.name, "cluster", FEED.topic, "id")
ALL = Bound(offset=0), Bound(offset=1_000)


def link(chain: Chain, first: int, next_: int) -> None:
    """Commit records, as far as the ledger knows."""
    key, now = chain.key(first), "2024-01-01T00:00:00.000000000Z"
    stream = chain.stream(first, next_)
    assert chain.extend(
        Entry(
            key=key,
            load_id=load_id(key),
            feed=FEED.name,
            kind="stream",
            source=FEED.topic,
            stream=stream,
            started_at=now,
            loaded_at=now,
        )
    )


@pytest.fixture
def store(settings: Settings) -> Store:
    """[0, 50) was loaded, [50, 70) is a hole, [70, 100) was loaded."""
    store = LocalStore(Path(settings.raw))
    chain = Chain(store, SOURCE, 0)
    Sources(store).note(SOURCE)
    chain.begin(0)
    link(chain, 0, 50)
    chain.skip(70, "given up")
    link(chain, 70, 100)
    return store


@pytest.fixture
def brokers() -> Brokers:
    return Brokers(values={AT: [b"%d" % number for number in range(120)]})


def again(settings: Settings, brokers: Brokers, first: Bound = ALL[0], stop: Bound = ALL[1]) -> Replayed:
    (done,) = replay(FEED, settings, first, stop, connect=lambda _: brokers)
    return done


def holes_of(store: Store) -> list[tuple[str, int, int]]:
    """The links of what was replayed."""
    entries = Ledger(store).entries("replay/")
    return [(entry.kind, entry.stream.first, entry.stream.next) for entry in entries if entry.stream]


def test_a_hole_is_filled_and_what_is_not_loaded_yet_is_told(
    settings: Settings, store: Store, brokers: Brokers
) -> None:
    filled = Replayed(0, 0, 120, there=80, filled=20, missing=0, unloaded=20, records=20)
    assert again(settings, brokers) == filled
    assert again(settings, brokers) == replace(filled, there=100, filled=0, records=0)
    assert again(settings, brokers, Bound(offset=90), Bound(offset=110)).unloaded == 10
    assert again(settings, brokers, Bound(offset=105), Bound(offset=110)) == Replayed(0, 105, 110, unloaded=5)
    assert again(settings, brokers, Bound(offset=0), Bound(offset=40)) == Replayed(0, 0, 40, there=40)


def test_a_hole_half_filled_is_filled_as_far_as_kafka_still_has_it(
    settings: Settings, store: Store, brokers: Brokers
) -> None:
    hole = Chain(store, SOURCE, 0, hole=50)
    hole.begin(50)
    link(hole, 50, 60)
    brokers.starts[AT] = 65
    done = again(settings, brokers)
    assert (done.there, done.filled, done.missing, done.records) == (90, 5, 5, 5)
    assert holes_of(store) == [("stream", 50, 60), ("hole", 60, 65), ("stream", 65, 70), ("origin", 50, 50)]
    done = again(settings, brokers)
    assert (done.there, done.filled, done.missing) == (95, 0, 5)


def test_what_was_never_loaded_before_the_chain_began_is_missing(settings: Settings, brokers: Brokers) -> None:
    store = LocalStore(Path(settings.raw))
    chain = Chain(store, SOURCE, 0)
    Sources(store).note(SOURCE)
    chain.begin(60)
    assert again(settings, brokers, Bound(offset=20), Bound(offset=60)) == Replayed(0, 20, 60, missing=40)
    link(chain, 60, 100)
    assert again(settings, brokers) == Replayed(0, 0, 120, there=40, missing=60, unloaded=20)
    assert again(settings, brokers, Bound(offset=50), Bound(offset=70)) == Replayed(0, 50, 70, there=10, missing=10)
    assert again(settings, brokers, Bound(offset=20), Bound(offset=50)) == Replayed(0, 20, 50, missing=30)


def test_a_hole_half_filled_of_which_kafka_has_nothing_stays_as_it_is(
    settings: Settings, store: Store, brokers: Brokers
) -> None:
    hole = Chain(store, SOURCE, 0, hole=50)
    hole.begin(50)
    link(hole, 50, 60)
    brokers.starts[AT] = 80
    done = again(settings, brokers)
    assert (done.there, done.filled, done.missing) == (90, 0, 10)
    assert holes_of(store) == [("stream", 50, 60), ("origin", 50, 50)]


@pytest.mark.parametrize(
    ("before", "what"),
    [
        (replace(SOURCE, cluster="x"), "is on another cluster than before: .* loaded was cluster x, topic id id"),
        (
            replace(SOURCE, topic_id="x"),
            "is on another topic of the same name than before: .* its partitions 0",
        ),
    ],
)
def test_another_topic_than_was_loaded_is_refused(
    settings: Settings, store: Store, brokers: Brokers, before: Source, what: str
) -> None:
    chain = Chain(store, before, 0)
    chain.begin(9)
    Sources(store).note(before)
    with pytest.raises(StreamError, match=f"{what}.*set MDP_KAFKA to them. To go on with the new"):
        again(settings, brokers)
    assert holes_of(store) == []


def test_records_deleted_while_they_are_read_are_told(settings: Settings, store: Store, brokers: Brokers) -> None:
    def on(what: str) -> None:
        if what == "poll":
            raise OutOfRange("offset 50")

    brokers.on = on
    with pytest.raises(BrokerError, match=r"deleted records of topic binance_spot before they were read \(offset 50\)"):
        again(settings, brokers)


def test_a_range_that_kafka_does_not_have_is_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "replay", lambda *_: [Replayed(0, 90, 90)])
    ran = CliRunner().invoke(replay_kafka, ["--feed", FEED.name, "--from", "120000", "--to", "135000"])
    assert (ran.output, ran.exit_code) == ("binance_spot/0: Kafka has nothing of this range\n", 0)


def test_what_is_not_loaded_yet_is_printed_and_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    done = [Replayed(0, 40, 90, there=10, unloaded=40), Replayed(1, 40, 90, there=50)]
    monkeypatch.setattr(replaying, "replay", lambda *_: done)
    ran = CliRunner().invoke(replay_kafka, ["--feed", FEED.name, "--from", "40", "--to", "90"])
    said = "binance_spot/{}, offsets 40 up to 90: {} were there, 0 filled (0 records), 0 missing{}\n"
    assert ran.output == said.format(0, 10, ", 40 not loaded yet") + said.format(1, 50, "")
    assert ran.exit_code == 0
