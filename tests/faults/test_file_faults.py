"""What can go wrong while a vendor's file is landed, done for real: it is there whole and once, or not at all."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from loaders.ledger import Ledger
from loaders.store import LocalStore

RECORDS = 500
POINTS = ("before-files", "after-files", "after-pointer", "after-entry")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "binance_spot_btcusdt_20240808"
    line = '1723161254087895568 {"e":"trade","s":"BTCUSDT","t":%d,"p":"1","q":"1","T":1723161255342,"m":true}\n'
    path.write_text("".join(line % number for number in range(RECORDS)))
    return path


def mdp_load(file: Path, failpoint: str = "", file_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run `mdp load file`; with no file larger than so many bytes, as on a disk that is full."""
    env = {**os.environ, "MDP_RAW": str(file.parent / "raw"), "MDP_FAILPOINT": failpoint}
    command = [sys.executable, "-m", "market_data.cli", "load", "file", "--feed", "binance_spot", str(file)]
    limit = (file_bytes, file_bytes) if file_bytes else resource.getrlimit(resource.RLIMIT_FSIZE)
    return subprocess.run(
        command,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )


def positions(raw: Path) -> Counter[int]:
    """How often each record is there, by the ledger."""
    names = [file.path for entry in Ledger(LocalStore(raw)).entries() for file in entry.files]
    return Counter(at for name in names for at in pq.read_table(raw / name)["source_position"].to_pylist())


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_step_of_a_load_it_is_loaded_by_the_next(file: Path, point: str) -> None:
    raw = file.parent / "raw"
    assert mdp_load(file, point).returncode == -signal.SIGKILL
    assert len(positions(raw)) == (RECORDS if point == "after-entry" else 0)
    done = mdp_load(file)
    assert done.returncode == 0, done.stderr
    assert "already loaded" in done.stdout if point == "after-entry" else f"loaded {RECORDS} records" in done.stdout
    found = positions(raw)
    assert (len(found), set(found.values())) == (RECORDS, {1})


def test_a_disk_that_is_full_is_told_and_nothing_is_seen(file: Path) -> None:
    raw = file.parent / "raw"
    done = mdp_load(file, file_bytes=2_000)
    assert done.returncode == 1
    assert "cannot write or read binance_spot/ingest_date=" in done.stderr
    assert "run it again" in done.stderr
    assert positions(raw) == Counter()
    assert not list(raw.rglob("*.parquet"))
    assert mdp_load(file).returncode == 0
    assert len(positions(raw)) == RECORDS
