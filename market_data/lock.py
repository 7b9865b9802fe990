"""One writer per lake.

Two DuckLake transactions that delete and insert the same key both commit, and the key is there twice: so
writers take turns.

    mdp build ─┐
    dbt build ─┴─ acquire(settings) ── attach, write, publish ── release, or the end of the process

The lock is a file that the operating system frees, however the process ends. A catalog in PostgreSQL adds an
advisory lock of its database, held by an open transaction, so that writers on other machines wait as well.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import duckdb

from loaders.settings import Settings
from market_data import lake

POLL_SECONDS = 0.2
ADVISORY_KEY = 0x6D64705F77726974
"""The same for all: an advisory lock belongs to one database, and a database holds one catalog."""


class LakeBusyError(RuntimeError):
    """Another process writes to this lake, and went on doing so for longer than we were told to wait."""


@dataclass
class _Held:
    file: IO[str]
    transaction: duckdb.DuckDBPyConnection | None = None
    times: int = field(default=1)


_held: dict[Path, _Held] = {}


def lock_path(settings: Settings) -> Path:
    """Where the lock of this lake stands."""
    return settings.state_dir / "writer.lock"


@contextmanager
def writers_lock(settings: Settings) -> Iterator[None]:
    """Hold the lake's writers' lock; a process that holds it may take it again.

    Waits up to MDP_LOCK_WAIT seconds, and then raises ``LakeBusyError``, which names who holds it.
    """
    acquire(settings)
    try:
        yield
    finally:
        release(settings)


def is_held(settings: Settings) -> bool:
    """Whether this process holds the lock."""
    return lock_path(settings) in _held


def holder(settings: Settings) -> dict[str, Any] | None:
    """Who of this machine holds the lock: `pid`, `command`, and `since` when (UTC); None where nobody does.

    Goes by what the holder has written, and takes the lock from nobody: one who asks for it just then would wait.
    """
    try:
        told: dict[str, Any] = json.loads(lock_path(settings).read_text())
        os.kill(told["pid"], 0)
    except PermissionError:  # it lives, and is another user's
        return told
    except (OSError, ValueError, KeyError):  # nobody has it; its holder was killed, or is just writing who it is
        return None
    return told


def acquire(settings: Settings) -> None:
    """Take the lock, again where this process has it already. Raises as ``writers_lock`` does."""
    path = lock_path(settings)
    if path in _held:
        _held[path].times += 1
        return
    deadline = time.monotonic() + settings.lock_wait_seconds
    file = _lock_file(path, deadline)
    try:
        transaction = _lock_catalog(settings, deadline) if settings.lake.startswith("postgres:") else None
    except BaseException:
        file.close()
        raise
    _held[path] = _Held(file, transaction)


def release(settings: Settings) -> None:
    """Give the lock back."""
    path = lock_path(settings)
    held = _held[path]
    held.times -= 1
    if held.times == 0:
        del _held[path]
        if held.transaction is not None:
            held.transaction.close()
        held.file.truncate(0)
        held.file.close()


def _lock_file(path: Path, deadline: float) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            file.seek(0)
            told = _wait(deadline, file.read().strip() or "another process", str(path), told)
    file.seek(0)
    file.truncate()
    since = time.strftime("%FT%TZ", time.gmtime())
    command = " ".join([Path(sys.argv[0]).name, *(word for word in sys.argv[1:2] if word.isidentifier())])
    file.write(json.dumps({"pid": os.getpid(), "command": command, "since": since}))
    file.flush()
    return file


def _lock_catalog(settings: Settings, deadline: float) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(f"LOAD {lake.quoted(str(lake.extension_file('postgres_scanner')))}")
    dsn = settings.lake.removeprefix("postgres:")
    connection.execute(f"ATTACH {lake.quoted(dsn)} AS catalog (TYPE postgres)")
    told = False
    while True:
        connection.execute("begin")
        query = f"select pg_try_advisory_xact_lock({ADVISORY_KEY}) as is_mine"
        row = connection.execute(f"select is_mine from postgres_query('catalog', {lake.quoted(query)})").fetchone()
        if row and row[0]:
            return connection
        connection.execute("rollback")
        told = _wait(deadline, "a process on another machine", "in the catalog's database", told)


def _wait(deadline: float, holder: str, place: str, told: bool) -> bool:
    if time.monotonic() >= deadline:
        raise LakeBusyError(
            f"the lake is being written to by {holder}; its lock is {place}. "
            "Try again when that has ended, or wait longer: MDP_LOCK_WAIT=SECONDS"
        )
    if not told:
        sys.stderr.write(f"waiting for {holder}, which writes to this lake …\n")
    time.sleep(POLL_SECONDS)
    return True
