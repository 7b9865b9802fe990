"""From a real broker into the raw zone: what was sent is there once, whoever loads it and however they end."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from worlds.streams import FEED, WAIT, Message, Scrape, Zone, numbered, produce, served, wait_for
from worlds.warehouse import CANONICAL, Warehouse, read_sorted, table_differences

from loaders.kafka import KafkaLoader
from loaders.lanes import SegmentLimits
from loaders.ledger import Ledger
from loaders.registry import load_registry
from loaders.settings import Settings
from loaders.store import open_store
from loaders.until import Until

if TYPE_CHECKING:
    from conftest import KafkaServer, S3Server

CAPTURE = "binance_spot_btcusdt_20240808.gz"
LINEAGE = {"load_id", "source", "source_partition", "source_position", "loaded_at"}


@pytest.fixture
def zone(tmp_path: Path, kafka_server: KafkaServer, kafka_client: str) -> Zone:
    return Zone(tmp_path, kafka_server.bootstrap, kafka={"MDP_KAFKA_CLIENT": kafka_client})


def publish(zone: Zone, file: Path, topic: str, *arguments: str) -> subprocess.Popen[str]:
    main = ["-c", "from market_data.cli import main; main()", "capture", "publish", str(file), "--topic", topic]
    return subprocess.Popen(
        [sys.executable, *main, "--feed", FEED, *arguments],
        env=zone.environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def published(zone: Zone, file: Path, topic: str, *arguments: str) -> str:
    process = publish(zone, file, topic, *arguments)
    said, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, said
    return said


def test_what_was_sent_is_there_once_and_again_loading_adds_nothing(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic(3)
    sent = numbered(0, 3_000, partitions=3)
    produce(zone.bootstrap, topic, sent)
    done = zone.load(topic, "--segment-rows", "400")
    assert done.returncode == 0, done.stderr
    assert "loaded 3,000 records" in done.stdout
    rows = zone.rows()
    by_partition = [[message.value for message in sent if message.partition == number] for number in range(3)]
    assert [row["payload"] for row in rows] == [value for values in by_partition for value in values]
    newest = load_registry()[FEED].schema_version
    assert {(row["feed"], row["source"], row["schema_version"]) for row in rows} == {(FEED, topic, newest)}
    assert {row["load_id"] for row in rows} == {entry.load_id for entry in zone.entries()}
    zone.check_chains()

    again = zone.load(topic)
    assert again.returncode == 0
    assert "loaded 0 records" in again.stdout

    produce(zone.bootstrap, topic, numbered(3_000, 30, partitions=3))
    assert "loaded 30 records" in zone.load(topic).stdout
    assert zone.positions() == Counter((topic, number, offset) for number in range(3) for offset in range(1_010))


def test_an_empty_topic_is_caught_up_at_once(zone: Zone, kafka_server: KafkaServer) -> None:
    assert "loaded 0 records" in zone.load(kafka_server.new_topic(2)).stdout


@pytest.mark.once
def test_it_stops_at_offsets_and_at_times(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic(2, retention_ms="-1")
    minute = 1_700_000_040_000
    sent = [Message(b"%d" % n, partition=n % 2, timestamp_ms=minute + 1_000 * n) for n in range(100)]
    produce(zone.bootstrap, topic, sent)
    assert "loaded 12 records" in zone.load(topic, until="0:5,1:7").stdout
    assert {entry.stream.next for entry in zone.entries() if entry.stream} == {5, 7}
    assert zone.load(topic, until="2023-11-14T22:14:30Z").returncode == 0
    assert sorted(int(row["payload"]) for row in zone.rows()) == list(range(30))
    assert zone.load(topic, until="7:1").returncode == 1
    assert zone.load(topic, until="2099-01-01").returncode == 2
    assert zone.load(topic).returncode == 0
    assert len(zone.positions()) == 100


def test_offsets_that_kafka_leaves_out_are_no_holes(zone: Zone, kafka_server: KafkaServer) -> None:
    from kafka import KafkaProducer

    topic = kafka_server.new_topic()
    producer = KafkaProducer(bootstrap_servers=zone.bootstrap, transactional_id=topic)
    producer.init_transactions()
    for number in range(6):
        producer.begin_transaction()
        producer.send(topic, b"%d" % number, partition=0)
        producer.flush()
        if number % 2:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    producer.close()
    done = zone.load(topic)
    assert done.returncode == 0, done.stderr
    assert [row["payload"] for row in zone.rows()] == [b"0", b"2", b"4"]
    (entry,) = zone.entries()
    assert entry.stream is not None
    assert (entry.stream.first, entry.stream.next) == (0, 12)
    assert "loaded 0 records" in zone.load(topic).stdout


def test_each_client_goes_on_where_the_other_stopped(zone: Zone, kafka_server: KafkaServer, kafka_client: str) -> None:
    topic = kafka_server.new_topic(2)
    other = {"kafka-python": "confluent", "confluent": "kafka-python"}[kafka_client]
    produce(zone.bootstrap, topic, numbered(0, 100, partitions=2))
    assert "loaded 100 records" in zone.load(topic).stdout
    produce(zone.bootstrap, topic, numbered(100, 60, partitions=2))
    with zone.started(topic, "--session-seconds", "6", "--segment-seconds", "0.3") as one:
        wait_for(lambda: len(zone.positions()) == 160, "the first loader")
        with zone.started(topic, "--session-seconds", "6", "--segment-seconds", "0.3", "--client", other) as two:
            time.sleep(3)
            produce(zone.bootstrap, topic, numbered(160, 200, partitions=2))
            wait_for(lambda: len(zone.positions()) == 360, "both loaders")
            for loader in (one, two):
                loader.process.terminate()
                assert loader.wait() == 0, loader.said
                assert any("records, offsets" in line for line in loader.said)
    assert zone.positions() == Counter((topic, number, offset) for number in range(2) for offset in range(180))
    zone.check_chains()


def test_the_groups_offsets_are_told_but_never_read(zone: Zone, kafka_server: KafkaServer) -> None:
    from kafka import KafkaConsumer, TopicPartition
    from kafka.structs import OffsetAndMetadata

    topic, group = kafka_server.new_topic(), f"group-{os.getpid()}-{time.time_ns()}"
    at = TopicPartition(topic, 0)
    produce(zone.bootstrap, topic, numbered(0, 50))
    consumer = KafkaConsumer(bootstrap_servers=zone.bootstrap, group_id=group, enable_auto_commit=False)
    consumer.assign([at])
    consumer.commit({at: OffsetAndMetadata(40, "", -1)})
    assert "loaded 50 records" in zone.load(topic, "--group", group).stdout
    assert consumer.committed(at) == 50
    consumer.close()


@pytest.mark.once
def test_a_quiet_topic_is_written_by_age_and_sigterm_writes_what_waits(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic()
    produce(zone.bootstrap, topic, numbered(0, 3))
    with zone.started(topic, "--segment-seconds", "0.5") as loader:
        wait_for(lambda: len(zone.positions()) == 3, "three records by age")
        produce(zone.bootstrap, topic, numbered(3, 4))
        wait_for(lambda: len(zone.positions()) == 7, "four more")
        loader.process.terminate()
        assert loader.wait() == 0
    with zone.started(topic, "--segment-seconds", "3600", "--metrics-port", "0") as loader:
        produce(zone.bootstrap, topic, numbered(7, 5))
        url = served(loader)
        wait_for(lambda: Scrape(url).sum("mdp_open_segment_age_seconds") > 0, "what waits")
        time.sleep(1)
        assert len(zone.positions()) == 7
        loader.process.terminate()
        assert loader.wait() == 0
    assert len(zone.positions()) == 12
    zone.check_chains()


@pytest.mark.once
def test_segments_close_by_bytes(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic()
    produce(zone.bootstrap, topic, [Message(os.urandom(20_000)) for _ in range(1_000)])
    assert zone.load(topic, "--segment-bytes", "1000000").returncode == 0
    assert len(zone.entries()) >= 4
    assert len(zone.positions()) == 1_000


@pytest.mark.once
def test_every_codec_is_read(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic()
    for number, codec in enumerate((None, "gzip", "snappy", "lz4", "zstd")):
        produce(zone.bootstrap, topic, numbered(number * 10, 10), compression_type=codec)
    assert "loaded 50 records" in zone.load(topic).stdout


def test_poison_records_are_kept_exactly(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic()
    sent = [
        Message(None, b"TOMBSTONE"),
        Message(b""),
        Message(b"\xff\xfe\x00"),
        Message(b"\x00" * 50, b"\x00"),
        Message(b"[" * 10_000),
        Message(b'{"a":' * 10_000, b"\xff\xfe", [("received_ns", b"never"), ("", b"\xff"), ("a", b"")]),
        Message(b'{"s":"' + b"x" * 900_000 + b'"}'),
        Message(b'{"s":"../../etc/passwd"}', b'a"; drop table x; --'),
        Message(b'{"s":"NULL"}'),
    ]
    produce(zone.bootstrap, topic, sent)
    done = zone.load(topic)
    assert done.returncode == 0, done.stderr
    rows = zone.rows()
    assert [(row["payload"], row["key"]) for row in rows] == [(message.value, message.key) for message in sent]
    assert [(pair["key"], pair["value"]) for pair in rows[5]["headers"]] == list(sent[5].headers)
    assert [row["instrument"] for row in rows[:6]] == ["TOMBSTONE", None, None, None, None, None]
    assert rows[8]["instrument"] == "NULL"


class Bytes(str):
    """A header's name that kafka-python sends as these bytes."""

    __slots__ = ("raw",)

    def __new__(cls, raw: bytes) -> Bytes:
        self = super().__new__(cls, raw.decode("latin-1"))
        self.raw = raw
        return self

    def encode(self, *_: object) -> bytes:
        return self.raw


def test_names_of_headers_that_are_not_utf_8_are_kept_or_told(
    zone: Zone, kafka_server: KafkaServer, kafka_client: str
) -> None:
    topic, names = kafka_server.new_topic(), [b"\xff\xfe", "\ufffd".encode(), "é".encode(), b"a\xed\xa0\x80"]
    stored = ["\ufffdfffe", "\ufffdefbfbd", "é", "\ufffd61eda080"]
    headers = [(Bytes(name), b"\xff" + name) for name in names]
    sent = [Message(b"before"), Message(b"odd", headers=headers), Message(b"after", headers=[("a", b"b")])]
    produce(zone.bootstrap, topic, sent, compression_type="lz4")
    done = zone.load(topic)
    if kafka_client == "confluent":
        assert done.returncode == 1
        assert f"{topic}/0, offset 1: a header's name is not UTF-8" in done.stderr
        assert "--client kafka-python reads it" in done.stderr
        done = zone.load(topic, "--client", "kafka-python")
    assert done.returncode == 0, done.stderr
    before, odd, after = zone.rows()
    assert (before["headers"], after["headers"]) == ([], [{"key": "a", "value": b"b"}])
    expected = zip(stored, (value for _, value in headers), strict=True)
    assert [(pair["key"], pair["value"]) for pair in odd["headers"]] == list(expected)


@pytest.mark.once
@pytest.mark.parametrize("prefix", [".hidden", "a" * 230, "_x-.Y", "NULL"])
def test_hostile_names_of_topics(zone: Zone, kafka_server: KafkaServer, prefix: str) -> None:
    topic = kafka_server.new_topic(prefix=prefix)
    produce(zone.bootstrap, topic, numbered(0, 5))
    assert "loaded 5 records" in zone.load(topic).stdout
    assert "loaded 0 records" in zone.load(topic).stdout
    assert zone.positions() == Counter((topic, 0, offset) for offset in range(5))


@pytest.mark.once
def test_two_feeds_in_one_process(zone: Zone, kafka_server: KafkaServer) -> None:
    registry = load_registry()
    feeds = [replace(registry[name], topic=kafka_server.new_topic(2)) for name in ("binance_spot", "coinbase_exchange")]
    for feed in feeds:
        produce(zone.bootstrap, feed.topic, numbered(0, 100, partitions=2))
    totals = KafkaLoader(feeds, zone.settings, until=Until(), limits=SegmentLimits(rows=20)).run()
    assert (totals.records, totals.refused) == (200, 0)
    assert Counter((row["feed"], row["source"]) for row in zone.rows()) == {
        (feed.name, feed.topic): 100 for feed in feeds
    }


@pytest.mark.once
def test_the_raw_zone_may_be_on_s3(zone: Zone, kafka_server: KafkaServer, s3_server: S3Server) -> None:
    topic = kafka_server.new_topic(2)
    produce(zone.bootstrap, topic, numbered(0, 500, partitions=2))
    env = {**zone.environment(), **s3_server.env, "MDP_RAW": f"s3://{s3_server.new_bucket()}/raw"}
    command = zone.command(topic, "--until", "caught-up", "--segment-rows", "100")
    for expected in ("loaded 500 records", "loaded 0 records"):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=WAIT, check=False)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    settings = Settings.from_env(env)
    store = open_store(settings.raw, settings.s3)
    entries = [entry for entry in Ledger(store).entries("kafka/") if entry.kind == "stream"]
    found = [
        row
        for entry in entries
        for file in entry.files
        for row in pq.read_table(io.BytesIO(store.get(file.path))).to_pylist()
    ]
    places = Counter((row["source"], row["source_partition"], row["source_position"]) for row in found)
    assert places == Counter((topic, number, offset) for number in range(2) for offset in range(250))


@pytest.mark.once
def test_a_topic_that_is_not_there_and_a_feed_that_is_no_stream_are_told(zone: Zone) -> None:
    done = zone.load("no-such-topic")
    assert done.returncode == 1
    assert "topic no-such-topic of feed binance_spot is not on" in done.stderr
    other = zone.command("x", "--until", "caught-up")
    other[other.index(FEED)] = "massive_trades"
    done = subprocess.run(other, env=zone.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "comes as csv files" in done.stderr


@pytest.mark.once
def test_a_capture_keeps_its_times_and_its_keys(zone: Zone, tmp_path: Path, kafka_server: KafkaServer) -> None:
    file = tmp_path / "capture.txt"
    file.write_bytes(
        b'1723161254087896568 {"data":{"s":"BTCUSDT"}}\n\n1723161254087896567 {"bids":[]}\n'
        b'wss://host <- 1618677817.020616: {"type":"x"}\n'
    )
    topic = f"made-{time.time_ns()}"
    assert "sent 4 records" in published(zone, file, topic)
    assert zone.load(topic).returncode == 0
    rows = zone.rows()
    assert [row["payload"] for row in rows] == [b'{"data":{"s":"BTCUSDT"}}', b"", b'{"bids":[]}', b'{"type":"x"}']
    assert [row["key"] for row in rows] == [b"BTCUSDT"] * 4
    times = zone.table()["source_time"].cast("int64").to_pylist()
    assert times == [1723161254087896568, 1723161254087000000, 1723161254087896567, 1618677817020616000]
    headers = {pair["key"]: pair["value"] for pair in rows[3]["headers"]}
    assert headers == {"endpoint": b"wss://host", "direction": b"<-", "received_ns": b"1618677817020616000"}


@pytest.mark.once
def test_a_capture_of_several_symbols_is_told_whose_the_other_messages_are(
    zone: Zone, tmp_path: Path, kafka_server: KafkaServer
) -> None:
    file, topic = tmp_path / "capture.txt", kafka_server.new_topic(retention_ms="-1")
    names = [b'{"data":{"s":"BTCUSDT"}}', b'{"data":{"s":"ETHUSDT"}}', b'{"bids":[]}']
    file.write_bytes(b"".join(b"172316125408789656%d %s\n" % line for line in enumerate(names)))
    said = published(zone, file, topic)
    assert "sent 3 records" in said and "1 of them name no symbol and have no key" in said
    assert "no key" not in published(zone, file, topic, "--symbol", "SOLUSDT")
    assert zone.load(topic).returncode == 0
    rows = [(row["key"], row["instrument"]) for row in zone.rows()]
    named = [(b"BTCUSDT", "BTCUSDT"), (b"ETHUSDT", "ETHUSDT")]
    assert rows == [*named, (None, None), *named, (b"SOLUSDT", "SOLUSDT")]


@pytest.mark.once
def test_a_topic_that_would_eat_a_capture_is_told(zone: Zone, tmp_path: Path, kafka_server: KafkaServer) -> None:
    file = tmp_path / "capture.txt"
    file.write_bytes(b'1723161254087896568 {"data":{"s":"BTCUSDT"}}\n')
    topic = kafka_server.new_topic()
    process = publish(zone, file, topic)
    said, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 1
    assert "retention.ms=604800000" in said
    published(zone, file, topic, "--keep-all")
    published(zone, file, topic)
    assert "loaded 2 records" in zone.load(topic).stdout


@pytest.mark.once
def test_three_loaders_one_killed_and_one_stalled_give_the_tables_of_the_file(
    zone: Zone, captures: Path, tmp_path: Path
) -> None:
    topic, lines = f"capture-{time.time_ns()}", gzip.decompress((captures / CAPTURE).read_bytes()).splitlines()
    options = ("--segment-seconds", "1", "--session-seconds", "6")
    sender = publish(zone, captures / CAPTURE, topic, "--partitions", "3", "--round-robin", "--speed", "18")
    time.sleep(2)
    with (
        zone.started(topic, *options) as steady,
        zone.started(topic, *options) as stalled,
        zone.started(topic, *options, failpoint="after-files:4") as killed,
    ):
        stalled.until_says("records, offsets")
        assert killed.wait() == -signal.SIGKILL
        assert any("records, offsets" in line for line in killed.said)
        stalled.process.send_signal(signal.SIGSTOP)
        time.sleep(8)
        stalled.process.send_signal(signal.SIGCONT)
        said, _ = sender.communicate(timeout=WAIT)
        assert "sent 41,249 records" in said
        done = zone.load(topic, *options)
        assert done.returncode == 0, done.stderr
        for loader in (steady, stalled):
            loader.process.terminate()
            assert loader.wait() == 0, loader.said
    zone.check_chains()
    table = zone.table()
    assert zone.positions() == Counter(
        (topic, number, offset) for number in range(3) for offset in range(len(range(number, len(lines), 3)))
    )
    sent = [line.partition(b" ")[2] for number in range(3) for line in lines[number::3]]
    assert table["payload"].to_pylist() == sent
    times = [int(line.partition(b" ")[0]) for number in range(3) for line in lines[number::3]]
    assert table["source_time"].cast("int64").to_pylist() == times

    streamed, filed = Warehouse(tmp_path, leave=600), Warehouse(tmp_path / "file", leave=600)
    streamed.build()
    filed.load(captures / CAPTURE, FEED)
    filed.build()
    assert streamed.ask("select count(*) from canonical.trades") == [(9_757,)]
    for name in (f"canonical.{table}" for table in CANONICAL):
        found = []
        for warehouse in (streamed, filed):
            with warehouse.reader() as connection:
                known = connection.execute(f"describe from {name}").fetchall()
                left_out = ", ".join(f'"{column}"' for column, *_ in known if column in LINEAGE)
                relation = f"(select * exclude ({left_out}) from {name})" if left_out else name
                found.append(read_sorted(connection, relation))
        assert table_differences(*found) == [], name
