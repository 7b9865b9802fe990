"""Answers on a terminal: whole words, no noise, and a word about what had no room."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest
from rich.console import Console

from market_data import output
from market_data.client import Answer, connect


def shown(rows: pa.Table, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    output.write(Answer(rows, 7, None), console, style=None, file=None, rows=2)
    return console.export_text()


def test_columns_without_room_are_named() -> None:
    rows = pa.table({f"column_{n}": ["some value"] * 3 for n in range(9)})
    text = shown(rows, 40)
    assert "some value" in text and "column_2  " in text
    assert "2 of 3 rows, version 7" in text
    assert "no room for column_3" in text and "column_8" in text


def test_numbers_are_shown_without_the_noise_of_sums() -> None:
    text = shown(pa.table({"revision": [-64.30000000000109, None], "n": [1, 2]}), 80)
    assert "-64.3 " in text and "109" not in text


def test_a_path_is_no_settings() -> None:
    with pytest.raises(TypeError, match="MDP_LAKE"):
        connect("/x/lake.sqlite")  # type: ignore[arg-type]
