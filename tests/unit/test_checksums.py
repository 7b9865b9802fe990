"""Checksums of rows: equal for equal sets of rows in any order and cut, different for whatever else."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.checksums import Totals, row_hashes
from loaders.segments import HEADERS

texts = st.none() | st.binary(max_size=8)
headers = st.none() | st.lists(st.fixed_dictionaries({"key": st.text(max_size=2), "value": texts}), max_size=3)
row = st.fixed_dictionaries(
    {
        "load_id": st.sampled_from(["a", "b"]),
        "payload": texts,
        "price": st.none() | st.text(max_size=3),
        "headers": headers,
        "source_partition": st.none() | st.integers(-(2**31), 2**31 - 1),
        "source_time": st.none() | st.integers(-(2**63), 2**63 - 1),
    }
)
SCHEMA = pa.schema(
    [
        ("load_id", pa.string()),
        ("payload", pa.binary()),
        ("price", pa.string()),
        ("headers", HEADERS),
        ("source_partition", pa.int32()),
        ("source_time", pa.timestamp("ns")),
    ]
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


def totals(*tables: pa.Table) -> Totals:
    found = Totals()
    for each in tables:
        found.add(each)
    return found


@given(st.lists(row, max_size=12), st.randoms(use_true_random=False), st.integers(0, 12))
def test_order_and_cuts_do_not_matter(rows: list[dict[str, Any]], random: Any, cut: int) -> None:
    whole = table(rows)
    shuffled = random.sample(rows, len(rows))
    parts = table(shuffled)
    assert totals(whole).differences(totals(parts.slice(cut), parts.slice(0, cut))) == []
    assert row_hashes(whole.slice(cut)).tolist() == row_hashes(whole).tolist()[cut:]


@given(st.lists(row, max_size=8), st.lists(row, max_size=8))
def test_other_rows_differ(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    same = sorted(map(repr, left)) == sorted(map(repr, right))
    assert (totals(table(left)).differences(totals(table(right))) == []) is same


@given(row, row)
def test_a_row_differs_by_each_of_its_values(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name in SCHEMA.names:
        changed = one | {name: other[name]}
        is_same = bool(row_hashes(table([one]))[0] == row_hashes(table([changed]))[0])
        # As Arrow holds them: the order in which a header's two parts are drawn is no value.
        assert is_same is (repr(table([one]).to_pylist()) == repr(table([changed]).to_pylist()))


def test_places_count_in_long_texts_too() -> None:
    """Longer than the table of weights, and than what is looked at together."""
    length = 300_000
    texts = [b"a" * place + b"b" + b"a" * (length - place - 1) for place in (0, 1, 65_535, 65_536, 131_072, 299_999)]
    hashes = row_hashes(pa.table({"payload": pa.array([*texts, b"a" * length, b"a" * (length + 1)], pa.binary())}))
    assert len(set(hashes.tolist())) == len(texts) + 2


def test_a_missing_column_is_not_one_of_nulls() -> None:
    both = table([{"load_id": "a"}])
    assert row_hashes(both)[0] != row_hashes(both.drop_columns(["price"]))[0]
    assert row_hashes(both)[0] == row_hashes(both.select(SCHEMA.names[::-1]))[0]


def test_how_they_are_made_does_not_change() -> None:
    """Checksums stand in ledgers."""
    fixed = totals(
        table([{"load_id": "a", "payload": b"x", "headers": [{"key": "k", "value": b"v"}], "source_time": 1}])
    )
    assert fixed.checksum("a") == "e14608ca570c75a3"


def test_a_type_without_a_hash_is_refused() -> None:
    with pytest.raises(TypeError, match="has no checksum"):
        row_hashes(pa.table({"x": pa.array([1.5])}))
