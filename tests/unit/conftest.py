"""What the loaders' tests share: a raw zone of their own, and the records that a ledger entry names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loaders.ledger import Entry
from loaders.settings import Settings

# The tests write files and share the machine: a slow disk is no defect.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

Rows = Callable[[Entry], list[dict[str, Any]]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of an empty warehouse."""
    return Settings.from_env({"MDP_RAW": str(tmp_path / "warehouse" / "raw")})


@pytest.fixture
def raw(settings: Settings) -> Path:
    """The directory of the raw zone."""
    return Path(settings.raw)


@pytest.fixture
def rows(raw: Path) -> Rows:
    """`rows(entry)`: the records of a load in the order of the file."""

    def read(entry: Entry) -> list[dict[str, Any]]:
        tables = [pq.read_table(raw / file.path, partitioning=None) for file in entry.files]
        found = pa.concat_tables(tables).to_pylist() if tables else []
        return sorted(found, key=lambda row: row["source_position"])

    return read


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """`write(name, data)`: a file in the inbox."""

    def create(name: str, data: bytes) -> Path:
        path = tmp_path / "inbox" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return create
