"""Recorded streams: every line a record, its payload exact, its time exact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.captures import read_lines
from loaders.files import load
from loaders.instruments import Instruments
from loaders.registry import load_registry
from loaders.settings import Settings
from loaders.sources import Refusal

BINANCE = Instruments("data.s|s|stream@", {})
HOST = {"endpoint": b"wss://h"}


def read(data: bytes, instruments: Instruments = BINANCE, piece: int = 1 << 20, longest: int = 1 << 20) -> list[Any]:
    pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
    tables = list(read_lines(pieces, instruments, {"date": "20240808"}, longest))
    found = pa.concat_tables(tables).to_pylist() if tables else []
    assert [row["source_position"] for row in found] == list(range(1, len(found) + 1))
    for row in found:
        row["ns"] = None if row["source_time"] is None else row["source_time"].value
        row["headers"] = {header["key"]: header["value"] for header in row["headers"]}
    return found


@pytest.mark.parametrize(
    ("line", "payload", "ns", "headers"),
    [
        (b'1723161254087896568 {"a":1}', b'{"a":1}', 1723161254087896568, {}),
        (b'1723161254087896568  {"a":1}', b' {"a":1}', 1723161254087896568, {}),
        (b'1618677817.061845: {"a":1}', b'{"a":1}', 1618677817061845000, {}),
        (b'1618677817.061845 {"a":1}', b'{"a":1}', 1618677817061845000, {}),
        (b'1618677817: {"a":1}', b'{"a":1}', 1618677817000000000, {}),
        (b"1618677816.8434298", b"", 1618677816843429800, {}),
        (b"0.1234567899: x", b"x", 123456789, {}),
        (b"wss://h <-> 1618677816.8434298", b"", 1618677816843429800, {**HOST, "direction": b"<->"}),
        (b"wss://h <- 1618677817.02: {}", b"{}", 1618677817020000000, {**HOST, "direction": b"<-"}),
        (b"wss://h -> 1618677817.02: {}", b"{}", 1618677817020000000, {**HOST, "direction": b"->"}),
        (b"", b"", None, {}),
        (b"\r", b"", None, {}),
        (b"wss://h <-> 1618677816.5\r", b"", 1618677816500000000, {**HOST, "direction": b"<->"}),
        (b'1723161254087896568 {"a":1}\r', b'{"a":1}\r', 1723161254087896568, {}),
        (b'{"a":1}', b'{"a":1}', None, {}),
        (b" \r", b" \r", None, {}),
        (b"\xff\xfe\x00 garbage", b"\xff\xfe\x00 garbage", None, {}),
        (b"1723161254087896568 \xff\x00", b"\xff\x00", 1723161254087896568, {}),
        (b"9999999999999999999 {}", b"9999999999999999999 {}", None, {}),
        (b"9999999999.5: {}", b"9999999999.5: {}", None, {}),
        (b"17231612540878965680000 {}", b"17231612540878965680000 {}", None, {}),
        (b"-5 {}", b"-5 {}", None, {}),
        (b"1723161254087896568", b"1723161254087896568", None, {}),
    ],
)
def test_a_line_is_told_apart(line: bytes, payload: bytes, ns: int | None, headers: dict[str, bytes]) -> None:
    for data in (line + b"\n", b"x\n" + line + b"\ny\n"):
        row = read(data)[0 if data.startswith(line + b"\n") else 1]
        assert row["payload"] == payload
        assert row["ns"] == ns
        assert row["headers"] == {"date": b"20240808", **headers}


def test_blank_lines_are_records_and_the_last_line_needs_no_end() -> None:
    assert [row["payload"] for row in read(b"\n\na\n\nb")] == [b"", b"", b"a", b"", b"b"]
    assert [row["payload"] for row in read(b"a\n")] == [b"a"]
    assert read(b"") == []


@pytest.mark.parametrize(
    ("payload", "instrument"),
    [
        ({"stream": "btcusdt@trade", "data": {"s": "BTCUSDT"}}, "BTCUSDT"),
        ({"stream": "btcusdt@depth5", "data": {"lastUpdateId": 1}}, "BTCUSDT"),
        ({"s": "ETHUSDT"}, "ETHUSDT"),
        ({"data": [1], "s": "ETHUSDT"}, "ETHUSDT"),
        ({"data": {"s": {"odd": 1}}, "stream": "a@b"}, "A"),
        ({"s": 7}, "7"),
        ({"s": True, "data": None}, None),
        ({"s": ""}, None),
        ([], None),
        (None, None),
    ],
)
def test_the_instrument_is_the_first_that_is_there(payload: object, instrument: str | None) -> None:
    assert read(b"1723161254087896568 " + json.dumps(payload).encode())[0]["instrument"] == instrument


@pytest.mark.parametrize(
    "payload", [b"{", b'{"s":', b'{"s":"\xff"}', b'{"s":"A"} x', b'{"data":' + b"[" * 10_000, b"\0"]
)
def test_what_is_not_json_has_no_instrument_and_fails_nothing(payload: bytes) -> None:
    rows = read(b"1723161254087896568 " + payload + b'\n1723161254087896568 {"s":"B"}')
    assert [row["instrument"] for row in rows] == [None, "B"]
    assert rows[0]["payload"] == payload


def seconds(parts: tuple[bytes, int, int, bytes]) -> tuple[bytes, int]:
    before, whole, nanos, after = parts
    fraction = f"{nanos:09d}".rstrip("0") or "0"
    return before + f"{whole}.{fraction}".encode() + after, whole * 1_000_000_000 + nanos


PREFIXES = st.one_of(
    st.integers(0, 8_999_999_999_999_999_999).map(lambda ns: (f"{ns} ".encode(), ns)),
    st.tuples(
        st.sampled_from([b"", b"wss://ws-feed.pro.coinbase.com <- ", b"x -> "]),
        st.integers(0, 8_999_999_999),
        st.integers(0, 999_999_999),
        st.sampled_from([b": ", b" "]),
    ).map(seconds),
)


@given(
    st.lists(st.tuples(PREFIXES, st.binary(max_size=30).map(lambda b: b.replace(b"\n", b""))), max_size=20),
    st.integers(1, 64),
)
def test_prefix_and_payload_give_the_line_back(lines: list[tuple[tuple[bytes, int], bytes]], piece: int) -> None:
    lines = [line for line in lines if line[1] != b"\r"]
    rows = read(b"".join(prefix + payload + b"\n" for (prefix, _), payload in lines), piece=piece)
    assert [(row["ns"], row["payload"]) for row in rows] == [(ns, payload) for (_, ns), payload in lines]


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_are_lines_whose_payload_ends_them(data: bytes, piece: int) -> None:
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    rows = read(data, piece=piece)
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert line.endswith(row["payload"]) or row["payload"] == b""
        if row["ns"] is None:
            assert row["payload"] == (b"" if line == b"\r" else line)


def test_a_line_beyond_the_limit_is_refused_wherever_it_stands() -> None:
    for piece in (7, 1 << 20):
        with pytest.raises(Refusal, match="line 2 is longer than 100 bytes"):
            read(b"a\n" + b"b" * 101 + b"\nc\n", piece=piece, longest=100)
        assert len(read(b"a\n" + b"b" * 100 + b"\nc\n", piece=piece, longest=100)) == 3


def test_a_capture_lands_in_files_sorted_by_instrument(
    settings: Settings,
    write: Callable[[str, bytes], Path],
    rows: Any,
    raw: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("loaders.segments.MAX_ROWS", 10)
    lines = [f'{1723161254087896568 + n} {{"s":"{"CAB"[n % 3]}","n":{n}}}' for n in range(25)]
    path = write("binance_spot_x_20240808", "\n".join(lines).encode())
    (outcome,) = load([path], "binance_spot", settings=settings)
    entry = outcome.entry
    assert [file.rows for file in entry.files] == [10, 10, 5]
    assert entry.source_time is None
    found = rows(entry)
    assert [row["payload"].decode() for row in found] == [line.split(" ", 1)[1] for line in lines]
    assert [row["source_time"].value for row in found] == [1723161254087896568 + n for n in range(25)]
    assert {row["key"] for row in found} == {None}
    import pyarrow.parquet as pq

    first = pq.read_table(raw / entry.files[0].path, partitioning=None).to_pylist()
    assert [row["instrument"] for row in first] == sorted(row["instrument"] for row in first)
    assert [row["source_position"] for row in first if row["instrument"] == "A"] == [2, 5, 8]


def test_every_path_of_the_registry_can_be_read() -> None:
    for feed in load_registry().values():
        Instruments(feed.instrument_path, {"series_id": "GDP"}).of_json([b"{}", b"x"])


def test_an_attribute_can_be_the_instrument() -> None:
    instruments = Instruments("@series_id", {"series_id": "GDP"})
    assert instruments.of_json([b"{}", b"x"]).to_pylist() == ["GDP", "GDP"]
    assert instruments.of_table(pa.table({"a": ["x"]})).to_pylist() == ["GDP"]
    nested = Instruments("ticker_change.ticker", {})
    assert nested.of_json([b'{"ticker_change":{"ticker":"META"}}']).to_pylist() == ["META"]
