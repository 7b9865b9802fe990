"""`mdp load kafka`, `mdp replay` and `mdp capture publish`: the command line of streams.

mdp capture publish FILE --topic T ──▶ Kafka ── mdp load kafka --feed F ──▶ raw zone
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from loaders import failpoints, logs
from loaders.consumers import BrokerError, StreamError
from loaders.lanes import SegmentLimits
from loaders.registry import Feed, RegistryError, find_feed, load_registry
from loaders.settings import KafkaClient, Settings, SettingsError
from loaders.sources import Refusal
from loaders.store import StoreError
from loaders.until import Until, parse_until

if TYPE_CHECKING:
    from loaders.kafka import Accept

log = logging.getLogger(__name__)

CLIENT = click.option(
    "--client",
    type=click.Choice(["kafka-python", "confluent"]),
    help="What reads from Kafka, by default MDP_KAFKA_CLIENT, else kafka-python; confluent is several times faster and "
    "comes with pip install 'market-data-platform[fast]'.",
)


@click.command("kafka")
@click.option("--feed", "names", required=True, multiple=True, metavar="FEED", help="A feed to load; may be repeated.")
@click.option("--topic", help="Another topic than the registry's, for a single feed.")
@click.option(
    "--until",
    "until_text",
    metavar="WHEN",
    help="Stop there: caught-up (what is in Kafka now), an ISO time (dates have hyphens), or PARTITION:OFFSET,… of a "
    "single feed. "
    "Without it loading goes on until SIGTERM or Ctrl-C.",
)
@click.option("--group", help="Consumer group to share partitions with; by default that of this raw zone and feeds.")
@click.option("--segment-rows", type=click.IntRange(1), default=100_000, show_default=True, help="Rows of a segment.")
@click.option(
    "--segment-bytes", type=click.IntRange(1), default=32 << 20, show_default=True, help="Bytes of a segment."
)
@click.option(
    "--segment-seconds", type=click.FloatRange(0.01), default=5.0, show_default=True, help="Age of a segment."
)
@click.option(
    "--accept",
    multiple=True,
    type=click.Choice(["lost-records", "new-topic"]),
    help="Go on where loading stopped for this reason; what is missing is noted in the ledger.",
)
@click.option(
    "--session-seconds",
    type=click.FloatRange(1),
    default=45.0,
    show_default=True,
    help="Silence after which the others of the group take over this loader's partitions.",
)
@click.option(
    "--give-up-after",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to try again when the brokers or the raw zone fail.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Answer Prometheus at this port; 0 takes a free one, which is told.",
)
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="The address to answer Prometheus at.")
@CLIENT
def load_kafka(
    names: tuple[str, ...],
    topic: str | None,
    until_text: str | None,
    group: str | None,
    segment_rows: int,
    segment_bytes: int,
    segment_seconds: float,
    accept: tuple[Accept, ...],
    session_seconds: float,
    give_up_after: float,
    metrics_port: int | None,
    metrics_host: str,
    client: KafkaClient | None,
) -> None:
    """Load streams from Kafka, each record exactly once; brokers by MDP_KAFKA.

    \b
    Everything that is there now, then stop:
        mdp load kafka --feed binance_spot --until caught-up
    Day and night, two feeds; start it again on another machine to share the partitions:
        mdp load kafka --feed binance_spot --feed coinbase_exchange

    What was loaded before is known from the raw zone's ledger: start, stop and kill it as you like. The exit code is 1
    where Kafka does not hold what comes next (retention, a topic made anew, another cluster): nothing is skipped unless
    --accept says so. It is 1 too where what was read could not be written when it was stopped; the next run reads it
    again. What happens is told on the error stream, with MDP_LOG=json as one JSON object a line.
    """
    from loaders.kafka import KafkaLoader, settle_memory
    from loaders.metrics import Metrics

    try:
        settings = _settings(client)
        failpoints.arm(settings.failpoint)
        feeds = streams_of(names, topic)
        until = until_of(until_text, feeds)
    except (RegistryError, SettingsError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    metrics = Metrics()
    if metrics_port is not None:
        _serve(metrics, metrics_host, metrics_port)
    loader = KafkaLoader(
        feeds,
        settings,
        group=group,
        until=until,
        limits=SegmentLimits(segment_rows, segment_bytes, segment_seconds),
        accept=accept,
        session_seconds=session_seconds,
        give_up_after=give_up_after,
        metrics=metrics,
    )

    def stop(_number: int, _frame: Any) -> None:
        loader.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    settle_memory()
    started = time.monotonic()
    try:
        totals = loader.run()
    except (StreamError, StoreError) as error:
        raise click.ClickException(str(error)) from error
    seconds = time.monotonic() - started
    message = f"loaded {totals.records:,} records in {totals.segments:,} segments, {seconds:.1f} s" + (
        f"; {totals.refused:,} segments were another loader's" if totals.refused else ""
    )
    click.echo(message)
    logs.event(log, "ended", message, on_screen=True, **dataclasses.asdict(totals), seconds=round(seconds, 3))


def _serve(metrics: Any, host: str, port: int) -> None:
    try:
        port = metrics.serve(host, port)
    except OSError as error:
        raise click.ClickException(f"metrics cannot be served at {host}:{port}: {error}") from error
    url = f"http://{host}:{port}/metrics"
    logs.event(log, "metrics-served", f"metrics are at {url}", url=url)


@click.command("replay")
@click.option("--feed", "name", required=True, metavar="FEED", help="The feed whose topic is read again.")
@click.option("--topic", help="Another topic than the registry's.")
@click.option("--from", "first", required=True, metavar="OFFSET|TIME", help="Where the range starts.")
@click.option("--to", "stop", required=True, metavar="OFFSET|TIME", help="Where it ends, not included.")
@CLIENT
def replay_kafka(name: str, topic: str | None, first: str, stop: str, client: KafkaClient | None) -> None:
    """Fill the holes of a range from Kafka; what is in the raw zone stays untouched.

    \b
    Everything from an hour on, in all partitions; and a range of offsets:
        mdp replay --feed binance_spot --from 2024-08-08T12:00Z --to 2024-08-08T13:00Z
        mdp replay --feed binance_spot --from 120000 --to 135000

    Digits are an offset, the same in every partition; a date has hyphens.

    Holes are what --accept lost-records has noted. One that the range touches is filled whole, as far as Kafka has it.
    What is not loaded yet is left to mdp load kafka. The exit code is 1 where something stays missing, and where the
    topic is not the one that was loaded.
    """
    from loaders.replay import parse_bound, replay

    try:
        settings = _settings(client)
        failpoints.arm(settings.failpoint)
        (feed,) = streams_of((name,), topic)
        bounds = parse_bound(first), parse_bound(stop)
    except (RegistryError, SettingsError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    try:
        replayed = replay(feed, settings, *bounds)
    except StreamError as error:
        raise click.ClickException(str(error)) from error
    except (BrokerError, StoreError) as error:
        raise click.ClickException(f"{error}; what was landed stays, run it again to go on") from error
    for part in replayed:
        if part.first >= part.stop:
            message = f"{feed.topic}/{part.partition}: Kafka has nothing of this range"
        else:
            message = (
                f"{feed.topic}/{part.partition}, offsets {part.first} up to {part.stop}: {part.there:,} were there, "
                f"{part.filled:,} filled ({part.records:,} records), {part.missing:,} missing"
            ) + (f", {part.unloaded:,} not loaded yet" if part.unloaded else "")
        click.echo(message)
        fields = {"feed": feed.name, "topic": feed.topic, **dataclasses.asdict(part)}
        logs.event(log, "range-replayed", message, on_screen=True, **fields)
    sys.exit(1 if any(part.missing for part in replayed) else 0)


@click.group()
def capture() -> None:
    """Recorded streams."""


@capture.command("publish")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--topic", required=True, help="The topic to send to; made, keeping all records, where it is not there.")
@click.option("--feed", "name", help="The feed whose stream this is; by default the one whose topic it is.")
@click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    help="Multiple of the recorded pace; by default without waiting.",
)
@click.option("--symbol", help="Key of messages that name no symbol; by default the capture's only one.")
@click.option("--partitions", type=click.IntRange(1), help="Partitions of a topic that is made (1).")
@click.option("--round-robin", is_flag=True, help="Spread messages over all partitions, not by symbol.")
@click.option("--keep-all", is_flag=True, help="Let a topic that is there keep all records, if it does not yet.")
def publish_capture(
    file: Path,
    topic: str,
    name: str | None,
    speed: float | None,
    symbol: str | None,
    partitions: int | None,
    round_robin: bool,
    keep_all: bool,
) -> None:
    """Put a recorded capture onto a Kafka topic, with its original times; brokers by MDP_KAFKA.

    \b
    As fast as the brokers take it, and at ten times the pace at which it was recorded:
        mdp capture publish binance_spot_btcusdt_20240808.gz --topic binance_spot
        mdp capture publish binance_spot_btcusdt_20240808.gz --topic binance_spot --speed 10

    A record's timestamp is the millisecond at which the message was received, its header received_ns the exact time,
    its key the symbol. Sending the same capture again sends its records again. A file without times of receipt, or in
    which no message names an instrument of the feed (and --symbol none), is refused before anything is sent.
    """
    from loaders.publish import Sending, publish

    try:
        settings = Settings.from_env()
        feed = _feed_of(name, topic)
    except (RegistryError, SettingsError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    console = Console(stderr=True)
    sending = Sending(topic, symbol, speed, partitions, round_robin, keep_all)
    try:
        with console.status("sending", spinner="dots") as shown:
            sent = publish(file, feed, sending, settings, lambda done: shown.update(f"sent {done:,} records"))
    except (Refusal, StreamError) as error:
        raise click.ClickException(f"{file}: {error}") from error
    keyless = f"; {sent.without_key:,} of them name no symbol and have no key" if sent.without_key else ""
    click.echo(f"sent {sent.records:,} records to topic {topic} ({sent.partitions} partitions){keyless}")


def _settings(client: KafkaClient | None) -> Settings:
    settings = Settings.from_env()
    return settings if client is None else dataclasses.replace(settings, kafka_client=client)


def _feed_of(name: str | None, topic: str) -> Feed:
    registry = load_registry()
    feed = None if name is None else find_feed(name, registry)
    whose = next((each for each in registry.values() if each.topic == topic), feed)
    if whose is None:
        known = ", ".join(sorted(each.topic for each in registry.values() if each.format == "lines"))
        raise ValueError(
            f"no feed of the registry has the topic {topic!r} (they have {known}); name the feed with --feed"
        )
    if feed is not None and whose != feed:
        raise ValueError(
            f"topic {topic!r} is that of feed {whose.name!r}, not of {name!r}, whose topic is {feed.topic!r}"
        )
    return _streams([whose])[0]


def _streams(feeds: list[Feed]) -> list[Feed]:
    """Return the feeds. Raises ValueError if one of them is no stream."""
    for feed in feeds:
        if feed.format != "lines":
            raise ValueError(f"feed {feed.name!r} comes as {feed.format} files, not as a stream: use mdp load file")
    return feeds


def streams_of(names: tuple[str, ...], topic: str | None) -> list[Feed]:
    """Return the streams of these names, on another topic where one is given. Raises ValueError if it cannot."""
    registry = load_registry()
    feeds = _streams([find_feed(name, registry) for name in dict.fromkeys(names)])
    if topic is None:
        return feeds
    if len(feeds) > 1:
        raise ValueError("--topic is for a single feed")
    return [dataclasses.replace(feeds[0], topic=topic)]


def until_of(text: str | None, feeds: list[Feed]) -> Until | None:
    """Return how far to load these feeds. Raises ValueError where the text cannot be understood."""
    if text is None:
        return None
    until = parse_until(text)
    if until.offsets and len(feeds) > 1:
        raise ValueError("--until with offsets is for a single feed")
    return until
