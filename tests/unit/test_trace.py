"""From a row to its record, whatever its file has, wherever a seal has put it, and what is said where there is none.

files of two headers, a stream ── entered in a lake, without a build ── rows that name places ──▶ trace.records
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from loaders.chain import Chain, Source
from loaders.files import load
from loaders.ledger import Entry, load_id
from loaders.registry import find_feed, load_registry
from loaders.seal import seal
from loaders.segments import Load, SegmentWriter
from loaders.settings import Settings
from loaders.store import open_store
from loaders.times import iso
from market_data import bookkeeping, lake, trace
from market_data.client import Client

OLD = "ticker,start_date,end_date\nAAA,2020-01-02,\n"
NEW = 'ticker,start_date,end_date,colour\nBBB,2021-01-04,2022-01-03,red\nCCC,2021-01-04,,"blue, or so"\n'
LONG_AGO = 1_717_495_200_000_000_000
PAYLOADS = [b'{"t":1}', b"\xff\x00{", None]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(raw=str(tmp_path / "raw"), lake=str(tmp_path / "lake.sqlite"), lake_data=str(tmp_path / "lake"))


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    """A lake that has entered nothing yet."""
    with lake.open_for_writing(settings) as connection:
        bookkeeping.create_tables(connection)
    with Client(lake.open_version(settings, None), 1) as client:
        yield client


def enter(settings: Settings) -> None:
    with lake.open_for_writing(settings) as connection:
        bookkeeping.enter_loads(connection, settings)


def land(settings: Settings, name: str, text: str, delivered_at: str) -> str:
    """Load a file; its load_id."""
    file = Path(settings.raw).parent / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    (outcome,) = load([file], "index_membership", settings=settings, delivered_at=delivered_at)
    return outcome.entry.load_id


def stream(settings: Settings, topic: str, payloads: list[bytes | None]) -> str:
    """Land a link of a topic's chain, of a day that is over; its load_id."""
    store = open_store(settings.raw)
    chain = Chain(store, Source("binance_spot", "c", topic, "t"), 0)
    key = chain.key(chain.begin(0))
    shared = Load("binance_spot", topic, load_id(key), LONG_AGO, None, "1", {})
    writer = SegmentWriter(store, shared)
    count = len(payloads)
    columns: dict[str, Any] = {
        "key": pa.array([b"k"] * count, pa.binary()),
        "payload": pa.array(payloads, pa.binary()),
        "source_partition": pa.array([0] * count, pa.int32()),
        "source_position": pa.array(range(count), pa.int64()),
        "source_time": pa.array([LONG_AGO] * count, pa.timestamp("ns")),
        "instrument": pa.array(["BTCUSDT", "", None][:count], pa.string()),
    }
    writer.add(pa.table(columns))
    writer.close()
    entry = Entry(
        key=key, load_id=shared.load_id, feed="binance_spot", kind="stream", source=topic, schema_version="1",
        records=count, files=tuple(writer.files), stream=chain.stream(0, count), started_at=iso(LONG_AGO),
        loaded_at=iso(LONG_AGO),
    )  # fmt: skip
    assert chain.extend(entry)
    return shared.load_id


def places(*rows: tuple[str, int | None, int]) -> str:
    """A question that answers with these places, in this order."""
    values = ", ".join(f"('{load_id}', {'null' if part is None else part}::integer, {n})" for load_id, part, n in rows)
    return f"select * from (values {values}) as rows (load_id, source_partition, source_position)"


def test_a_record_has_the_fields_of_its_own_file(client: Client, settings: Settings) -> None:
    old = land(settings, "demo_ticker_start_end.csv", OLD, "2024-06-03")
    new = land(settings, "demo_ticker_start_end.csv.gz", NEW, "2024-06-04")
    enter(settings)
    with Client(lake.open_version(settings, None), 1) as client:
        found = trace.records(client, settings, places((new, None, 2), (old, None, 1), (new, None, 1)), 10).arrow
    rows = found.to_pylist()
    assert [row["row_number"] for row in rows] == [1, 2, 3]
    assert [json.loads(row["record"]) for row in rows] == [
        {"ticker": "CCC", "start_date": "2021-01-04", "end_date": "", "colour": "blue, or so"},
        {"ticker": "AAA", "start_date": "2020-01-02", "end_date": ""},
        {"ticker": "BBB", "start_date": "2021-01-04", "end_date": "2022-01-03", "colour": "red"},
    ]
    assert Path(rows[1]["original_file"]).read_text() == OLD
    assert gzip.decompress(Path(rows[0]["original_file"]).read_bytes()).decode() == NEW


@pytest.mark.parametrize("is_entered", [False, True], ids=["not entered", "entered"])
def test_what_was_sealed_is_found_where_it_stands(client: Client, settings: Settings, is_entered: bool) -> None:
    """Also where no build has heard of the seal yet, and the files that the lake knows of are gone."""
    first, second = stream(settings, "one", PAYLOADS), stream(settings, "two", [b'{"t":2}'])
    enter(settings)
    question = places(*((first, 0, position) for position in range(len(PAYLOADS))), (second, 0, 0))
    feed = find_feed("binance_spot", load_registry())

    def traced() -> list[dict[str, Any]]:
        with Client(lake.open_version(settings, None), 1) as client:
            return trace.records(client, settings, question, 10).arrow.to_pylist()

    before = traced()
    assert [row["record"] for row in before] == ['{"t":1}', "\\xFF\\x00{", None, '{"t":2}']
    assert [row["source"] for row in before] == ["one"] * 3 + ["two"]
    assert {(row["feed"], row["original_file"]) for row in before} == {("binance_spot", None)}
    assert [outcome.status for outcome in seal(feed, settings, None, grace_days=0)] == ["sealed"]
    assert [outcome.status for outcome in seal(feed, settings, None, grace_days=0)] == ["removed"]
    if is_entered:
        enter(settings)
    after = traced()
    assert all("/instrument" in row.pop("raw_object") for row in after)
    assert not any("/instrument" in row.pop("raw_object") for row in before)
    assert after == before


def test_what_is_not_there_is_told(client: Client, settings: Settings) -> None:
    found = trace.records(client, settings, places(("nobody", None, 1)) + ";", 10).arrow.to_pylist()
    assert [(row["load_id"], row["raw_object"], row["record"]) for row in found] == [("nobody", None, None)]
    assert len(trace.records(client, settings, places(*[("nobody", None, 1)] * 3), 2)) == 2
    assert len(trace.records(client, settings, places(("nobody", None, 1)) + " limit 0", 2)) == 0
    with pytest.raises(trace.NotTraceableError, match="has no load_id, source_position, by which"):
        trace.records(client, settings, "select 1 as source_partition -- a note", 10)
