"""The feed registry as loaders read it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from loaders.registry import REGISTRY, RegistryError, find_feed, load_registry

GDP = {"series_id": "GDP", "delivered_at": "2024-11-03"}


def test_every_feed_of_the_project_is_usable() -> None:
    registry = load_registry()
    assert {"binance_spot", "massive_trades", "alfred_observations", "index_membership"} <= registry.keys()
    trades = registry["massive_trades"]
    assert trades.format == "csv"
    assert trades.fields[0] == "ticker"
    assert trades.schema_version == "1"


@pytest.mark.parametrize(
    ("feed", "name", "said"),
    [
        ("alfred_observations", "alfred_GDP_fetched_2024-11-03.json.gz", GDP),
        ("alfred_observations", "alfred_GDP_fetched_2024-11-03.json", GDP),
        ("alfred_observations", "observations.json", {}),
        ("alfred_observations", "alfred_GDP_fetched_2024-11-03.json.zip", {}),
        ("binance_spot", "binance_spot_btcusdt_20240808.gz", {"instrument": "btcusdt", "date": "20240808"}),
        ("index_membership", "sp500_ticker_start_end.csv", {"index_name": "sp500"}),
        ("massive_trades", "massive_trades_2024-06-03.csv.gz", {"session_date": "2024-06-03"}),
        ("massive_trades", "massive_trades_2024-06-03xcsv", {}),
    ],
)
def test_a_file_name_says_what_the_pattern_finds(feed: str, name: str, said: dict[str, str]) -> None:
    assert load_registry()[feed].attributes_of(name) == said


def test_an_unknown_feed_is_named_with_the_known_ones() -> None:
    registry = load_registry()
    with pytest.raises(RegistryError, match=r"feed 'x' is not in dbt_project/seeds/feeds.csv; known feeds: alfred_o"):
        find_feed("x", registry)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (",csv,", ",tsv,", "format"),
        ("results[]", "results", "record_path"),
        ("massive_trades_<session_date>.csv", "massive_<a>_<a>.csv", "file_pattern"),
        ("massive_trades,equity", "../x,equity", "lower-case"),
        ("massive_trades,equity", "massive_quotes,equity", "twice"),
        ("utc,coinbase_exchange,", "utc,binance_spot,", "'binance_spot' and 'coinbase_exchange' have the same topic"),
        ("utc,coinbase_exchange,", "utc,massive_trades,", "have the same topic 'massive_trades'"),
        (",format_versions", ",versions", "lacks a column"),
    ],
)
def test_a_broken_registry_says_what_is_wrong(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    broken = tmp_path / "feeds.csv"
    broken.write_text(REGISTRY.read_text().replace(old, new, 1))
    with pytest.raises(RegistryError, match=complaint):
        load_registry(broken)


def test_each_version_of_a_format_is_described() -> None:
    with (REGISTRY.parent / "feed_formats.csv").open(encoding="utf-8", newline="") as file:
        described = [(row["feed"], row["format_version"]) for row in csv.DictReader(file)]
    assert described == [(name, version) for name, feed in load_registry().items() for version in feed.format_versions]
