"""One writer per lake: the lock waits, refuses by name, nests in its process, and dies with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loaders.settings import Settings
from market_data import lock

HOLD = """
import sys, time
from loaders.settings import Settings
from market_data import lock
lock.acquire(Settings(*sys.argv[1:4]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    places = (tmp_path / "raw", tmp_path / "lake.sqlite", tmp_path / "lake")
    return Settings(*map(str, places), lock_wait_seconds=0)


@pytest.fixture
def holder(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, settings.raw, settings.lake, settings.lake_data],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_who_holds_it_is_known_to_others(settings: Settings, holder: subprocess.Popen[str]) -> None:
    told = lock.holder(settings)
    assert told is not None and told["pid"] == holder.pid
    assert told.keys() == {"pid", "command", "since"}
    holder.kill()
    holder.wait()
    assert lock.holder(settings) is None


def test_a_process_may_take_it_again(settings: Settings) -> None:
    assert not lock.is_held(settings) and lock.holder(settings) is None
    with lock.writers_lock(settings), lock.writers_lock(settings):
        assert lock.is_held(settings)
        assert (lock.holder(settings) or {})["pid"] == os.getpid()
    assert not lock.is_held(settings) and lock.holder(settings) is None


def test_it_is_given_back_when_the_work_fails(settings: Settings) -> None:
    with pytest.raises(ZeroDivisionError), lock.writers_lock(settings):
        raise ZeroDivisionError
    assert not lock.is_held(settings)
    with lock.writers_lock(settings):
        pass


def test_the_inner_release_keeps_it(settings: Settings) -> None:
    impatient = HOLD.replace("Settings(*sys.argv[1:4])", "Settings(*sys.argv[1:4], lock_wait_seconds=0)")
    with lock.writers_lock(settings):
        with lock.writers_lock(settings):
            pass
        assert lock.is_held(settings)
        done = subprocess.run(
            [sys.executable, "-c", impatient, settings.raw, settings.lake, settings.lake_data],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 1
        assert f'"pid": {os.getpid()}' in done.stderr


def test_another_process_is_refused_and_told_by_whom(settings: Settings, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(lock.LakeBusyError) as caught, lock.writers_lock(settings):
        pass
    message = str(caught.value)
    assert f'"pid": {holder.pid}' in message
    assert str(lock.lock_path(settings)) in message
    assert "MDP_LOCK_WAIT" in message
    assert not lock.is_held(settings)
    # The refused one has not overwritten who holds it.
    assert json.loads(lock.lock_path(settings).read_text())["pid"] == holder.pid


def test_it_waits_as_long_as_it_was_told(settings: Settings, holder: subprocess.Popen[str]) -> None:
    started = time.monotonic()
    with pytest.raises(lock.LakeBusyError):
        lock.acquire(replace(settings, lock_wait_seconds=0.5))
    assert 0.5 <= time.monotonic() - started < 10


def test_a_killed_holder_frees_it(
    settings: Settings, holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.writers_lock(settings):
        assert json.loads(lock.lock_path(settings).read_text())["pid"] == os.getpid()


def test_two_lakes_have_two_locks(settings: Settings, tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    other = replace(settings, lake=str(tmp_path / "other.sqlite"), lake_data=str(tmp_path / "other"))
    with lock.writers_lock(other):
        assert lock.is_held(other)
        assert not lock.is_held(settings)
