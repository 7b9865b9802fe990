"""A raw zone that is loaded from the tests' broker, by loaders in processes of their own.

produce(...) ──▶ topic ── Zone.load(), Zone.start() ──▶ raw zone ── Zone.rows(), Zone.positions()
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prometheus_client.parser import text_string_to_metric_families

from loaders.ledger import Entry, Ledger
from loaders.settings import Settings
from loaders.store import Store, open_store

FEED = "binance_spot"
WAIT = 300.0  # longer than anything takes on a slow machine: it ends what hangs, and times nothing

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Message:
    """One record to send."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    partition: int = 0
    timestamp_ms: int | None = None


def produce(bootstrap: str, topic: str, messages: Iterable[Message], **options: Any) -> None:
    """Send records, and return when the broker has them."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5, **options)
    try:
        futures = [
            producer.send(
                topic,
                value=message.value,
                key=message.key,
                headers=list(message.headers),
                partition=message.partition,
                timestamp_ms=message.timestamp_ms,
            )
            for message in messages
        ]
        for future in futures:
            future.get(timeout=WAIT)
    finally:
        producer.close()


def numbered(start: int, count: int, partitions: int = 1) -> list[Message]:
    """Trades whose numbers go on from `start`, over partitions in turn."""
    trade = b'{"e":"trade","s":"BTCUSDT","t":%d,"p":"1","q":"1","T":1723161255342,"m":true}'
    return [
        Message(trade % number, b"BTCUSDT", partition=number % partitions) for number in range(start, start + count)
    ]


@dataclass
class Loader:
    """A loader at work. `said` holds the lines of its error stream as they come."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    def read(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(line.rstrip() for line in self.process.stderr)

    def until_says(self, text: str) -> str:
        """Wait for a line that holds the text; return it."""
        found: list[str] = []
        wait_for(
            lambda: found.extend(line for line in self.said if text in line) or bool(found), f"{text!r} in {self.said}"
        )
        return found[0]

    def wait(self) -> int:
        return self.process.wait(timeout=WAIT)


class Scrape:
    """What a loader's endpoint says now."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=WAIT) as answer:
            text = answer.read().decode()
        self.samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples[sample.name][tuple(sorted(sample.labels.items()))] = sample.value

    def sum(self, name: str) -> float:
        return sum(self.samples[name].values())


def served(loader: Loader) -> str:
    """The address that the loader has told."""
    return loader.until_says("metrics are at ").split("metrics are at ")[1].split('"')[0].strip()


@dataclass(frozen=True)
class Zone:
    """A raw zone below a directory, or on S3 where `s3_raw` says so."""

    root: Path
    bootstrap: str
    s3_raw: str | None = None
    s3: Mapping[str, str] = field(default_factory=dict)
    """How to reach S3, as environment variables."""
    kafka: Mapping[str, str] = field(default_factory=dict)
    """What else leads to Kafka, likewise: MDP_KAFKA_CLIENT and the like."""

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def settings(self) -> Settings:
        return Settings.from_env(self._places)

    @property
    def store(self) -> Store:
        return open_store(self.settings.raw, self.settings.s3)

    @property
    def _places(self) -> dict[str, str]:
        return {"MDP_RAW": self.s3_raw or str(self.raw), "MDP_KAFKA": self.bootstrap, **self.s3, **self.kafka}

    def environment(self, failpoint: str | None = None) -> dict[str, str]:
        env = {**os.environ, **self._places}
        return {**env, "MDP_FAILPOINT": failpoint} if failpoint else env

    def command(self, topic: str, *arguments: str) -> list[str]:
        load = ["-c", "from market_data.cli import main; main()", "load", "kafka", "--feed", FEED, "--topic", topic]
        return [sys.executable, *load, *arguments]

    def load(self, topic: str, *arguments: str, until: str = "caught-up") -> subprocess.CompletedProcess[str]:
        """Load to the end in a process of its own."""
        return subprocess.run(
            self.command(topic, "--until", until, *arguments),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )

    @contextmanager
    def working(self, command: Sequence[str], failpoint: str | None = None) -> Iterator[Loader]:
        """A process that runs beside the test, and is killed at the end if it still does."""
        process = subprocess.Popen(
            command,
            env=self.environment(failpoint),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        loader = Loader(process)
        reader = threading.Thread(target=loader.read)
        reader.start()
        try:
            yield loader
        finally:
            process.kill()
            process.wait()
            reader.join()

    @contextmanager
    def started(self, topic: str, *arguments: str, failpoint: str | None = None) -> Iterator[Loader]:
        """A loader that runs beside the test."""
        with self.working(self.command(topic, *arguments), failpoint) as loader:
            yield loader

    def entries(self, kind: str = "stream") -> list[Entry]:
        entries = Ledger(self.store).entries("kafka/")
        return [entry for entry in entries if entry.kind == kind]

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Everything that the ledger names, in the order of partition and offset."""
        store = self.store
        files = [file.path for entry in self.entries() for file in entry.files]
        tables = [pq.read_table(io.BytesIO(store.get(path)), columns=columns) for path in files]
        if not tables:
            return pa.table({"source": [], "source_partition": [], "source_position": []})
        order = [(name, "ascending") for name in ("source", "source_partition", "source_position")]
        return pa.concat_tables(tables).sort_by(order)

    def rows(self) -> list[dict[str, Any]]:
        return self.table().to_pylist()

    def positions(self) -> Counter[tuple[str, int, int]]:
        """How often each (topic, partition, offset) is there."""
        names = ["source", "source_partition", "source_position"]
        table = self.table(names)
        columns = [table[name].to_pylist() for name in names]
        return Counter(zip(*columns, strict=True))

    def check_chains(self) -> None:
        """Every entry starts where another ends, from the origin on."""
        ends = {
            (origin.stream.topic_id, origin.stream.partition): origin.stream.next
            for origin in self.entries("origin")
            if origin.stream is not None
        }
        links = [entry for kind in ("stream", "hole") for entry in self.entries(kind)]
        for entry in sorted(links, key=lambda entry: entry.key):
            assert entry.stream is not None
            chain = (entry.stream.topic_id, entry.stream.partition)
            assert ends[chain] == entry.stream.first, f"{entry.key} does not start where another ends"
            assert entry.records == sum(file.rows for file in entry.files)
            ends[chain] = entry.stream.next


def wait_for(condition: Callable[[], bool], what: str, seconds: float = WAIT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)
