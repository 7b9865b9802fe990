"""Loading files: whole or not at all, once, and with an outcome for each."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import loaders
from loaders import cli
from loaders.files import Outcome, load
from loaders.ledger import Drift, Ledger
from loaders.registry import RegistryError, load_registry
from loaders.segments import ENVELOPE
from loaders.settings import Limits, Settings
from loaders.store import StoreError, open_store

Write = Callable[[str, bytes], Path]
DAY = b"ticker,volume,open,close,high,low,window_start,transactions\nNA,1,2,3,4,5,1717387200000000000,7\n"
NAME = "massive_day_aggs_2024-06-03.csv"
GDP = b'{"units":"lin","observations":[{"realtime_start":"2024-01-01","date":"2023-10-01","value":"1"}]}'


def visible(raw: Path) -> list[str]:
    """Everything in the raw zone but the ledger's own objects."""
    return sorted(
        str(path.relative_to(raw))
        for path in raw.rglob("*")
        if path.is_file() and path.relative_to(raw).parts[0] != "_ledger"
    )


def one(paths: list[Path] | Path, feed: str, settings: Settings, **given: Any) -> Outcome:
    (outcome,) = load(paths if isinstance(paths, list) else [paths], feed, settings=settings, **given)
    return outcome


def refused(outcome: Outcome, raw: Path, words: str) -> None:
    """The file was refused for this reason, the ledger says so, and nothing of it can be seen."""
    assert outcome.status == "refused", outcome.message
    assert words in outcome.message
    assert visible(raw) == []
    ledger = Ledger(open_store(str(raw)))
    assert ledger.get(outcome.entry.key) == outcome.entry
    assert outcome.entry.key.startswith(f"refused/{outcome.entry.feed}/")
    assert outcome.entry.outcome == "refused"
    assert words in (outcome.entry.error or "")
    assert outcome.entry.files == ()


def test_a_file_lands_as_the_contract_lays_it_out(settings: Settings, raw: Path, write: Write, rows: Any) -> None:
    data = gzip.compress(DAY)
    before = time.time_ns()
    outcome = one(write(NAME + ".gz", data), "massive_day_aggs", settings)
    entry = outcome.entry
    sha256 = hashlib.sha256(data).hexdigest()
    assert (outcome.status, outcome.message) == ("loaded", "loaded 1 records")
    assert entry.key == f"file/massive_day_aggs/{sha256}"
    assert entry.load_id == hashlib.sha256(entry.key.encode()).hexdigest()[:20]
    assert (entry.outcome, entry.kind, entry.records, entry.bytes) == ("loaded", "file", 1, len(data))
    assert (entry.source, entry.attributes) == (NAME + ".gz", {"session_date": "2024-06-03"})
    assert (entry.delivered_at, entry.source_time, entry.error) == (None, entry.loaded_at, None)
    assert entry.loader_version == loaders.VERSION
    assert (raw / f"_originals/massive_day_aggs/{sha256}").read_bytes() == data
    (file,) = entry.files
    assert file.path.startswith(f"massive_day_aggs/ingest_date={entry.loaded_at[:10]}/{entry.load_id}-")
    stored = (raw / file.path).read_bytes()
    assert (file.bytes, file.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
    schema = pq.read_schema(raw / file.path)
    columns = DAY.decode().split("\n")[0].split(",")
    assert schema.names == [*columns, "payload", *ENVELOPE.names]
    assert {str(schema.field(name).type) for name in columns} == {"string"}
    assert str(schema.field("source_time").type) == str(schema.field("loaded_at").type) == "timestamp[ns]"
    (row,) = rows(entry)
    assert [row[name] for name in columns] == ["NA", "1", "2", "3", "4", "5", "1717387200000000000", "7"]
    assert row["payload"] is row["document"] is row["source_partition"] is None
    assert (row["feed"], row["source"], row["source_position"]) == ("massive_day_aggs", NAME + ".gz", 1)
    assert (row["instrument"], row["schema_version"], row["load_id"]) == ("NA", "1", entry.load_id)
    assert row["headers"] == [{"key": "session_date", "value": b"2024-06-03"}]
    assert before <= row["loaded_at"].value <= time.time_ns()
    assert row["source_time"] == row["loaded_at"]


def test_a_lines_or_json_feed_has_payload_and_key_first(settings: Settings, raw: Path, write: Write) -> None:
    for feed, name, data in (
        ("binance_spot", "x", b"1723161254087896568 {}"),
        ("alfred_observations", "alfred_GDP_fetched_2024-11-03.json", GDP),
    ):
        (file,) = one(write(name, data), feed, settings).entry.files
        schema = pq.read_schema(raw / file.path)
        assert schema.names == ["payload", "key", *ENVELOPE.names]
        assert {str(schema.field(name).type) for name in ("payload", "key")} == {"binary"}


def test_duckdb_reads_what_was_written(settings: Settings, raw: Path, write: Write) -> None:
    import duckdb

    (file,) = one(write(NAME, DAY), "massive_day_aggs", settings).entry.files
    query = f"describe select * from read_parquet('{raw / file.path}', hive_partitioning = false)"
    types = {name: kind for name, kind, *_ in duckdb.sql(query).fetchall()}
    assert types["ticker"] == "VARCHAR"
    assert types["payload"] == "BLOB"
    assert types["source_time"] == types["loaded_at"] == "TIMESTAMP_NS"
    assert types["headers"] == 'STRUCT("key" VARCHAR, "value" BLOB)[]'
    assert (types["source_partition"], types["source_position"]) == ("INTEGER", "BIGINT")


def test_attributes_and_delivery_come_from_the_name(settings: Settings, write: Write, rows: Any) -> None:
    entry = one(write("alfred_GDP_fetched_2024-11-03.json", GDP), "alfred_observations", settings).entry
    assert entry.key.endswith("@20241103T000000.000000000Z")
    assert entry.delivered_at == entry.source_time == "2024-11-03T00:00:00.000000000Z"
    assert entry.attributes == {"series_id": "GDP"}
    (row,) = rows(entry)
    assert row["instrument"] == "GDP"
    assert row["headers"] == [{"key": "series_id", "value": b"GDP"}]
    assert row["document"] == '{"units":"lin"}'


def test_what_is_stated_goes_before_the_name(settings: Settings, write: Write, rows: Any) -> None:
    path = write("alfred_GDP_fetched_2024-11-03.json", GDP)
    given = {
        "delivered_at": "2024-11-04T10:00:00.000000001+01:00",
        "attributes": {"series_id": "GDPC1", "desk": "x"},
    }
    entry = one(path, "alfred_observations", settings, **given).entry
    assert entry.source_time == "2024-11-04T09:00:00.000000001Z"
    assert entry.attributes == {"series_id": "GDPC1", "desk": "x"}
    assert rows(entry)[0]["instrument"] == "GDPC1"


def test_the_same_bytes_are_loaded_once(settings: Settings, raw: Path, write: Write) -> None:
    first = one(write(NAME, DAY), "massive_day_aggs", settings)
    files = visible(raw)
    again = one(write("massive_day_aggs_2024-06-04.csv", DAY), "massive_day_aggs", settings)
    assert again.status == "unchanged"
    day, load_id = first.entry.loaded_at[:10], first.entry.load_id
    assert again.message == f"the same bytes were already loaded on {day} from {NAME} (load {load_id})"
    assert again.entry == first.entry
    assert visible(raw) == files
    assert len(list(Ledger(open_store(settings.raw)).since())) == 1


def test_the_same_name_with_other_bytes_is_a_new_delivery(settings: Settings, write: Write) -> None:
    first = one(write(NAME, DAY), "massive_day_aggs", settings)
    second = one(write(NAME, DAY + b"MSFT,1,2,3,4,5,6,7\n"), "massive_day_aggs", settings)
    assert (first.status, second.status) == ("loaded", "loaded")
    assert first.entry.key != second.entry.key


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        (None, "2024-06-04", "redelivered"),
        ("2024-06-04", "2024-06-05", "redelivered"),
        ("2024-06-05", "2024-06-04", "redelivered"),
        ("2024-06-04", "2024-06-04T00:00:00Z", "unchanged"),
        ("2024-06-04", None, "unchanged"),
        (None, None, "unchanged"),
    ],
)
def test_the_same_bytes_at_another_time(
    settings: Settings, raw: Path, write: Write, first: str | None, second: str | None, status: str
) -> None:
    path = write(NAME, DAY)
    was = one(path, "massive_day_aggs", settings, delivered_at=first).entry
    files = visible(raw)
    outcome = one(path, "massive_day_aggs", settings, delivered_at=second)
    now = outcome.entry
    assert outcome.status == status
    assert visible(raw) == files
    assert (now.files, now.original, now.records) == (was.files, was.original, was.records)
    if status == "redelivered":
        assert now.load_id != was.load_id
        assert f"from {NAME} (load {was.load_id}), delivered again at" in outcome.message
        assert now.source_time == f"{second}T00:00:00.000000000Z"
        assert one(path, "massive_day_aggs", settings, delivered_at=second).status == "unchanged"
    else:
        assert now == was


def test_the_same_bytes_of_another_index_are_not_taken_for_the_first(
    settings: Settings, write: Write, rows: Any
) -> None:
    data = b"ticker,start_date,end_date\nA,2000-01-01,\n"
    one(write("sp500_ticker_start_end.csv", data), "index_membership", settings)
    other = write("ndx_ticker_start_end.csv", data)
    outcome = one(other, "index_membership", settings)
    assert outcome.status == "refused"
    assert "as index_name=sp500" in outcome.message
    outcome = one(other, "index_membership", settings, delivered_at="2024-01-01")
    assert outcome.status == "loaded"
    assert rows(outcome.entry)[0]["headers"] == [{"key": "index_name", "value": b"ndx"}]


def test_a_header_alone_lands_with_no_rows(settings: Settings, raw: Path, write: Write) -> None:
    outcome = one(write(NAME, DAY.split(b"\n")[0]), "massive_day_aggs", settings)
    assert (outcome.status, outcome.entry.records, outcome.entry.files) == ("loaded", 0, ())
    assert visible(raw) == [outcome.entry.original]


QUOTES = (
    b"ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,conditions,indicators,"
    b"participant_timestamp,sequence_number,sip_timestamp,tape,trf_timestamp\n" + b"A" + b"," * 13 + b"\n"
)
PAYMENTS = b'{"results":[{"ticker":"A","cash_amount":1,"ex_dividend_date":"","frequency":4,"pay_date":""}]}'
MIXED = [  # the feed as which it is given, a file's name, its bytes, what the refusal says
    ("massive_minute_aggs", NAME, DAY, "has the name of a file of feed massive_day_aggs (massive_day_aggs_<session"),
    ("massive_day_aggs", "massive_day_aggs_gone/massive_trades_2024-06-03.csv.gz", DAY, "of feed massive_trades"),
    ("binance_spot", "coinbase_exchange_ws_2021.txt", b"1723161254087896568 {}", "`mdp load file --feed coinbase_exch"),
    # Half of the fields of trades are those of quotes too, and all fields of quotes are there.
    ("massive_trades", "q.csv", QUOTES, "7 of the 13 fields of feed massive_trades and 14 of the 14 fields of "),
    ("massive_trades", "q.csv", QUOTES, "`mdp load file --feed massive_quotes` loads it, or `--feed massive_trades --"),
    ("massive_trades", "a.csv", DAY, "it lacks conditions, correction, exchange, id, participant_timestamp, price"),
    ("massive_trades", "a.csv", DAY, "tape and 2 more; `mdp load file --feed massive_day_aggs` loads it, or `mdp load"),
    ("massive_trades", "m.csv", b"ticker,start_date,colour\nA,,\n", "has 1 of the 13 fields of feed massive_trades"),
    ("openfigi_mapping", "f.json", b'[{"data":[{"ticker":"A","error":""}]}]', "has 2 of the 12 fields of feed open"),
    ("massive_splits", "d.json", PAYMENTS, "has 1 of the 4 fields of feed massive_splits and 5 of the 9 fields of "),
]  # fmt: skip


@pytest.mark.parametrize(("feed", "name", "data", "words"), MIXED)
def test_a_file_of_another_feed_is_refused_unless_told_to_land(
    settings: Settings, raw: Path, write: Write, feed: str, name: str, data: bytes, words: str
) -> None:
    path, stated = write(name, data), {"delivered_at": "2024-06-04"}
    refused(one(path, feed, settings, **stated), raw, words)
    outcome = one(path, feed, settings, **stated, accept=["other-feed"])
    assert (outcome.status, outcome.entry.feed, outcome.entry.records) == ("loaded", feed, 1)
    again = one(path, feed, settings, **stated)
    assert (again.status, again.entry) == ("unchanged", outcome.entry)


EVOLVED = [
    ("massive_trades", QUOTES.replace(b"ask_size", b"price").replace(b"bid_size", b"size")),
    ("massive_day_aggs", b"ticker,open,high,low,colour,desk,size,price,id,tape\nA,,,,,,,,,\n"),
    ("massive_trades", b"ticker,price,size,id,tape,exchange,correction,volume,open,close,high\nA,,,,,,,,,,\n"),
    ("index_membership", b"ticker,end_date,date\nA,,\n"),
    ("openfigi_mapping", b'[{"data":[{"figi":"F","ticker":"A","name":"B","colour":"red"}]}]'),
]  # fmt: skip


@pytest.mark.parametrize(("feed", "data"), EVOLVED)
def test_a_file_with_enough_of_its_fields_and_not_all_of_another_feed_lands(
    settings: Settings, write: Write, feed: str, data: bytes
) -> None:
    given = {"index_name": "x"} if feed == "index_membership" else {}
    outcome = one(write("a.csv", data), feed, settings, attributes=given)
    assert outcome.status == "loaded", outcome.message


def test_a_feed_whose_fields_are_a_part_of_anothers_is_no_likeness(
    settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = load_registry()
    prices = replace(registry["massive_day_aggs"], name="prices", file_pattern="", fields=("ticker", "open", "close"))
    monkeypatch.setattr("loaders.files.load_registry", lambda: {**registry, "prices": prices})
    data = b"ticker,open,close,high,low,colour\nA,,,,,\n"
    assert one(write("a.csv", data), "massive_day_aggs", settings).status == "loaded"


def test_a_directory_of_several_feeds_lands_what_is_of_the_one(settings: Settings, write: Write) -> None:
    trades = write("massive_trades_2024-06-03.csv", b"ticker,price\nA,1\n")
    inbox = write(NAME, DAY).parent
    for given, status in ((inbox, "loaded 1 records"), (f"{inbox}/*.csv", "the same bytes")):
        done = command(settings, "--feed", "massive_day_aggs", given)
        assert done.exit_code == 0, done.output
        assert f"{NAME}: {status}" in done.output
        assert f"{trades}: skipped: has the name of a file of feed massive_trades (massive_trades_<s" in done.output
    assert [entry.outcome for entry in Ledger(open_store(settings.raw)).entries()] == ["loaded"]
    (skipped,) = (o for o in load([inbox], "massive_day_aggs", settings=settings) if o.status == "skipped")
    assert (skipped.path, skipped.entry.key, skipped.entry.records) == (str(trades), "", 0)
    done = command(settings, "--feed", "massive_trades", "--accept", "other-feed", inbox)
    assert (done.exit_code, done.output.count(": loaded 1 records")) == (0, 2)


def test_what_a_directory_holds_of_no_feed_and_what_is_named_itself_is_refused(
    settings: Settings, write: Write
) -> None:
    trades, notes = write("massive_trades_2024-06-03.csv", b"ticker,price\nA,1\n"), write("notes.txt", b"of the desk\n")
    done = command(settings, "--feed", "massive_day_aggs", trades, notes.parent)
    assert done.exit_code == 1
    assert [done.output.count(f"{path}: refused: has ") for path in (trades, notes)] == [1, 1]


def test_drift_lands_and_is_noted(settings: Settings, write: Write) -> None:
    outcome = one(write(NAME, b"ticker,volume,colour,open,high\nA,1,red,2,3\n"), "massive_day_aggs", settings)
    assert outcome.entry.drift == Drift(added=("colour",), missing=("close", "low", "window_start", "transactions"))
    assert "added colour; missing close, low" in outcome.message


MEMBERS = gzip.compress(DAY) + gzip.compress(b"MSFT,1,2,3,4,5,6,7\n")


def test_gzip_is_told_by_its_bytes_and_may_have_members(settings: Settings, write: Write) -> None:
    assert one(write("massive_day_aggs_2024-06-03.csv", MEMBERS), "massive_day_aggs", settings).entry.records == 2
    assert one(write("massive_day_aggs_2024-06-04.csv.gz", DAY), "massive_day_aggs", settings).entry.records == 1


BROKEN = {
    "truncated": (MEMBERS[:-9], "truncated gzip"),
    "cut to its magic": (MEMBERS[:2], "truncated gzip"),
    "a download of nothing": (b"", "truncated gzip"),
    "corrupt": (MEMBERS[:40] + b"\0\0\0" + MEMBERS[43:], "corrupt gzip"),
    "wrong checksum": (gzip.compress(DAY)[:-8] + b"\0" * 8, "corrupt gzip"),
    "trailing garbage": (MEMBERS + b"garbage", "bytes behind gzip member 2"),
    "trailing zeros": (MEMBERS + b"\0" * 20, "bytes behind gzip member 2"),
    "one byte behind": (MEMBERS + b"\x1f", "truncated gzip"),
    "gzip inside": (gzip.compress(gzip.compress(DAY)), "gzip inside gzip"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_gzip_is_refused_whole(settings: Settings, raw: Path, write: Write, case: str) -> None:
    data, words = BROKEN[case]
    refused(one(write(NAME + ".gz", data), "massive_day_aggs", settings), raw, words)


def test_what_was_written_before_the_break_is_removed(
    settings: Settings, raw: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loaders.sources.CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr("loaders.segments.MAX_ROWS", 20_000)
    lines = b"".join(b"1723161254087896568 %d\n" % n for n in range(200_000))
    data = gzip.compress(lines)[:-4]
    written: list[str] = []
    real = loaders.store.LocalStore.open_write
    monkeypatch.setattr(
        loaders.store.LocalStore, "open_write", lambda self, key: (written.append(key), real(self, key))[1]
    )
    refused(one(write("x", data), "binance_spot", settings), raw, "truncated gzip")
    assert len(written) >= 5


def test_bombs_are_refused_by_ratio_and_by_size(settings: Settings, raw: Path, write: Write) -> None:
    bomb = gzip.compress(DAY + bytes(50 << 20))
    refused(one(write(NAME, bomb), "massive_day_aggs", settings), raw, "decompression bomb")
    small = replace(settings, limits=Limits(file_bytes=1000))
    refused(
        one(write(NAME, gzip.compress(DAY + DAY * 20)), "massive_day_aggs", small),
        raw,
        "more than 1,000 bytes",
    )
    refused(one(write(NAME, DAY * 20), "massive_day_aggs", small), raw, "the limit is 1,000")


def test_a_lying_length_in_gzip_is_corrupt(settings: Settings, raw: Path, write: Write) -> None:
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(DAY) + packer.flush()
    lying = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + zlib.crc32(DAY).to_bytes(4, "little") + (5).to_bytes(4, "little")
    refused(one(write(NAME, lying), "massive_day_aggs", settings), raw, "corrupt gzip")


@pytest.mark.parametrize(
    ("feed", "name", "data", "words"),
    [
        ("massive_day_aggs", NAME, b"", "is empty"),
        ("massive_day_aggs", NAME, b"colour,size\nred,1\n", "shares no column with the feed"),
        ("massive_splits", "splits.json", b"{}", "has no list at results[]"),
        ("massive_splits", "splits.json", b'{"results":[{"ticker":"A"}', "not a JSON document"),
        ("massive_splits", "massive_splits_v2.json", b'{"results":[]}', "give --delivered-at TIME"),
        ("massive_splits", "massive_splits_1600-01-01.json", b'{"results":[]}', "lies outside the years"),
        ("alfred_observations", "gdp.json", GDP, "give --set series_id=VALUE"),
        ("alfred_observations", "alfred_.._fetched_2024-01-01.json", GDP, "which is a path"),
        ("alfred_observations", "alfred_ _fetched_2024-01-01.json", GDP, "which is empty"),
        ("index_membership", "a\nb_ticker_start_end.csv", b"ticker\nA\n", "cannot be shown; rename it"),
    ],
)
def test_refusals(settings: Settings, raw: Path, write: Write, feed: str, name: str, data: bytes, words: str) -> None:
    refused(one(write(name, data), feed, settings), raw, words)


@pytest.mark.parametrize(
    "value", ["../../x", "/etc/passwd", "a\0b", "a/../b", "..\\x", "", "x" * 300, "\x1b[2J", "\udc80"]
)
def test_hostile_attributes_are_refused(settings: Settings, raw: Path, write: Write, value: str) -> None:
    outcome = one(write("x.json", GDP), "alfred_observations", settings, attributes={"series_id": value})
    refused(outcome, raw, "the attribute series_id=")
    assert outcome.message.isprintable()


def test_harmless_but_odd_attributes_are_kept(settings: Settings, raw: Path, write: Write, rows: Any) -> None:
    for number, value in enumerate(["S&P/ASX 200", "%2F..%2F", 'a"; drop table x; --', "NULL", "指数"]):
        data = b"ticker,start_date\nA%d,\n" % number
        entry = one(write("x.csv", data), "index_membership", settings, attributes={"index_name": value}).entry
        assert rows(entry)[0]["headers"] == [{"key": "index_name", "value": value.encode()}]


def test_what_is_no_regular_file_is_refused_and_never_opened(settings: Settings, raw: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    refused(one(tmp_path / "pipe.csv", "massive_day_aggs", settings), raw, "is not a regular file")
    refused(one(Path("/dev/zero"), "massive_day_aggs", settings), raw, "is not a regular file")
    refused(one(tmp_path / "missing.csv", "massive_day_aggs", settings), raw, "does not exist")
    refused(one(tmp_path / "missing*.csv", "massive_day_aggs", settings), raw, "matches no file")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "nowhere.csv")
    refused(one(tmp_path / "dangling.csv", "massive_day_aggs", settings), raw, "is a link to nothing")


def test_a_link_out_of_the_inbox_is_refused_however_it_is_reached(settings: Settings, raw: Path, write: Write) -> None:
    secret = write("../secret.csv", DAY)
    inbox = write("plain.txt", b"").parent
    (inbox / "plain.txt").unlink()
    (inbox / "link.csv").symlink_to(secret)
    for given in (inbox / "link.csv", inbox, inbox / "*.csv"):
        refused(one(given, "massive_day_aggs", settings), raw, "leads out of")
    (inbox / "link.csv").unlink()
    (inbox / "linked").symlink_to(secret.parent)
    refused(one(inbox, "massive_day_aggs", settings), raw, "leads out of")


def test_links_within_the_inbox_are_followed(settings: Settings, write: Write) -> None:
    path = write("a/" + NAME, DAY)
    (path.parent / "latest.csv").symlink_to(path)
    (path.parent.parent / "b").symlink_to(path.parent)
    outcomes = load([path.parent.parent], "massive_day_aggs", settings=settings)
    assert [(Path(o.path).name, o.status) for o in outcomes] == [
        ("latest.csv", "loaded"),
        (NAME, "unchanged"),
    ]


def test_directories_and_globs_are_expanded_in_order(settings: Settings, write: Write) -> None:
    for name in ("b/2.csv", "a/1.csv", "a/.hidden.csv", ".git/x.csv", "c.csv"):
        path = write(name, DAY.replace(b"NA", name.encode()))
    inbox = path.parent
    outcomes = load([inbox], "massive_day_aggs", settings=settings)
    assert [Path(o.path).relative_to(inbox).as_posix() for o in outcomes] == ["a/1.csv", "b/2.csv", "c.csv"]
    outcomes = load([f"{inbox}/**/*.csv"], "massive_day_aggs", settings=settings)
    assert [o.entry.source for o in outcomes] == ["1.csv", "2.csv", "c.csv"]
    assert {o.status for o in outcomes} == {"unchanged"}


def test_the_raw_zone_itself_is_never_loaded(settings: Settings, raw: Path, write: Write) -> None:
    write("../warehouse/other.txt", b"1723161254087896568 x\n")
    one(write("x", b"1723161254087896568 y\n"), "binance_spot", settings)
    outcomes = load([raw.parent], "binance_spot", settings=settings)
    assert [outcome.entry.source for outcome in outcomes] == ["other.txt"]


def test_a_file_named_like_a_glob_is_that_file(settings: Settings, write: Write) -> None:
    assert one(write("day[1].csv", DAY), "massive_day_aggs", settings).status == "loaded"


def test_one_bad_file_does_not_stop_the_others(settings: Settings, write: Write) -> None:
    write("a.csv", b"")
    write("b.csv", DAY)
    inbox = write("c.csv", b"x\n").parent
    outcomes = load([inbox], "massive_day_aggs", settings=settings)
    assert [outcome.status for outcome in outcomes] == ["refused", "loaded", "refused"]


def test_a_directory_that_cannot_be_listed_is_refused(
    settings: Settings, raw: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Any) -> list[str]:
        raise PermissionError(13, "Permission denied")

    inbox = write(NAME, DAY).parent
    monkeypatch.setattr("loaders.paths.os.listdir", denied)
    refused(one(inbox, "massive_day_aggs", settings), raw, "cannot be listed: Permission denied")


def test_a_refusal_does_not_block_a_later_load(settings: Settings, write: Write) -> None:
    path = write("gdp.json", GDP)
    assert one(path, "alfred_observations", settings).status == "refused"
    assert one(path, "alfred_observations", settings, attributes={"series_id": "GDP"}).status == "loaded"


def test_usage_errors_come_before_anything_is_touched(settings: Settings, raw: Path, write: Write) -> None:
    path = write(NAME, DAY)
    with pytest.raises(RegistryError, match="feed 'nope' is not in"):
        load([path], "nope", settings=settings)
    with pytest.raises(ValueError, match="'soon' is not"):
        load([path], "massive_day_aggs", settings=settings, delivered_at="soon")
    assert not raw.exists()


@pytest.mark.parametrize("at_pass", [1, 2, 3])
def test_a_file_that_changes_while_it_is_read_is_refused(
    settings: Settings, raw: Path, write: Write, at_pass: int
) -> None:
    path = write(NAME, DAY)
    seen = [0]

    def change(_: Path, done: int, total: int) -> None:
        assert total == 3 * len(DAY)
        seen[0] += 1
        if seen[0] == at_pass:
            path.write_bytes(DAY.replace(b"NA", b"NB"))
            os.utime(path, ns=(1, 1))

    refused(one(path, "massive_day_aggs", settings, progress=change), raw, "changed while it was read")
    assert one(path, "massive_day_aggs", settings).status == "loaded"


@pytest.mark.parametrize("step", ["open_write", "put_if_absent"])
def test_a_load_that_dies_can_be_repeated(
    settings: Settings, raw: Path, write: Write, rows: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It dies at each of its writes in turn, without cleaning up; only the whole load is ever seen."""
    path = write(NAME, DAY)
    real = getattr(loaders.store.LocalStore, step)
    monkeypatch.setattr("loaders.segments.SegmentWriter.discard", lambda self: None)
    for survived in range(2):
        calls = [0]

        def dying(self: Any, *given: Any, survived: int = survived, calls: list[int] = calls) -> Any:
            calls[0] += 1
            if calls[0] > survived:
                raise KeyboardInterrupt
            return real(self, *given)

        with monkeypatch.context() as patch:
            patch.setattr(loaders.store.LocalStore, step, dying)
            with pytest.raises(KeyboardInterrupt):
                load([path], "massive_day_aggs", settings=settings)
        assert list(Ledger(open_store(settings.raw)).entries()) == []
    outcome = one(path, "massive_day_aggs", settings)
    assert outcome.status == "loaded"
    assert len(rows(outcome.entry)) == 1


def test_a_slower_loader_of_the_same_file_takes_nothing_away(
    settings: Settings, raw: Path, write: Write, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(NAME, DAY)
    commit = Ledger.commit
    outcomes: list[Outcome] = []

    def overtaken(self: Ledger, entry: Any) -> bool:
        if not outcomes:
            outcomes.append(None)  # type: ignore[arg-type]
            outcomes[0] = one(path, "massive_day_aggs", settings)
        return commit(self, entry)

    monkeypatch.setattr(Ledger, "commit", overtaken)
    slower = one(path, "massive_day_aggs", settings)
    assert (outcomes[0].status, slower.status) == ("loaded", "unchanged")
    assert slower.entry == outcomes[0].entry
    assert len(rows(slower.entry)) == 1
    (file,) = slower.entry.files
    assert hashlib.sha256((raw / file.path).read_bytes()).hexdigest() == file.sha256
    assert visible(raw) == sorted([file.path, str(slower.entry.original)])


def test_a_lost_commit_leaves_the_files(
    settings: Settings, raw: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an entry was put is not known when the store fails: its files must outlive the doubt."""
    put = loaders.store.LocalStore.put_if_absent

    def lost(self: Any, key: str, data: bytes) -> bool:
        put(self, key, data)
        raise StoreError("no answer")

    path = write(NAME, DAY)
    with monkeypatch.context() as patch:
        patch.setattr(
            loaders.store.LocalStore,
            "put_if_absent",
            lambda s, k, d: lost(s, k, d) if "entries" in k else put(s, k, d),
        )
        with pytest.raises(StoreError):
            load([path], "massive_day_aggs", settings=settings)
    outcome = one(path, "massive_day_aggs", settings)
    assert outcome.status == "unchanged"
    assert all((raw / file.path).exists() for file in outcome.entry.files)


def test_a_load_into_s3_is_the_same(request: pytest.FixtureRequest, write: Write) -> None:
    server = request.getfixturevalue("s3_server")
    environ = {**server.env, "MDP_RAW": f"s3://{server.bucket}/loader"}
    settings = Settings.from_env(environ)
    outcome = one(write(NAME, DAY), "massive_day_aggs", settings)
    store = open_store(settings.raw, settings.s3)
    assert outcome.status == "loaded"
    assert store.get(str(outcome.entry.original)) == DAY
    (file,) = outcome.entry.files
    assert hashlib.sha256(store.get(file.path)).hexdigest() == file.sha256
    assert one(write(NAME, DAY), "massive_day_aggs", settings).status == "unchanged"
    assert [entry.key for _, entry in Ledger(store).since() if entry] == [outcome.entry.key]


def command(settings: Settings, *arguments: object) -> Any:
    return CliRunner().invoke(cli.load, ["file", *map(str, arguments)], env={"MDP_RAW": settings.raw})


def test_the_command_says_one_line_a_file(settings: Settings, write: Write) -> None:
    path = write("splits.json", b'{"results":[{"ticker":"A","split_from":1,"split_to":2}]}')
    done = command(settings, "--feed", "massive_splits", path)
    assert done.exit_code == 0
    assert done.output.startswith(f"{path}: loaded 1 records (fields missing execution_date); ")
    assert done.output.endswith("; delivery time not stated: using the time of loading\n")
    done = command(settings, "--feed", "massive_splits", path)
    assert (done.exit_code, done.output.count("\n")) == (0, 1)
    assert "the same bytes were already loaded on" in done.output
    done = command(settings, "--feed", "massive_splits", "--delivered-at", "2024-06-04", path)
    assert "delivered again at 2024-06-04T00:00:00.000000000Z: 1 records" in done.output
    assert "not stated" not in done.output


def test_the_command_fails_where_a_file_was_refused(settings: Settings, write: Write) -> None:
    done = command(settings, "--feed", "massive_day_aggs", write("a.csv", b""), write(NAME, DAY))
    assert done.exit_code == 1
    assert "a.csv: refused: is empty" in done.output
    assert "loaded 1 records" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--feed", "nope", "x"], "known feeds: alfred_observations"),
        (["--feed", "massive_splits", "--delivered-at", "soon", "x"], "'soon' is not an ISO date"),
        (["--feed", "massive_splits", "--set", "x", "x"], "NAME=VALUE"),
        (["--feed", "massive_splits", "--set", "delivered_at=x", "x"], "--delivered-at TIME"),
        (["--feed", "massive_splits", "--set", "desk=x", "x"], "its files need none"),
        (["--feed", "alfred_observations", "--set", "serie=GDP", "x"], "it knows series_id"),
        (["--feed", "massive_splits"], "PATH"),
        (["x"], "--feed"),
    ],
)
def test_usage_errors_exit_with_2(settings: Settings, raw: Path, arguments: list[str], words: str) -> None:
    done = command(settings, *arguments)
    assert done.exit_code == 2
    assert words in done.output
    assert not raw.exists()


def test_the_command_takes_values_and_teaches(settings: Settings, write: Write) -> None:
    path = write("gdp.json", GDP)
    done = command(settings, "--feed", "alfred_observations", "--set", "series_id=G=DP", path)
    assert done.exit_code == 0
    (entry,) = Ledger(open_store(settings.raw)).entries()
    assert entry.attributes == {"series_id": "G=DP"}
    assert "mdp load file --feed massive_trades massive_trades_2024-06-03.csv.gz" in command(settings, "--help").output


def test_the_loaders_need_neither_dbt_nor_what_is_built_on_them() -> None:
    code = "import sys, loaders.cli; print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", "import json;" + code], capture_output=True, check=True)
    assert not {"dbt", "duckdb", "market_data", "boto3"} & set(json.loads(done.stdout))


# VmHWM, for ru_maxrss begins with what the process that started this one had at its peak.
MEASURE = """
import re, sys
from pathlib import Path
from loaders.files import load
from loaders.settings import Settings
outcome, = load([sys.argv[1]], sys.argv[2], settings=Settings.from_env({"MDP_RAW": sys.argv[3]}))
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(outcome.entry.records, int(peak[1]) // 1024)
"""


@pytest.mark.parametrize(
    ("feed", "head", "record", "tail"),
    [
        (
            "massive_trades",
            "ticker,conditions,price,size,exchange,tape,id\n",
            'T{0},"12,37",{1}.25,1,4,1,{1:0120d}\n',
            "",
        ),
        ("binance_spot", "", '172316125408789{1:04d} {{"data":{{"s":"T{0}","p":"{1:0120d}"}}}}\n', ""),
        (
            "massive_splits",
            '{"results":[',
            '{{"ticker":"T{0}","split_from":1,"id":"{1:0120d}"}},\n',
            '{"ticker":"X"}]}',
        ),
    ],
)
def test_memory_is_bounded(tmp_path: Path, feed: str, head: str, record: str, tail: str) -> None:
    """A file of 150 MB is loaded in far less memory than would hold it: the peak does not follow the size."""
    block = "".join(record.format(number % 50, number) for number in range(10_000))
    blocks = (150 << 20) // len(block)
    path = tmp_path / "data"
    with path.open("w") as file:
        file.write(head)
        for _ in range(blocks):
            file.write(block)
        file.write(tail)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), feed, str(tmp_path / "raw")],
        capture_output=True,
        text=True,
        check=True,
    )
    records, peak_mib = map(int, done.stdout.split())
    assert records == blocks * 10_000 + bool(tail)
    assert peak_mib < 500, f"{peak_mib} MiB at the peak"
    path.unlink()


def test_a_delivery_still_to_come_is_refused(settings: Settings, raw: Path, write: Write) -> None:
    """A typed year too many would hide every correction until then."""
    path = write("alfred_GDP_fetched_2024-11-03.json", GDP)
    refused(one(path, "alfred_observations", settings, delivered_at="2200-11-03"), raw, "still to come")
    later = write("alfred_GDP_fetched_2200-11-03.json", GDP)
    refused(one(later, "alfred_observations", settings), raw, "still to come")
