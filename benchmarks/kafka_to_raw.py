"""How fast the loader lands Kafka in the raw zone, against its parts.

    capture's messages ── confluent's producer ──▶ topic ──┬── the client, only consuming
                                                           ├── the loader ──▶ raw zone
    the same columns, built before ── the segment writer ──┴──▶ raw zone

    .venv/bin/python benchmarks/kafka_to_raw.py                      a million records, both clients
    .venv/bin/python benchmarks/kafka_to_raw.py --growth 10          and ten million by one loader: is it flat?

Kafka is started by services/, and stopped at the end; each measurement is a process of its own, from the first
record polled to the last one committed. Messages are those of the Binance capture below MDP_CAPTURES (else
../shared/data beside the repository), again and again; without it they are made in its shape.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SERVICES = REPOSITORY / "services" / "services.py"
CAPTURE = "binance_spot_btcusdt_20240808.gz"
FEED = "binance_spot"
CLIENTS = ("kafka-python", "confluent")
CHUNK = 20_000


def messages() -> list[tuple[bytes, int]]:
    """Return payloads and their times of receipt (ns)."""
    place = Path(os.environ.get("MDP_CAPTURES") or REPOSITORY.parent / "shared" / "data") / CAPTURE
    if place.exists():
        lines = (line.partition(b" ") for line in gzip.decompress(place.read_bytes()).splitlines())
        return [(payload, int(at)) for at, _, payload in lines]
    shape = (
        b'{"stream":"btcusdt@bookTicker","data":{"u":%d,"s":"BTCUSDT","b":"61837.63000000","B":"3.78826000",'
        b'"a":"61837.64000000","A":"1.54698000"}}'
    )
    return [(shape % (50_093_239_212 + n), 1_723_161_253_937_085_768 + 10_000_000 * n) for n in range(40_000)]


def publish(bootstrap: str, topic: str, records: int, partitions: int) -> None:
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, partitions, 1, config={"retention.ms": "-1"})])[topic].result()
    producer = Producer({"bootstrap.servers": bootstrap, "compression.type": "lz4", "linger.ms": 50})
    sent = messages()
    for number in range(records):
        payload, at = sent[number % len(sent)]
        headers = [("received_ns", b"%d" % at)]
        while True:
            try:
                producer.produce(
                    topic, payload, b"BTCUSDT", number % partitions, timestamp=at // 1_000_000, headers=headers
                )
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


# What is measured: each in a process of its own, which prints one JSON object.


class FromTheFirst:
    """A consumer that notes when it first returned records."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self.first: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def poll(self, seconds: float) -> Any:
        found = self._consumer.poll(seconds)
        if found and self.first is None:
            self.first = time.time()
        return found


def load(topic: str) -> dict[str, Any]:
    """The loader, until it has caught up."""
    from loaders.consumers import connect
    from loaders.kafka import KafkaLoader
    from loaders.ledger import Ledger
    from loaders.registry import find_feed, load_registry
    from loaders.settings import Settings
    from loaders.store import open_store
    from loaders.until import Until

    settings, seen = Settings.from_env(), []
    feed = replace(find_feed(FEED, load_registry()), topic=topic)

    def connected(membership: Any) -> Any:
        seen.append(FromTheFirst(connect(membership)))
        return seen[-1]

    totals = KafkaLoader([feed], settings, until=Until(), connect=connected).run()
    entries = Ledger(open_store(settings.raw, settings.s3)).entries("kafka/")
    done = [[entry.loaded_at, entry.records] for entry in entries if entry.kind == "stream"]
    return {"records": totals.records, "first": seen[0].first, "last": time.time(), "segments": sorted(done)}


def consume(topic: str) -> dict[str, Any]:
    """The client alone, with the loader's settings; nothing is done with the records."""
    from loaders.consumers import POLL_RECORDS, Membership, Partition, connect
    from loaders.settings import Settings

    settings = Settings.from_env()
    client: Any = connect(Membership.by(settings, f"alone-{os.getpid()}"))
    found = client.topic(topic)
    partitions = [Partition(topic, number) for number in found.partitions]
    wanted = sum(end - start for start, end in client.bounds(partitions).values())
    client.join([topic])
    while len(client.changes().assigned) < len(partitions):
        client.poll(0.2)
    for partition in partitions:
        client.seek(partition, 0)
    records, first = 0, 0.0
    inner = client._consumer
    while records < wanted:
        if settings.kafka_client == "confluent":
            got = len(inner.consume(POLL_RECORDS, 0.01))
        else:
            got = sum(map(len, inner.poll(500).values()))
        first = first or (time.time() if got else 0.0)
        records += got
    last = time.time()
    client.close()
    return {"records": min(records, wanted), "first": first, "last": last}


def write(records: int) -> dict[str, Any]:
    """The segment writer alone, with columns that were built before."""
    from loaders.consumers import Batch
    from loaders.instruments import Instruments
    from loaders.records import records_table
    from loaders.registry import find_feed, load_registry
    from loaders.segments import MAX_ROWS, Load, SegmentWriter
    from loaders.settings import Settings
    from loaders.store import open_store

    settings, feed = Settings.from_env(), find_feed(FEED, load_registry())
    instruments, sent, tables = Instruments(feed.instrument_path, {}), messages(), []
    for start in range(0, min(records, 10 * MAX_ROWS), CHUNK):
        rows = range(start, start + CHUNK)
        picked = [sent[number % len(sent)] for number in rows]
        headers = [[("received_ns", b"%d" % at)] for _, at in picked]
        times = [at // 1_000_000 for _, at in picked]
        batch = Batch(rows, times, [b"BTCUSDT"] * CHUNK, [payload for payload, _ in picked], headers)
        tables.append(records_table(batch, 0, instruments))
    load = Load(FEED, "benchmark", "0" * 32, 0, None, feed.schema_version, {})
    written, first = 0, time.time()
    while written < records:
        writer = SegmentWriter(open_store(settings.raw, settings.s3), load)
        for table in tables[: MAX_ROWS // CHUNK]:
            writer.add(table)
        writer.close()
        written += writer.records
        tables = tables[MAX_ROWS // CHUNK :] + tables[: MAX_ROWS // CHUNK]
    return {"records": written, "first": first, "last": time.time()}


def peak() -> int | None:
    """The most memory that this process has had resident, in bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(what: str, argument: str) -> None:
    from loaders.kafka import settle_memory

    settle_memory()
    started = time.process_time()
    found = {"load": load, "consume": consume}[what](argument) if what != "write" else write(int(argument))
    print(json.dumps({**found, "cpu": time.process_time() - started, "peak": peak()}))


# The run.


class Run:
    """Measurements of one run, all against the same broker."""

    def __init__(self, bootstrap: str, root: Path) -> None:
        self._bootstrap, self._root, self._count = bootstrap, root, 0

    def start(self, what: str, argument: str | int, client: str, raw: Path) -> subprocess.Popen[str]:
        env = {
            **os.environ,
            "MDP_RAW": str(raw),
            "MDP_KAFKA": self._bootstrap,
            "MDP_KAFKA_CLIENT": client,
            "PYTHONPATH": str(REPOSITORY),
        }
        command = [sys.executable, __file__, "--measure", what, str(argument)]
        return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE)

    def zone(self) -> Path:
        self._count += 1
        return self._root / f"raw-{self._count}"

    def of(self, what: str, argument: str | int, client: str = "kafka-python", processes: int = 1) -> dict[str, Any]:
        raw = self.zone()
        running = [self.start(what, argument, client, raw) for _ in range(processes)]
        found = []
        for process in running:
            said, _ = process.communicate()
            if process.returncode:
                raise SystemExit(f"{what} {argument} with {client} failed")
            found.append(json.loads(said))
        busy = [one for one in found if one["records"]]
        seconds = max(one["last"] for one in busy) - min(one["first"] for one in busy)
        records = sum(one["records"] for one in busy)
        return {
            "records": records,
            "seconds": seconds,
            # Each by its own clock: how long the group takes to share its partitions is another question.
            "rate": sum(one["records"] / (one["last"] - one["first"]) for one in busy),
            "peak": max(one["peak"] or 0 for one in found),
            "by": [one["records"] for one in found],
            "cpu_us": sum(one["cpu"] for one in found) / records * 1e6,
            "segments": sorted(segment for one in found[:1] for segment in one.get("segments", [])),
            "first": min(one["first"] for one in busy),
        }


def flatness(measured: dict[str, Any], part: int) -> float:
    """Return the seconds of the last part of the records over those of the first, by when segments were written."""
    from datetime import datetime

    marks, total = [(measured["first"], 0)], 0
    for loaded_at, records in measured["segments"]:
        total += records
        marks.append((datetime.fromisoformat(loaded_at).timestamp(), total))
    at = {wanted: next(when for when, count in marks if count >= wanted) for wanted in (part, total - part, total)}
    return (at[total] - at[total - part]) / (at[part] - marks[0][0])


def benchmark(options: argparse.Namespace, bootstrap: str, root: Path) -> dict[str, Any]:
    run, records, result = Run(bootstrap, root), options.records, {}
    publish(bootstrap, "one", records, 1)
    publish(bootstrap, "two", records, 2)
    if options.growth > 1:
        publish(bootstrap, "long", records * options.growth, 1)
    result["(c) writing only"] = run.of("write", records)
    for client in options.client or CLIENTS:
        names = {name: f"{name}, {client}" for name in ("loader", "consuming only", "one loader, two partitions")}
        result[names["consuming only"]] = alone = run.of("consume", "one", client)
        result[names["loader"]] = loader = run.of("load", "one", client)
        loader["of its client alone"] = loader["rate"] / alone["rate"]
        result[names["one loader, two partitions"]] = single = run.of("load", "two", client)
        result[f"two loaders, two partitions, {client}"] = both = run.of("load", "two", client, processes=2)
        both["of one loader"] = both["rate"] / single["rate"]
        if options.growth > 1:
            result[f"loader, {options.growth} × as much, {client}"] = grown = run.of("load", "long", client)
            grown["last part against the first"] = flatness(grown, records)
    if not options.client:
        found = {client: result[f"loader, {client}"] for client in CLIENTS}
        found["confluent"]["of kafka-python's loader"] = found["confluent"]["rate"] / found["kafka-python"]["rate"]
    return result


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "records/s", "peak MB", "ratio")
    for name, one in result.items():
        ratios = [f"{value:.2f} {key}" for key, value in one.items() if key.startswith(("of ", "last "))]
        table.add_row(name, f"{one['rate']:,.0f}", f"{one['peak'] / 1e6:,.0f}", "\n".join(ratios))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kafka to the raw zone: records a second, memory, ratios.")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--growth", type=int, default=1, metavar="N", help="also load N times as many in one go")
    parser.add_argument("--client", action="append", choices=CLIENTS, help="only this one")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    with tempfile.TemporaryDirectory(prefix="mdp-benchmark-") as name:
        root = Path(name)
        env = {**os.environ, "MDP_SERVICES_DIR": str(root / "services")}

        def services(*command: str) -> str:
            done = [sys.executable, str(SERVICES), *command]
            return subprocess.run(done, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout

        try:
            said = services("up", "kafka", "--random-ports")
            bootstrap = shlex.split(said)[1].partition("=")[2]
            result = benchmark(options, bootstrap, root)
        finally:
            services("down", "kafka")
    show(result)
    if options.json:
        told = {name: {key: one[key] for key in one if key != "segments"} for name, one in result.items()}
        options.json.write_text(json.dumps({"records": options.records, "measured": told}, indent=2) + "\n")


if __name__ == "__main__":
    main()
