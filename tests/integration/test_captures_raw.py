"""The real captures in the raw zone: every record, every byte, every time."""

from __future__ import annotations

import gzip
import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loaders.files import Outcome, load
from loaders.ledger import Entry, Ledger
from loaders.settings import Settings
from loaders.store import open_store

pytestmark = pytest.mark.captures


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_env({"MDP_RAW": str(tmp_path / "raw")})


def load_one(path: Path, feed: str, settings: Settings) -> Entry:
    (outcome,) = load([path], feed, settings=settings)
    assert outcome.status == "loaded", outcome.message
    return outcome.entry


def rows(settings: Settings, entry: Entry) -> list[dict[str, Any]]:
    tables = [pq.read_table(Path(settings.raw) / file.path, partitioning=None) for file in entry.files]
    return sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: row["source_position"])


def headers(row: dict[str, Any]) -> dict[str, bytes]:
    return {header["key"]: header["value"] for header in row["headers"]}


def seconds(ns: int) -> str:
    """Nanoseconds as the Coinbase capture writes them: seconds, without zeros at the end."""
    whole, fraction = divmod(ns, 1_000_000_000)
    return f"{whole}.{fraction:09d}".rstrip("0")


def test_binance_is_whole_to_the_byte(captures: Path, settings: Settings) -> None:
    path = captures / "binance_spot_btcusdt_20240808.gz"
    entry = load_one(path, "binance_spot", settings)
    assert entry.records == 41_249
    assert entry.attributes == {"instrument": "btcusdt", "date": "20240808"}
    found = rows(settings, entry)
    text = b"".join(b"%d %s\n" % (row["source_time"].value, row["payload"]) for row in found)
    assert text == gzip.decompress(path.read_bytes())
    missing = [row["payload"] for row in found if row["instrument"] != "BTCUSDT"]
    assert len(missing) == 1
    assert missing[0].startswith(b'{"lastUpdateId"')


def test_coinbase_is_whole_to_the_byte(captures: Path, settings: Settings) -> None:
    path = captures / "coinbase_exchange_ws_2021.txt.gz"
    entry = load_one(path, "coinbase_exchange", settings)
    found = rows(settings, entry)
    assert entry.records == len(found) == 9_952
    assert [row["source_position"] for row in found if not row["payload"]] == [1, 9_951, 9_952]
    lines = []
    for row in found:
        said = headers(row)
        before = said["endpoint"] + b" " + said["direction"] + b" " if "endpoint" in said else b""
        received = b"" if row["source_time"] is None else seconds(row["source_time"].value).encode()
        lines.append(before + received + (b": " + row["payload"] if row["payload"] else b"") + b"\n")
    assert b"".join(lines) == gzip.decompress(path.read_bytes())
    assert headers(found[0])["direction"] == b"<->"
    assert {row["source_time"] for row in found[-2:]} == {None}


def test_alfred_is_whole_and_says_of_which_series_and_when(captures: Path, settings: Settings) -> None:
    for date, count in (("2024-11-03", 3_199), ("2025-01-20", 3_201)):
        path = captures / f"alfred_GDP_fetched_{date}.json.gz"
        entry = load_one(path, "alfred_observations", settings)
        assert entry.records == count
        assert entry.attributes == {"series_id": "GDP"}
        assert entry.delivered_at == entry.source_time == f"{date}T00:00:00.000000000Z"
        document = json.loads(gzip.decompress(path.read_bytes()))
        found = rows(settings, entry)
        assert [json.loads(row["payload"]) for row in found] == document.pop("observations")
        assert {row["document"] for row in found} == {json.dumps(document, separators=(",", ":"))}
        assert {row["instrument"] for row in found} == {"GDP"}
        assert {row["source_time"].to_pydatetime() for row in found} == {datetime.fromisoformat(date)}


@pytest.mark.parametrize(
    ("name", "feed", "count", "some"),
    [
        ("massive_splits.json", "massive_splits", 10, "SHOP"),
        ("massive_dividends.json", "massive_dividends", 10, "CSSEN"),
        ("massive_ticker_events_META.json", "massive_ticker_events", 2, "META"),
        ("openfigi_mapping_IBM.json", "openfigi_mapping", 198, "IBM"),
    ],
)
def test_reference_documents(captures: Path, settings: Settings, name: str, feed: str, count: int, some: str) -> None:
    entry = load_one(captures / name, feed, settings)
    found = rows(settings, entry)
    assert entry.records == len(found) == count
    assert some in {row["instrument"] for row in found}
    text = (captures / name).read_bytes()
    assert all(row["payload"] in text for row in found)


def test_membership(captures: Path, settings: Settings) -> None:
    path = captures / "sp500_ticker_start_end.csv"
    entry = load_one(path, "index_membership", settings)
    assert entry.attributes == {"index_name": "sp500"}
    names = ("ticker", "start_date", "end_date")
    lines = [",".join(row[name] for name in names) for row in rows(settings, entry)]
    assert lines == path.read_text().splitlines()[1:]


def test_all_of_it_twice_changes_nothing(captures: Path, settings: Settings) -> None:
    feeds = {
        "binance_spot": "binance_spot_*",
        "coinbase_exchange": "coinbase_exchange_*",
        "alfred_observations": "alfred_*",
        "index_membership": "*.csv",
    }

    def load_all() -> list[Outcome]:
        return [
            outcome
            for feed, pattern in feeds.items()
            for outcome in load([captures / pattern], feed, settings=settings)
        ]

    first = load_all()
    stood = {path: path.read_bytes() for path in Path(settings.raw).rglob("*") if path.is_file()}
    second = load_all()
    assert {outcome.status for outcome in first} == {"loaded"}
    assert {outcome.status for outcome in second} == {"unchanged"}
    assert {path: path.read_bytes() for path in Path(settings.raw).rglob("*") if path.is_file()} == stood
    store = open_store(settings.raw)
    assert [entry.key for _, entry in Ledger(store).since() if entry] == [outcome.entry.key for outcome in first]
    for outcome in first:
        original = store.get(str(outcome.entry.original))
        assert hashlib.sha256(original).hexdigest() == outcome.entry.sha256
