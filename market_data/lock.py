"""One writer per lake.

Two DuckLake transactions that delete and insert the same key both commit, so that the key is there
twice: writers take turns, held by a lock beside the catalog.

    mdp build ─┐
    dbt build ─┼─ writers_lock(settings) ── attach, write, publish ── release
    mdp seal  ─┘

A SQLite catalog's lock is a file that the operating system locks and frees, whatever ends the process;
a PostgreSQL catalog's is an advisory lock of that database, so that it holds across machines.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from loaders.settings import Settings

_held: dict[Path, int] = {}


class LakeBusyError(RuntimeError):
    """Another process writes to this lake, and went on doing so for longer than we were told to wait."""


def lock_path(settings: Settings) -> Path:
    """Where the lock of this lake stands."""
    return settings.state_dir / "writer.lock"


@contextmanager
def writers_lock(settings: Settings, *, wait_seconds: float | None = None) -> Iterator[None]:
    """Hold the lake's writers' lock; a process that holds it may take it again.

    Waits up to ``wait_seconds`` (by default MDP_LOCK_WAIT, or 600) and then raises ``LakeBusyError``, which
    names the process that holds it.
    """
    path = lock_path(settings)
    acquire(path, settings.lock_wait_seconds if wait_seconds is None else wait_seconds)
    try:
        yield
    finally:
        release(path)


_files: dict[Path, IO[str]] = {}


def is_held(path: Path) -> bool:
    """Whether this process holds the lock."""
    return bool(_held.get(path))


def acquire(path: Path, wait_seconds: float) -> None:
    """Take the lock at ``path``, again where this process holds it already."""
    if _held.get(path):
        _held[path] += 1
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    deadline = time.monotonic() + wait_seconds
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if time.monotonic() >= deadline:
                file.close()
                raise LakeBusyError(
                    f"the lake is being written to by {holder}; its lock is {path}. "
                    f"Try again when it has ended, or wait longer: MDP_LOCK_WAIT=SECONDS"
                ) from None
            if not told:
                sys.stderr.write(f"waiting for {holder}, which writes to this lake …\n")
                told = True
            time.sleep(0.2)
    file.seek(0)
    file.truncate()
    file.write(
        json.dumps(
            {
                "pid": os.getpid(),
                "command": Path(sys.argv[0]).name,
                "since": time.strftime("%FT%TZ", time.gmtime()),
            }
        )
    )
    file.flush()
    _files[path] = file
    _held[path] = 1


def release(path: Path) -> None:
    """Give the lock back; the operating system does so too when the process ends."""
    _held[path] -= 1
    if _held[path] == 0:
        del _held[path]
        _files.pop(path).close()
