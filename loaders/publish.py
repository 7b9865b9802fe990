"""A recorded capture onto a Kafka topic, with its original times.

    capture ── loaders.captures ──▶ payload, time of receipt, instrument ──▶ record: value = payload, key = symbol,
                   │                                                         timestamp = ms of receipt,
                   └── no times, or no instruments: refused, unsent          header received_ns = the exact time

Kafka expires records by their own timestamps: on a topic with a finite retention an old capture would be gone within
minutes. So the topic must keep everything; one that does not exist is made so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from loaders.captures import read_lines
from loaders.consumers import REQUEST_SECONDS, StreamError
from loaders.instruments import Instruments
from loaders.kafka_python import client_options, refused
from loaders.records import RECEIVED
from loaders.registry import Feed
from loaders.settings import Settings
from loaders.sources import Refusal, Source

Progress = Callable[[int], None]
"""Called with the number of records sent so far."""
Acknowledged = Callable[[int, int], None]
"""Called with partition and offset of each record that the brokers have, in the capture's order."""


@dataclass(frozen=True)
class Sending:
    """How a capture is sent. `speed` is a multiple of the pace at which it was recorded, None for no waiting."""

    topic: str
    symbol: str | None = None
    speed: float | None = None
    partitions: int | None = None
    round_robin: bool = False
    keep_all: bool = False


@dataclass(frozen=True)
class Sent:
    """What was sent: records, those of them without a key, and the number of the topic's partitions."""

    records: int
    without_key: int
    partitions: int


def publish(
    path: Path,
    feed: Feed,
    sending: Sending,
    settings: Settings,
    progress: Progress | None = None,
    acknowledged: Acknowledged | None = None,
) -> Sent:
    """Send the records of a capture, in its order, and return when the brokers have all of them.

    Raises Refusal where the file cannot be read or is no capture of the feed, with nothing sent and no topic made;
    StreamError where the topic or the brokers do not take it.
    """
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    symbol = _symbol(path, feed, sending.symbol, settings)
    try:
        partitions = _prepare_topic(sending, settings)
        producer = KafkaProducer(**_brokers(settings), linger_ms=20, compression_type="lz4", batch_size=1 << 18)
        try:
            return _send(producer, path, feed, sending, settings, symbol, partitions, progress, acknowledged)
        finally:
            producer.close()
    except KafkaError as error:
        if told := refused(error):
            raise told from error
        raise StreamError(
            f"Kafka at {settings.kafka} does not take the capture: {error or type(error).__name__}. MDP_KAFKA says "
            f"where the brokers are"
        ) from error


def _send(
    producer: Any,
    path: Path,
    feed: Feed,
    sending: Sending,
    settings: Settings,
    symbol: str | None,
    partitions: int,
    progress: Progress | None,
    acknowledged: Acknowledged | None,
) -> Sent:
    turns = cycle(range(partitions)) if sending.round_robin else None
    pace = _Pace(sending.speed)
    records = without_key = 0
    last_ms: int | None = None
    futures: list[Any] = []
    for payload, received, headers, instrument in _messages(path, feed, settings):
        key = instrument or symbol
        if received is not None:
            pace.wait(received)
            last_ms = received // 1_000_000
            headers.append((RECEIVED, str(received).encode()))
        future = producer.send(
            sending.topic,
            value=payload,
            key=key.encode() if key else None,
            headers=headers,
            partition=next(turns) if turns else None,
            timestamp_ms=last_ms,
        )
        futures.append(future)
        records += 1
        without_key += key is None
        if len(futures) >= 5_000:
            _await(futures, acknowledged)
        if progress is not None and records % 1_000 == 0:
            progress(records)
    producer.flush()
    _await(futures, acknowledged)
    return Sent(records, without_key, partitions)


def _await(futures: list[Any], acknowledged: Acknowledged | None) -> None:
    for future in futures:
        place = future.get(timeout=60)
        if acknowledged is not None:
            acknowledged(place.partition, place.offset)
    futures.clear()


class _Pace:
    """Lets messages go at a multiple of the pace of their times; the times may step back, the clock does not."""

    def __init__(self, speed: float | None) -> None:
        self._speed = speed
        self._first: int | None = None
        self._started = 0.0

    def wait(self, received: int) -> None:
        if self._speed is None:
            return
        if self._first is None:
            self._first, self._started = received, time.monotonic()
        due = self._started + (received - self._first) / 1e9 / self._speed
        time.sleep(max(0.0, due - time.monotonic()))


Message = tuple[bytes, int | None, list[tuple[str, bytes]], str | None]


def _messages(path: Path, feed: Feed, settings: Settings) -> Iterator[Message]:
    """Yield payload, time of receipt (ns), headers and instrument of each record."""
    for table in _tables(path, feed, settings):
        columns = [
            table["payload"].to_pylist(),
            table["source_time"].cast(pa.int64()).to_pylist(),
            table["headers"].to_pylist(),
            table["instrument"].to_pylist(),
        ]
        for payload, received, headers, instrument in zip(*columns, strict=True):
            yield payload, received, [(pair["key"], pair["value"]) for pair in headers], instrument


def _tables(path: Path, feed: Feed, settings: Settings) -> Iterator[pa.Table]:
    instruments = Instruments(feed.instrument_path, feed.attributes_of(path.name))
    with Source(path.resolve(), settings.limits) as source:
        yield from read_lines(source.chunks(), instruments, {}, settings.limits.record_bytes)


def _symbol(path: Path, feed: Feed, stated: str | None, settings: Settings) -> str | None:
    """Read a capture through; return the symbol of messages that name none: the stated one, else the only one named.

    Raises Refusal for what cannot be a capture of the feed. Where a symbol is stated, messages need not name one.
    """
    lines = timed = messages = 0
    named: set[str] = set()
    for table in _tables(path, feed, settings):
        lines += table.num_rows
        timed += table.num_rows - table["source_time"].null_count
        messages += pc.sum(pc.not_equal(table["payload"], b"")).as_py() or 0
        named.update(pc.unique(table["instrument"]).drop_null().to_pylist())
    if lines and not timed:
        raise Refusal(
            f"no recorded stream, so none of feed {feed.name}: not one of its {lines:,} lines begins with a time of "
            f"receipt, as '1723161254087896568 {{…}}' or '1618677817.020616: {{…}}' do. A vendor's file is loaded with "
            f"mdp load file"
        )
    if messages and not named and not stated:
        raise Refusal(
            f"no capture of feed {feed.name}: not one of its {messages:,} messages names an instrument, looked for as "
            f"{feed.instrument_path}. If it is of another feed, name that with --feed, and its topic; if its messages "
            f"name none, say which they are of with --symbol"
        )
    return stated or (named.pop() if len(named) == 1 else None)


def _brokers(settings: Settings) -> dict[str, Any]:
    options = client_options(settings.kafka, settings.kafka_security)
    return {**options, "bootstrap_timeout_ms": REQUEST_SECONDS * 1000}  # nobody tries again


def _prepare_topic(sending: Sending, settings: Settings) -> int:
    """See to it that the topic is there and keeps everything; return the number of its partitions."""
    from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewTopic

    keeping = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
    admin = KafkaAdminClient(**_brokers(settings))
    try:
        (found,) = admin.describe_topics([sending.topic])
        if found["error_code"] == 3:
            partitions = sending.partitions or 1
            admin.create_topics([NewTopic(sending.topic, partitions, -1, topic_configs=keeping)])
            admin.wait_for_topics([sending.topic])
            return partitions
        there = len(found["partitions"])
        if sending.partitions not in (None, there):
            raise StreamError(f"topic {sending.topic} is there with {there} partitions, not {sending.partitions}")
        asked = [ConfigResource(ConfigResourceType.TOPIC, sending.topic, list(keeping))]
        config = admin.describe_configs(asked, config_filter="all")["topic"][sending.topic]
        other = {name: config[name]["value"] for name in keeping if config[name]["value"] != keeping[name]}
        if not other:
            return there
        if not sending.keep_all:
            told = ", ".join(f"{name}={value}" for name, value in other.items())
            raise StreamError(
                f"topic {sending.topic} has {told}: Kafka would soon delete a capture's old records. Let --keep-all "
                f"change that, or name another topic"
            )
        wanted = {name: keeping[name] for name in other}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, sending.topic, wanted)])
        return there
    finally:
        admin.close()
