"""Building: dbt over what the raw zone has that the lake has not, then publication.

writers' lock ── restore what a failed run left ── enter new loads ── dbt build ──ok──> publish
                                                        │                └─ no ──> readers stay where they were
                                                        └─ nothing new, same code ──> nothing to do
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb

from loaders import logs
from loaders.registry import REGISTRY
from loaders.settings import Settings, user_cache
from market_data import bookkeeping, lake, lock, publishing

log = logging.getLogger(__name__)

PROJECT = REGISTRY.parent.parent
Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)`` while models and tests run."""


class BuildFailedError(RuntimeError):
    """A model or a test failed; nothing was published. ``failures`` names each with its message."""

    def __init__(self, failures: list[str]) -> None:
        super().__init__("; ".join(failures) or "dbt failed before it ran anything")
        self.failures = failures


@dataclass(frozen=True)
class Outcome:
    """What a build did: the version that readers now get, and how many loads it took in."""

    version: int
    new_loads: int
    built: bool
    restored: bool
    other_code: bool = False
    quarantined: int = 0


def build(settings: Settings, *, full_refresh: bool = False, progress: Progress | None = None) -> Outcome:
    """Build what is new, test it, publish it.

    Raises ``BuildFailedError`` when a model or a test fails (readers then keep the version they had) and
    ``lock.LakeBusyError`` when another writer holds the lake for longer than MDP_LOCK_WAIT.
    """
    started = time.monotonic()
    logs.event(log, "build-started", "building", on_screen=True, full_refresh=full_refresh)
    try:
        outcome = _build(settings, full_refresh, progress)
    except BuildFailedError as error:
        seconds = round(time.monotonic() - started, 3)
        message = f"the build failed: {error}"
        logs.event(
            log, "build-failed", message, logging.ERROR, on_screen=True, failures=error.failures, seconds=seconds
        )
        raise
    name, message = (
        ("version-published", f"published version {outcome.version}")
        if outcome.built
        else ("nothing-new", f"nothing new: version {outcome.version} stands")
    )
    seconds = round(time.monotonic() - started, 3)
    logs.event(log, name, message, on_screen=True, **asdict(outcome), seconds=seconds)
    return outcome


def _build(settings: Settings, full_refresh: bool, progress: Progress | None) -> Outcome:
    with lock.writers_lock(settings):
        with _writing(settings) as connection:
            restored = publishing.restore_if_unfinished(connection, settings)
            bookkeeping.enter_loads(connection, settings)
            release = publishing.published(connection)
            same_code = release is not None and release.code_fingerprint == publishing.code_fingerprint()
            if release and same_code and not full_refresh and publishing.is_up_to_date(connection, release):
                publishing.write_connect_script(settings, release.version)
                return Outcome(release.version, 0, built=False, restored=restored)
        # Unit tests are of the code, not of the data: `make test` and plain `dbt build` run them.
        arguments = ["build", "--exclude-resource-type", "unit_test"]
        if full_refresh:
            arguments.append("--full-refresh")
        elif same_code:
            arguments += ["--exclude-resource-type", "seed"]
        run_dbt(settings, arguments, progress)
        with _writing(settings) as connection:
            version = publishing.publish(connection, settings)
            new_loads = publishing.loaded_since(connection, release)
            quarantined = publishing.quarantined_since(connection, release)
        return Outcome(
            version,
            new_loads,
            built=True,
            restored=restored,
            quarantined=quarantined,
            other_code=release is not None and not same_code,
        )


def publish(settings: Settings, *, progress: Progress | None = None) -> Outcome:
    """Test what plain dbt wrote since the published version, and publish it.

    Raises ``BuildFailedError`` when a test fails, or when the last dbt run did not end well.
    """
    with lock.writers_lock(settings):
        with _writing(settings) as connection:
            release = publishing.published(connection)
            event = publishing.last_event(connection)
            if event in publishing.UNFINISHED:
                raise BuildFailedError(
                    ["the last run failed or was killed; `mdp build` takes back what it wrote and goes on"]
                )
            if release and event in ("published", "restored"):
                return Outcome(release.version, 0, built=False, restored=False)
            if event != "succeeded":
                raise BuildFailedError(["not every model has read every load yet; `mdp build` does the rest"])
            made_anew = publishing.was_made_anew(connection)
            new_loads = publishing.loaded_since(connection, release)
        arguments = ["test", "--exclude-resource-type", "unit_test"]
        if made_anew:
            arguments += ["--vars", "{test_everything: true}"]
        # Views and macros of an earlier code may stand in the head: they are made by today's.
        definitions = ["config.materialized:view", "config.materialized:table_function"]
        run_dbt(settings, ["run", "--select", *definitions], progress)
        run_dbt(settings, arguments, progress)
        with _writing(settings) as connection:
            version = publishing.publish(connection, settings)
            return Outcome(version, new_loads, built=True, restored=False)


def verify_tables(settings: Settings, *, progress: Progress | None = None) -> None:
    """Run every data test over every row of the head. Raises ``BuildFailedError`` where one fails."""
    with lock.writers_lock(settings):
        run_dbt(
            settings,
            ["test", "--exclude-resource-type", "unit_test", "--vars", "{test_everything: true}"],
            progress,
        )


@contextlib.contextmanager
def _writing(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    connection = lake.open_for_writing(settings)
    try:
        bookkeeping.create_tables(connection)
        yield connection
    finally:
        connection.close()


def run_dbt(settings: Settings, arguments: list[str], progress: Progress | None = None) -> None:
    """Run dbt in this process; ``BuildFailedError`` where anything failed.

    dbt's own output goes to its log, in the lake's state directory.
    """
    from dbt.cli.main import dbtRunner

    def on_event(event: Any) -> None:
        if progress and event.info.name == "LogStartLine":
            progress(str(event.data.node_info.node_name), int(event.data.index) - 1, int(event.data.total))

    state = settings.state_dir
    flags = ["--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT.parent), "--quiet", "--no-use-colors"]
    flags += ["--target-path", str(state / "target"), "--log-path", str(state / "logs")]
    state.mkdir(parents=True, exist_ok=True)
    with _environment(settings), _parsed_before(state / "target"), contextlib.redirect_stdout(io.StringIO()):
        result = dbtRunner(callbacks=[on_event]).invoke(arguments + flags)
    _close_dbt()
    if result.success:
        return
    failures = []
    for item in getattr(result.result, "results", None) or []:
        if str(item.status) in ("error", "fail", "runtime error"):
            failures.append(f"{item.node.name}: {(item.message or '').strip()}")
    if not failures and result.exception is not None:
        failures.append(str(result.exception))
    raise BuildFailedError(failures)


@contextlib.contextmanager
def _parsed_before(target: Path) -> Iterator[None]:
    """Lend dbt what it knows of this project from another lake of this user, so that it need not parse all of it anew.

    dbt itself checks that the files are the same, and parses what is not.
    """
    code = f"{PROJECT}\0{version('dbt-core')}\0{publishing.code_fingerprint()}"
    name = f"{hashlib.sha256(code.encode()).hexdigest()[:16]}.msgpack"
    parsed, kept = target / "partial_parse.msgpack", user_cache() / "parsed" / name
    if kept.exists() and not parsed.exists():
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, parsed)
    yield
    if parsed.exists() and not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}.tmp")
        shutil.copyfile(parsed, draft)
        draft.replace(kept)


@contextlib.contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """dbt reads the settings again, from the environment: say them absolutely, whatever directory it goes to."""
    says = {"MDP_RAW": settings.raw, "MDP_LAKE": settings.lake, "MDP_LAKE_DATA": settings.lake_data}
    before = {name: os.environ.get(name) for name in says}
    os.environ.update(says)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _close_dbt() -> None:
    """dbt-duckdb keeps its connection for the process's life; the lake must be free for the next step."""
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager

    environment = DuckDBConnectionManager._ENV
    if environment is not None:
        environment.close()
        DuckDBConnectionManager._ENV = None
    gc.collect()
