"""Publishing: readers see a version only after it was built and tested.

    published ──build──> head ──tests pass──> published
        ^                  │
        └──── restore ─────┘  what a failed or killed run wrote is taken back, and its loads count as unseen

Each step of the head's life is a row of ``observability.runs``: ``started`` and ``failed`` (not to be built upon),
``incomplete`` (plain dbt ran a part of the models: may be built upon), ``succeeded`` (all of them: may be published),
``published``, ``restored``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from loaders.settings import Settings
from market_data import bookkeeping, lake

UNFINISHED = ("started", "failed")
REPROCESS = "mdp reprocess"
"""The command of runs that are parts of a whole (market_data/reprocessing.py)."""
LAST_LAGGING = {60: ("bars_1m", "int_listings"), 600: ("features_1d_at_decision",)}
"""By the seconds that tables may lag behind others (meta.may_lag), the models that follow them all: where these have
come, they have. None reads staged records: builds would stage again what one of them has not read."""
SCRATCH = "scratch.duckdb"
"""Where staging models put the records of a build, in the lake's state directory."""

SLICE_RECORDS = 2_000_000
"""Records that a build of `mdp` reads at once, which bounds its memory; a longer backlog is built in slices."""
SLICE_MEMORY = 1_150_000_000
"""Bytes that DuckDB uses for a slice at most: with more it is no faster by a tenth, and keeps what it has read."""

_AT = "begin_snapshot <= $version and coalesce(end_snapshot > $version, true)"
_OF_TABLE = f"""
    table_id = (
        select table_id
        from ducklake_table_info('published')
        inner join __ducklake_metadata_published.ducklake_schema using (schema_id)
        where schema_name = $schema and table_name = $table
    )
    and {_AT}
"""
LAYOUTS = {
    "partitioned by": f"""
        select string_agg(
            case
                when transform = 'identity' then column_name
                when starts_with(transform, 'bucket(') then replace(transform, ')', ', ' || column_name || ')')
                else transform || '(' || column_name || ')'
            end,
            ', ' order by partition_key_index
        )
        from __ducklake_metadata_published.ducklake_partition_column
        inner join __ducklake_metadata_published.ducklake_partition_info using (partition_id, table_id)
        inner join (
            select column_id, column_name from __ducklake_metadata_published.ducklake_column where {_OF_TABLE}
        ) using (column_id)
        where {_OF_TABLE}
    """,
    "sorted by": f"""
        select string_agg(
            concat_ws(' ', expression, sort_direction, replace(null_order, '_', ' ')), ', ' order by sort_key_index
        )
        from __ducklake_metadata_published.ducklake_sort_expression
        inner join __ducklake_metadata_published.ducklake_sort_info using (sort_id, table_id)
        where {_OF_TABLE}
    """,
}
"""What a version of a table says of the layout of its files, as ALTER TABLE takes it."""


@dataclass(frozen=True)
class Release:
    """A published version: its DuckLake snapshot id, the last load that it holds, and the code that made it."""

    version: int
    last_load_seq: int
    code_fingerprint: str


def note(connection: duckdb.DuckDBPyConnection, run: str, event: str, command: str) -> None:
    """Write down what happens to the head of the lake."""
    connection.execute("insert into lake.observability.runs values (?, ?, ?, now()::timestamp)", [run, event, command])


def last_event(connection: duckdb.DuckDBPyConnection) -> str | None:
    """The last thing that happened to the head; None in a new lake. A reprocess is under way until it is published."""
    row = connection.execute(
        """
        select case
            when max(rowid) filter (command = $reprocess)
                > coalesce(max(rowid) filter (event in ('published', 'restored')), -1) then 'started'
            else arg_max(event, rowid)
        end
        from lake.observability.runs
        """,
        {"reprocess": REPROCESS},
    ).fetchone()
    return row[0] if row else None


def published(connection: duckdb.DuckDBPyConnection) -> Release | None:
    """The last published version, or None where nothing was published yet."""
    row = connection.execute(
        "select version, last_load_seq, code_fingerprint from lake.observability.releases order by version desc limit 1"
    ).fetchone()
    return Release(*row) if row else None


def head(connection: duckdb.DuckDBPyConnection) -> int:
    """The snapshot id of the lake's head."""
    return bookkeeping.scalar(connection, "select id from lake.current_snapshot()")


def last_load_seq(connection: duckdb.DuckDBPyConnection) -> int:
    """The number of the last ledger entry that the head has taken in."""
    return bookkeeping.scalar(connection, "select max(load_seq) from lake.observability.loads")


def last_processed(connection: duckdb.DuckDBPyConnection) -> int:
    """The last load that a run has processed; one may have been entered since. (Models of old stay behind.)"""
    return bookkeeping.scalar(connection, "select max(load_seq) from lake.observability.progress")


def window_end(connection: duckdb.DuckDBPyConnection, most_records: int | None) -> int:
    """The last load that a build reads: the last there is, or the last of those that hold no more than so many records.

    They are counted from the last load processed; one is read in any case.
    """
    if most_records is None:
        return last_load_seq(connection)
    done = last_processed(connection)
    end = bookkeeping.scalar(
        connection,
        f"""
        select coalesce(max(load_seq) filter (records_so_far <= {most_records}), min(load_seq))
        from (
            select load_seq, sum(if(outcome = 'loaded', records, 0)) over (order by load_seq) as records_so_far
            from lake.observability.loads
            where load_seq > {done}
        )
        """,
    )
    return end or done


def is_up_to_date(connection: duckdb.DuckDBPyConnection, release: Release) -> bool:
    """Whether the head is the published version, and nothing but refusals has come since."""
    return last_event(connection) in ("published", "restored") and loaded_since(connection, release.last_load_seq) == 0


def was_made_anew(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether plain dbt has made tables anew since the published version: then every row is to be tested."""
    query = (
        "select count(*) from lake.observability.runs where command like '%--full-refresh' and rowid > coalesce("
        "(select max(rowid) from lake.observability.runs where event in ('published', 'restored')), -1)"
    )
    return bookkeeping.scalar(connection, query) > 0


def loaded_since(connection: duckdb.DuckDBPyConnection, load_seq: int) -> int:
    """How many loads, refusals apart, the head has taken in after one."""
    query = "select count(*) from lake.observability.loads where outcome = 'loaded' and load_seq >"
    return bookkeeping.scalar(connection, f"{query} {load_seq}")


def seen_by_all(connection: duckdb.DuckDBPyConnection, release: Release, leave: int | None) -> int:
    """The last load that all tables of a release hold; where builds left some behind, an earlier one.

    Those that may lag by ``leave`` seconds or more do not count.
    """
    due = [model for seconds, last in LAST_LAGGING.items() if leave is None or seconds < leave for model in last]
    return bookkeeping.scalar(
        connection,
        f"select least({release.last_load_seq}, min(load_seq)) from lake.observability.progress"
        f" where list_contains({due}::varchar[], model)",
    )


def feeds_since(connection: duckdb.DuckDBPyConnection, load_seq: int) -> set[str]:
    """The feeds of the loads that the head has taken in since a load."""
    rows = connection.execute(
        "select distinct feed from lake.observability.loads where outcome = 'loaded' and load_seq > ?", [load_seq]
    ).fetchall()
    return {feed for (feed,) in rows}


def pass_over(connection: duckdb.DuckDBPyConnection, tables: Sequence[str], start: int, end: int) -> None:
    """Let these models, which have come to one load, have come to a later one: none of the loads between is for them.

    Models that this code does not know stay where they are: other code may know them again. So do those that were
    left behind before.
    """
    connection.execute(
        "update lake.observability.progress set load_seq = ? where list_contains(?, model) and load_seq >= ?",
        [end, list(tables), start],
    )


def has_staged(settings: Settings) -> bool:
    """Whether an earlier build has left its staging tables here, for models that read them to find them."""
    return (settings.state_dir / SCRATCH).exists()


def staged_kinds(
    connection: duckdb.DuckDBPyConnection, settings: Settings, models: Sequence[str]
) -> dict[str, set[str]]:
    """The kinds of records that staging models hold, which dbt has just made; unusable ones are `quarantined`."""
    connection.execute(f"attach {lake.quoted(str(settings.state_dir / SCRATCH))} as staged (read_only)")
    try:
        return {
            model: {
                kind
                for (kind,) in connection.execute(
                    "select distinct if(disposition = 'modelled', kind, disposition)"
                    f" from staged.staging.{lake.identifier(model)} where disposition in ('modelled', 'quarantined')"
                ).fetchall()
            }
            for model in models
        }
    finally:
        connection.execute("detach staged")


def quarantined_since(connection: duckdb.DuckDBPyConnection, release: Release | None) -> int:
    """How many records of the loads since a release cannot be used."""
    return bookkeeping.scalar(
        connection,
        "select sum(quarantined) from lake.observability.conservation where load_id in ("
        f"select load_id from lake.observability.loads where load_seq > {release.last_load_seq if release else 0})",
    )


def restore_if_unfinished(connection: duckdb.DuckDBPyConnection, settings: Settings) -> bool:
    """Take back what a failed or killed run wrote, where the last run was one; whether it was."""
    if last_event(connection) not in UNFINISHED:
        return False
    restore(connection, settings)
    return True


def restore(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Make every table of the head what it is in the published version, in one transaction.

    Costs by what was written since: the change feed says which rows came and went. A table that was made anew or
    dropped since then is copied back whole; one that the published version lacks is dropped. Views and macros
    hold no data: every build makes them again. Staged records are forgotten, since loads are numbered anew.
    """
    release = published(connection)
    then: dict[tuple[str, str], tuple[str, ...]] = {}
    if release:
        connection.execute(lake.attach_statement(settings, release.version, alias="published"))
        then = _tables(connection, "published")
    try:
        connection.execute("begin")
        now = _tables(connection, "lake")
        for schema, table in sorted(now.keys() | then.keys()):
            if schema == "observability" and table in bookkeeping.KEPT_BY_RESTORE:
                continue
            name = f"{lake.identifier(schema)}.{lake.identifier(table)}"
            is_bookkeeping = schema == "observability" and table in bookkeeping.NAMES
            if release and then.get((schema, table)) == now.get((schema, table)):
                _undo(connection, schema, table, name, release.version)
            elif is_bookkeeping:
                connection.execute(f"delete from lake.{name}")
            else:
                connection.execute(f"drop table if exists lake.{name}")
                if release and (schema, table) in then:
                    _copy_back(connection, schema, table, name, release.version)
        note(connection, "", "restored", f"to version {release.version}" if release else "to an empty lake")
        connection.execute("commit")
    except BaseException:
        connection.execute("rollback")
        raise
    finally:
        if release:
            connection.execute("detach published")
    for file in (SCRATCH, f"{SCRATCH}.wal"):
        (settings.state_dir / file).unlink(missing_ok=True)


def _undo(connection: duckdb.DuckDBPyConnection, schema: str, table: str, name: str, version: int) -> None:
    touched = connection.execute(
        f"select distinct rowid from ducklake_table_changes('lake', {lake.quoted(schema)}, {lake.quoted(table)},"
        f" {version + 1}, {head(connection)})"
    ).to_arrow_table()
    if touched.num_rows == 0:
        return
    connection.register("touched_rows", touched)
    connection.execute(f"delete from lake.{name} where rowid in (select rowid from touched_rows)")
    connection.execute(
        f"insert into lake.{name} by name"
        f" select * from published.{name} where rowid in (select rowid from touched_rows)"
    )
    connection.unregister("touched_rows")


def _copy_back(connection: duckdb.DuckDBPyConnection, schema: str, table: str, name: str, version: int) -> None:
    """Make a table anew as the published version has it, with its constraints, partitions and order of rows."""
    columns = [
        f"{lake.identifier(column)} {data_type}{'' if is_nullable else ' not null'}"
        for column, data_type, is_nullable in _columns(connection, "published", schema, table)
    ]
    connection.execute(f"create table lake.{name} ({', '.join(columns)})")
    for layout, query in LAYOUTS.items():
        row = connection.execute(query, {"schema": schema, "table": table, "version": version}).fetchone()
        if row and row[0]:
            connection.execute(f"alter table lake.{name} set {layout} ({row[0]})")
    connection.execute(f"insert into lake.{name} by name select * from published.{name}")


def _columns(
    connection: duckdb.DuckDBPyConnection, catalog: str, schema: str, table: str
) -> list[tuple[str, str, bool]]:
    return connection.execute(
        "select column_name, data_type, is_nullable from duckdb_columns()"
        " where database_name = ? and schema_name = ? and table_name = ? order by column_index",
        [catalog, schema, table],
    ).fetchall()


def _tables(connection: duckdb.DuckDBPyConnection, catalog: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """The tables of an attached version, each with what tells it from another of the same name: where it differs,
    rows cannot be taken from one to the other as they are."""
    rows = connection.execute(
        f"""
        select schema_name, table_name, table_uuid::varchar
        from ducklake_table_info('{catalog}')
        inner join __ducklake_metadata_{catalog}.ducklake_schema using (schema_id)
        """
    ).fetchall()
    return {
        (schema, table): (identity, *map(str, _columns(connection, catalog, schema, table)))
        for schema, table, identity in rows
    }


def publish(connection: duckdb.DuckDBPyConnection, settings: Settings, fingerprint: str) -> int:
    """Make the head, which has passed its tests, the version that readers get; its snapshot id.

    ``fingerprint`` is that of the code which made it, taken before it was read.
    """
    bookkeeping.begin_statistics(connection)
    return _publish(connection, settings, last_processed(connection), fingerprint)


def publish_again(connection: duckdb.DuckDBPyConnection, settings: Settings) -> int:
    """Make the head, which differs from the published version only in its files, the version that readers get.

    It says of itself what that version said: the loads it holds and the code that made it. Returns its snapshot id.
    """
    release = published(connection)
    if release is None:
        raise ValueError("nothing is published in this lake yet")
    return _publish(connection, settings, release.last_load_seq, release.code_fingerprint)


def _publish(connection: duckdb.DuckDBPyConnection, settings: Settings, last_load_seq: int, fingerprint: str) -> int:
    version = head(connection)
    connection.execute("begin")
    connection.execute(
        "insert into lake.observability.releases values (?, now()::timestamp, ?, ?)",
        [version, last_load_seq, fingerprint],
    )
    note(connection, "", "published", f"version {version}")
    connection.execute("commit")
    write_connect_script(settings, version)
    return version


def connect_script(settings: Settings) -> Path:
    """The script that long-lived SQL tools run on connecting; publishing replaces it whole."""
    return settings.state_dir / "connect.sql"


def write_connect_script(settings: Settings, version: int) -> None:
    """Rewrite the script by rename, so that nobody reads half of it. Holds no credentials."""
    statements = [f"LOAD {lake.quoted(str(lake.extension_file(name)))};" for name in lake.extensions(settings)]
    statements += [f"{lake.attach_statement(settings, version)};", f"{lake.KEEP_ROWS};"]
    path = connect_script(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(f"-- The published version {version} of this lake, read-only.\n" + "\n".join(statements) + "\n")
    draft.replace(path)
