"""The shared form of the lake: its catalog in PostgreSQL, where readers and writers work side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import market_data
from loaders.files import load
from loaders.settings import Settings
from market_data import lock
from market_data.build import build

if TYPE_CHECKING:
    from conftest import PostgresServer

pytestmark = pytest.mark.services


@pytest.fixture
def settings(postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PGPASSWORD", postgres_server.password)
    dsn = postgres_server.dsn_of(postgres_server.new_database()).partition(" password=")[0]
    return Settings(raw=str(tmp_path / "raw"), lake=f"postgres:{dsn}", lake_data=str(tmp_path / "lake"))


def test_build_and_read(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "alfred_X_fetched_2024-06-01.json"
    vintage = {"realtime_start": "2024-04-25", "realtime_end": "9999-12-31", "date": "2024-01-01", "value": "1"}
    file.write_text(json.dumps({"observations": [vintage]}))
    load([file], "alfred_observations", settings=settings)
    assert build(settings).built
    assert not build(settings).built
    with market_data.connect(settings) as client:
        assert client.macro("X", known_at=market_data.LATEST).pl()["value"].to_list() == [1.0]


HOLD = """
import sys, time
from loaders.settings import Settings
from market_data import lock
settings = Settings(raw=sys.argv[1], lake=sys.argv[2], lake_data=sys.argv[3])
with lock.writers_lock(settings):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_writer_on_another_machine_is_waited_for(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", HOLD, settings.raw, settings.lake, settings.lake_data]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin and holder.stdout
        assert holder.stdout.readline() == "held\n"
        # Another cache directory stands for another machine: only the database can tell them of each other.
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        impatient = replace(settings, lock_wait_seconds=0.5)
        with pytest.raises(lock.LakeBusyError, match="another machine"), lock.writers_lock(impatient):
            pass
        holder.kill()
    with lock.writers_lock(impatient):  # freed by the end of its holder, not by its goodwill
        pass
