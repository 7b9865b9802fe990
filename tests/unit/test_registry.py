"""The feed registry as loaders read it."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from loaders.registry import REGISTRY, RegistryError, find_feed, load_registry

MODELS = REGISTRY.parents[1] / "models" / "canonical" / "versioned"

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


# What the registry says for people, and what the models do

# Of each feed and table: the model, and its steps that make the key and the rule of knowledge.
MADE = {
    ("binance_spot", "trades"): ("trades", "streamed", "streamed"),
    ("binance_spot", "quotes"): ("quotes", "streamed", "streamed"),
    ("binance_spot", "books"): ("book_updates", "binance_messages", "new_records"),
    ("coinbase_exchange", "trades"): ("trades", "streamed", "streamed"),
    ("coinbase_exchange", "quotes"): ("quotes", "streamed", "streamed"),
    ("coinbase_exchange", "books"): ("book_updates", "coinbase_messages", "new_records"),
    ("massive_trades", ""): ("trades", "delivered", "delivered"),
    ("massive_quotes", ""): ("quotes", "delivered", "delivered"),
    ("massive_day_aggs", ""): ("bars", "new_records", "day_bars"),
    ("massive_minute_aggs", ""): ("bars", "new_records", "minute_bars"),
    ("massive_splits", ""): ("corporate_actions", "new_records", "splits"),
    ("massive_dividends", ""): ("corporate_actions", "new_records", "dividends"),
    ("massive_ticker_events", ""): ("ticker_changes", "new_records", "changes"),
    ("openfigi_mapping", ""): ("figi_listings", "new_records", "new_records"),
    ("alfred_observations", ""): ("macro_observations", "new_records", "new_records"),
    ("index_membership", ""): ("universe_membership", "new_records", "begins"),
}
COLUMNS = {  # of a vendor's or our own word, where the models call it otherwise
    "symbol": "listing_id",
    "id": "trade_id",
    "exchange": "exchange_code",
    "sequence_number": "sequence",
    "time": "event_time",
    "received_time": "event_time",  # of what has no time of its own
    "date": "event_date",
    "ticker": "asked_for",
}
SQL = {
    "case",
    "when",
    "then",
    "else",
    "end",
    "as",
    "is_snapshot",
    "coalesce",
    "concat_ws",
    "epoch_ns",
    "md5",
    "varchar",
    "venue",
}
RULES = {
    "received": "greatest(received_time, event_time)",
    "next_day": "next_day_known_from('{feed}', 'session_date')",
    "on_date": "on_date_known_from(",
    "day_after_declaration": "end_of_day_known_from('declared_on')",
    "day_after_vintage": "end_of_day_known_from('published_on')",
    "delivery": "source_time",
}


def registered(column: str) -> dict[tuple[str, str], str]:
    """Of each feed and table what the registry says; one text is of all tables of a feed."""
    with REGISTRY.open(encoding="utf-8", newline="") as file:
        said = {row["feed"]: row[column] for row in csv.DictReader(file)}
    parted = {feed: dict(part.split(": ") for part in text.split("; ") if ": " in part) for feed, text in said.items()}
    assert {feed for feed, _ in MADE} == said.keys()
    return {(feed, table): parted[feed].get(table, said[feed]) for feed, table in MADE}


def made_as(sql: str, step: str, column: str) -> str:
    """The expression by which a step of a model makes a column; nothing where it only hands it on."""
    body = re.split(rf"\b{step} as \(\n", sql)[1].split("\n)")[0]
    items = re.split(r",\n|\bselect\b|\n    from ", re.sub(r"--.*", "", body))
    return next((item for item in items if item.strip().endswith(f" as {column}")), "")


def key_of(feed: str, table: str) -> set[str]:
    """The columns that a model's key is made of, for a feed."""
    model, step, _ = MADE[feed, table]
    sql = (MODELS / f"int_{model}__versioned.sql").read_text(encoding="utf-8")
    (key,) = re.findall(r"\bkey=\[(.+?)\]", sql)
    found = set()
    for column in re.findall(r"\w+", key):
        made = made_as(sql, step, column) if column not in ("listing_id", "slot") else ""
        found |= set(re.findall(r"[a-z]\w+", re.sub(r"'.*?'", "", made))) - SQL - {column} if made else {column}
    absent = set(re.findall(rf"null::\w+ as (\w+) from {feed.partition('_')[0]}_", sql))
    return {COLUMNS.get(column, column) for column in found - absent - {"slot", "identity_scope"}}


@pytest.mark.parametrize(("feed", "table"), MADE)
def test_the_registry_says_the_key_that_the_model_has(feed: str, table: str) -> None:
    said = registered("identity_key")[feed, table].split()
    assert {COLUMNS.get(word, word) for word in said} == key_of(feed, table)


@pytest.mark.parametrize(("feed", "table"), MADE)
def test_the_registry_says_the_rule_of_knowledge_that_the_model_has(feed: str, table: str) -> None:
    model, _, step = MADE[feed, table]
    sql = (MODELS / f"int_{model}__versioned.sql").read_text(encoding="utf-8")
    assert RULES[registered("knowledge_rule")[feed, table]].format(feed=feed) in made_as(sql, step, "rule_known_from")


def test_every_versioned_model_is_compared_with_the_registry() -> None:
    models = {path.stem for path in MODELS.glob("*.sql") if "{{ versions(" in path.read_text(encoding="utf-8")}
    models.remove("int_book_losses__versioned")  # of records that cannot be read: the registry has no key for them
    assert models == {f"int_{model}__versioned" for model, *_ in MADE.values()}
