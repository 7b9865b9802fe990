"""`mdp demo --kafka` as a person runs it, beside another broker that it must leave alone; then again, and cut short.

world ── mdp demo --kafka (a broker of its own) ── raw zone, lake ──┐
      └─ captures loaded as files, in order of arrival ── lake ─────┴── equal but for the lineage
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from conftest import KafkaServer
from worlds.warehouse import Warehouse, read_sorted, table_differences

from loaders.ledger import Entry, Ledger
from loaders.settings import Settings
from loaders.store import open_store
from market_data import client, lake
from market_data.demo import broker
from market_data.demo.crypto import STREAMS
from market_data.demo.truth import Truth
from market_data.demo.world import generate

pytestmark = pytest.mark.long

MDP = Path(sys.prefix) / "bin" / "mdp"
LINEAGE = {"load_id", "source", "source_partition", "source_position", "loaded_at"}
CRYPTO = "venue in ('binance', 'coinbase')"
Services = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Demo:
    """A demo in `place`, and what it said."""

    place: Path
    env: dict[str, str]
    done: subprocess.CompletedProcess[str]
    topics: tuple[set[str], set[str]]
    """What the broker that MDP_KAFKA named had before and after."""

    def reader(self) -> duckdb.DuckDBPyConnection:
        """A connection to the published version."""
        places = {"raw": self.place / "raw", "lake": self.place / "lake.sqlite", "lake_data": self.place / "lake_data"}
        settings = Settings(**{name: str(path) for name, path in places.items()})
        return lake.open_version(settings, client.published_version(settings))

    @property
    def truth(self) -> Truth:
        return Truth.read(self.place / "world" / "truth.json")

    def segments(self) -> list[Entry]:
        entries = Ledger(open_store(str(self.place / "raw"))).entries("kafka/")
        return [entry for entry in entries if entry.outcome == "loaded"]


def run_demo(place: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MDP, "demo", "--directory", place, *arguments],
        cwd=place.parent,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def topics_of(server: KafkaServer) -> set[str]:
    from kafka.admin import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=server.bootstrap)
    try:
        return set(admin.list_topics())
    finally:
        admin.close()


@pytest.fixture(scope="module")
def demo(kafka_server: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    place = tmp_path_factory.mktemp("demo") / "the demo"
    env = {name: value for name, value in os.environ.items() if not name.startswith("MDP_")}
    env |= {"MDP_KAFKA": kafka_server.bootstrap, "COLUMNS": "100"}
    before = topics_of(kafka_server)
    done = run_demo(place, env, "--kafka")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return Demo(place, env, done, (before, topics_of(kafka_server)))


def test_it_agrees_with_the_truth_and_says_what_went_through_kafka(demo: Demo, tmp_path: Path) -> None:
    plain = generate(tmp_path)
    (copy,) = [one for one in plain.deliveries if one.outcome == "unchanged" and one.feed in STREAMS]
    (original,) = [one for one in plain.deliveries if Path(one.path).stem == Path(copy.path).stem[: -len("_copy")]]
    expected = {feed: plain.records_of(feed) for feed in STREAMS}
    expected[copy.feed] += original.records  # Kafka does not know that it has had these before
    loaded, segments = Counter[str](), Counter[str]()
    for entry in demo.segments():
        assert entry.stream is not None and entry.stream.next - entry.stream.first == entry.records
        loaded[entry.source] += entry.records
        segments[entry.source] += 1
    assert loaded == expected
    assert demo.done.stderr == ""
    assert "Everything agrees with the world's truth" in demo.done.stdout
    lines = [line.split() for line in demo.done.stdout.partition("By way of Kafka")[2].splitlines()]
    for feed in STREAMS:
        captures = sum(delivery.feed == feed for delivery in plain.deliveries)
        partitions = len({entry.stream.partition for entry in demo.segments() if entry.stream and entry.source == feed})
        (shown,) = [line for line in lines if line[:1] == [feed] and "of" in line]
        assert shown[1:] == [str(partitions), "of", "3", str(captures), f"{expected[feed]:,}", str(segments[feed])]
    files = Ledger(open_store(str(demo.place / "raw"))).entries("file/")
    assert not {entry.feed for entry in files} & set(STREAMS)


def test_a_capture_sent_again_makes_nothing(demo: Demo) -> None:
    (again,) = [one for one in demo.truth.deliveries if one.path.endswith("_copy.gz")]
    (first,) = [one for one in demo.truth.deliveries if Path(one.path).stem == Path(again.path).stem[: -len("_copy")]]
    assert again.records == first.records
    assert again.canonical == {} and again.duplicates == sum(first.canonical.values()) + first.duplicates
    assert (again.quarantined, again.control, again.unread) == (first.quarantined, first.control, first.unread)


def test_tables_equal_those_of_the_files(demo: Demo, tmp_path: Path) -> None:
    filed = Warehouse(tmp_path / "filed")
    world = tmp_path / "world"
    for delivery in generate(world).deliveries:
        if delivery.feed in STREAMS:
            filed.load(world / delivery.path, delivery.feed)
    filed.build()
    said = "feed, kind, reason, detail, payload"
    relations = [f"(select distinct {said} from canonical.quarantine where feed in {STREAMS})"]
    with demo.reader() as connection:
        for name in ("canonical.trades", "canonical.quotes"):
            columns = [column for column, *_ in connection.execute(f"describe from {name}").fetchall()]
            kept = ", ".join(f'"{column}"' for column in columns if column not in LINEAGE)
            relations.append(f"(select {kept} from {name} where {CRYPTO})")
        streamed = [read_sorted(connection, relation) for relation in relations]
    with filed.reader() as connection:
        for relation, found in zip(relations, streamed, strict=True):
            expected = read_sorted(connection, relation)
            assert expected.num_rows > 20
            assert table_differences(found, expected) == [], relation


def test_its_broker_is_its_own_and_is_stopped(demo: Demo, services_command: Services) -> None:
    before, after = demo.topics
    assert after == before
    status = services_command("status", "kafka", root=demo.place / broker.FOLDER)
    assert status.returncode == 1 and "down, data kept" in status.stdout


def test_a_second_run_sends_and_loads_nothing(demo: Demo) -> None:
    before = demo.segments()
    again = run_demo(demo.place, demo.env, "--kafka")
    assert again.returncode == 0, f"{again.stdout}\n{again.stderr}"
    assert demo.segments() == before
    assert "stands already" in again.stdout and again.stdout.count("nothing new") == 2
    counts = demo.done.stdout.partition("By way of Kafka")[2].partition("What to try next")[0]
    assert counts and counts in again.stdout


def test_records_that_are_not_where_the_broker_put_them_are_told(demo: Demo) -> None:
    file = demo.place / "published.parquet"
    right = pq.read_table(file)
    offsets = right.schema.get_field_index("offset")
    try:
        wrong = right["offset"].combine_chunks().take([*range(1, right.num_rows), 0])
        pq.write_table(right.set_column(offsets, "offset", wrong), file)
        again = run_demo(demo.place, demo.env, "--kafka")
    finally:
        pq.write_table(right, file)
    assert again.returncode == 1
    assert "is not what is known of its world" in again.stderr and "broken records set aside" in again.stderr


def test_the_other_way_needs_a_fresh_start(demo: Demo) -> None:
    done = run_demo(demo.place, demo.env)
    assert done.returncode == 1 and "was made with --kafka" in done.stderr and "--fresh" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cut_short_it_stops_its_broker(
    kafka_server: KafkaServer, services_command: Services, tmp_path: Path, number: signal.Signals
) -> None:
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [MDP, "demo", "--kafka", "--directory", tmp_path / "demo"], env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("kafka"):
                break
        assert services_command("status", "kafka", root=tmp_path / "demo" / broker.FOLDER).returncode == 0
        process.send_signal(number)
        process.stdout.read()
    assert process.returncode not in (0, None)
    status = services_command("status", "kafka", root=tmp_path / "demo" / broker.FOLDER)
    assert status.returncode == 1 and "down" in status.stdout


def test_without_java_it_says_what_to_install(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"} | {"PATH": str(tmp_path)}
    done = run_demo(tmp_path / "demo", env, "--kafka")
    told = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert "apt-get install openjdk-17-jre-headless maven" in told and "mdp demo without --kafka needs none" in told


def test_without_a_checkout_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "SERVICES", tmp_path / "services.py")
    with pytest.raises(broker.NoBrokerError, match="by services/ of a checkout"), broker.broker(tmp_path):
        pass
