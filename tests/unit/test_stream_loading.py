"""The Kafka loader beside brokers and a raw zone that are made up, by a clock that is: how it meets trouble."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from worlds.made_up import AT, Brokers, Clock

from loaders import chain, kafka, lanes, trouble
from loaders.consumers import BrokerError, Consumer, Membership, Partition, StreamError
from loaders.kafka import KafkaLoader
from loaders.lanes import SegmentLimits
from loaders.ledger import ENTRIES, Entry, Ledger
from loaders.registry import load_registry
from loaders.settings import Settings
from loaders.store import LocalStore, Sink, StoreError
from loaders.until import Until

FEED = load_registry()["binance_spot"]


class AtOnce(Executor):
    """Has done what it is given: how long files take is not told by a clock that is made up."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments, **named))
        except Exception as error:
            done.set_exception(error)
        return done


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(kafka, "ThreadPoolExecutor", AtOnce)
    for module in (kafka, lanes, trouble):
        monkeypatch.setattr(module, "time", clock)
    return clock


@dataclass
class Zone(LocalStore):
    """A raw zone; `on` is called with what is done and the key, and may fail."""

    root: Path
    on: Callable[[str, str], object] = lambda *_: None

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.on("put", key)
        return super().put_if_absent(key, data)

    @contextmanager
    def open_write(self, key: str) -> Iterator[Sink]:
        self.on("write", key)
        with super().open_write(key) as sink:
            yield sink

    def get(self, key: str) -> bytes:
        self.on("get", key)
        return super().get(key)


@pytest.fixture
def zone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Zone:
    zone = Zone(Path(settings.raw))
    monkeypatch.setattr(kafka, "open_store", lambda *_: zone)
    return zone


@pytest.fixture
def loader(settings: Settings) -> Callable[..., KafkaLoader]:
    """`loader(brokers, **options)`"""

    def make(brokers: Brokers, **options: Any) -> KafkaLoader:
        return KafkaLoader([FEED], settings, connect=lambda _: brokers, **options)

    return make


def test_loaders_of_the_same_feeds_share_a_group_and_others_do_not(settings: Settings, zone: Zone) -> None:
    """Members of a group wait for each other: a feed's loader is to wait for none of another feed's."""
    other = replace(FEED, name="other", topic="other")
    joined: list[str | None] = []

    def connect(membership: Membership) -> Consumer:
        joined.append(membership.group)
        raise StreamError("enough")

    for feeds in ([FEED], [other], [other, FEED], [FEED, other]):
        with pytest.raises(StreamError, match="enough"):
            KafkaLoader(feeds, settings, connect=connect).run()
    alone, others, both, again = joined
    assert len({alone, others, both}) == 3 and both == again


def links(zone: Zone) -> list[Entry]:
    """What was loaded."""
    return [entry for entry in Ledger(zone).entries("kafka/") if entry.kind == "stream"]


def waits(caplog: pytest.LogCaptureFixture) -> list[float]:
    """Seconds that were waited after each failure."""
    retries = [record.__dict__ for record in caplog.records if record.__dict__.get("event") == "retry"]
    return [retry["fields"]["seconds"] for retry in retries]


def test_polls_that_always_fail_are_given_up(
    clock: Clock, loader: Callable[..., KafkaLoader], caplog: pytest.LogCaptureFixture
) -> None:
    """Although the brokers say each time where the partition starts and ends."""

    def on(what: str) -> None:
        assert clock.now < 2_000, "nothing is given up"
        if what == "poll":
            raise BrokerError("no records")

    with pytest.raises(
        StreamError, match=r"reading from Kafka at .* has failed for 3\d\d s: no records. Nothing is lost"
    ):
        loader(Brokers(clock, on=on), give_up_after=300).run()
    assert waits(caplog)[:7] == [0.5, 1, 2, 4, 8, 15, 15]


def test_polls_of_which_every_other_fails_and_none_brings_anything_are_given_up(
    clock: Clock, loader: Callable[..., KafkaLoader]
) -> None:
    polls = count()

    def on(what: str) -> None:
        assert clock.now < 2_000, "nothing is given up"
        if what == "poll" and next(polls) % 2:
            raise BrokerError("no records")

    with pytest.raises(StreamError, match="no records"):
        loader(Brokers(clock, on=on), give_up_after=300).run()


def test_polls_that_fail_long_after_one_another_are_no_lasting_trouble(
    clock: Clock, loader: Callable[..., KafkaLoader], caplog: pytest.LogCaptureFixture
) -> None:
    """On a topic without records, whose brokers answer."""
    fails_at = [1_100.0, 2_000.0]

    def on(what: str) -> None:
        if what == "poll" and fails_at and clock.now > fails_at[0]:
            fails_at.pop(0)
            raise BrokerError("no records")
        if clock.now > 2_100:
            made.stop()

    caplog.set_level("INFO")
    made = loader(Brokers(clock, on=on), give_up_after=300)
    made.run()
    assert waits(caplog) == [0.5, 0.5]
    assert sum("works again after 1" in record.message for record in caplog.records) == 2


def test_a_poll_that_brings_records_ends_the_trouble(
    clock: Clock, loader: Callable[..., KafkaLoader], caplog: pytest.LogCaptureFixture
) -> None:
    polls = count()

    def on(what: str) -> None:
        if what == "poll":
            brokers.values[AT].append(b"{}")
            if next(polls) % 2:
                raise BrokerError("no records")
        if clock.now > 1_400:
            made.stop()

    brokers = Brokers(clock, on=on)
    made = loader(brokers, give_up_after=300)
    assert made.run().records > 500
    assert set(waits(caplog)) == {0.5}


def test_a_zone_that_is_read_but_takes_nothing_is_given_up(
    clock: Clock, zone: Zone, loader: Callable[..., KafkaLoader], caplog: pytest.LogCaptureFixture
) -> None:
    def on(what: str, key: str) -> None:
        assert clock.now < 2_000, "nothing is given up"
        if what == "write":
            raise StoreError(f"no room for {key}")

    zone.on = on
    with pytest.raises(StreamError, match=r"writing to .* has failed for 3\d\d s: no room for binance_spot/"):
        loader(Brokers(clock, {AT: [b"{}"]}), give_up_after=300).run()
    assert waits(caplog)[:7] == [0.5, 1, 2, 4, 8, 15, 15]


@pytest.mark.parametrize("failing", ["look", "seek", "remember"])
def test_hiccups_of_the_zone_long_after_one_another_are_no_lasting_trouble(
    failing: str,
    clock: Clock,
    zone: Zone,
    loader: Callable[..., KafkaLoader],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Although nothing is written between them."""
    times, others = [1_100.0, 2_000.0], {AT} if failing == "look" else set()
    look_or_seek = [("get", f"/{AT.number}/")] * 2
    fails = [("write", "/heads/"), ("write", "/ingest_date=")] if failing == "remember" else look_or_seek
    brokers = Brokers(clock, {AT: [b"{}"] if others else []}, others=others)
    monkeypatch.setattr(chain, "HEAD_EVERY", 1)

    def on_zone(what: str, key: str) -> None:
        if times and clock.now > times[0] and what == fails[0][0] and fails[0][1] in key:
            times.pop(0), fails.pop(0)
            raise StoreError(f"no answer about {key}")

    def on(what: str) -> None:
        if times and clock.now > times[0] and what == "poll":
            if failing == "seek":
                brokers.fresh = {AT}
            elif failing == "remember" and len(brokers.values[AT]) + len(times) == 2:
                brokers.values[AT].append(b"{}")
        if clock.now > 2_100:
            made.stop()

    brokers.on, zone.on = on, on_zone
    until = Until(offsets={AT.number: 1}) if others else None
    made = loader(brokers, give_up_after=300, until=until, limits=SegmentLimits(rows=1))
    made.run()
    assert not times
    assert waits(caplog) == [0.5, 0.5]


def test_stopped_it_writes_what_can_be_written_and_fails_for_the_rest(
    clock: Clock, zone: Zone, loader: Callable[..., KafkaLoader]
) -> None:
    other = Partition(FEED.topic, 1)

    def on_zone(what: str, key: str) -> None:
        if what == "put" and key.startswith(ENTRIES) and f"/{AT.number}/{0:020d}" in key:
            raise StoreError(f"no room for {key}")

    def on(what: str) -> None:
        if what == "poll" and brokers.has_given:
            made.stop()

    zone.on, brokers = on_zone, Brokers(clock, {AT: [b"{}"], other: [b"{}", b"{}"]}, on=on)
    made = loader(brokers)
    with pytest.raises(StreamError, match=r"stopped, but .* \(no room for .*\)\. Nothing is lost: .* reads the other"):
        made.run()
    assert [(entry.stream.partition, entry.records) for entry in links(zone) if entry.stream] == [(other.number, 2)]


@pytest.mark.parametrize("away", [True, False])
def test_stopped_after_a_failure_it_writes_what_it_holds_or_fails(
    away: bool, clock: Clock, zone: Zone, loader: Callable[..., KafkaLoader]
) -> None:
    """It may not while the brokers do not say whether the topic is still the same."""

    def on(what: str) -> None:
        if what == "poll" and brokers.has_given:
            made.stop()
            raise BrokerError("no records")
        if what == "topic" and brokers.has_given and away:
            raise BrokerError("no answer")

    brokers = Brokers(clock, {AT: [b"{}"]}, on=on)
    made = loader(brokers)
    if away:
        with pytest.raises(StreamError, match=r"stopped, but not all that was read could be written \(no answer\)"):
            made.run()
    else:
        assert made.run().records == 1
    assert len(links(zone)) == (0 if away else 1)


def test_what_others_hold_when_a_partition_is_done_is_told_where_it_cannot_be_written(
    clock: Clock, zone: Zone, loader: Callable[..., KafkaLoader], caplog: pytest.LogCaptureFixture
) -> None:
    """It was not asked for, so that the run has gone well."""
    other = Partition(FEED.topic, 1)

    def on(what: str, key: str) -> None:
        if what == "put" and key.startswith(ENTRIES) and f"/{other.number}/{0:020d}" in key:
            raise StoreError(f"no room for {key}")

    zone.on = on
    brokers = Brokers(clock, {AT: [b"{}"], other: [b"{}"]})
    assert loader(brokers, until=Until(offsets={AT.number: 1})).run().records == 1
    assert "no room for" in caplog.text


@pytest.mark.parametrize("what", ["heads", "entries"])
def test_a_damaged_chain_stops_the_loader_with_the_file_and_the_way_out(
    what: str, clock: Clock, zone: Zone, loader: Callable[..., KafkaLoader]
) -> None:
    brokers = Brokers(clock, {AT: [b"{}"]})
    loader(brokers, until=Until()).run()
    (file,) = (zone.root / f"_ledger/{what}/kafka").rglob("0.json" if what == "heads" else "00*.json")
    file.write_bytes(b"{")
    if what == "entries":
        shutil.rmtree(zone.root / "_ledger/heads")
    with pytest.raises(StreamError, match=rf"^{re.escape(str(file))} is damaged: .*Run mdp verify"):
        loader(brokers).run()


def test_what_waits_in_memory_is_bounded_and_the_largest_partition_is_written_first(
    clock: Clock, zone: Zone, loader: Callable[..., KafkaLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of partitions of which none is due by itself."""
    other, most, polls = Partition(FEED.topic, 1), 10_000, count()
    written: list[int] = []

    def held() -> dict[int, int]:
        return {at.number: lane.held for at, lane in made._lanes.items()}

    def on(what: str) -> None:
        if what == "poll":
            assert sum(held().values()) <= most
            brokers.values[AT].append(b"x" * 1_000)
            brokers.values[other].append(b"x" * 400)
            if next(polls) == 60:
                zone.on = lambda *_: None
                made.stop()

    def on_zone(what: str, key: str) -> None:
        if what == "put" and key.startswith(f"{ENTRIES}kafka/") and not key.endswith("origin.json"):
            number = int(key.split("/")[-2])
            assert held()[number] == max(held().values())
            written.append(number)

    monkeypatch.setattr(kafka, "HELD_BYTES", most)
    zone.on, brokers = on_zone, Brokers(clock, {AT: [], other: []}, on=on)
    made = loader(brokers, limits=SegmentLimits(seconds=1e6))
    assert made.run().records == sum(map(len, brokers.values.values()))
    assert len(written) > 5
    assert set(written) == {AT.number, other.number}


def test_what_kafka_deletes_of_a_topic_that_was_empty_is_told(
    clock: Clock, loader: Callable[..., KafkaLoader], zone: Zone
) -> None:
    """The first run found nothing; what came since then was deleted before the next."""
    brokers = Brokers(clock)
    assert loader(brokers, until=Until()).run().records == 0
    brokers.values[AT] = [b"%d" % number for number in range(20)]
    brokers.starts[AT] = 15
    with pytest.raises(StreamError, match="the offsets from 0 to 14 have been deleted"):
        loader(brokers, until=Until()).run()
    assert loader(brokers, until=Until(), accept={"lost-records"}).run().records == 5


def test_what_kafka_deletes_of_a_partition_that_was_added_is_told(
    clock: Clock, loader: Callable[..., KafkaLoader], zone: Zone
) -> None:
    added = Partition(AT.topic, 1)
    brokers = Brokers(clock, values={AT: [b"1"]})
    assert loader(brokers, until=Until()).run().records == 1
    brokers.values[added] = [b"%d" % number for number in range(20)]
    brokers.starts[added] = 15
    with pytest.raises(StreamError, match=r"partition 1 of topic .* the offsets from 0 to 14 have been deleted"):
        loader(brokers, until=Until()).run()


def test_what_was_deleted_before_a_topic_was_first_loaded_is_no_loss(
    clock: Clock, loader: Callable[..., KafkaLoader], zone: Zone
) -> None:
    """Nor for the loader that comes second, and finds the topic known."""
    other = Partition(AT.topic, 1)
    values = {at: [b"%d" % number for number in range(20)] for at in (AT, other)}
    starts = {AT: 15, other: 10}
    first = Brokers(clock, values=dict(values), starts=dict(starts), others={other})
    assert loader(first, until=Until(offsets={AT.number: 20})).run().records == 5
    second = Brokers(clock, values=dict(values), starts=dict(starts), others={AT})
    assert loader(second, until=Until(offsets={other.number: 20})).run().records == 10


def test_offsets_that_are_still_to_come_are_waited_for(
    clock: Clock, loader: Callable[..., KafkaLoader], zone: Zone
) -> None:
    """In an empty partition, of a topic's first ones or added to it, as in any other."""
    brokers, added = Brokers(clock), Partition(AT.topic, 1)

    def on(what: str) -> None:
        if what == "poll" and clock.now > waits_until:
            brokers.values |= {at: [b"1", b"2"] for at, values in brokers.values.items() if not values}

    brokers.on = on
    for at in (AT, added):
        brokers.values[at], waits_until = [], clock.now + 60
        assert loader(brokers, until=Until(offsets={at.number: 2})).run().records == 2


def test_what_waits_is_written_before_a_loss_is_told(
    clock: Clock, loader: Callable[..., KafkaLoader], zone: Zone
) -> None:
    """Kafka has deleted records that were read already, and are nowhere else."""
    brokers = Brokers(clock, values={AT: [b"%d" % number for number in range(20)]})
    fails = iter([BrokerError("gone for a moment")])

    def on(what: str) -> None:
        if what == "poll" and brokers.has_given and (error := next(fails, None)):
            brokers.starts[AT] = 15
            brokers.values[AT].append(b"20")
            raise error

    brokers.on = on
    assert loader(brokers, until=Until(offsets={AT.number: 21})).run().records == 21
    assert [(link.stream.first, link.stream.next) for link in links(zone) if link.stream] == [(0, 20), (20, 21)]
