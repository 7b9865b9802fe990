"""What a process has done and how far behind it is, as Prometheus asks for it.

    loader, builds ── counters, histograms ──┐
    watched lanes ── where they are, since ──┼──▶ Metrics ── serve(host, port) ──▶ GET /metrics
    brokers ── ends, when asked ─────────────┘

Lag and age are computed when they are asked for, so they go on growing while the loader itself stands still at a
raw zone that does not answer. Each process tells of the partitions that it reads: sums over processes are right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PARTITION = ("feed", "topic", "partition")
COMMIT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Reading(NamedTuple):
    """Where a partition is that a loader reads."""

    feed: str
    topic: str
    partition: int
    next: int
    """The offset up to which the ledger has it."""
    end: int | None
    """The offset behind the last committed record in Kafka; None where the brokers do not say."""
    since: float | None
    """When the oldest record came that waits to be written, by the monotonic clock; None if none does."""


class Metrics:
    """The metrics of one process. Needs no loader: what nobody counts is not there, or zero."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._watched = _Watched()
        self.registry.register(self._watched)
        self.records = self._counter("mdp_loaded_records", "Records committed to the raw zone.", PARTITION)
        self.bytes = self._counter("mdp_loaded_bytes", "Bytes of these records in memory, uncompressed.", PARTITION)
        self.segments = self._counter("mdp_loaded_segments", "Segments committed to the raw zone.", PARTITION)
        self.refused = self._counter(
            "mdp_refused_commits", "Segments that another loader had committed before.", PARTITION
        )
        self.retries = self._counter("mdp_retries", "Waits before another attempt, by what had failed.", ("target",))
        self.commit_seconds = Histogram(
            "mdp_commit_seconds",
            "Time to write a segment's files and its ledger entry.",
            ("feed", "topic"),
            buckets=COMMIT_SECONDS,
            registry=self.registry,
        )

    def follow(self, feed: str, topic: str, partition: int) -> None:
        """Let a partition's counters be there, at zero, before anything happens to it."""
        for counter in (self.records, self.bytes, self.segments, self.refused):
            counter.labels(feed, topic, partition)

    def watch(self, readings: Callable[[], Iterable[Reading]], store_retries: Callable[[], int]) -> None:
        """Let lag, age and the store's own retries be asked for at each scrape, from any thread."""
        self._watched.sources.append((readings, store_retries))

    def serve(self, host: str, port: int) -> int:
        """Answer GET /metrics from a thread of its own; return the port, a free one if 0 was given.

        Raises OSError where the address cannot be used.
        """
        server, _ = start_http_server(port, host, self.registry)
        return int(server.server_port)

    def _counter(self, name: str, what: str, labels: Iterable[str]) -> Counter:
        return Counter(name, what, labels, registry=self.registry)


class _Watched(Collector):
    """What is computed at a scrape."""

    def __init__(self) -> None:
        self.sources: list[tuple[Callable[[], Iterable[Reading]], Callable[[], int]]] = []

    def collect(self) -> Iterator[Metric]:
        lag = GaugeMetricFamily(
            "mdp_lag_records", "Offsets between the end of the partition and the ledger.", labels=PARTITION
        )
        age = GaugeMetricFamily(
            "mdp_open_segment_age_seconds", "Age of the oldest record that waits, 0 if none does.", labels=PARTITION
        )
        retries = CounterMetricFamily("mdp_store_retries", "Requests to the raw zone's store that were made again.")
        now, repeated = time.monotonic(), 0
        for readings, store_retries in self.sources:
            repeated += store_retries()
            for reading in readings():
                labels = (reading.feed, reading.topic, str(reading.partition))
                age.add_metric(labels, 0.0 if reading.since is None else now - reading.since)
                if reading.end is not None:
                    lag.add_metric(labels, max(0, reading.end - reading.next))
        retries.add_metric((), repeated)
        yield from (lag, age, retries)

    def describe(self) -> Iterator[Metric]:
        """Nothing is computed, and no broker asked, when this is registered."""
        return iter(())
