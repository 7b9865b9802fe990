"""Reading loads again: after a change of code, and of the registry, loads stand as they were read before.

    loads of a feed that its code of today has not read, in slices of some million records
      └─ withdraw   the slice's loads get the next numbers; what they made is told apart by numbers below zero
      └─ dbt        reads them as it reads any new load, and makes anew what the withdrawn rows had touched
      └─ forget     what was withdrawn
    after the last slice: test the tables that follow from them, whole, and publish

All of it is behind the published version: killed or failed in between, the next build takes everything back. Since
history is a function of the records and not of when they were read, a record that could not be used before is then
known from when it could have been known.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import duckdb

from loaders import logs
from loaders.settings import Settings
from market_data import bookkeeping, build, client, fingerprints, lake, lock, publishing
from market_data.dbt_runs import Progress, Project

log = logging.getLogger(__name__)

SLICE_RECORDS = publishing.SLICE_RECORDS
"""Records that are read at once, no more than a build reads; a larger load is a slice of its own."""
SLICE_LOADS = 10_000
"""Their numbers are literals of statements; as many small loads cost less than another run of all models."""
MODELS = ["build", "--indirect-selection", "empty"]
for _kind in ("test", "unit_test", "seed"):
    MODELS += ["--exclude-resource-type", _kind]


class Load(NamedTuple):
    """A load to be read again."""

    load_seq: int
    load_id: str
    records: int


class Tables(NamedTuple):
    """The tables that read the staged records of some feeds, by their names with the schema."""

    versioned: tuple[str, ...]
    """Made by the macro ``versions``: their rows follow from one another."""
    appended: tuple[str, ...]
    """Each of their rows comes of one load."""


@dataclass(frozen=True)
class Outcome:
    """What was read again, and how many of its records could not be used before and cannot be used now."""

    version: int
    """What readers get now."""
    loads: int = 0
    records: int = 0
    slices: int = 0
    quarantined_before: int = 0
    quarantined: int = 0
    asked_for: int = 0
    """How many loads were asked for, whatever code has read them."""
    last_delivered: str | None = None
    """Where there are none: the date of the last delivery of these feeds (streams: load), None for none at all."""


def reprocess(
    settings: Settings,
    feeds: Collection[str],
    *,
    since: dt.date | None = None,
    everything: bool = False,
    load_ids: Collection[str] | None = None,
    slice_records: int = SLICE_RECORDS,
    progress: Progress | None = None,
) -> Outcome:
    """Build what is new, then read loads of these feeds again, and publish once, at the end.

    Read are the loads that the feed's code of today has not read, or ``everything``; of them those that were delivered
    (streams: loaded) ``since`` a date, UTC, and that are among ``load_ids``, where these are given. Raises
    ``BuildFailedError`` where a model or a test fails; readers then keep the version they had. Raises
    ``NotPublishedError``, having made nothing, where nothing was ever published and so nothing read.
    """
    client.published_version(settings)
    started = time.monotonic()
    with lock.writers_lock(settings), Project(settings) as project:
        version = build.build(settings, progress=progress, project=project).version
        with project.connection() as connection:
            loads = _chosen(connection, feeds, since, everything, load_ids)
            before = _quarantined(connection, loads)
            asked_for, last_delivered = _asked_for(connection, feeds, since, load_ids)
        outcome = Outcome(version, asked_for=asked_for, last_delivered=None if asked_for else last_delivered)
        if loads:
            slices = list(_slices(loads, slice_records))
            logs.event(log, "reprocess-started", "reading loads again", loads=len(loads), slices=len(slices))
            outcome = replace(_reread(settings, project, feeds, slices, before, progress), asked_for=asked_for)
    seconds = round(time.monotonic() - started, 3)
    logs.event(log, "reprocessed", f"read {outcome.loads} loads again", **asdict(outcome), seconds=seconds)
    return outcome


def _reread(
    settings: Settings,
    project: Project,
    feeds: Collection[str],
    slices: Sequence[Sequence[Load]],
    quarantined_before: int,
    progress: Progress | None,
) -> Outcome:
    fingerprint, code = fingerprints.code_fingerprint(), fingerprints.by_feed()
    tables, affected = tables_of(project, feeds), project.affected_by(feeds)
    tests = [node.name for node in project.manifest.nodes.values() if node.resource_type == "test"]
    for part in slices:
        with project.connection() as connection:
            withdraw(connection, tables, part, code)
            has_staged = publishing.has_staged(settings)
            if has_staged:
                last = publishing.last_load_seq(connection)
                publishing.pass_over(connection, affected.passed_over, 0, last)
        chosen = [name for name in affected.nodes if name not in tests]
        project.run([*MODELS, *(["--select", *chosen] if has_staged else [])], progress)
        with project.connection() as connection:
            forget(connection, tables)
    # Whole tables: where rows only went away, nothing that is left says so.
    to_run = sorted(set(affected.nodes) & set(tests))
    project.run(["test", "--select", *to_run, "--vars", "{test_everything: true}"], progress)
    loads = [load for part in slices for load in part]
    with project.connection() as connection:
        quarantined = _quarantined(connection, loads)
        version = publishing.publish(connection, settings, fingerprint)
    records = sum(load.records for load in loads)
    return Outcome(version, len(loads), records, len(slices), quarantined_before, quarantined)


def _chosen(
    connection: duckdb.DuckDBPyConnection,
    feeds: Collection[str],
    since: dt.date | None,
    everything: bool,
    load_ids: Collection[str] | None,
) -> list[Load]:
    known = fingerprints.by_feed()
    found: list[Load] = []
    for feed in sorted(feeds):
        rows = connection.execute(
            """
            select loads.load_seq, load_id, records
            from lake.observability.loads as loads
            left join lake.observability.readings using (load_seq, load_id, feed)
            where outcome = 'loaded' and feed = $feed
                and ($everything or fingerprint is distinct from $known)
                and ($since::date is null or coalesce(delivered_at, loaded_at)::date >= $since::date)
                and ($load_ids::varchar[] is null or list_contains($load_ids::varchar[], load_id))
            """,
            {
                "feed": feed,
                "everything": everything,
                "known": known[feed],
                "since": since,
                "load_ids": None if load_ids is None else list(load_ids),
            },
        ).fetchall()
        found += [Load(*row) for row in rows]
    return sorted(found)


def _asked_for(
    connection: duckdb.DuckDBPyConnection,
    feeds: Collection[str],
    since: dt.date | None,
    load_ids: Collection[str] | None,
) -> tuple[int, str | None]:
    """How many loads of these feeds there are of those asked for, and when the last one of all was delivered."""
    row = connection.execute(
        """
        select
            count(*) filter (
                ($since::date is null or coalesce(delivered_at, loaded_at)::date >= $since::date)
                and ($load_ids::varchar[] is null or list_contains($load_ids::varchar[], load_id))
            ),
            max(coalesce(delivered_at, loaded_at))::date::varchar
        from lake.observability.loads
        where outcome = 'loaded' and list_contains($feeds::varchar[], feed)
        """,
        {"feeds": list(feeds), "since": since, "load_ids": None if load_ids is None else list(load_ids)},
    ).fetchone()
    return (int(row[0]), row[1]) if row else (0, None)


def _slices(loads: list[Load], most_records: int) -> Iterator[list[Load]]:
    part: list[Load] = []
    records = 0
    for load in loads:
        if part and (records + load.records > most_records or len(part) == SLICE_LOADS):
            yield part
            part, records = [], 0
        part.append(load)
        records += load.records
    yield part


def tables_of(project: Project, feeds: Collection[str]) -> Tables:
    """The tables that read the staged records of these feeds, as dbt knows the project."""
    nodes = project.manifest.nodes
    staging = {name for name, node in nodes.items() if node.config.meta.get("feed") in feeds}
    versioned: list[str] = []
    appended: list[str] = []
    for node in nodes.values():
        if node.config.materialized == "incremental" and staging & set(node.depends_on_nodes):
            group = appended if node.config.incremental_strategy == "append" else versioned
            group.append(f"{node.schema}.{node.alias}")
    return Tables(tuple(sorted(versioned)), tuple(sorted(appended)))


def withdraw(
    connection: duckdb.DuckDBPyConnection, tables: Tables, loads: Sequence[Load], code: Mapping[str, str]
) -> None:
    """Let these loads be the newest, and what they made be no version of anything any more, in one transaction.

    Withdrawn rows stay until the build has seen by their build_seq what they had touched. With them go the deletions
    of the scopes that they belonged to: what a delivery lacks is found again from what is there then.
    """
    numbers = ", ".join(str(load.load_seq) for load in loads)
    withdrawn = ", ".join(str(-load.load_seq) for load in loads)
    names = ", ".join(lake.quoted(load.load_id) for load in loads)
    last = publishing.last_load_seq(connection)
    end = last + len(loads)
    with _transaction(connection):
        publishing.note(connection, "", "started", publishing.REPROCESS)
        connection.execute(
            f"""
            update lake.observability.loads
            set load_seq = {last} + list_position([{numbers}]::bigint[], load_seq)
            where load_seq in ({numbers})
            """
        )
        bookkeeping.note_readings(connection, f"load_seq > {last}", code)
        for table in tables.versioned:
            withdrawal = (
                f"update lake.{table}"
                f" set load_seq = -load_seq, build_seq = {end}, is_duplicate = true, is_deletion = true"
            )
            connection.execute(f"{withdrawal} where load_seq in ({numbers})")
            scopes = " union ".join(
                f"select (feed, {scope}) from lake.{table} where load_seq in ({withdrawn}) and {scope} is not null"
                for scope in ("scope", "load_scope")
            )
            # Literal numbers prune files, which this does not: only where there are such scopes.
            if bookkeeping.scalar(connection, f"select count(*) from ({scopes})"):
                connection.execute(f"{withdrawal} where is_deletion and load_seq > 0 and (feed, scope) in ({scopes})")
        for table in tables.appended:
            connection.execute(f"delete from lake.{table} where load_id in ({names})")


def forget(connection: duckdb.DuckDBPyConnection, tables: Tables) -> None:
    """Remove what was withdrawn; every table that follows from it has seen it."""
    with _transaction(connection):
        for table in tables.versioned:
            connection.execute(f"delete from lake.{table} where load_seq < 0")


@contextmanager
def _transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    connection.begin()
    try:
        yield
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def _quarantined(connection: duckdb.DuckDBPyConnection, loads: Sequence[Load]) -> int:
    row = connection.execute(
        "select count(*) from lake.canonical.quarantine where list_contains(?, load_id)",
        [[load.load_id for load in loads]],
    ).fetchone()
    return int(row[0]) if row else 0
