"""`mdp doctor`: whether the set-up works, before anybody loads or builds.

    environment ─▶ settings ─┬─ raw zone ── write, read, list; writers race for a key; clock ─┐
                             ├─ lake ────── extensions, catalog, version; its files' place ───┼─▶ one line each
                             └─ Kafka ───── its client, the brokers ──────────────────────────┘

Nothing is left behind, no lake is made (loaders/trial.py tries the raw zone), and no line holds a secret.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import duckdb
from rich.console import Console
from rich.markup import escape

from loaders import trial
from loaders.consumers import BrokerError, Membership, StreamError, connect
from loaders.registry import load_registry
from loaders.settings import Settings, SettingsError
from loaders.store import S3Store
from market_data import lake
from market_data.client import NotPublishedError, published_version

KAFKA_SECONDS, LAKE_SECONDS, CLOCK_SECONDS = 15.0, 20.0, 5.0
"""How long the brokers and the lake may take, and how far two clocks may differ before it is told."""
COLOURS = {"ok": "green", "warning": "yellow", "FAILS": "red"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warning", "FAILS"]
    found: str
    way_out: str = ""


def examine(environ: Mapping[str, str] | None = None) -> list[Check]:
    """Look at everything, in some ten seconds unless servers are silent. Raises RegistryError."""
    try:
        settings = Settings.from_env(environ)
    except SettingsError as error:
        return [Check("settings", "FAILS", _clean(str(error)))]
    with _silence():
        checks = [*_raw_zone(settings), _catalog(settings), *_lake_data(settings), _kafka(settings)]
    checks = [replace(it, found=_clean(it.found), way_out=_clean(it.way_out)) for it in checks]
    return [Check("settings", "ok", "they can be read"), *checks]


def is_well(checks: Sequence[Check]) -> bool:
    """Whether nothing fails; a warning is no failure."""
    return all(check.state != "FAILS" for check in checks)


def as_json(checks: Sequence[Check]) -> str:
    """Return it as one JSON object."""
    return json.dumps({"ok": is_well(checks), "checks": [asdict(check) for check in checks]})


def show(checks: Sequence[Check], screen: Console) -> None:
    """Print a line for each check."""
    for check in checks:
        said = f"{check.name:<15}  {check.found}" + (f"; {check.way_out}" if check.way_out else "")
        state = f"[{COLOURS[check.state]}]{check.state:<7}[/]"
        screen.print(f"{state}  {escape(said)}", soft_wrap=True, highlight=False)


def _clean(text: str) -> str:
    """Return a text in one line, and addresses in it without user and password."""
    return " ".join(re.sub(r"://\S*@", "://…@", text).split())


def _foreign(error: Exception, settings: Settings) -> str:
    """Return what others say of an error, unless it holds a secret: cut out, a secret that is a common word is told."""
    secrets = (settings.s3.secret_key, settings.s3.session_token, settings.kafka_security.password)
    # DuckDB quotes the statement, with secrets in it, in the lines that follow the first.
    said = str(error).partition("\n")[0] if isinstance(error, duckdb.Error) else str(error)
    if any(secret and secret in said for secret in secrets):
        return f"{type(error).__name__}, whose text holds a secret"
    return said


def _trouble(error: OSError, settings: Settings, place: str, variable: str) -> tuple[str, str]:
    said, way_out = trial.trouble(error, settings.s3, place, variable)
    return said if str(error) not in said else said.replace(str(error), _foreign(error, settings)), way_out


@contextmanager
def _silence() -> Iterator[None]:
    """Keep each attempt off the error stream: the checks say what came of it. The records are made all the same."""
    before = [(handler, handler.level) for handler in logging.root.handlers]
    try:
        for handler, _ in before:
            handler.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for handler, level in before:
            handler.setLevel(level)


# The raw zone.


def _raw_zone(settings: Settings) -> list[Check]:
    name, place, done, left = "raw zone", settings.raw, list[Check](), list[str]()
    try:
        if "://" not in place and Path(place).is_file():
            return [Check(name, "FAILS", f"{place} is a file", "set MDP_RAW to a directory or s3://bucket/prefix")]
        with trial.no_new_directories(place):
            # Each writer has a client of its own, as loaders on several machines have.
            stores = [trial.opened(place, settings.s3) for _ in range(trial.WRITERS)]
            if isinstance(stores[0], S3Store):
                done += _clock(trial.seconds_ahead(stores[0]))
            with trial.scratch(stores[0], left) as new_key:
                done.append(_round_trip(name, place, trial.round_trip(stores[0], new_key)))
                name = "conditional put"
                rounds, problem = trial.race(stores, new_key)
                good = f"of {trial.WRITERS} writers of one key exactly one won, in each of {rounds} rounds"
                done.append(_judged(name, problem, good))
    except OSError as error:
        done.append(Check(name, "FAILS", *_trouble(error, settings, place, "MDP_RAW")))
    return [*done, *_leavings(left)]


def _leavings(left: Sequence[str]) -> list[Check]:
    return [Check("removal", "warning", what, "remove them; mdp seal and mdp maintain must delete") for what in left]


def _judged(name: str, problem: str | None, good: str) -> Check:
    return Check(name, "FAILS", problem, trial.NO_LEDGER) if problem else Check(name, "ok", good)


def _round_trip(name: str, place: str, problem: str | None) -> Check:
    return _judged(name, problem and f"{place}: {problem}", f"{place} can be written, read and listed")


def _clock(ahead: float | None) -> list[Check]:
    if ahead is None:
        return []
    if abs(ahead) <= CLOCK_SECONDS:
        return [Check("clock", "ok", f"within {CLOCK_SECONDS:.0f} s of the raw zone's server")]
    what = f"this machine is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} the raw zone's server"
    return [Check("clock", "warning", what, "set the wrong one right, as by NTP (docs/runbook.md says why: Clocks)")]


# The lake.


def _catalog(settings: Settings) -> Check:
    late = Check("lake catalog", "FAILS", f"no answer within {LAKE_SECONDS:.0f} s", "see that its server works")
    return _within(LAKE_SECONDS, lambda: _asked_catalog(settings), late)


def _asked_catalog(settings: Settings) -> Check:
    name, path = "lake catalog", Path(settings.lake)
    try:
        with duckdb.connect() as connection:
            for statement in lake.load_statements(settings):
                connection.execute(statement)
            there, writable = (False, True) if settings.lake_is_local else _in_database(connection, settings)
    except (ImportError, duckdb.Error) as error:
        keys = "httpfs" in lake.extensions(settings) and not (settings.s3.access_key and settings.s3.secret_key)
        way_out = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if keys else "check MDP_LAKE, or make install again"
        return Check(name, "FAILS", f"the lake cannot be used: {_foreign(error, settings)}", way_out)
    problem = _unwritable(settings.state_dir) or (_unwritable(path.parent) if settings.lake_is_local else None)
    if settings.lake_is_local and not problem:
        there = path.is_dir() or (path.exists() and path.stat().st_size > 0)
        writable = not path.exists() or os.access(path, os.W_OK)
    if problem or not writable:
        what = problem or f"{settings.lake} cannot be written"
        return Check(name, "FAILS", what, "let this user write there, or set MDP_LAKE")
    if not there:
        return Check(name, "ok", f"there is no lake {settings.lake} yet: `mdp build` makes it")
    try:
        version = f"version {published_version(settings)} is published"
    except NotPublishedError:
        version = "nothing is published yet: `mdp build` does it"
    except duckdb.Error as error:
        way_out = "name another one in MDP_LAKE, or see docs/runbook.md (Start again from raw)"
        return Check(name, "FAILS", f"{settings.lake} cannot be opened: {_foreign(error, settings)}", way_out)
    return Check(name, "ok", f"{settings.lake} can be opened and written; {version}")


def _in_database(connection: duckdb.DuckDBPyConnection, settings: Settings) -> tuple[bool, bool]:
    """Return whether PostgreSQL holds a lake, and whether it lets us write."""
    dsn = lake.quoted(settings.lake.removeprefix("postgres:"))
    connection.execute(f"ATTACH {dsn} AS catalog (TYPE postgres, READ_ONLY)")
    query = """
        select to_regclass('ducklake_snapshot') is not null as is_there, not pg_is_in_recovery() and coalesce(
            case
                when to_regclass('ducklake_snapshot') is null then has_schema_privilege(current_schema(), 'create')
                else has_table_privilege('ducklake_snapshot', 'insert')
            end, false) as is_writable
    """
    row = connection.execute(f"from postgres_query('catalog', {lake.quoted(query)})").fetchone()
    return (bool(row[0]), bool(row[1])) if row else (False, False)


def _lake_data(settings: Settings) -> list[Check]:
    name, place, left = "lake data", settings.lake_data, list[str]()
    if "://" not in place:
        if problem := _unwritable(Path(place)):
            return [Check(name, "FAILS", problem, "let this user write there, or set MDP_LAKE_DATA")]
        return [Check(name, "ok", f"{place} can be written")]
    try:
        store = trial.opened(place, settings.s3)
        if isinstance(store, S3Store):
            store.server_time()  # once, where writing would try for long
        with trial.scratch(store, left) as new_key:
            found = _round_trip(name, place, trial.round_trip(store, new_key))
    except OSError as error:
        found = Check(name, "FAILS", *_trouble(error, settings, place, "MDP_LAKE_DATA"))
    return [found, *_leavings(left)]


def _unwritable(directory: Path) -> str | None:
    """Say why a directory, or the one that it would be made in, takes no file; None where it does."""
    try:
        while not directory.exists():
            directory = directory.parent
        with tempfile.TemporaryFile(dir=directory):
            return None
    except OSError as error:
        return f"{directory} cannot be written: {error.strerror or error}"


# Kafka.


def _kafka(settings: Settings) -> Check:
    where = f"{settings.kafka}, by {settings.kafka_client}"
    topics = [feed.topic for feed in load_registry().values() if feed.format == "lines"]

    def warning(problem: str) -> Check:
        return Check("Kafka", "warning", f"{where}: {problem}", "start it or set MDP_KAFKA; files need none")

    def ask() -> Check:
        try:
            client = connect(Membership.by(settings))
            try:
                there = [topic for topic in topics if client.topic(topic) is not None]
            finally:
                client.close()
        except BrokerError as error:
            return warning(_foreign(error, settings))
        except StreamError as error:
            return Check("Kafka", "FAILS", f"{where}: {_foreign(error, settings)}")
        return Check(
            "Kafka", "ok", f"{where}: the brokers answer; topics of the registry: {', '.join(there) or 'none'}"
        )

    return _within(KAFKA_SECONDS, ask, warning(f"no answer within {KAFKA_SECONDS:.0f} s"))


def _within(seconds: float, ask: Callable[[], Check], late: Check) -> Check:
    """Ask in a thread, and go on without it after so many seconds. What the asking meets is a failure of this check."""
    answer: Future[Check] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            problem = f"looking at it failed ({type(error).__name__})"
            answer.set_result(replace(late, state="FAILS", found=problem, way_out="please report it"))

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        return late
