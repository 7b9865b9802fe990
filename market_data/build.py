"""Building: dbt over what the raw zone has that the lake has not, then publication.

writers' lock ── restore what a failed run left ── enter new loads ── dbt build ──ok──> publish
                                                        │                └─ no ──> readers stay where they were
                                                        └─ nothing new, same code ──> nothing to do
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import asdict, dataclass, replace

from loaders import logs
from loaders.settings import Settings
from market_data import bookkeeping, fingerprints, lake_plugin, lock, publishing
from market_data.dbt_runs import DEFINITIONS, BuildFailedError, Progress, Project

__all__ = ["BuildFailedError", "Outcome", "Progress", "build", "publish", "verify_tables"]

log = logging.getLogger(__name__)

NO_UNIT_TESTS = ["--exclude-resource-type", "unit_test"]
"""Unit tests are of the code, not of the data: `make test` and plain `dbt build` run them."""

ALL_THAT_MAY_LAG = min(publishing.LAST_LAGGING)
COMPLETE_EVERY = 5
"""Of how many slices of a backlog one brings all tables up to date, as the last one does. The others leave those behind
that may lag: they take in many slices at once for little more than one."""


@dataclass(frozen=True)
class Outcome:
    """What a build did: the version that readers now get, and how many loads it took in."""

    version: int
    new_loads: int
    built: bool
    restored: bool
    other_code: bool = False
    """Whether tables keep rows that an earlier version's code has made."""
    quarantined: int = 0
    read_otherwise: tuple[tuple[str, int], ...] = ()
    """Where the code is other than that of the last version: feeds with loads that their code of today has not read,
    and how many."""


def build(
    settings: Settings,
    *,
    full_refresh: bool = False,
    progress: Progress | None = None,
    project: Project | None = None,
    leave: int | None = None,
) -> Outcome:
    """Build what is new, test it, publish it. A process that builds often keeps a ``project``, and starts faster.

    With ``leave``, tables that may lag behind the others by so many seconds or more (meta.may_lag) stay as they are: a
    later build takes in what they missed.

    Raises ``BuildFailedError`` when a model or a test fails (readers then keep the version they had) and
    ``lock.LakeBusyError`` when another writer holds the lake for longer than MDP_LOCK_WAIT.
    """
    started = time.monotonic()
    logs.event(log, "build-started", "building", on_screen=True, full_refresh=full_refresh)
    try:
        with contextlib.nullcontext(project) if project else Project(settings) as kept:
            outcome = _build(settings, full_refresh, progress, kept, leave)
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


def _build(
    settings: Settings, full_refresh: bool, progress: Progress | None, project: Project, leave: int | None
) -> Outcome:
    with lock.writers_lock(settings):
        outcome, loads_left = _build_slice(settings, full_refresh, progress, project, leave, ALL_THAT_MAY_LAG)
        number = 1
        while loads_left:  # a backlog too long to be read at once; what was read is published, in the end by all tables
            number += 1
            meanwhile = ALL_THAT_MAY_LAG if number % COMPLETE_EVERY else None
            try:
                part, loads_left = _build_slice(settings, False, progress, project, None, meanwhile)
            except BuildFailedError:
                with contextlib.suppress(BuildFailedError):  # why the slice failed is what is to be known
                    _build_slice(settings, False, progress, project, None, None, read_more=False)
                raise
            new_loads, quarantined = outcome.new_loads + part.new_loads, outcome.quarantined + part.quarantined
            outcome = replace(outcome, version=part.version, new_loads=new_loads, quarantined=quarantined)
        return outcome


def _build_slice(
    settings: Settings,
    full_refresh: bool,
    progress: Progress | None,
    project: Project,
    leave: int | None,
    leave_meanwhile: int | None,
    read_more: bool = True,
) -> tuple[Outcome, int]:
    """Build as much as is read at once; what came of it, and how many entered loads are left.

    `leave_meanwhile` instead of `leave` where others are left to be built after these. Without `read_more`, tables that
    were left behind take in what the others have, and nothing else is read.
    """
    fingerprint, code = fingerprints.code_fingerprint(), fingerprints.by_feed()
    with project.connection() as connection:
        is_head_published = publishing.last_event(connection) == "published"
        restored = publishing.restore_if_unfinished(connection, settings)
        bookkeeping.enter_loads(connection, settings, whole=full_refresh)
        release = publishing.published(connection)
        same_code = release is not None and release.code_fingerprint == fingerprint
        most_records = None if full_refresh else publishing.SLICE_RECORDS
        end = publishing.window_end(connection, most_records) if read_more else publishing.last_processed(connection)
        loads_left = publishing.loaded_since(connection, end)
        if leave_meanwhile is not None and loads_left:
            leave = leave_meanwhile if leave is None else min(leave, leave_meanwhile)
        since = publishing.seen_by_all(connection, release, leave) if release else 0
        is_complete = release is not None and since == release.last_load_seq
        if release and same_code and not full_refresh and is_complete and publishing.is_up_to_date(connection, release):
            publishing.write_connect_script(settings, release.version)
            return Outcome(release.version, 0, built=False, restored=restored), 0
        processed = publishing.last_processed(connection)
        feeds: set[str] = set()
        if release and same_code and not full_refresh and is_head_published and publishing.has_staged(settings):
            # The head is as this code made it: what no new record reaches stays as it is.
            feeds = publishing.feeds_since(connection, since)
    with lake_plugin.reading_up_to(end):
        if release and feeds:
            window = (release.last_load_seq, end)
            _run_affected(settings, project, feeds, window, progress, leave=leave, catch_up=not is_complete)
        else:
            other = ["--exclude-resource-type", "seed"] if release and same_code else []
            arguments = ["build", *NO_UNIT_TESTS, *(["--full-refresh"] if full_refresh else other)]
            project.run(arguments, progress)
    with project.connection() as connection:
        if full_refresh or not same_code:
            # What plain dbt has read since the published version, it has noted by the code of then.
            bookkeeping.note_readings(connection, "true" if full_refresh else f"load_seq > {processed}", code)
        read_otherwise = () if same_code else bookkeeping.read_otherwise(connection)
        version = publishing.publish(connection, settings, fingerprint)
        new_loads = publishing.loaded_since(connection, release.last_load_seq if release else 0) - loads_left
        quarantined = publishing.quarantined_since(connection, release)
    outcome = Outcome(
        version,
        new_loads,
        built=True,
        restored=restored,
        quarantined=quarantined,
        other_code=release is not None and not same_code and not full_refresh,
        read_otherwise=read_otherwise,
    )
    return outcome, loads_left


def _run_affected(
    settings: Settings,
    project: Project,
    feeds: set[str],
    window: tuple[int, int],
    progress: Progress | None,
    *,
    leave: int | None,
    catch_up: bool,
) -> None:
    """Run what new records of these feeds reach. Records that go by kind are staged first, to see where they go."""
    select = ["build", "--indirect-selection", "empty", "--select"]
    sorting = project.sorting(feeds)
    if sorting:
        project.run([*select, *sorting.staging, *sorting.beside], progress)
    with project.connection() as connection:
        staged = publishing.staged_kinds(connection, settings, sorting.staging) if sorting else None
        affected = project.affected_by(feeds, staged=staged, leave=leave, catch_up=catch_up)
        publishing.pass_over(connection, affected.passed_over, *window)
    not_reached = json.dumps({"tables_not_reached": affected.passed_over})
    # Fewer schemas to look at. (Not for staging: its hook and its table go to two databases, which a look would join.)
    few = ["--cache-selected-only"] if sorting else []
    project.run([*select, *affected.nodes, *few, "--vars", not_reached], progress)


def publish(settings: Settings, *, progress: Progress | None = None) -> Outcome:
    """Test what plain dbt wrote since the published version, and publish it.

    Raises ``BuildFailedError`` when a test fails, or when the last dbt run did not end well.
    """
    fingerprint = fingerprints.code_fingerprint()
    with lock.writers_lock(settings), Project(settings) as project:
        with project.connection() as connection:
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
            new_loads = publishing.loaded_since(connection, release.last_load_seq if release else 0)
            same_code = release is not None and release.code_fingerprint == fingerprint
        arguments = ["test", *NO_UNIT_TESTS]
        if made_anew:
            arguments += ["--vars", "{test_everything: true}"]
        # Views and macros of an earlier code may stand in the head: they are made by today's.
        definitions = [f"config.materialized:{kind}" for kind in DEFINITIONS]
        project.run(["run", "--select", *definitions], progress)
        project.run(arguments, progress)
        with project.connection() as connection:
            read_otherwise = () if same_code else bookkeeping.read_otherwise(connection)
            version = publishing.publish(connection, settings, fingerprint)
        return Outcome(
            version,
            new_loads,
            built=True,
            restored=False,
            other_code=release is not None and not same_code,
            read_otherwise=read_otherwise,
        )


def verify_tables(settings: Settings, *, progress: Progress | None = None) -> None:
    """Run every data test over every row of the head. Raises ``BuildFailedError`` where one fails."""
    with lock.writers_lock(settings):
        Project(settings).run(["test", *NO_UNIT_TESTS, "--vars", "{test_everything: true}"], progress)
