"""Seeing a loader run: what Prometheus is told, what a log for machines holds, and that neither holds a secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from faults.proxy import FaultProxy
from worlds.streams import FEED, WAIT, Scrape, Zone, numbered, produce, served, wait_for

from loaders.metrics import Metrics

if TYPE_CHECKING:
    from conftest import KafkaServer, S3Server

CANARY = "canary-in-the-coal-mine"
JSON = {"MDP_LOG": "json", "AWS_SECRET_ACCESS_KEY": CANARY, "AWS_SESSION_TOKEN": CANARY}


@pytest.fixture
def zone(tmp_path: Path, kafka_server: KafkaServer) -> Zone:
    return Zone(tmp_path, kafka_server.bootstrap)


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3_server.endpoint)
    yield proxy
    proxy.close()


def events(text: str) -> list[dict[str, Any]]:
    """The lines of a log for machines; fails where one is no JSON object with the fields that all have."""
    found = [json.loads(line) for line in text.splitlines()]
    for event in found:
        assert event.keys() >= {"time", "level", "logger", "event", "message"}
        assert event["time"].endswith("Z")
    return found


def test_lag_grows_while_the_raw_zone_does_not_answer_and_is_gone_afterwards(
    zone: Zone, kafka_server: KafkaServer, s3_server: S3Server, proxy: FaultProxy
) -> None:
    env = {name: value for name, value in s3_server.env.items() if name.startswith("AWS_")}
    env |= {"AWS_ENDPOINT_URL_S3": proxy.endpoint, "MDP_LOG": "json"}
    zone = replace(zone, s3_raw=f"s3://{s3_server.new_bucket()}/raw", s3=env)
    topic = kafka_server.new_topic(2)
    produce(zone.bootstrap, topic, numbered(0, 100, partitions=2))
    with zone.started(topic, "--segment-seconds", "0.3", "--metrics-port", "0") as loader:
        url = served(loader)
        assert url.startswith("http://127.0.0.1:")
        wait_for(lambda: Scrape(url).sum("mdp_loaded_records_total") == 100, "the first records")
        now = Scrape(url)
        labels = (("feed", FEED), ("partition", "1"), ("topic", topic))
        assert now.samples["mdp_loaded_records_total"][labels] == 50
        none_behind = {(labels[0], ("partition", str(n)), labels[2]): 0 for n in (0, 1)}
        wait_for(lambda: Scrape(url).samples["mdp_lag_records"] == none_behind, "both partitions to be told of")
        assert now.sum("mdp_loaded_segments_total") == now.sum("mdp_commit_seconds_count") >= 2
        assert now.sum("mdp_commit_seconds_sum") > 0
        assert now.sum("mdp_loaded_bytes_total") > 100 * 60
        assert now.samples["mdp_retries_total"] == {(("target", "brokers"),): 0, (("target", "raw zone"),): 0}
        assert now.sum("mdp_refused_commits_total") == now.sum("mdp_store_retries_total") == 0
        assert now.sum("process_resident_memory_bytes") > 1e6

        proxy.fail("silence", "put new entry", times=10)
        produce(zone.bootstrap, topic, numbered(100, 50, partitions=2))
        wait_for(lambda: proxy.met["put new entry"] > 0, "the loader to be stopped")
        produce(zone.bootstrap, topic, numbered(150, 70, partitions=2))
        wait_for(lambda: Scrape(url).sum("mdp_lag_records") == 120, "all that waits to be lag")
        age = Scrape(url).sum("mdp_open_segment_age_seconds")
        wait_for(lambda: Scrape(url).sum("mdp_open_segment_age_seconds") > age > 0, "what waits to grow older")

        proxy.heal()
        wait_for(lambda: Scrape(url).sum("mdp_lag_records") == 0, "it to catch up")
        now = Scrape(url)
        assert now.sum("mdp_store_retries_total") >= 1
        assert now.sum("mdp_loaded_records_total") == 220
        wait_for(lambda: Scrape(url).sum("mdp_open_segment_age_seconds") == 0, "nothing to wait")
        loader.process.terminate()
        assert loader.wait() == 0
    told = events("\n".join(loader.said))
    assert {event["event"] for event in told} >= {"metrics-served", "segment-committed", "store-retry", "ended"}
    assert s3_server.secret_key not in "\n".join(loader.said)
    assert sum(zone.positions().values()) == 220


def test_a_commit_that_is_refused_is_counted(zone: Zone, kafka_server: KafkaServer) -> None:
    """Two groups load the same partition, so that both have the records; the quicker one commits them."""
    topic = kafka_server.new_topic()
    with zone.started(topic, "--group", f"{topic}-slow", "--segment-seconds", "4", "--metrics-port", "0") as slow:
        url = served(slow)
        produce(zone.bootstrap, topic, numbered(0, 10))
        wait_for(lambda: Scrape(url).sum("mdp_open_segment_age_seconds") > 0, "the slow loader to have records")
        assert "loaded 10 records" in zone.load(topic).stdout
        wait_for(lambda: Scrape(url).sum("mdp_refused_commits_total") == 1, "the refusal")
        assert Scrape(url).sum("mdp_loaded_records_total") == 0


def test_a_log_for_machines(zone: Zone, kafka_server: KafkaServer) -> None:
    topic = kafka_server.new_topic()
    produce(zone.bootstrap, topic, numbered(0, 10))
    zone = replace(zone, kafka=JSON)
    done = zone.load(topic)
    assert done.returncode == 0, done.stderr
    told = events(done.stderr)
    (segment,) = [event for event in told if event["event"] == "segment-committed"]
    assert segment["level"] == "info"
    assert segment["logger"] == "loaders.kafka"
    where = {"feed": FEED, "topic": topic, "partition": 0, "first": 0, "next": 10, "records": 10}
    assert where.items() <= segment.items()
    assert segment["seconds"] > 0
    assert told[-1]["event"] == "ended"
    failed = replace(zone, bootstrap="127.0.0.1:9").load(topic, "--give-up-after", "0")
    assert failed.returncode == 1
    assert events(failed.stderr)[-1]["event"] == "failed"
    misused = replace(zone, bootstrap="127.0.0.1:9").load(topic, until="never")
    assert (misused.returncode, events(misused.stderr)[-1]["event"]) == (2, "failed")
    assert CANARY not in done.stderr + done.stdout + failed.stderr + misused.stderr


def test_files_and_their_refusals_in_a_log_for_machines(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.gz"
    good.write_bytes(b"1723161253937085768 {}\n")
    bad.write_bytes(b"\x1f\x8b\x08 this is no gzip")
    main = [sys.executable, "-m", "market_data.cli", "load", "file", "--feed", FEED, str(good), str(bad)]
    env = {**os.environ, **JSON, "MDP_RAW": str(tmp_path / "raw")}
    done = subprocess.run(main, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    loaded, refused = sorted(events(done.stderr), key=lambda event: str(event["event"]))
    assert (loaded["event"], loaded["records"], loaded["feed"]) == ("file-loaded", 1, FEED)
    assert (refused["event"], refused["level"], refused["file"]) == ("file-refused", "warning", str(bad))
    plain = subprocess.run(main, env={**env, "MDP_LOG": ""}, capture_output=True, text=True, check=False)
    assert plain.stderr == "", "people see it once, on the standard output"
    assert CANARY not in done.stdout + done.stderr + plain.stdout


def test_a_style_that_is_none_is_told(tmp_path: Path) -> None:
    main = [sys.executable, "-m", "market_data.cli", "status"]
    env = {**os.environ, "MDP_LOG": "xml", "MDP_RAW": str(tmp_path)}
    done = subprocess.run(main, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MDP_LOG is 'xml'; give text or json" in done.stderr


def test_an_address_that_is_taken_is_told(zone: Zone, kafka_server: KafkaServer) -> None:
    taken = Metrics().serve("127.0.0.1", 0)
    done = zone.load(kafka_server.new_topic(), "--metrics-port", str(taken))
    assert done.returncode == 1
    assert f"metrics cannot be served at 127.0.0.1:{taken}" in done.stderr


def test_metrics_need_no_loader() -> None:
    metrics = Metrics()
    metrics.retries.labels("builds").inc()
    now = Scrape(f"http://127.0.0.1:{metrics.serve('127.0.0.1', 0)}/metrics")
    assert now.samples["mdp_retries_total"] == {(("target", "builds"),): 1}


def test_status_shows_the_lag_of_each_partition(zone: Zone, kafka_server: KafkaServer) -> None:
    """One partition loaded to its end, one behind, one with records deleted before they were loaded, one empty."""
    from kafka import TopicPartition
    from kafka.admin import KafkaAdminClient

    def status(zone: Zone, *arguments: str) -> subprocess.CompletedProcess[str]:
        lake = {"MDP_LAKE": str(zone.root / "lake.sqlite")}
        main = [sys.executable, "-m", "market_data.cli", "status", *arguments]
        env = {**zone.environment(), **lake}
        return subprocess.run(main, env=env, capture_output=True, text=True, timeout=WAIT, check=False)

    nowhere = replace(zone, bootstrap="127.0.0.1:9")
    assert "Kafka" not in status(nowhere).stdout, "no stream was ever loaded"
    topic = kafka_server.new_topic(4)
    produce(zone.bootstrap, topic, numbered(0, 30, partitions=3))
    assert zone.load(topic, until="0:10,1:6,2:3").returncode == 0
    admin = KafkaAdminClient(bootstrap_servers=zone.bootstrap)
    admin.delete_records({TopicPartition(topic, 2): 5})
    admin.close()

    told = json.loads(status(zone, "--json").stdout)["kafka"]
    found = {line["partition"]: line for line in told["partitions"]}
    shown = {
        number: tuple(line[name] for name in ("loaded", "start", "end", "behind")) for number, line in found.items()
    }
    assert shown == {0: (10, 0, 10, 0), 1: (6, 0, 10, 4), 2: (3, 5, 10, 5), 3: (0, 0, 0, 0)}
    assert {(line["feed"], line["topic"]) for line in found.values()} == {(FEED, topic)}
    assert told["notes"] == [f"{topic}/2: offsets 3 to 4 were deleted before they were loaded"]
    assert found[0]["loaded_at"] and found[3]["loaded_at"] is None
    lines = [line.split() for line in status(zone).stdout.splitlines() if line.startswith(FEED)]
    assert [line[2:7] for line in lines[:2]] == [["0", "10", "0", "10", "0"], ["1", "6", "0", "10", "4"]]

    away = status(nowhere)
    assert "Kafka at 127.0.0.1:9 cannot be reached" in away.stdout
    lines = [line.split() for line in away.stdout.splitlines() if line.startswith(FEED)]
    assert [line[2:4] for line in lines] == [["0", "10"], ["1", "6"], ["2", "3"], ["3", "0"]]
    assert all(line[-1] == "s" for line in lines[:3]), "how old the last load is"
