"""The crypto captures of the demo by way of Kafka, in the order of their arrival.

    DIR/world/crypto/… ── publish ──> the feed's topic ── KafkaLoader, until caught up ──> DIR/raw
                             │ partition and offset of every record              │ segments
                             └──────────> DIR/published.parquet ─────────────────┴──> Landing

Each capture is loaded before the next is sent. So no segment holds records of two, and what became of a capture can be
counted. Its records are found again by what the broker acknowledged, not by what the raw zone says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loaders import logs
from loaders.consumers import StreamError
from loaders.kafka import KafkaLoader
from loaders.ledger import Ledger
from loaders.publish import Sending, publish
from loaders.registry import Feed, load_registry
from loaders.settings import PLAINTEXT, Settings
from loaders.sources import Refusal
from loaders.store import open_store
from loaders.until import Until
from market_data.demo.broker import broker
from market_data.demo.check import Landing
from market_data.demo.truth import Delivery

PUBLISHED = "published.parquet"
PARTITIONS = 3
"""Of each topic. A symbol's records are all in one of them; what names no symbol goes anywhere."""


@dataclass(frozen=True)
class Passed:
    """What went through a topic. Partitions, and the segments of the raw zone, are those that hold records."""

    topic: str
    partitions: int
    captures: int
    records: int
    segments: int


@dataclass
class Stream:
    """The way of the captures through the broker at `settings.kafka`."""

    place: Path
    settings: Settings
    registry: dict[str, Feed] = field(default_factory=load_registry)
    published: list[pa.Table] = field(default_factory=list)
    """Of each capture: where its records are in Kafka."""

    def deliver(self, delivery: Delivery) -> int:
        """Send a capture to its feed's topic and load what is there; return the number of records loaded.

        Raises StreamError where the broker does not take it or loading cannot go on.
        """
        feed = self.registry[delivery.feed]
        where: list[tuple[int, int]] = []
        try:
            publish(
                self.place / "world" / delivery.path,
                feed,
                Sending(feed.topic, partitions=PARTITIONS),
                self.settings,
                acknowledged=lambda partition, offset: where.append((partition, offset)),
            )
        except Refusal as error:
            raise StreamError(f"{delivery.path}: {error}") from error
        partitions, offsets = zip(*where, strict=True)
        rows = len(where)
        self.published.append(
            pa.table(
                {
                    "delivery": pa.repeat(pa.scalar(delivery.order), rows),
                    "topic": pa.repeat(pa.scalar(feed.topic), rows),
                    "line": pa.array(range(1, rows + 1), pa.int64()),
                    "partition": pa.array(partitions, pa.int64()),
                    "offset": pa.array(offsets, pa.int64()),
                }
            )
        )
        return self.catch_up(delivery.feed)

    def catch_up(self, feed: str) -> int:
        """Load what the feed's topic holds and the raw zone does not; return the number of records."""
        return KafkaLoader([self.registry[feed]], self.settings, until=Until()).run().records

    def remember(self) -> None:
        """Keep where everything was published, for the next run."""
        pq.write_table(pa.concat_tables(self.published), self.place / PUBLISHED)

    def recall(self) -> None:
        """Know what an earlier run published."""
        self.published = [pq.read_table(self.place / PUBLISHED)]

    def landings(self) -> dict[int, Landing]:
        """What became of each capture. A record that is in no segment has no place."""
        with self._joined() as connection:
            placed = connection.execute(
                'select delivery, line, load_id, "offset" as position from placed where load_id is not null'
                " order by delivery, line"
            ).to_arrow_table()
            loads = connection.execute(
                "select delivery, list(distinct load_id) from placed where load_id is not null group by delivery"
            ).fetchall()
        return {
            order: Landing(tuple(sorted(found)), placed.filter(pc.equal(placed["delivery"], order)).drop(["delivery"]))
            for order, found in loads
        }

    def passed(self) -> list[Passed]:
        """What went through each topic, as far as the raw zone has it."""
        with self._joined() as connection:
            rows = connection.execute(
                'select topic, count(distinct "partition"), count(distinct delivery), count(load_id),'
                " count(distinct load_id) from placed group by topic order by topic"
            ).fetchall()
        return [Passed(*row) for row in rows]

    @contextmanager
    def _joined(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection whose view `placed` has every published record, with the load that holds it."""
        entries = Ledger(open_store(self.settings.raw, self.settings.s3)).entries("kafka/")
        segments = [
            {
                "topic": entry.stream.topic,
                "partition": entry.stream.partition,
                "first": entry.stream.first,
                "next": entry.stream.next,
                "load_id": entry.load_id,
            }
            for entry in entries
            if entry.stream is not None and entry.outcome == "loaded"
        ]
        with duckdb.connect() as connection:
            connection.register("published", pa.concat_tables(self.published))
            connection.register("segments", pa.Table.from_pylist(segments))
            connection.execute(
                "create view placed as select published.*, load_id from published left join segments"
                ' on segments.topic = published.topic and segments."partition" = published."partition"'
                ' and "offset" >= first and "offset" < next'
            )
            yield connection


@contextmanager
def opened(place: Path, settings: Settings) -> Iterator[Stream]:
    """Start the demo's broker, and stop it at the end. On a terminal the demo tells what happens, not the loader."""
    loaders = logging.getLogger("loaders")
    level = loaders.level
    with broker(place) as address:
        if logs.style() == "text":
            loaders.setLevel(logging.WARNING)
        try:
            yield Stream(place, replace(settings, kafka=address, kafka_security=PLAINTEXT))
        finally:
            loaders.setLevel(level)
