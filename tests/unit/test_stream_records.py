"""Records of a stream as columns: exact bytes, exact times, whatever was sent."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.consumers import Batch
from loaders.instruments import Instruments
from loaders.records import MAX_MS, records_table
from loaders.segments import write_file
from loaders.store import LocalStore

INSTRUMENTS = Instruments("data.s|s|stream@", {})


def table(
    values: list[bytes | None],
    keys: list[bytes | None] | None = None,
    headers: list[list[tuple[str, bytes | None]]] | None = None,
    timestamps: list[int] | None = None,
) -> pa.Table:
    rows = len(values)
    batch = Batch(list(range(rows)), timestamps or [0] * rows, keys or [None] * rows, values, headers or [[]] * rows)
    return records_table(batch, 3, INSTRUMENTS)


def nanoseconds(found: pa.Table) -> list[int | None]:
    answer: list[int | None] = found["source_time"].cast(pa.int64()).to_pylist()
    return answer


def test_payload_and_key_are_kept_exactly() -> None:
    values = [None, b"", b"\xff\x00\xfe", b'{"s":"A"}', b"[" * 10_000]
    keys = [b"K", None, b"", b"\xff", b"a\x00b"]
    found = table(values, keys)
    assert found["payload"].to_pylist() == values
    assert found["key"].to_pylist() == keys
    assert found["source_partition"].to_pylist() == [3] * 5
    assert found["source_position"].to_pylist() == [0, 1, 2, 3, 4]


def test_the_instrument_is_the_key_or_what_the_payload_says() -> None:
    values = [b'{"s":"A"}', b'{"s":"B"}', b'{"stream":"c@trade"}', None, b"junk", b'{"s":"D"}', b'{"s":"E"}']
    keys = [b"KEY", None, b"\xff", b"T", None, b"", b"x" * 65]
    assert table(values, keys)["instrument"].to_pylist() == ["KEY", "B", "C", "T", None, "D", "E"]


def test_the_time_of_receipt_goes_before_kafkas_timestamp() -> None:
    exact = 1_723_161_254_087_896_568
    headers: list[list[tuple[str, bytes | None]]] = [
        [("received_ns", str(exact).encode())],
        [],
        [("a", b"1"), ("received_ns", b"5"), ("received_ns", b"6")],
        [("received_ns", None)],
        [("received_ns", b"soon")],
        [("received_ns", b"9999999999999999999")],
        [("other", b"7")],
        [("received_ns", b"8\n")],
    ]
    found = table([b""] * 8, headers=headers, timestamps=[12, 34, 56, -1, 78, 90, MAX_MS + 1, 11])
    assert nanoseconds(found) == [exact, 34_000_000, 6, None, 78_000_000, 90_000_000, None, 11_000_000]
    assert [[(pair["key"], pair["value"]) for pair in pairs] for pairs in found["headers"].to_pylist()] == headers


YEAR_1, LATEST = -62_135_596_800_000_000_000, 8_999_999_999_999_999_999


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (b"%d" % YEAR_1, 5_000_000),
        (b"0", 0),
        (b"%d" % LATEST, LATEST),  # in 2255: a time, however wrong
        (b"9223372036854775807", 5_000_000),
        (b"253402300799000000000", 5_000_000),  # in 9999: more than 64 bits hold
        (b"-1", 5_000_000),
        (b"1e18", 5_000_000),
        (b"nan", 5_000_000),
        (b"", 5_000_000),
        (b"\xff\x00", 5_000_000),
    ],
)
def test_clocks_may_be_wrong_the_record_lands(received: bytes, expected: int, tmp_path: Path) -> None:
    """What is no time gives way to Kafka's timestamp; the header is kept as it came, good neighbours keep theirs."""
    good = b"1723161254087896568"
    found = table([b"a", b"b"], headers=[[("received_ns", value)] for value in (received, good)], timestamps=[5, 5])
    write_file(LocalStore(tmp_path), "a.parquet", found, row_group_rows=10)
    landed = pq.read_table(tmp_path / "a.parquet")
    assert nanoseconds(landed) == [expected, int(good)]
    assert [pairs[0]["value"] for pairs in landed["headers"].to_pylist()] == [received, good]


def test_times_reach_to_the_ends_of_nanoseconds() -> None:
    found = table([b"", b""], timestamps=[0, MAX_MS])
    assert found["source_time"][0].as_py() == dt.datetime(1970, 1, 1)
    assert nanoseconds(found)[1] == MAX_MS * 1_000_000


@given(st.lists(st.tuples(st.none() | st.binary(max_size=20), st.none() | st.binary(max_size=70)), max_size=20))
def test_whatever_comes_every_record_is_a_row(records: list[tuple[bytes | None, bytes | None]]) -> None:
    found = table([value for value, _ in records], [key for _, key in records])
    assert list(zip(found["payload"].to_pylist(), found["key"].to_pylist(), strict=True)) == records
    assert pc.all(pc.equal(found["source_partition"], 3)).as_py() is not False


@given(st.lists(st.binary(max_size=6) | st.sampled_from(["é".encode(), "\ufffd".encode(), b"\xed\xa0\x80"])))
def test_names_of_headers_stand_for_their_bytes(names: list[bytes]) -> None:
    """A name is text where it is UTF-8 and does not begin with the mark, else the mark and its bytes."""
    given_names = [name.decode("utf-8", "surrogateescape") for name in names]
    found = table([b""], headers=[[(name, b"") for name in given_names]])["headers"].to_pylist()[0]
    told = [pair["key"] for pair in found]
    back = [bytes.fromhex(key[1:]) if key.startswith("\ufffd") else key.encode() for key in told]
    assert back == names


def test_numbers_of_nineteen_digits_are_times_and_nothing_else_is() -> None:
    values = [b"1723161254087896568", b"-723161254087896568", b"9723161254087896568", b"0x23161254087896568", b"0" * 19]
    for value in values:
        usual = table([b""], headers=[[("received_ns", value)]], timestamps=[1_000])
        among = table([b"", b""], headers=[[("received_ns", value)], [("received_ns", b"5")]], timestamps=[1_000, 0])
        assert nanoseconds(usual)[0] == nanoseconds(among)[0], value
