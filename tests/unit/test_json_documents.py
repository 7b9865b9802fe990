"""JSON documents: the elements' exact bytes, the fields around them, and nothing of a broken one."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.documents import read_document
from loaders.instruments import Instruments
from loaders.ledger import Drift
from loaders.sources import Refusal

TICKER = Instruments("ticker", {})


def read(
    data: bytes,
    path: str = "results[]",
    piece: int = 1 << 20,
    fields: tuple[str, ...] = (),
    longest: int = 1 << 20,
    drift: list[Drift] | None = None,
) -> list[dict[str, Any]]:
    def chunks() -> list[bytes]:
        return [data[start : start + piece] for start in range(0, len(data), piece)]

    noted: list[Drift] = [] if drift is None else drift
    tables = list(read_document(chunks, path, fields, TICKER, longest, noted.append))
    found = pa.concat_tables(tables).to_pylist() if tables else []
    assert [row["source_position"] for row in found] == list(range(1, len(found) + 1))
    return found


def payloads(data: bytes, path: str = "results[]", piece: int = 1 << 20, longest: int = 1 << 20) -> list[bytes]:
    return [row["payload"] for row in read(data, path, piece, longest=longest)]


def test_elements_are_sliced_exactly_and_the_fields_around_kept() -> None:
    text = b'\xef\xbb\xbf {"status" : "OK", "results": [ {"ticker": "A" ,"x":1.50} ,\n{"ticker":"B"}]'
    text += b', "id":[1, 2]}\n'
    for piece in range(1, 20):
        rows = read(text, piece=piece)
        assert [row["payload"] for row in rows] == [b'{"ticker": "A" ,"x":1.50}', b'{"ticker":"B"}']
        assert [row["instrument"] for row in rows] == ["A", "B"]
        assert {row["document"] for row in rows} == {'{"status":"OK","id":[1, 2]}'}


def test_inner_fields_follow_outer_ones() -> None:
    text = b'{"a":1,"results":{"name":"M","events":[{"t":1},{"t":2}],"a":3},"z":{"k":[]}}'
    rows = read(text, "results.events[]")
    assert [row["payload"] for row in rows] == [b'{"t":1}', b'{"t":2}']
    assert json.loads(rows[0]["document"]) == {"a": 3, "z": {"k": []}, "name": "M"}
    assert rows[0]["document"] == '{"a":3,"z":{"k":[]},"name":"M"}'


def test_a_list_in_each_object_and_answers_without_one() -> None:
    text = b'[{"data":[{"f":1},{"f":2}],"w":5}, {"error":"No [identifier} found."},{"data":[]}'
    text += b',{"data":[{"f":3}]}]'
    for piece in range(1, 20):
        rows = read(text, "[].data[]", piece)
        assert [row["payload"] for row in rows] == [
            b'{"f":1}',
            b'{"f":2}',
            b'{"error":"No [identifier} found."}',
            b'{"f":3}',
        ]
        assert [row["document"] for row in rows] == ['{"w":5}', '{"w":5}', "{}", "{}"]
    assert payloads(b"[]", "[].data[]") == []
    assert payloads(b'[{"warning":"none"}]', "[].data[]") == [b'{"warning":"none"}']


def test_the_document_may_be_the_list() -> None:
    assert payloads(b"[1, [2,{}], null]", "[]") == [b"1", b"[2,{}]", b"null"]


def test_an_empty_list_has_no_records() -> None:
    assert payloads(b'{"results":[ ]}') == []


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3)


@given(
    st.lists(st.one_of(VALUES, OBJECTS), max_size=12),
    st.dictionaries(st.text(max_size=3), VALUES, max_size=3),
    st.dictionaries(st.text(max_size=3), VALUES, max_size=3),
    st.integers(1, 120),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_every_element_comes_back(
    elements: list[Any],
    before: dict[str, Any],
    after: dict[str, Any],
    piece: int,
    indent: int | None,
    ascii_only: bool,
) -> None:
    document = {
        **before,
        "list": elements,
        **{key: value for key, value in after.items() if key not in before},
    }
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace")
    rows = read(text, "list[]", piece)
    expected = json.loads(text)
    assert [json.loads(row["payload"]) for row in rows] == expected.pop("list")
    assert all(row["payload"] in text and row["payload"].strip() == row["payload"] for row in rows)
    assert all(json.loads(row["document"]) == expected for row in rows)


def test_large_flat_and_nested_lists_are_the_same_in_pieces() -> None:
    flat = [{"ticker": f"T{n}", "note": '},{"a":[', "n": n} for n in range(3000)]
    nested = [{"ticker": f"T{n}", "legs": [{"a": 1}, {"b": "]},{"}]} for n in range(3000)]
    for elements in (flat, nested):
        text = json.dumps({"results": elements, "trailer": [{"a": 1}, {"b": 2}]}).encode()
        for piece in (1000, 50_000, 10_000_000):
            assert [json.loads(payload) for payload in payloads(text, piece=piece)] == elements


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"not json",
        b'{"results":null}',
        b'{"results":{}}',
        b'{"results":[1,2}',
        b'{"results":[1,2]',
        b'{"results":[1,2',
        b'{"results":[{"a":1}',
        b'{"results":[{"a":"x',
        b'{"results":[{"a":1},]}',
        b'{"results":[{"a":1},{"b":2},]}',
        b'{"results":[,{"a":1}]}',
        b'{"results":[{"a":1} {"b":1}]}',
        b'{"results":[{"a":1},{"b":}]}',
        b'{"results":[{"a":01}]}',
        b'{"results":[{"a":NaN}]}',
        b'{"results":[tru]}',
        b'{"results":[{"a":1]}]}',
        b'{"results":[1],"x":}',
        b'{"results":[1],"x":tru}',
        b'{"results":[1],"x":"\xff"}',
        b'{"results":[1],}',
        b'{"results":[1]}{"results":[1]}',
        b'{"results":[1]} x',
        b'{"results":[1],"results":[2]}',
        b'{"results":[1] "x":1}',
        b'{results:[1]}',
    ],
)  # fmt: skip
def test_a_broken_document_or_one_of_another_shape_is_refused(text: bytes) -> None:
    for piece in (1, 3, 1000):
        with pytest.raises(Refusal, match=r"(is not a JSON document of this feed|has no list at results\[\])"):
            read(text, piece=piece)


@pytest.mark.parametrize("text", [b"[1]", b'[{"data":[1]} 2]', b'[{"data":null}]', b'{"data":[]}', b'[{"data":[1]},]'])
def test_a_broken_list_of_lists_is_refused(text: bytes) -> None:
    with pytest.raises(Refusal, match="is not a JSON document of this feed"):
        read(text, "[].data[]")


@given(st.data())
def test_no_cut_document_passes(data: st.DataObject) -> None:
    text = b'{"a":"x","results":[{"ticker":"A","x":[{"y":1},{"y":2}]},{"ticker":"B"}],"z":{"k":1}}'
    end = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(Refusal):
        read(text[:end], piece=data.draw(st.integers(1, 100)))


def test_poison_elements_are_kept() -> None:
    deep = b"[" * 10_000 + b"]" * 10_000
    text = b'{"results":[{"ticker":"A"},' + deep + b',{"ticker":"\xff"},{"ticker":"B\\u0000"}]}'
    rows = read(text)
    assert [row["payload"] for row in rows] == [
        b'{"ticker":"A"}',
        deep,
        b'{"ticker":"\xff"}',
        b'{"ticker":"B\\u0000"}',
    ]
    assert [row["instrument"] for row in rows] == ["A", None, None, "B\0"]


def test_what_is_too_long_for_the_memory_is_refused() -> None:
    with pytest.raises(Refusal, match="a value longer than 1,000 bytes"):
        read(b'{"results":["' + b"x" * 5000 + b'"]}', piece=100, longest=1000)
    with pytest.raises(Refusal, match="a value longer than 1,000 bytes"):
        read(b'{"x":"' + b"x" * 5000 + b'","results":[]}', piece=100, longest=1000)
    items = b",".join(b'{"w":"' + b"x" * 300 + b'","data":[]}' for _ in range(5))
    with pytest.raises(Refusal, match="more than 1,000 bytes around its list"):
        read(b"[" + items + b"]", "[].data[]", piece=100, longest=1000)


def test_drift_is_noted_and_foreign_records_refused() -> None:
    found: list[Drift] = []
    read(b'{"results":[{"ticker":"A"},{"colour":1}]}', fields=("ticker", "price"), drift=found)
    assert found == [Drift(added=("colour",), missing=("price",))]
    found.clear()
    read(b'[{"error":"x"}]', "[].data[]", fields=("ticker",), drift=found)
    assert found == []
    for text in (b'{"results":[{"colour":1}]}', b'{"results":[1,2]}'):
        with pytest.raises(Refusal, match="share no field with the feed, which has ticker"):
            read(text, fields=("ticker",))
