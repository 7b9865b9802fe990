"""What may be sent onto a topic: a capture, and of the feed that it is sent for. All else is refused, unsent.

file ── publish ──┬── refused ──▶ Kafka was not even asked
                  └── the topic is prepared ──▶ (no broker here: the end)
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import loaders.publish
from loaders.consumers import StreamError
from loaders.kafka_cli import publish_capture
from loaders.publish import Sending, publish
from loaders.registry import find_feed, load_registry
from loaders.settings import Settings
from loaders.sources import Refusal

REGISTRY = load_registry()
STREAMS = sorted(feed.name for feed in REGISTRY.values() if feed.format == "lines")
NAMED = b'1723161254087896568 {"stream":"btcusdt@trade","data":{"e":"trade","s":"BTCUSDT"}}\n'
UNNAMED = b'1723161254087896569 {"lastUpdateId":1,"bids":[],"asks":[]}\n'
COINBASE = b'wss://h <- 1618677817.020616: {"type":"ticker","product_id":"BTC-USD"}\n'
CONNECTED = b"wss://h <-> 1618677816.8434298\n"

Write = Callable[[str, bytes], Path]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The topics for which Kafka was asked: no broker is there, and that is said."""
    topics: list[str] = []

    def prepare(sending: Sending, _: Settings) -> int:
        topics.append(sending.topic)
        raise StreamError("no broker is there")

    monkeypatch.setattr(loaders.publish, "_prepare_topic", prepare)
    return topics


def refusal(path: Path, feed: str, settings: Settings, symbol: str | None = None) -> str | None:
    """Why a file is refused; None where it would be sent."""
    try:
        publish(path, find_feed(feed, REGISTRY), Sending("a-topic", symbol), settings)
    except Refusal as error:
        return str(error)
    except StreamError:
        return None
    raise AssertionError("it was sent to no broker")


@pytest.mark.parametrize("symbol", [None, "BTCUSDT"])
@pytest.mark.parametrize(
    "data",
    [
        b'{"results":[{"ticker":"SHOP"}]}\n',
        b"ticker,start_date,end_date\nAAPL,2024-01-01,\n",
        NAMED.partition(b" ")[2],
        b"\n",
        gzip.compress(b'{"data":{"s":"BTCUSDT"}}\n'),
    ],
    ids=["json", "csv", "without times", "blank", "gzip"],
)
def test_a_file_without_times_of_receipt_is_refused(
    settings: Settings, write: Write, asked: list[str], data: bytes, symbol: str | None
) -> None:
    said = refusal(write("capture", data), "binance_spot", settings, symbol)
    assert said is not None and said.startswith("no recorded stream, so none of feed binance_spot: not one of its ")
    assert "1723161254087896568 {…}" in said and said.endswith("is loaded with mdp load file")
    assert asked == []


@pytest.mark.parametrize("data", [UNNAMED, COINBASE, CONNECTED + COINBASE, b"1723161254.5 INFO it has begun\n"])
def test_a_capture_that_names_no_instrument_of_the_feed_needs_a_symbol(
    settings: Settings, write: Write, asked: list[str], data: bytes
) -> None:
    path = write("capture", data)
    said = refusal(path, "binance_spot", settings)
    assert said is not None and said.startswith("no capture of feed binance_spot: not one of its 1 messages names")
    assert "looked for as data.s|s|stream@" in said and "--feed" in said and said.endswith("with --symbol")
    assert refusal(path, "binance_spot", settings, "") is not None
    assert asked == []
    assert refusal(path, "binance_spot", settings, "BTCUSDT") is None
    assert asked == ["a-topic"]


@pytest.mark.parametrize(
    ("feed", "data"),
    [
        ("binance_spot", NAMED),
        ("binance_spot", UNNAMED * 100 + NAMED),
        ("binance_spot", b"cut off}\n" * 100 + NAMED + b"172316"),
        ("binance_spot", NAMED + COINBASE),
        ("coinbase_exchange", COINBASE),
        ("coinbase_exchange", CONNECTED),
        ("coinbase_exchange", b""),
    ],
)
def test_what_else_may_be_in_a_capture_is_sent(
    settings: Settings, write: Write, asked: list[str], feed: str, data: bytes
) -> None:
    assert refusal(write("capture", data), feed, settings) is None
    assert asked == ["a-topic"]


def test_the_symbol_of_messages_that_name_none(settings: Settings, write: Write) -> None:
    def symbol(data: bytes, stated: str | None = None) -> str | None:
        return loaders.publish._symbol(write("capture", data), find_feed("binance_spot", REGISTRY), stated, settings)

    other = NAMED.replace(b"BTCUSDT", b"ETHUSDT")
    assert symbol(NAMED + UNNAMED) == "BTCUSDT"
    assert symbol(NAMED + other + UNNAMED) is None
    assert symbol(NAMED + other + UNNAMED, "SOLUSDT") == "SOLUSDT"
    assert symbol(UNNAMED, "SOLUSDT") == "SOLUSDT"


def test_a_capture_that_is_broken_is_refused_before_anything_is_sent(
    settings: Settings, write: Write, asked: list[str]
) -> None:
    path = write("capture.gz", gzip.compress(NAMED * 100)[:-9])
    assert refusal(path, "binance_spot", settings, "BTCUSDT") == (
        "truncated gzip: the end of the compressed data is missing"
    )
    assert asked == []


def test_the_command_names_the_file_and_fails(
    settings: Settings, write: Write, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDP_RAW", settings.raw)
    path = write("coinbase.txt", COINBASE)
    done = CliRunner().invoke(publish_capture, [str(path), "--topic", "binance_spot"])
    assert done.exit_code == 1
    assert f"Error: {path}: no capture of feed binance_spot" in done.output
    assert asked == []


def test_another_feeds_topic_is_refused(settings: Settings, write: Write, asked: list[str]) -> None:
    """Its records would only fill the quarantine."""
    path = str(write("coinbase.txt", COINBASE))
    done = CliRunner().invoke(publish_capture, [path, "--topic", "binance_spot", "--feed", "coinbase_exchange"])
    assert done.exit_code == 2
    assert "topic 'binance_spot' is that of feed 'binance_spot', not of 'coinbase_exchange'" in done.output
    done = CliRunner().invoke(publish_capture, [path, "--topic", "binance_sopt"])
    assert done.exit_code == 2
    assert "(they have binance_spot, coinbase_exchange)" in done.output
    assert asked == []


def test_real_captures_are_sent_for_their_own_feed_only(captures: Path, settings: Settings, asked: list[str]) -> None:
    own = {"binance_spot_btcusdt_20240808.gz": "binance_spot", "coinbase_exchange_ws_2021.txt.gz": "coinbase_exchange"}
    assert sorted(own.values()) == STREAMS
    for name, feed in own.items():
        for other in STREAMS:
            assert (refusal(captures / name, other, settings) is None) == (other == feed), (name, other)
    assert len(asked) == len(own)
    for path in sorted(path for path in captures.iterdir() if path.name not in own):
        for feed in STREAMS:
            said = refusal(path, feed, settings, "BTCUSDT")
            assert said is not None and said.startswith("no recorded stream"), path
    assert len(asked) == len(own)
