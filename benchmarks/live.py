"""From append in Kafka to readable in canonical.trades, at a steady rate.

    producer: --rate records a second, each its own trade ──▶ Kafka ──▶ mdp live ──▶ published versions
           when a record was appended ──────────────┐                                   │
    latency of a record: when a reader first saw it ─┴──────────── reader, four times a second

    .venv/bin/python benchmarks/live.py                        2,000 records a second for ten minutes
    .venv/bin/python benchmarks/live.py --seconds 120 --warm 60

Kafka is started by services/, on this machine, as are the loader, the builder and the reader. The first --warm seconds
(dbt is loaded, the first tables are made) are run and not counted. Told are the percentiles of the latency, and how
builds and files were in the first and in the last third: steady means that they are alike. Wanted: p95 below 15 s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SERVICES = REPOSITORY / "services" / "services.py"
TOPIC = "binance_spot"


@dataclass
class Feed:
    """What was appended: record `n` is trade `n`, acknowledged at `appended[n]` (epoch seconds)."""

    bootstrap: str
    rate: int
    appended: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Append trades of now, as the capture has them, at the rate. (In order: one partition, one producer.)"""
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 5, "compression.type": "lz4"})

        def done(_error: object, _message: object) -> None:
            self.appended.append(time.time())

        started, sent = time.monotonic(), 0
        while not self.stop.is_set():
            due = int((time.monotonic() - started) * self.rate)
            for number in range(sent, due):
                now = time.time_ns()
                price = f"{61_837 + random.random():.8f}"
                payload = (
                    f'{{"stream":"btcusdt@trade","data":{{"e":"trade","E":{now // 10**6},"s":"BTCUSDT","t":{number},'
                    f'"p":"{price}","q":"0.02000000","T":{now // 10**6},"m":true,"M":true}}}}'
                )
                headers = [("received_ns", str(now).encode())]
                producer.produce(TOPIC, payload.encode(), b"BTCUSDT", headers=headers, on_delivery=done)
            sent = max(sent, due)
            producer.poll(0)
            time.sleep(0.02)
        producer.flush()


@dataclass
class Reader:
    """Looks which trades are readable: `seen` holds (when, how many)."""

    env: dict[str, str]
    seen: list[tuple[float, int]] = field(default_factory=list)
    files: list[tuple[float, int]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        from loaders.settings import Settings
        from market_data import client, publishing

        settings, last = Settings.from_env(self.env), None
        script = publishing.connect_script(settings)
        while not self.stop.is_set():
            time.sleep(0.25)
            changed = script.stat().st_mtime_ns if script.exists() else None
            if changed == last:
                continue
            last = changed
            with client.connect(settings=settings) as connection:
                (row,) = connection.sql("select count(*) as n from canonical.trades").arrow.to_pylist()
                self.seen.append((time.time(), row["n"]))
                (row,) = connection.sql(
                    "select sum(file_count) as n from ducklake_table_info('lake')"
                ).arrow.to_pylist()
                self.files.append((time.time(), int(row["n"])))


def latencies(feed: Feed, reader: Reader, start: float) -> list[float]:
    """Seconds from append to first seen, of the records appended from `start` on. Trades are seen in order."""
    found, done = [], 0
    for when, count in reader.seen:
        found += [when - at for at in feed.appended[done:count] if at >= start]
        done = max(done, count)
    return sorted(found)


def benchmark(options: argparse.Namespace, env: dict[str, str], root: Path) -> dict[str, Any]:
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": env["MDP_KAFKA"]})
    admin.create_topics([NewTopic(TOPIC, 1, 1, config={"retention.ms": "-1"})])[TOPIC].result()
    command = [sys.executable, "-c", "from market_data.cli import main; main()", "live", "--feed", TOPIC]
    with (root / "live.log").open("w") as told:
        live = subprocess.Popen([*command, *options.live], env={**env, "MDP_LOG": "json"}, stderr=told)
        feed, reader = Feed(env["MDP_KAFKA"], options.rate), Reader(env)
        threads = [threading.Thread(target=one.run, daemon=True) for one in (feed, reader)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(options.warm)
            start = time.time()
            time.sleep(options.seconds)
            end = time.time()
        finally:
            feed.stop.set()
            live.send_signal(signal.SIGTERM)
            live.wait(300)
        time.sleep(1)
        reader.stop.set()
        threads[1].join()
    found = latencies(feed, reader, start)
    events = [json.loads(line) for line in (root / "live.log").read_text().splitlines()]
    builds = [
        (event["at"], event["seconds"])
        for event in (
            {**event, "at": epoch(event["time"])} for event in events if event["event"] == "version-published"
        )
        if start <= event["at"] <= end
    ]
    third = (end - start) / 3
    return {
        "rate": options.rate,
        "seconds": round(end - start),
        "records": len(feed.appended),
        "readable": reader.seen[-1][1],
        "latency": {
            f"p{q}": round(found[min(len(found) - 1, int(len(found) * q / 100))], 2) for q in (50, 95, 99, 100)
        },
        "builds": len(builds),
        "build_seconds": [mean(builds, start, start + third), mean(builds, end - third, end)],
        "files": [mean(reader.files, start, start + third), mean(reader.files, end - third, end)],
    }


def epoch(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def mean(points: list[tuple[float, Any]], start: float, end: float) -> float:
    values = [value for when, value in points if start <= when <= end]
    return round(sum(values) / len(values), 2) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency from Kafka to canonical.trades, under mdp live.")
    parser.add_argument("--rate", type=int, default=2_000)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--warm", type=int, default=60)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument("live", nargs="*", help="arguments of mdp live, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mdp-benchmark-") as name:
        root = Path(name)
        env = {**os.environ, "MDP_SERVICES_DIR": str(root / "services"), "PYTHONPATH": str(REPOSITORY)}
        env |= {
            "MDP_RAW": str(root / "raw"),
            "MDP_LAKE": str(root / "lake.sqlite"),
            "MDP_LAKE_DATA": str(root / "lake"),
        }

        def services(*command: str) -> str:
            done = [sys.executable, str(SERVICES), *command]
            return subprocess.run(done, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout

        try:
            said = services("up", "kafka", "--random-ports")
            result = benchmark(options, {**env, "MDP_KAFKA": shlex.split(said)[1].partition("=")[2]}, root)
        finally:
            services("down", "kafka")
    print(json.dumps(result, indent=2))
    if result["readable"] != result["records"]:
        raise SystemExit("not every record became readable")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
