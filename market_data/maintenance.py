"""Maintenance: few large files instead of many small ones, and no versions, files and leavings that nobody needs.

    catalog's file counts ── due ──> rows of small files ── copied, sorted ──> one file ── the same rows? ──> committed
                                                                                    └── no ──> rolled back
                                         published again, as a new version <──────────────────────────┘
    releases, pins ── keep ──> expire all other snapshots ──> clean up: by age, what no kept snapshot needs
    raw zone ── what loaders that were killed left unfinished ──> removed by age

To compact is to delete the rows of some files and to insert them again, in one transaction: plain SQL, which DuckLake
partitions and sorts. The files of older versions stay as they are until those versions expire, the rows are proven
before the commit, and a restore takes it back like any other change. (DuckLake's own merge replaces the files of every
version at once.) Files go together in tiers, as in log-structured storage: with files of about their size, so that a
row is rewritten once per tier, and a file above the last tier never again, unless a good part of it is deleted.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import duckdb

from loaders import failpoints
from loaders.settings import MIB, Settings
from loaders.store import StoreError, open_store
from market_data import bookkeeping, lake, lock, publishing

TIERS = (0, MIB, 8 * MIB, 64 * MIB)
"""Bounds, in bytes of rows that are there, between which files are put together; larger ones are left alone."""
DELETED_SHARE = 0.25
"""Share of deleted rows from which a file is rewritten: every row is then paid for by a third of a deletion at most."""
AT_ONCE = 256 * MIB
"""How much one step reads and writes at most, and the size of the largest file that it takes."""
FLUSH_ROWS = 1000
"""Rows of one table that the catalog itself may hold (DuckLake inlines small inserts) before they go to a file."""
IN_ORDER = frozenset({"observability.runs"})
"""Tables whose row ids tell the order of their rows: their files stay."""
MEMORY = "2GB"
"""What DuckDB may use in `maintain`; sorting goes to disk beyond it."""
EXPIRED_AT_ONCE = 1000

GRACE = dt.timedelta(hours=6)
"""How long a file stays after the last version that needs it: longer than the longest query."""
ORPHAN_AGE = dt.timedelta(days=1)
"""How old a file must be that the catalog does not know, or that a loader has not finished: longer than the longest
build or load."""

_CATALOG = "__ducklake_metadata_lake"


class MaintenanceError(RuntimeError):
    """A step of compaction would have changed a table's rows: it was rolled back, and a person must look."""


@dataclass(frozen=True)
class Task:
    """One step of compaction, of one table."""

    kind: str
    """``flush``: rows and deletions that the catalog holds go to files; ``join``: files of one partition and tier
    become one; ``retire``: files of which every row is deleted are read no more."""
    schema: str
    table: str
    files: tuple[str, ...]
    """Names without directories."""
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
    """The tables that were compacted: their files before and after."""
    kept: int
    """The published versions that stay."""
    later: int
    """Snapshots since the last published version, which stay too."""
    expired: int
    removed: int
    """Files that no kept snapshot needs, removed now."""
    waiting: int
    """The same, which are not old enough yet."""
    orphans: int
    """Files that the catalog does not know, left by killed writers, removed now."""
    why_no_orphans: str | None
    unfinished: int
    """Files and uploads of the raw zone that killed loaders left unfinished, removed now. No reader ever sees them."""
    why_no_unfinished: str | None


def compact(
    connection: duckdb.DuckDBPyConnection, *, min_files: int, at_once: int = AT_ONCE, seconds: float = math.inf
) -> list[Task]:
    """Put files of a table together, of one partition and one tier, where there are more than ``min_files`` of them.

    Rewrites files with many deleted rows and flushes rows that the catalog holds, as well. What a tier gets from the
    one below is due the next time. ``at_once`` bounds, in bytes, what one step reads and the files that it takes; after
    so many ``seconds`` no further step begins. Costs a few queries to the catalog where nothing is due. The caller
    holds the writers' lock and publishes what was done, with ``publishing.publish_again``, if that is anything. Raises
    ``MaintenanceError``, with nothing changed by that step, when rows would not be the same. Does nothing where
    ``why_not`` knows why.
    """
    done: list[Task] = []
    if why_not(connection) is None:
        due = tasks(connection, min_files, at_once)
        deadline = time.monotonic() + seconds  # after the look, which may take as long: else nothing is ever done
        for task in due:
            if time.monotonic() > deadline:
                break
            _carry_out(connection, task)
            done.append(task)
            failpoints.reach("after-compaction")
    return done


def why_not(connection: duckdb.DuckDBPyConnection) -> str | None:
    """Why files cannot be compacted now; None where the head is the published version."""
    release = publishing.published(connection)
    event = publishing.last_event(connection)
    if release is None:
        return "nothing is published yet"
    if event in publishing.UNFINISHED:
        return "the last run failed or was killed; `mdp build` takes back what it wrote and goes on"
    if event != "published" or publishing.loaded_since(connection, release.last_load_seq):
        return "the head of the lake is ahead of the published version; `mdp build` publishes it"
    return None


def tasks(connection: duckdb.DuckDBPyConnection, min_files: int, at_once: int = AT_ONCE) -> list[Task]:
    """What is due, by the catalog's counts: flushes, then what files there are to retire or join, by size."""
    inlined = _inlined_deletions(connection)
    return [*_flushes(connection, min_files, inlined), *_file_tasks(connection, min_files, at_once, inlined)]


def _flushes(connection: duckdb.DuckDBPyConnection, min_files: int, inlined_deletions: str) -> Iterator[Task]:
    """Tables of which the catalog holds many rows, or deletions of many files: those files wait for this.

    DuckLake 1.5.5 would not drop such a file with its last row, and a flush after its end would give back, in versions
    before the flush, what was deleted.
    """
    deletions = connection.execute(
        f"""
        select schema_name, table_name
        from ({inlined_deletions}) as deletions
        inner join {_CATALOG}.ducklake_data_file as f using (data_file_id)
        inner join {_CATALOG}.ducklake_table as t on f.table_id = t.table_id and t.end_snapshot is null
        inner join {_CATALOG}.ducklake_schema as s on t.schema_id = s.schema_id and s.end_snapshot is null
        group by all
        having count(*) > {min_files}
        """
    ).fetchall()
    inlined: dict[tuple[str, str], int] = dict.fromkeys(deletions, 0)
    for schema, table, name in connection.execute(
        f"""
        select schema_name, t.table_name, i.table_name
        from {_CATALOG}.ducklake_inlined_data_tables as i
        inner join {_CATALOG}.ducklake_table as t on i.table_id = t.table_id and t.end_snapshot is null
        inner join {_CATALOG}.ducklake_schema as s on t.schema_id = s.schema_id and s.end_snapshot is null
        order by all
        """
    ).fetchall():
        rows = bookkeeping.scalar(connection, f"select count(*) from {_CATALOG}.{name}")
        inlined[schema, table] = inlined.get((schema, table), 0) + rows
    for (schema, table), rows in inlined.items():
        if rows > FLUSH_ROWS or (schema, table) in deletions:
            yield Task("flush", schema, table, (), 0)


def _file_tasks(
    connection: duckdb.DuckDBPyConnection, min_files: int, at_once: int, inlined_deletions: str
) -> list[Task]:
    tiers = ", ".join(f"({low}, {high})" for low, high in pairwise(TIERS))
    rows = connection.execute(
        f"""
        with deletions as (
            select data_file_id, sum(delete_count) as deleted
            from {_CATALOG}.ducklake_delete_file
            where end_snapshot is null
            group by data_file_id
        ),

        live as (
            select
                schema_name,
                table_name,
                data_file_id,
                parse_filename(path) as file,
                file_size_bytes as bytes,
                coalesce(deleted, 0) / greatest(record_count, 1) as share,
                concat_ws('/', partition_id, partition) as part
            from {_CATALOG}.ducklake_data_file as f
            inner join (
                select table_id, schema_id, table_name from {_CATALOG}.ducklake_table where end_snapshot is null
            ) using (table_id)
            inner join (
                select schema_id, schema_name from {_CATALOG}.ducklake_schema where end_snapshot is null
            ) using (schema_id)
            left join deletions using (data_file_id)
            anti join ({inlined_deletions}) as inlined using (data_file_id)
            left join (
                select data_file_id, string_agg(concat(partition_value), '/' order by partition_key_index) as partition
                from {_CATALOG}.ducklake_file_partition_value
                group by data_file_id
            ) using (data_file_id)
            where f.end_snapshot is null and file_size_bytes <= {at_once}
        ),

        tiered as (
            select
                *,
                share >= {DELETED_SHARE} and bytes >= {MIB} as is_crumbling,
                sum(bytes) over (
                    partition by schema_name, table_name, part, low order by data_file_id
                    rows between unbounded preceding and 1 preceding
                ) as bytes_before
            from live
            left join (values {tiers}) as tiers (low, high)
                on bytes * (1 - share) >= low and bytes * (1 - share) < high
            where share < 1 and not list_contains({sorted(IN_ORDER)}, schema_name || '.' || table_name)
        )

        select 'retire', schema_name, table_name, list(file order by data_file_id), 0
        from live
        where share >= 1
        group by schema_name, table_name
        having count(*) > {min_files}
        union all
        select 'join', schema_name, table_name, list(file order by data_file_id), sum(bytes)
        from tiered
        group by
            schema_name, table_name, part, low, coalesce(bytes_before, 0) // {at_once}, low is null and not is_crumbling
        having (low is not null and count(*) > {min_files}) or bool_or(is_crumbling)
        order by 5, 1, 2, 3, 4
        """
    ).fetchall()
    return [Task(kind, schema, table, tuple(files), int(size)) for kind, schema, table, files, size in rows]


def _inlined_deletions(connection: duckdb.DuckDBPyConnection) -> str:
    """SQL for the files of which a few rows are deleted by the catalog, in a table that DuckLake makes at the first."""
    queries = ["select null::bigint as data_file_id where false"]
    for (table,) in connection.execute(
        f"select table_id from {_CATALOG}.ducklake_table where end_snapshot is null"
    ).fetchall():
        source = f"{_CATALOG}.ducklake_inlined_delete_{table}"
        try:
            connection.execute(f"from {source} limit 0")
        except duckdb.CatalogException:
            continue
        queries.append(f"select file_id from {source}")
    return " union ".join(queries)


def _carry_out(connection: duckdb.DuckDBPyConnection, task: Task) -> None:
    """One step, committed where the rows are the same: those of its files before, and of what took their place after.

    Rows that the catalog holds count as such on both sides; all other files are neither read nor written.
    """
    table = f"lake.{lake.identifier(task.schema)}.{lake.identifier(task.table)}"
    files, names = _files(connection, task), set(task.files)
    mine = [path for path in files if path.rpartition("/")[2] in names]
    others = [path for path in files if path.rpartition("/")[2] not in names]
    schema, name = lake.quoted(task.schema), lake.quoted(task.table)
    connection.execute("begin")
    try:
        before = _rows(connection, table, others)
        if task.kind == "join":
            _write_again(connection, table, _listed(mine))
        elif task.kind == "retire":
            connection.execute(
                f"call ducklake_rewrite_data_files('lake', {name}, schema => {schema}, delete_threshold => 1)"
            )
        else:
            connection.execute(
                f"call ducklake_flush_inlined_data('lake', schema_name => {schema}, table_name => {name})"
            )
        if _rows(connection, table, others) != before:
            raise MaintenanceError(
                f"compacting {task.name} would have changed its rows, by a defect of DuckLake or of its files; nothing"
                " was changed. Compare the table with a lake built anew from raw"
            )
        connection.execute("commit")
    except BaseException:
        connection.execute("rollback")
        raise


def _write_again(connection: duckdb.DuckDBPyConnection, table: str, files: str) -> None:
    """Insert the rows of some files into the table again, and delete them from where they are."""
    connection.execute(f"insert into {table} select * from {table} where filename in ({files})")
    connection.execute(f"delete from {table} where filename in ({files})")


def _files(connection: duckdb.DuckDBPyConnection, task: Task) -> list[str]:
    rows = connection.execute(
        f"select data_file from ducklake_list_files('lake', {lake.quoted(task.table)}, schema =>"
        f" {lake.quoted(task.schema)})"
    ).fetchall()
    return [path for (path,) in rows]


def _rows(connection: duckdb.DuckDBPyConnection, table: str, but: list[str]) -> tuple[object, ...] | None:
    """Number and sum of hashes of the rows of a table that are not in these files."""
    where = f"where filename not in ({_listed(but)})" if but else ""
    return connection.execute(f"select count(*), sum(hash(*columns(*))) from {table} {where}").fetchone()


def _listed(files: list[str]) -> str:
    return ", ".join(lake.quoted(file) for file in files)


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
        connection.execute(f"set memory_limit = '{MEMORY}'")
        why_not_compacted = why_not(connection)
        due = tasks(connection, min_files) if dry_run and why_not_compacted is None else []
        tables = {} if dry_run else _compact_all(connection, min_files)
        if tables:
            failpoints.reach("before-publication")
            publishing.publish_again(connection, settings)
            failpoints.reach("after-publication")
        kept, later, expired = _expire(connection, days, dry_run)
        failpoints.reach("after-expiry")
        removed, waiting = _clean_up(connection, settings, grace, dry_run)
        orphans, why_no_orphans = _remove_orphans(connection, orphan_age, dry_run)
        release = publishing.published(connection)
    unfinished, why_no_unfinished = _remove_unfinished(settings, orphan_age, dry_run)
    return Maintained(
        version=release.version if release else None,
        published=bool(tables),
        why_not_compacted=why_not_compacted,
        due=tuple(due),
        tables=tables,
        kept=kept,
        later=later,
        expired=expired,
        removed=removed,
        waiting=waiting,
        orphans=orphans,
        why_no_orphans=why_no_orphans,
        unfinished=unfinished,
        why_no_unfinished=why_no_unfinished,
    )


def _compact_all(connection: duckdb.DuckDBPyConnection, min_files: int) -> dict[str, tuple[Files, Files]]:
    """Compact until no tier has anything due; the tables concerned, with their files before and after."""
    before = census(connection)
    names: set[str] = set()
    for _ in TIERS:  # what one tier gets from the one below may be due with it
        names |= {task.name for task in compact(connection, min_files=min_files)}
    after = census(connection) if names else {}
    return {name: (before[name], after[name]) for name in sorted(names)}


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


def _expire(connection: duckdb.DuckDBPyConnection, keep_days: float, dry_run: bool) -> tuple[int, int, int]:
    """Expire what is neither kept nor since the last published version; how many of each there are, and how many go.

    The change feed since the published version, by which a failed build is taken back, needs all snapshots since.
    """
    snapshots = [
        version for (version,) in connection.execute("select snapshot_id from lake.snapshots() order by 1").fetchall()
    ]
    release = publishing.published(connection)
    if release is None:
        return 0, len(snapshots), 0
    kept = kept_versions(connection, keep_days)
    gone = [version for version in snapshots if version < release.version and version not in kept]
    for start in range(0, 0 if dry_run else len(gone), EXPIRED_AT_ONCE):
        versions = gone[start : start + EXPIRED_AT_ONCE]
        connection.execute(f"call ducklake_expire_snapshots('lake', versions => {versions})")
        failpoints.reach("between-expiries")
    later = sum(version > release.version for version in snapshots)
    return len(snapshots) - len(gone) - later, later, len(gone)


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


def _remove_unfinished(settings: Settings, age: dt.timedelta, dry_run: bool) -> tuple[int, str | None]:
    """Remove what killed loaders left unfinished in the raw zone; how many, or why none."""
    try:
        return open_store(settings.raw, settings.s3).remove_unfinished(age, dry_run=dry_run), None
    except StoreError as error:
        return 0, str(error)


def _ago(age: dt.timedelta) -> str:
    return f"now() - to_seconds({age.total_seconds()})"
