"""How dbt opens the lake: the dbt-duckdb plugin named in profiles.yml.

    dbt build|run|snapshot ──> writers' lock ──> ATTACH lake (head) ──> restore what a failed run left
                                   │                                        │
                                   │            raw.main.<feed>, <── enter new ledger entries
                                   │            build_window, progress
                                   └─ dbt test and the rest: the same lock, nothing entered

Plain dbt publishes nothing: `mdp build` and `mdp publish` do (market_data/publishing.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.flags import get_flags
from dbt_common.invocation import get_invocation_id

from loaders.registry import Feed, load_registry
from loaders.settings import Settings
from market_data import bookkeeping, lake, lock, publishing

SMALL_RECORDS = 300_000
"""Up to so many records to read, one thread is faster than many, which would mostly wait for each other."""

WRITING_COMMANDS = {"build", "run", "snapshot", "seed"}
NAMED_IN_FULL = WRITING_COMMANDS | {"test"}
"""Commands that run the project's own SQL alone, where dbt names the database: a default one would be looked up for
each node, after each new table in the whole catalog. For what people ask with `dbt show`, the lake is the default."""

ENVELOPE = (
    "payload blob, feed varchar, source varchar, source_partition integer, source_position bigint,"
    ' source_time timestamp_ns, headers struct("key" varchar, "value" blob)[], schema_version varchar,'
    " instrument varchar, document varchar, loaded_at timestamp_ns, load_id varchar, __file varchar"
)


class Plugin(BasePlugin):
    """Attaches ``lake``, ``raw`` and ``scratch``, and enters what the raw zone has that the lake has not."""

    def initialize(self, plugin_config: dict[str, Any]) -> None:
        self.settings = Settings.from_env()
        self._begun: str | None = None

    def configure_connection(self, conn: duckdb.DuckDBPyConnection) -> None:
        """Called once, for the process's one DuckDB connection."""
        lake.make_places(self.settings)
        lake.prepare(conn, self.settings)
        conn.execute("attach ':memory:' as raw")
        for feed in load_registry().values():
            name, nothing = lake.identifier(feed.name), lake.identifier(f"{feed.name}__nothing")
            conn.execute(f"create table raw.main.{nothing} ({columns_of(feed)})")
            conn.execute(
                f"create view raw.main.{name} as"
                f" select * exclude (__file), null::bigint as load_seq from raw.main.{nothing}"
            )

    def configure_cursor(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Called for each of dbt's cursors, of which every model and every test has one."""
        if getattr(get_flags(), "WHICH", None) not in NAMED_IN_FULL:
            cursor.execute(f"use {lake.ALIAS}")
        cursor.execute("set TimeZone = 'UTC'")
        if self._begun != get_invocation_id():  # a process may run dbt many times over one connection
            self._begin(cursor)
            self._begun = get_invocation_id()

    def _begin(self, cursor: duckdb.DuckDBPyConnection) -> None:
        is_plain = not lock.is_held(self.settings)  # mdp holds it when it runs dbt; plain dbt keeps it to its end
        if is_plain:
            lock.acquire(self.settings)
            bookkeeping.create_tables(cursor)
        command = getattr(get_flags(), "WHICH", None)
        if command in WRITING_COMMANDS:
            if is_plain:  # mdp has done both, and chosen by them what to run
                publishing.restore_if_unfinished(cursor, self.settings)
                bookkeeping.enter_loads(cursor, self.settings)
            publishing.note(cursor, get_invocation_id(), "started", f"dbt {command}")
        is_anew = command not in WRITING_COMMANDS or getattr(get_flags(), "FULL_REFRESH", False)
        open_window(cursor, self.settings)
        suit(cursor, self.settings, records_to_read(cursor, is_anew))
        cursor.execute(f"attach {lake.quoted(str(self.settings.state_dir / publishing.SCRATCH))} as scratch")
        cursor.execute("create schema if not exists scratch.staging")


def suit(connection: duckdb.DuckDBPyConnection, settings: Settings, records: int) -> None:
    """Take the threads and the memory that suit so many records."""
    connection.execute("set threads = 1" if records < SMALL_RECORDS else "reset threads")
    is_slice = records <= publishing.SLICE_RECORDS
    lake.bound_memory(connection, settings, publishing.SLICE_MEMORY if is_slice else None)


def records_to_read(connection: duckdb.DuckDBPyConnection, is_anew: bool) -> int:
    """How many records the build's window holds: all, or those that are not published."""
    since = "0" if is_anew else "(select published_load_seq from raw.main.build_window)"
    return bookkeeping.scalar(
        connection,
        f"select sum(records) from lake.observability.loads where outcome = 'loaded' and load_seq > {since}"
        " and load_seq <= (select last_load_seq from raw.main.build_window)",
    )


@contextmanager
def reading_up_to(load_seq: int) -> Iterator[None]:
    """Let the builds of this process read no load beyond one."""
    global _last_load_seq  # noqa: PLW0603 - dbt makes the plugin, and passes nothing on to it
    _last_load_seq = load_seq
    try:
        yield
    finally:
        _last_load_seq = None


_last_load_seq: int | None = None


def open_window(conn: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Close the build's window at the last load that it reads, and keep the models' marks as they are now."""
    release = publishing.published(conn)
    conn.execute(
        "create or replace table raw.main.build_window as"
        " select ?::bigint as last_load_seq, ?::bigint as published_load_seq, ?::varchar as raw_zone",
        [_last_load_seq or publishing.last_load_seq(conn), release.last_load_seq if release else 0, settings.raw + "/"],
    )
    conn.execute("create or replace table raw.main.progress as select model, load_seq from lake.observability.progress")


def columns_of(feed: Feed) -> str:
    """The raw columns of a feed: for CSV the fields of its format, all text, then payload and envelope."""
    fields = "".join(f'"{name}" varchar, ' for name in feed.fields) if feed.format == "csv" else "key blob, "
    return fields + ENVELOPE
