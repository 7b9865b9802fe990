"""CSV files: all text, every row kept, the malformed ones as their own bytes."""

from __future__ import annotations

import csv
import io
import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.instruments import Instruments
from loaders.ledger import Drift
from loaders.sources import Refusal
from loaders.tables import read_table

TICKER = Instruments("ticker", {})


def read(
    data: bytes, piece: int = 1 << 20, fields: tuple[str, ...] = (), longest: int = 1 << 20
) -> list[dict[str, Any]]:
    pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
    tables = list(read_table(pieces, fields, TICKER, longest, lambda drift: None))
    found = pa.concat_tables(tables).to_pylist() if tables else []
    assert [row.pop("source_position") for row in found] == list(range(1, len(found) + 1))
    return found


def values(data: bytes, piece: int = 1 << 20) -> list[Any]:
    """Each row's fields, or its own bytes if it is malformed."""
    return [
        row["payload"]
        if row["payload"] is not None
        else [value for name, value in row.items() if name not in ("payload", "instrument")]
        for row in read(data, piece)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a,b\n1,2\n3,4\n", [["1", "2"], ["3", "4"]]),
        (b"a,b\n1,2\n3,4", [["1", "2"], ["3", "4"]]),
        (b"a,b\r\n1,2\r\n3,4\r\n", [["1", "2"], ["3", "4"]]),
        (b"\xef\xbb\xbfa,b\n1,2\n", [["1", "2"]]),
        (b"a,b\nNA,NULL\nnan,\n", [["NA", "NULL"], ["nan", ""]]),
        (b'a,b\n"12,37",""\n', [["12,37", ""]]),
        (b'a,b\n"x\ny","say ""hi"""\n', [["x\ny", 'say "hi"']]),
        (b'a,b\n5" pipe,x"y\n1,2\n', [['5" pipe', 'x"y'], ["1", "2"]]),
        (b'a,b\n"ab"c,d\n', [["abc", "d"]]),
        (b"a,b\n 007 ,1e5\n", [[" 007 ", "1e5"]]),
        (b"a,b\n1,2,3\n4\n5,6\n", [b"1,2,3", b"4", ["5", "6"]]),
        (b"a,b\n1,2\n\n3,4\n\n", [["1", "2"], b"", ["3", "4"], b""]),
        (b"a,b\r\n\r\n1,2\r\n", [b"", ["1", "2"]]),
        (b"a,b\n,\n1,2\n", [["", ""], ["1", "2"]]),
        (b"a,b\n1,\xff\n3,4\n", [b"1,\xff", ["3", "4"]]),
        (b"a,b\n1,\xc3\xa4\x00\n", [["1", "ä\0"]]),
        (b'a,b\n1,2\n3,"4\n5,6\n', [["1", "2"], b'3,"4\n5,6\n']),
        (b'a,b\n"1,2\n"3",4\n', [['1,2\n3"', "4"]]),
        (b"a\n1\n\n2\n", [["1"], [""], ["2"]]),
        (b"a,b\n", []),
        (b"a,b", []),
    ],
)
def test_rows_are_kept_as_they_are(text: bytes, expected: list[Any]) -> None:
    for piece in (1, 2, 3, 5, 8, 1000):
        assert values(text, piece) == expected, piece


def test_the_instrument_is_a_column() -> None:
    rows = read(b"x,ticker\n1,NA\n2,\n3\n")
    assert [row["instrument"] for row in rows] == ["NA", None, None]
    assert [row["ticker"] for row in rows] == ["NA", "", None]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=6)
FIELDS = st.one_of(TEXTS, st.sampled_from(["NA", "NULL", "", "nan", '"', '""', ",", "a\nb", "\n", '","']))


@given(
    st.integers(2, 4).flatmap(lambda n: st.lists(st.lists(FIELDS, min_size=n, max_size=n), min_size=1, max_size=12)),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.integers(1, 80),
)
def test_what_python_writes_comes_back(rows: list[list[str]], end: str, quoting: Any, piece: int) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end, quoting=quoting)
    names = [f"c{number}" for number in range(len(rows[0]))]
    writer.writerows([names, *rows])
    assert values(text.getvalue().encode(), piece) == rows


@given(st.lists(st.text(st.sampled_from('ab,"\n\r'), max_size=12), max_size=8), st.integers(1, 40))
def test_any_text_is_cut_the_same_way_wherever_pieces_end(parts: list[str], piece: int) -> None:
    text = b"a,b\n" + "".join(parts).encode()
    assert values(text, piece) == values(text)


def test_a_malformed_row_amid_many_changes_no_other() -> None:
    good = [f"T{n},{n}" for n in range(50_000)]
    lines = list(good)
    for place, bad in ((100, "x"), (25_000, "a,b,c"), (49_999, "")):
        lines.insert(place, bad)
    rows = values(("ticker,n\n" + "\n".join(lines) + "\n").encode(), 64 << 10)
    assert [row for row in rows if isinstance(row, bytes)] == [b"x", b"a,b,c", b""]
    assert [",".join(row) for row in rows if not isinstance(row, bytes)] == good


def test_rows_do_not_depend_on_stray_quotes_in_others() -> None:
    random.seed(3)
    lines = ["".join(random.choice('ab",') for _ in range(6)) for _ in range(300)]
    text = ("a,b\n" + "\n".join(lines) + "\n").encode()
    whole = values(text)
    assert all(values(text, piece) == whole for piece in (16, 100, 1000))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\n1,2\n", "is empty"),
        (b"a,,b\n", "column 2 has no usable name"),
        (b"a, \n", "column 2 has no usable name"),
        (b"a,A\n", "names 'A' twice"),
        (b"a,Feed\n", "'Feed', a name that the envelope"),
        (b"a,payload\n", "'payload', a name that the envelope"),
        (b"a,\xff\n", "cannot be read"),
        (b"a,b\0\n", "no usable name"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused(text: bytes, complaint: str) -> None:
    with pytest.raises(Refusal, match=complaint):
        read(text)


def test_drift_is_noted_and_a_foreign_header_refused() -> None:
    found: list[Drift] = []
    list(read_table([b"ticker,colour\nA,red\n"], ("ticker", "price"), TICKER, 100, found.append))
    assert found == [Drift(added=("colour",), missing=("price",))]
    with pytest.raises(Refusal, match="shares no column with the feed: it has colour, Ticker; the feed has ticker"):
        read(b"colour,Ticker\nred,A\n", fields=("ticker", "price"))


def test_a_row_without_an_end_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(Refusal, match="data row 2 does not end within 1,000 bytes"):
        read(b'a,b\n1,2\n3,"' + b"x" * 5000, piece=64, longest=1000)
    with pytest.raises(Refusal, match="header does not end within 1,000 bytes"):
        read(b"x" * 5000, piece=64, longest=1000)


def test_names_that_are_left_out_of_a_refusal_are_counted() -> None:
    fields = [f"field{number}" for number in range(12)]
    with pytest.raises(Refusal, match=r"the feed has field0, .*field9 and 2 more$"):
        list(read_table([b"colour\n"], fields, Instruments("", {}), 1000, lambda drift: None))
