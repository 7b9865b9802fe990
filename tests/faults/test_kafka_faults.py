"""What can go wrong between Kafka and the raw zone, done for real: nothing lost, nothing twice, nothing silent."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from worlds.streams import WAIT, Loader, Message, Zone, numbered, produce, wait_for
from worlds.warehouse import Warehouse

from loaders.chain import Chain, Source
from loaders.failpoints import POINTS
from loaders.ledger import Ledger
from loaders.store import LocalStore

if TYPE_CHECKING:
    from conftest import KafkaServer

QUICK = ("--segment-seconds", "0.5", "--session-seconds", "6")


@pytest.fixture
def zone(tmp_path: Path, kafka_server: KafkaServer, kafka_client: str, landed: Path) -> Iterator[Zone]:
    yield Zone(tmp_path, kafka_server.bootstrap, kafka={"MDP_KAFKA_CLIENT": kafka_client})
    for raw in (tmp_path / "raw", *tmp_path.glob("*/raw")):
        if raw.is_dir():
            shutil.copytree(raw, landed, copy_function=link, ignore=lambda *_: {".tmp"}, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw zone of all that the tests here have landed; their topics differ, so that its parts fit together."""
    return tmp_path_factory.mktemp("landed") / "raw"


def link(source: str, target: str) -> None:
    with contextlib.suppress(FileExistsError):  # each zone has a name of its own
        os.link(source, target)


@contextlib.contextmanager
def admin(zone: Zone) -> Iterator[object]:
    from kafka.admin import KafkaAdminClient

    client = KafkaAdminClient(bootstrap_servers=zone.bootstrap)
    try:
        yield client
    finally:
        client.close()


def delete_records(zone: Zone, topic: str, before: int) -> None:
    """Let the log start at an offset, as retention does."""
    from kafka import TopicPartition

    with admin(zone) as client:
        client.delete_records({TopicPartition(topic, 0): before})  # type: ignore[attr-defined]


def make_again(zone: Zone, topic: str) -> None:
    """Delete a topic and make one of the same name."""
    from kafka.admin import NewTopic
    from kafka.errors import TopicAlreadyExistsError

    with admin(zone) as client:
        client.delete_topics([topic])  # type: ignore[attr-defined]
        deadline = time.monotonic() + WAIT
        while True:
            try:
                client.create_topics([NewTopic(topic, 1, 1)])  # type: ignore[attr-defined]
                return
            except TopicAlreadyExistsError:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def replay(zone: Zone, topic: str, *arguments: str, failpoint: str | None = None) -> subprocess.CompletedProcess[str]:
    command = zone.command(topic, *arguments)
    command[command.index("load") : command.index("--feed")] = ["replay"]
    env = zone.environment(failpoint)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=WAIT, check=False)


def whole(topic: str, count: int, partitions: int = 1) -> Counter[tuple[str, int, int]]:
    """Each offset once, where `count` records went to the partitions in turn."""
    return Counter(
        (topic, number, offset)
        for number in range(partitions)
        for offset in range(len(range(number, count, partitions)))
    )


def orphans(zone: Zone) -> set[str]:
    """Data files that no entry names."""
    named = {file.path for entry in zone.entries() for file in entry.files}
    return {str(path.relative_to(zone.raw)) for path in zone.raw.glob("binance_spot/**/*.parquet")} - named


@pytest.mark.once
def test_killed_at_any_step_of_a_flush_it_goes_on_where_the_ledger_is(zone: Zone, kafka_server: KafkaServer) -> None:
    rows = ("--segment-rows", "100", "--session-seconds", "6")
    topics = {point: kafka_server.new_topic(2) for point in POINTS}
    zones = {point: replace(zone, root=zone.root / point) for point in POINTS}
    for topic in topics.values():
        produce(zone.bootstrap, topic, numbered(0, 1_000, partitions=2))
    for points in (POINTS[:4], POINTS[4:]):
        with contextlib.ExitStack() as stack:
            loaders = {}
            for point in points:
                command = (topics[point], "--until", "caught-up", *rows)
                loaders[point] = stack.enter_context(zones[point].started(*command, failpoint=point))
            for point, loader in loaders.items():
                assert loader.wait() == -signal.SIGKILL, (point, loader.said)
        with contextlib.ExitStack() as stack:
            again = [
                stack.enter_context(
                    zones[point].started(topics[point], "--until", "caught-up", *rows, "--group", f"{topics[point]}-2")
                )
                for point in points
            ]
            for loader in again:
                assert loader.wait() == 0, loader.said
    for point in POINTS:
        assert zones[point].positions() == whole(topics[point], 1_000, 2), point
        zones[point].check_chains()
        assert len(orphans(zones[point])) <= 1, point


def test_a_broker_that_dies_and_comes_back(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic(2)
    produce(zone.bootstrap, topic, numbered(0, 200, partitions=2))
    with zone.started(topic, *QUICK) as loader:
        wait_for(lambda: len(zone.positions()) == 200, "the first records")
        kafka_server.kill()
        try:
            loader.until_says("reading from Kafka at")
        finally:
            kafka_server.start()  # other tests need it
        produce(zone.bootstrap, topic, numbered(200, 200, partitions=2))
        wait_for(lambda: len(zone.positions()) == 400, "the records after the restart")
        loader.process.terminate()
        assert loader.wait() == 0
        assert any("works again" in line for line in loader.said)
    assert zone.positions() == whole(topic, 400, 2)
    zone.check_chains()


@pytest.mark.once
def test_brokers_that_stay_away_are_given_up(zone: Zone, kafka_server: KafkaServer) -> None:
    nowhere = replace(zone, bootstrap="127.0.0.1:9")
    done = nowhere.load("any", "--give-up-after", "1")
    assert done.returncode == 1
    assert "reading from Kafka at 127.0.0.1:9 has failed for" in done.stderr


@pytest.mark.once
def test_a_topic_made_again_is_told_and_loaded_only_if_accepted(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic()
    produce(zone.bootstrap, topic, numbered(0, 10))
    assert zone.load(topic).returncode == 0
    make_again(zone, topic)
    produce(zone.bootstrap, topic, numbered(100, 30))
    done = zone.load(topic)
    assert done.returncode == 1
    assert "is on another topic of the same name" in done.stderr
    assert "0 up to 10" in done.stderr
    assert "--accept new-topic" in done.stderr
    assert len(zone.positions()) == 10
    refused = replay(zone, topic, "--from", "0", "--to", "30")
    assert refused.returncode == 1
    assert "is on another topic of the same name" in refused.stderr
    assert "loaded 30 records" in zone.load(topic, "--accept", "new-topic").stdout
    assert "loaded 0 records" in zone.load(topic).stdout
    assert zone.table().num_rows == 40
    zone.check_chains()


@pytest.mark.once
def test_a_topic_made_again_under_a_running_loader_is_never_mixed_up(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic()
    produce(zone.bootstrap, topic, numbered(0, 10))
    with zone.started(topic, *QUICK) as loader:
        wait_for(lambda: len(zone.positions()) == 10, "the first records")
        make_again(zone, topic)
        produce(zone.bootstrap, topic, numbered(100, 30))
        assert loader.wait() == 1
        assert any("another topic of the same name" in line for line in loader.said)
    assert zone.table()["payload"].to_pylist() == [message.value for message in numbered(0, 10)]


@pytest.mark.once
def test_another_cluster_is_told(
    zone: Zone,
    tmp_path: Path,
    services_command: Callable[..., subprocess.CompletedProcess[str]],
    kafka_server: KafkaServer,
) -> None:
    """The topic has the same name on a cluster that was formatted anew, as after a lost disk."""
    root = tmp_path / "services"
    root.mkdir()
    topic = kafka_server.new_topic()
    produce(zone.bootstrap, topic, numbered(0, 10))
    assert zone.load(topic).returncode == 0
    done = services_command("up", "kafka", "--random-ports", root=root)
    try:
        assert done.returncode == 0, done.stderr
        other = replace(zone, bootstrap=done.stdout.strip().rpartition("=")[2])
        from kafka.admin import KafkaAdminClient, NewTopic

        client = KafkaAdminClient(bootstrap_servers=other.bootstrap)
        client.create_topics([NewTopic(topic, 1, 1)])
        client.close()
        produce(other.bootstrap, topic, numbered(0, 20))
        refused = other.load(topic)
        assert refused.returncode == 1
        assert "is on another cluster than before" in refused.stderr
        assert "loaded 20 records" in other.load(topic, "--accept", "new-topic").stdout
        assert zone.load(topic).returncode == 1
    finally:
        services_command("down", root=root)


def test_records_deleted_before_they_were_loaded_are_told_and_noted(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic()
    produce(zone.bootstrap, topic, numbered(0, 50))
    assert zone.load(topic).returncode == 0
    delete_records(zone, topic, 50)
    caught_up = zone.load(topic)
    assert (caught_up.returncode, "loaded 0 records" in caught_up.stdout) == (0, True)
    produce(zone.bootstrap, topic, numbered(50, 50))
    delete_records(zone, topic, 70)
    done = zone.load(topic)
    assert done.returncode == 1
    assert "starts at offset 70 now, and was loaded up to 50: the offsets from 50 to 69" in done.stderr
    assert len(zone.positions()) == 50
    assert "loaded 30 records" in zone.load(topic, "--accept", "lost-records").stdout
    (hole,) = zone.entries("hole")
    assert hole.stream is not None
    assert (hole.stream.first, hole.stream.next, hole.outcome) == (50, 70, "skipped")
    zone.check_chains()
    assert zone.positions() == Counter((topic, 0, offset) for offset in [*range(50), *range(70, 100)])


@pytest.mark.once
def test_a_replay_fills_holes_and_leaves_the_rest_untouched(zone: Zone, kafka_server: KafkaServer) -> None:
    """The hole is one that Kafka still has: as when its disk comes back after records were given up."""
    topic = kafka_server.new_topic(2)
    produce(zone.bootstrap, topic, numbered(0, 400, partitions=2))
    assert zone.load(topic, until="0:50").returncode == 0
    entry = zone.entries()[0]
    assert entry.stream is not None
    source = Source(entry.feed, entry.stream.cluster, topic, entry.stream.topic_id)
    assert Chain(LocalStore(zone.raw), source, 0).skip(120, "given up")
    assert zone.load(topic).returncode == 0
    assert len(zone.positions()) == 330
    before = {path: path.read_bytes() for path in zone.raw.rglob("*.parquet")}

    killed = replay(zone, topic, "--from", "0", "--to", "400", failpoint="after-files")
    assert killed.returncode == -signal.SIGKILL
    done = replay(zone, topic, "--from", "100", "--to", "130")
    assert done.returncode == 0, done.stderr
    assert f"{topic}/0, offsets 100 up to 130: 10 were there, 70 filled (70 records), 0 missing" in done.stdout
    assert f"{topic}/1, offsets 100 up to 130: 30 were there, 0 filled (0 records), 0 missing" in done.stdout
    again = replay(zone, topic, "--from", "1970-01-01", "--to", "2100-01-01")
    assert f"{topic}/0, offsets 0 up to 200: 200 were there, 0 filled (0 records), 0 missing" in again.stdout
    assert all(path.read_bytes() == data for path, data in before.items())
    filled = [entry for entry in Ledger(LocalStore(zone.raw)).entries("replay/") if entry.kind == "stream"]
    assert sum(entry.records for entry in filled) == 70
    found = zone.positions() + Counter(
        (topic, 0, offset)
        for entry in filled
        for file in entry.files
        for offset in pq.read_table(zone.raw / file.path)["source_position"].to_pylist()
    )
    assert found == whole(topic, 400, 2)
    assert "loaded 0 records" in zone.load(topic).stdout


@pytest.mark.once
def test_a_replay_by_a_time_begins_with_the_first_record_from_then_on(zone: Zone, kafka_server: KafkaServer) -> None:
    """The times are between records: none has them."""
    topic, minute = kafka_server.new_topic(2, retention_ms="-1"), 1_723_161_300_000  # 2024-08-08T23:55:00Z
    trades = enumerate(numbered(0, 40, partitions=2))
    produce(zone.bootstrap, topic, [replace(trade, timestamp_ms=minute + 1_000 * n) for n, trade in trades])
    assert zone.load(topic, until="0:20,1:15").returncode == 0
    done = replay(zone, topic, "--from", "2024-08-08T23:55:09.5Z", "--to", "2024-08-08T23:55:34.000000001Z")
    assert done.returncode == 0, done.stderr
    assert f"{topic}/0, offsets 5 up to 18: 13 were there, 0 filled (0 records), 0 missing\n" in done.stdout
    assert f"{topic}/1, offsets 5 up to 17: 10 were there, 0 filled (0 records), 0 missing, 2 not loaded" in done.stdout


@pytest.mark.once
def test_a_hole_that_kafka_cannot_fill_stays_and_is_told(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic()
    produce(zone.bootstrap, topic, numbered(0, 10))
    assert zone.load(topic).returncode == 0
    produce(zone.bootstrap, topic, numbered(10, 10))
    delete_records(zone, topic, 15)
    assert zone.load(topic, "--accept", "lost-records").returncode == 0
    done = replay(zone, topic, "--from", "0", "--to", "20")
    assert done.returncode == 1
    assert "15 were there, 0 filled (0 records), 5 missing" in done.stdout


@pytest.mark.once
def test_retention_that_overtakes_a_running_loader_stops_it(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic()
    produce(zone.bootstrap, topic, numbered(0, 10))
    with zone.started(topic, *QUICK) as loader:
        wait_for(lambda: len(zone.positions()) == 10, "the first records")
        loader.process.send_signal(signal.SIGSTOP)
        produce(zone.bootstrap, topic, numbered(10, 10_000))
        time.sleep(7)  # what the client has asked for before is answered to a connection that is gone
        delete_records(zone, topic, 9_000)
        kafka_server.restart()
        loader.process.send_signal(signal.SIGCONT)
        code = loader.wait()
    held = len(zone.positions())
    assert code == 1, loader.said
    assert any(f"starts at offset 9000 now, and was loaded up to {held}" in line for line in loader.said)


@pytest.mark.once
def test_a_loader_that_wakes_up_in_the_middle_of_a_flush_is_refused(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic()
    produce(zone.bootstrap, topic, numbered(0, 100))
    with zone.started(topic, *QUICK, failpoint="after-files:1:stop") as stale:
        wait_for(lambda: len(orphans(zone)) == 1, "the stale loader's file")
        done = zone.load(topic, *QUICK, "--segment-rows", "30")  # takes over when the session is over
        assert done.returncode == 0, done.stderr
        assert zone.positions() == whole(topic, 100)
        stale.process.send_signal(signal.SIGCONT)
        stale.until_says("another loader has committed from offset 0 on")
        produce(zone.bootstrap, topic, numbered(100, 20))
        wait_for(lambda: len(zone.positions()) == 120, "the loader to go on")
        stale.process.terminate()
        assert stale.wait() == 0
    assert zone.positions() == whole(topic, 120)
    assert not orphans(zone)
    zone.check_chains()


@pytest.mark.once
def test_a_disk_that_is_full_stops_it_with_nothing_lost(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic()
    produce(zone.bootstrap, topic, numbered(0, 2_000))
    done = subprocess.run(
        zone.command(topic, "--until", "caught-up", "--give-up-after", "1"),
        env=zone.environment(),
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.returncode == 1
    assert f"writing to {zone.raw} failed (" in done.stderr
    assert "Nothing is lost" in done.stderr
    assert not zone.positions()
    assert "loaded 2,000 records" in zone.load(topic, "--group", f"{topic}-2").stdout
    assert zone.positions() == whole(topic, 2_000)


POISON = (
    b"",
    b"\xff\xfe\x00",
    b"\x00" * 50,
    b"[" * 10_000,
    b'{"a":' * 10_000,
    b'{"s":"' + b"x" * 900_000 + b'"}',
    b'{"e":"trade","s":"BTCUSDT","t":1,"p":"retyped","q":"1","T":1723161255342,"m":true}',
    b'{"e":"trade","s":"BTCUSDT","t":1,"renamed":"1","q":"1","T":1723161255342,"m":true}',
)
"""Records that are no trades: malformed, hostile, large, or of another shape than they were."""


def test_poison_among_good_records_stops_nothing(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic(prefix="poison")
    good = numbered(0, len(POISON))
    produce(zone.bootstrap, topic, [each for pair in zip(map(Message, POISON), good, strict=True) for each in pair])
    assert zone.load(topic).returncode == 0
    assert zone.positions() == whole(topic, 2 * len(POISON))
    assert zone.table()["payload"].to_pylist()[::2] == list(POISON)


# Whatever happens, in whatever order.

_produce = st.tuples(st.just("produce"), st.integers(1, 400))
_start = st.tuples(
    st.just("start"), st.sampled_from([None, *(f"{point}:{count}" for point in POINTS for count in (1, 2))])
)
_end = st.tuples(st.sampled_from(["kill", "terminate", "stall", "wake"]), st.integers(0, 1))
_restart = ("restart the broker", 0)
_quick = st.lists(_produce | _start | _end, min_size=4, max_size=8)
_long = st.lists(_produce | _start | _end | st.just(_restart), min_size=4, max_size=12)


def happens(steps: list[tuple[str, object]], zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic(3)
    zone = replace(zone, root=zone.root / topic)  # each example one of its own, where the fixture finds it
    sent, options = 0, ("--segment-rows", "50", "--segment-seconds", "0.3", "--session-seconds", "6")
    with contextlib.ExitStack() as stack:
        at_work: list[Loader] = []
        for what, which in steps:
            if what == "produce":
                assert isinstance(which, int)
                produce(zone.bootstrap, topic, numbered(sent, which, partitions=3))
                sent += which
            elif what == "start" and len(at_work) < 2:
                assert which is None or isinstance(which, str)
                at_work.append(stack.enter_context(zone.started(topic, *options, failpoint=which)))
                time.sleep(1.5)
            elif what == "restart the broker":
                kafka_server.kill()
                kafka_server.start()
            elif isinstance(which, int) and which < len(at_work):
                number = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "stall": signal.SIGSTOP}
                at_work[which].process.send_signal(number.get(what, signal.SIGCONT))
                if what in ("kill", "terminate"):
                    at_work.pop(which)
        done = zone.load(topic, *options, "--group", f"{topic}-last")
        assert done.returncode == 0, done.stderr
        for loader in at_work:
            loader.process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
    assert zone.positions() == Counter(
        (topic, number, offset) for number in range(3) for offset in range(_count(steps, number))
    )
    zone.check_chains()


def _count(steps: list[tuple[str, object]], partition: int) -> int:
    sent = sum(which for what, which in steps if what == "produce" and isinstance(which, int))
    return len(range(partition, sent, 3))


def _unhurried(examples: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=checks, phases=[Phase.explicit, Phase.generate]
    )


@pytest.mark.once
@_unhurried(2)
@given(steps=_quick)
@example(steps=[("produce", 200), ("start", None), _restart, ("produce", 100), ("start", "after-files:1"), ("kill", 0)])
def test_whatever_happens_every_record_is_there_once(
    steps: list[tuple[str, object]], zone: Zone, kafka_server: KafkaServer
) -> None:
    happens(steps, zone, kafka_server)


@pytest.mark.long
@_unhurried(40)
@given(steps=_long)
def test_whatever_happens_for_long_every_record_is_there_once(
    steps: list[tuple[str, object]], zone: Zone, kafka_server: KafkaServer
) -> None:
    happens(steps, zone, kafka_server)


def test_all_that_was_landed_is_canonical_once(landed: Path) -> None:
    """The last test here: one build over the raw zones of all the others."""
    warehouse = Warehouse(landed.parent, leave=1)
    loads = {entry.load_id: entry for entry in Ledger(LocalStore(landed)).entries() if entry.kind == "stream"}
    tables = [pq.read_table(landed / file.path, partitioning=None) for entry in loads.values() for file in entry.files]
    payloads = {payload for table in tables for payload in table["payload"].to_pylist()} - set(POISON)
    numbers = {json.loads(payload)["t"] for payload in payloads}
    poisoned = {table["source"][0].as_py() for table in tables if "poison" in table["source"][0].as_py()}
    warehouse.build()
    counted = warehouse.ask(
        "select load_id, raw_records, canonical_records + duplicates + quarantined, is_conserved"
        " from observability.conservation"
    )
    assert {load: tuple(counts) for load, *counts in counted if counts[0]} == {
        load_id: (entry.records, entry.records, True) for load_id, entry in loads.items() if entry.records
    }
    assert warehouse.ask("select count(*), count(distinct trade_id) from canonical.trades") == [(len(numbers),) * 2]
    quarantined = warehouse.ask("select source, source_position from canonical.quarantine order by all")
    assert quarantined == [(topic, 2 * number) for topic in sorted(poisoned) for number in range(len(POISON))]
