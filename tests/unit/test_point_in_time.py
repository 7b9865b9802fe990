"""Look-ups at many points in time, against the plain definition of them.

worlds of versions (revised, late, taken back, given back) ──┬─ Versions.newest ──┐
                                                             └─ every row, looked at for every look-up ── the same
"""

from __future__ import annotations

import datetime as dt
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data.point_in_time import NEVER, NO_ROW, Versions
from market_data.training_sets import as_table

Row = tuple[int, int, int, int]


def world(chance: random.Random, keys: int, periods: int) -> list[Row]:
    """Versions (key, period, known_from, known_to): of each period a chain, which may end, begin again, or be late."""
    rows = []
    for key in range(keys):
        for period in range(periods):
            known_from = period * 3 + chance.choice([0, 0, 0, 1, 2, 9, 30])
            while chance.random() < 0.97:
                lasts = chance.choice([1, 2, 5, 20])
                if chance.random() < 0.6:
                    rows.append((key, period, known_from, NEVER))
                    break
                rows.append((key, period, known_from, known_from + lasts))
                known_from += lasts + chance.choice([0, 0, 0, 4])
                if chance.random() < 0.2:
                    break
    return rows


def brute_force(rows: list[Row], key: int, known_at: int) -> Row | None:
    alive = [row for row in rows if row[0] == key and row[2] <= known_at < row[3]]
    return max(alive, key=lambda row: (row[1], row[2]), default=None)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 12))
def test_the_newest_period_alive_in_its_version(seed: int, keys: int, periods: int) -> None:
    chance = random.Random(seed)
    rows = world(chance, keys, periods)
    chance.shuffle(rows)
    columns = [np.array(column, np.int64) for column in zip(*rows, strict=True)] or [np.empty(0, np.int64)] * 4
    versions, order = Versions.in_order(*columns)
    place = np.arange(len(rows)) if order is None else order
    asked = [(key, time) for key in range(-1, keys + 1) for time in range(-2, periods * 3 + 60)]
    key, known_at = (np.array(column, np.int64) for column in zip(*asked, strict=True))
    found = versions.newest(key, known_at)
    for (number, time), at in zip(asked, found, strict=True):
        expected = brute_force(rows, number, time)
        assert (rows[place[at]] if at != NO_ROW else None) == expected, (number, time)


def test_rows_in_order_are_not_sorted_again() -> None:
    rows = sorted(world(random.Random(1), 3, 20))
    assert Versions.in_order(*(np.array(column, np.int64) for column in zip(*rows, strict=True)))[1] is None


@pytest.mark.parametrize("kind", ["arrow", "polars", "pandas"])
def test_decisions_may_be_any_table(kind: str) -> None:
    arrow = pa.table({"instrument_id": ["a"], "decision_time": [dt.datetime(2024, 5, 1, tzinfo=dt.UTC)]})
    if kind == "polars":
        import polars

        table = as_table(polars.from_arrow(arrow))
    else:
        table = as_table(arrow if kind == "arrow" else arrow.to_pandas().set_index(np.array([7])))
    assert table.column_names == ["instrument_id", "decision_time"]


def test_decisions_must_be_a_table_of_decisions() -> None:
    with pytest.raises(TypeError, match="decisions are a str; give an Arrow, Polars or pandas table"):
        as_table("decisions")
    with pytest.raises(ValueError, match="decisions have no column decision_time; they have instrument_id"):
        as_table(pa.table({"instrument_id": ["a"]}))
