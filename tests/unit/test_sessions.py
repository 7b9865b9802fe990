"""The seed of sessions is what its generator writes, and knows the odd days."""

from __future__ import annotations

import csv
from pathlib import Path

from market_data import sessions


def test_the_seed_is_what_the_generator_writes(tmp_path: Path) -> None:
    written = tmp_path / "sessions.csv"
    sessions.write(written)
    assert written.read_bytes() == sessions.SEED.read_bytes()


def test_odd_days() -> None:
    with sessions.SEED.open() as file:
        rows = {row["session_date"]: row for row in csv.DictReader(file)}
    assert "2001-09-12" not in rows and "2024-03-29" not in rows
    assert rows["2024-07-03"]["close_at"] == "2024-07-03 17:00:00", "half a day, at 13:00 in New York"
    assert rows["2024-03-11"]["open_at"] == "2024-03-11 13:30:00", "the clocks had changed"
    numbers = [int(row["session_seq"]) for row in rows.values()]
    assert numbers == list(range(1, len(numbers) + 1))
