"""Maintenance: few large files instead of many small ones, and no versions, files and leavings that nobody needs.

    catalog's file counts ── compact ──> flush inlined rows, rewrite files with deletions, merge small files
                                            │ the same rows, read back before and after
                                            v
                                         published again, as a new version
    releases, pins ── keep ──> expire all other snapshots ──> clean up: by age, what no kept snapshot needs

DuckLake keeps the snapshot that each row came with: older versions stay readable. Row ids stay too, but for sorted
tables, where a merge numbers rows anew, in every version alike; hence files are compacted only where the head is the
published version, so that no change between the two (publishing.restore) goes by an older number. Merges go in tiers,
as log-structured storage does: files are merged with files of about their size, so that a row is rewritten once per
tier, and a file of the last tier or above never again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import duckdb

from loaders import failpoints
from loaders.settings import MIB, Settings
from market_data import bookkeeping, lake, lock, publishing

TIERS = (0, MIB, 8 * MIB, 64 * MIB)
"""Bounds, in bytes, between which files are merged with each other; larger ones are left alone."""
TARGET_BYTES = 128 * MIB
"""At most about what one merge reads and writes, which bounds its memory."""
FLUSH_ROWS = 1000
"""Rows of one table that the catalog itself may hold (DuckLake inlines small inserts) before they go to a file."""
DELETED_SHARE = 0.25
"""Share of deleted rows from which a file is rewritten: every row is then paid for by a third of a deletion at most."""
SMALL_REWRITE_BYTES = 64 * MIB
"""Files with deletions are rewritten whatever their share, where those of one table are no more than this together."""
MEMORY = "2GB"
"""What DuckDB may use in `maintain`; sorting goes to disk beyond it."""
EXPIRED_AT_ONCE = 1000

GRACE = dt.timedelta(hours=6)
"""How long a file stays after the last version that needs it: longer than the longest query."""
ORPHAN_AGE = dt.timedelta(days=1)
"""How old a file must be that the catalog does not know: longer than the longest build."""

_CATALOG = "__ducklake_metadata_lake"
_COMPACTIONS = ("merge_adjacent", "rewrite_delete", "inline_flush")
"""What ``ducklake_snapshot_changes`` calls the snapshots that compaction makes."""


class MaintenanceError(RuntimeError):
    """After a step of compaction a table has not the same rows; nothing was published, and a person must look."""


@dataclass(frozen=True)
class Task:
    """One step of compaction: of one table, the files that are due, by their names without the directories."""

    kind: str
    """``flush``, ``rewrite`` or ``merge``."""
    schema: str
    table: str
    bound: float
    """Of a merge the tier's lower bound in bytes; of a rewrite the share of deleted rows; of a flush 0."""
    files: tuple[str, ...]
    bytes: int

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True)
class Files:
    """The live data files of a table."""

    count: int
    bytes: int


@dataclass(frozen=True)
class Compacted:
    """What compaction changed: of each such table its files before and after."""

    tables: dict[str, tuple[Files, Files]] = field(default_factory=dict)


@dataclass(frozen=True)
class Maintained:
    """What maintenance did, or with ``dry_run`` would do."""

    version: int | None
    """The version that readers get now; None where nothing was published yet."""
    published: bool
    """Whether that version is a new one, published because files were compacted."""
    why_not_compacted: str | None
    due: tuple[Task, ...]
    """With ``dry_run``: what compaction would begin with."""
    tables: dict[str, tuple[Files, Files]]
    kept: int
    expired: int
    removed: int
    """Files that no kept snapshot needs, removed now."""
    waiting: int
    """The same, which are not old enough yet."""
    orphans: int
    """Files that the catalog does not know, left by killed writers, removed now."""
    why_no_orphans: str | None


def compact(connection: duckdb.DuckDBPyConnection, settings: Settings, *, min_files: int) -> Compacted | None:
    """Merge files of a table, of one partition and one tier, where there are more than ``min_files`` of them.

    Rewrites files with many deleted rows, and flushes rows that the catalog holds, as well. Costs a few queries to
    the catalog where nothing is due, and then, or where the head is not the published version, returns None.
    The caller holds the writers' lock, and publishes with ``publishing.publish_again`` what this returns. Raises
    ``MaintenanceError`` when a table's rows are not the same; of a merge no restore can take that back.
    """
    if why_not(connection) is not None:
        return None
    release = publishing.published(connection)
    assert release is not None  # noqa: S101 - why_not has looked
    due = tasks(connection, min_files)
    if not due:
        return Compacted() if _is_compacted_since(connection, release) else None
    before = census(connection)
    done: set[tuple[str, str, float]] = set()
    with _target_file_size(connection):
        while due:  # what one merge makes may be due in the next tier
            for task in due:
                done.add((task.kind, task.name, task.bound))
                try:
                    _carry_out(connection, task)
                except MaintenanceError:
                    publishing.note(connection, "", "failed", f"compaction of {task.name}")
                    publishing.restore(connection, settings)
                    raise
                failpoints.reach("after-compaction")
            due = [task for task in tasks(connection, min_files) if (task.kind, task.name, task.bound) not in done]
    after = census(connection)
    changed = {name: (files, after[name]) for name, files in before.items() if after[name] != files}
    return Compacted(changed) if changed or _is_compacted_since(connection, release) else None


def why_not(connection: duckdb.DuckDBPyConnection) -> str | None:
    """Why files cannot be compacted now; None where the head is the published version."""
    release = publishing.published(connection)
    event = publishing.last_event(connection)
    if release is None:
        return "nothing is published yet"
    if event in publishing.UNFINISHED:
        return "the last run failed or was killed; `mdp build` takes back what it wrote and goes on"
    if event != "published" or publishing.loaded_since(connection, release):
        return "the head of the lake is ahead of the published version; `mdp build` publishes it"
    return None


def tasks(connection: duckdb.DuckDBPyConnection, min_files: int) -> list[Task]:
    """What is due, by the catalog's counts: first flushes, then rewrites, then merges from the lowest tier up."""
    return [*_flushes(connection), *_file_tasks(connection, min_files)]


def _flushes(connection: duckdb.DuckDBPyConnection) -> Iterator[Task]:
    inlined: dict[tuple[str, str], list[str]] = {}
    for schema, table, name in connection.execute(
        f"""
        select schema_name, t.table_name, i.table_name
        from {_CATALOG}.ducklake_inlined_data_tables as i
        inner join {_CATALOG}.ducklake_table as t on i.table_id = t.table_id and t.end_snapshot is null
        inner join {_CATALOG}.ducklake_schema as s on t.schema_id = s.schema_id and s.end_snapshot is null
        order by all
        """
    ).fetchall():
        inlined.setdefault((schema, table), []).append(name)
    for (schema, table), names in inlined.items():
        rows = sum(bookkeeping.scalar(connection, f"select count(*) from {_CATALOG}.{name}") for name in names)
        if rows > FLUSH_ROWS:
            yield Task("flush", schema, table, 0, tuple(names), 0)


def _file_tasks(connection: duckdb.DuckDBPyConnection, min_files: int) -> list[Task]:
    tiers = ", ".join(f"({low}, {high})" for low, high in pairwise(TIERS))
    rows = connection.execute(
        f"""
        with deletions as (
            select data_file_id, sum(delete_count) as deleted, bool_or(end_snapshot is null) as is_live
            from {_CATALOG}.ducklake_delete_file
            group by data_file_id
            union all
            {_inlined_deletions(connection)}
        ),

        per_file as (
            select data_file_id, sum(deleted) filter (where is_live) as deleted
            from deletions
            group by data_file_id
        ),

        live as (
            select
                schema_name,
                table_name,
                parse_filename(path) as file,
                file_size_bytes as bytes,
                coalesce(deleted, 0) / greatest(record_count, 1) as share,
                per_file.data_file_id is not null as was_deleted_from,
                concat_ws('/', partition_id, partition) as part
            from {_CATALOG}.ducklake_data_file as f
            inner join (
                select table_id, schema_id, table_name from {_CATALOG}.ducklake_table where end_snapshot is null
            ) using (table_id)
            inner join (
                select schema_id, schema_name from {_CATALOG}.ducklake_schema where end_snapshot is null
            ) using (schema_id)
            left join per_file using (data_file_id)
            left join (
                select data_file_id, string_agg(concat(partition_value), '/' order by partition_key_index) as partition
                from {_CATALOG}.ducklake_file_partition_value
                group by data_file_id
            ) using (data_file_id)
            where f.end_snapshot is null
        ),

        rewritten as (
            select
                schema_name, table_name,
                if(sum(bytes) <= {SMALL_REWRITE_BYTES} and count(*) > {min_files}, 0, {DELETED_SHARE}) as bound
            from live
            where share > 0
            group by all
        ),

        mergeable as (
            select schema_name, table_name, low as bound, part, list(file) as files, sum(bytes) as bytes
            from live
            inner join (values {tiers}) as tiers (low, high) on bytes >= low and bytes < high
            where not was_deleted_from
            group by all
            having count(*) > 1
        )

        select 'rewrite', schema_name, table_name, bound, list(file), sum(bytes)
        from live
        inner join rewritten using (schema_name, table_name)
        where share > 0 and share >= bound
        group by all
        having bound = 0 or sum(bytes) >= {MIB}
        union all
        select 'merge', schema_name, table_name, bound, flatten(list(files)), sum(bytes)
        from mergeable
        group by all
        having max(len(files)) > {min_files}
        order by 1 desc, 4, 2, 3
        """
    ).fetchall()
    return [
        Task(kind, schema, table, float(bound), tuple(files), int(size))
        for kind, schema, table, bound, files, size in rows
    ]


def _inlined_deletions(connection: duckdb.DuckDBPyConnection) -> str:
    """SQL for the deletions of a few rows, which DuckLake keeps in the catalog, in a table made at the first."""
    queries = ["select null::bigint, null::bigint, false where false"]
    for (table,) in connection.execute(
        f"select table_id from {_CATALOG}.ducklake_table where end_snapshot is null"
    ).fetchall():
        source = f"{_CATALOG}.ducklake_inlined_delete_{table}"
        try:
            connection.execute(f"from {source} limit 0")
        except duckdb.CatalogException:
            continue
        queries.append(f"select file_id, count(*), true from {source} group by file_id")
    return " union all ".join(queries)


def _carry_out(connection: duckdb.DuckDBPyConnection, task: Task) -> None:
    """One step, and the proof that the rows of the files it touched are the same."""
    schema, table = lake.quoted(task.schema), lake.quoted(task.table)
    statement = {
        "flush": f"call ducklake_flush_inlined_data('lake', schema_name => {schema}, table_name => {table})",
        "rewrite": f"call ducklake_rewrite_data_files('lake', {table}, schema => {schema},"
        f" delete_threshold => {task.bound})",
        "merge": f"call ducklake_merge_adjacent_files('lake', {table}, schema => {schema},"
        f" min_file_size => {int(task.bound)}, max_file_size => {_upper(task.bound)})",
    }[task.kind]
    files = _files(connection, task)
    names = set(task.files)
    touched = {path for path in files if path.rpartition("/")[2] in names}
    if task.kind == "flush":
        touched |= names
    rows = _checksum(connection, task, touched)
    connection.execute(statement)
    now = _files(connection, task)
    if _checksum(connection, task, (touched & now) | (now - files)) != rows:
        raise MaintenanceError(
            f"{task.kind} changed rows of {task.name}, by a defect of DuckLake or of its files. What the change feed"
            " knows of was taken back, and nothing was published: compare the table with a lake built anew from raw"
        )


def _upper(low: float) -> int:
    return next(bound for bound in TIERS if bound > low)


def _files(connection: duckdb.DuckDBPyConnection, task: Task) -> set[str]:
    rows = connection.execute(
        f"select data_file from ducklake_list_files('lake', {lake.quoted(task.table)}, schema =>"
        f" {lake.quoted(task.schema)})"
    ).fetchall()
    return {path for (path,) in rows}


def _checksum(connection: duckdb.DuckDBPyConnection, task: Task, files: Iterable[str]) -> tuple[object, ...] | None:
    """Number and sum of hashes of the rows in some files of a table, without the deleted.

    With the row ids of bookkeeping, which tell the order of events.
    """
    listed = ", ".join(lake.quoted(file) for file in sorted(files))
    if not listed:
        return (0, None)
    ids = "rowid, " if task.schema == "observability" else ""
    return connection.execute(
        f"select count(*), sum(hash({ids}*columns(*))) from lake.{lake.identifier(task.schema)}."
        f"{lake.identifier(task.table)} where filename in ({listed})"
    ).fetchone()


def census(connection: duckdb.DuckDBPyConnection) -> dict[str, Files]:
    """The live data files of every table of the head."""
    rows = connection.execute(
        f"""
        select schema_name || '.' || table_name, file_count, file_size_bytes
        from ducklake_table_info('lake')
        inner join (
            select schema_id, schema_name from {_CATALOG}.ducklake_schema where end_snapshot is null
        ) using (schema_id)
        """
    ).fetchall()
    return {name: Files(int(count), int(size or 0)) for name, count, size in rows}


def _is_compacted_since(connection: duckdb.DuckDBPyConnection, release: publishing.Release) -> bool:
    """Whether an earlier compaction was killed before it was published."""
    kinds = " or ".join(f"contains(changes_made, '{kind}')" for kind in _COMPACTIONS)
    query = f"select count(*) from {_CATALOG}.ducklake_snapshot_changes where snapshot_id > {release.version}"
    return bookkeeping.scalar(connection, f"{query} and ({kinds})") > 0


@contextmanager
def _target_file_size(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    connection.execute(f"set ducklake_target_file_size = '{TARGET_BYTES}B'")
    try:
        yield
    finally:
        connection.execute("reset ducklake_target_file_size")


def maintain(
    settings: Settings,
    *,
    keep_days: float | None = None,
    grace: dt.timedelta = GRACE,
    orphan_age: dt.timedelta = ORPHAN_AGE,
    min_files: int = 1,
    dry_run: bool = False,
) -> Maintained:
    """Compact, publish, expire and clean up, under the writers' lock; each step may be killed, and is done again.

    Where the head is not the published version, files are not compacted, and the result says why. ``keep_days``: how
    long every published version stays (MDP_KEEP_DAYS). Raises ``lock.LakeBusyError`` and ``MaintenanceError``.
    """
    failpoints.arm(settings.failpoint)
    days = settings.keep_days if keep_days is None else keep_days
    with lock.writers_lock(settings), lake.open_for_writing(settings) as connection:
        bookkeeping.create_tables(connection)
        spill = settings.state_dir / "spill"
        connection.execute(f"set memory_limit = '{MEMORY}'")
        connection.execute(f"set temp_directory = {lake.quoted(str(spill))}")
        why_not_compacted = why_not(connection)
        due = tasks(connection, min_files) if dry_run and why_not_compacted is None else []
        compacted = None if dry_run else compact(connection, settings, min_files=min_files)
        if compacted is not None:
            failpoints.reach("before-publication")
            publishing.publish_again(connection, settings)
            failpoints.reach("after-publication")
        kept, expired = _expire(connection, days, dry_run)
        failpoints.reach("after-expiry")
        removed, waiting = _clean_up(connection, settings, grace, dry_run)
        orphans, why_no_orphans = _remove_orphans(connection, orphan_age, dry_run)
        release = publishing.published(connection)
    return Maintained(
        version=release.version if release else None,
        published=compacted is not None,
        why_not_compacted=why_not_compacted,
        due=tuple(due),
        tables=compacted.tables if compacted else {},
        kept=kept,
        expired=expired,
        removed=removed,
        waiting=waiting,
        orphans=orphans,
        why_no_orphans=why_no_orphans,
    )


def kept_versions(connection: duckdb.DuckDBPyConnection, keep_days: float) -> set[int]:
    """The published versions that stay: the last of each UTC day, the last ``keep_days`` days', and pinned ones."""
    rows = connection.execute(
        """
        select max(version) from lake.observability.releases group by published_at::date
        union
        select version from lake.observability.releases
        where published_at >= now()::timestamp - to_seconds(?) or version = (
            select max(version) from lake.observability.releases
        )
        """,
        [keep_days * 86400],
    ).fetchall()
    if bookkeeping.are_there(connection, ["pins"]):
        rows += connection.execute("select version from lake.observability.pins").fetchall()
    return {int(version) for (version,) in rows}


def _expire(connection: duckdb.DuckDBPyConnection, keep_days: float, dry_run: bool) -> tuple[int, int]:
    """Expire what is neither kept nor since the last published version; how many snapshots stay, and go.

    The change feed since the published version, by which a failed build is taken back, needs all snapshots since.
    """
    snapshots = [
        version for (version,) in connection.execute("select snapshot_id from lake.snapshots() order by 1").fetchall()
    ]
    release = publishing.published(connection)
    if release is None:
        return len(snapshots), 0
    kept = kept_versions(connection, keep_days)
    gone = [version for version in snapshots if version < release.version and version not in kept]
    for start in range(0, 0 if dry_run else len(gone), EXPIRED_AT_ONCE):
        versions = gone[start : start + EXPIRED_AT_ONCE]
        connection.execute(f"call ducklake_expire_snapshots('lake', versions => {versions})")
        failpoints.reach("between-expiries")
    return len(snapshots) - len(gone), len(gone)


def _clean_up(
    connection: duckdb.DuckDBPyConnection, settings: Settings, grace: dt.timedelta, dry_run: bool
) -> tuple[int, int]:
    """Remove files that no kept snapshot has needed for so long; how many, and how many more wait.

    A query that began before its files were merged or expired may still read them: hence the age. In a SQLite catalog
    DuckLake compares these times as text, right only to the day: where a file is too young, whole earlier days go.
    """
    scheduled = f"select count(*) from {_CATALOG}.ducklake_files_scheduled_for_deletion"
    older_than = _ago(grace)
    if settings.lake_is_local and bookkeeping.scalar(
        connection, f"{scheduled} where schedule_start::timestamptz >= {older_than}"
    ):
        older_than = f"date_trunc('day', {older_than}) - interval 1 second"
    since = bookkeeping.scalar(connection, scheduled)
    removed = connection.execute(
        f"call ducklake_cleanup_old_files('lake', older_than => {older_than}, dry_run => {dry_run})"
    ).fetchall()
    return len(removed), since - len(removed)


def _remove_orphans(connection: duckdb.DuckDBPyConnection, age: dt.timedelta, dry_run: bool) -> tuple[int, str | None]:
    """Remove old files of the lake that its catalog does not know; how many, or why none.

    Only where each is a file that DuckLake wrote, and none is one that the catalog does know: MDP_LAKE_DATA may hold
    what is not the lake's, and no difference in how a path is spelt shall cost a table.
    """
    call = f"call ducklake_delete_orphaned_files('lake', older_than => {_ago(age)}, dry_run => "
    found = {path.replace("\\", "/").rpartition("/")[2] for (path,) in connection.execute(f"{call} true)").fetchall()}
    if foreign := sorted(name for name in found if not name.startswith("ducklake-")):
        return 0, f"{foreign[0]} and perhaps others in MDP_LAKE_DATA are not the lake's: move them elsewhere"
    known = {
        name
        for table in ("data_file", "delete_file", "files_scheduled_for_deletion")
        for (name,) in connection.execute(f"select parse_filename(path) from {_CATALOG}.ducklake_{table}").fetchall()
    }
    if spelt := sorted(found & known):
        return 0, f"{spelt[0]} is a file of the lake, under another path than the catalog's: see MDP_LAKE_DATA"
    if found and not dry_run:
        connection.execute(f"{call} false)")
    return len(found), None


def _ago(age: dt.timedelta) -> str:
    return f"now() - to_seconds({age.total_seconds()})"
