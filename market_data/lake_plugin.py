"""How dbt opens the lake: the dbt-duckdb plugin named in profiles.yml.

    dbt build|run|snapshot ──> writers' lock ──> ATTACH lake (head) ──> restore what a failed run left
                                   │                                        │
                                   │            raw.main.<feed>, <── enter new ledger entries
                                   │            raw.main.build_window
                                   └─ dbt test and the rest: the same lock, nothing entered

Plain dbt publishes nothing: `mdp build` and `mdp publish` do (market_data/publishing.py).
"""

from __future__ import annotations

from typing import Any

import duckdb
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.flags import get_flags
from dbt_common.invocation import get_invocation_id

from loaders.registry import Feed, load_registry
from loaders.settings import Settings
from market_data import bookkeeping, lake, lock, publishing

WRITING_COMMANDS = {"build", "run", "snapshot", "seed"}

ENVELOPE = (
    "payload blob, feed varchar, source varchar, source_partition integer, source_position bigint,"
    ' source_time timestamp_ns, headers struct("key" varchar, "value" blob)[], schema_version varchar,'
    " instrument varchar, document varchar, loaded_at timestamp_ns, load_id varchar, __file varchar"
)


class Plugin(BasePlugin):
    """Attaches ``lake``, ``raw`` and ``scratch``, and enters what the raw zone has that the lake has not."""

    def initialize(self, plugin_config: dict[str, Any]) -> None:
        self.settings = Settings.from_env()

    def configure_connection(self, conn: duckdb.DuckDBPyConnection) -> None:
        """Called once, for the process's one DuckDB connection."""
        if not lock.is_held(self.settings):  # mdp holds it when it runs dbt; plain dbt keeps it to its end
            lock.acquire(self.settings)
        lake.make_places(self.settings)
        lake.prepare(conn, self.settings)
        bookkeeping.create_tables(conn)
        command = getattr(get_flags(), "WHICH", None)
        if command in WRITING_COMMANDS:
            publishing.restore_if_unfinished(conn, self.settings)
            bookkeeping.enter_loads(conn, self.settings)
            publishing.note(conn, get_invocation_id(), "started", f"dbt {command}")
        conn.execute("attach ':memory:' as raw")
        open_window(conn, self.settings)
        conn.execute(f"attach {lake.quoted(str(self.settings.state_dir / publishing.SCRATCH))} as scratch")
        conn.execute("create schema if not exists scratch.staging")

    def configure_cursor(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Called for each of dbt's cursors: unqualified names are the lake's."""
        cursor.execute(f"use {lake.ALIAS}")
        cursor.execute("set TimeZone = 'UTC'")


def open_window(conn: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Close the build's window at the last load entered, and give each feed an empty, typed relation."""
    zone = settings.raw + "/"
    release = publishing.published(conn)
    conn.execute(
        "create table raw.main.build_window (last_load_seq bigint, published_load_seq bigint, raw_zone varchar)"
    )
    conn.execute(
        "insert into raw.main.build_window values (?, ?, ?)",
        [publishing.last_load_seq(conn), release.last_load_seq if release else 0, zone],
    )
    for feed in load_registry().values():
        name = '"' + feed.name.replace('"', '""') + '"'
        nothing = '"' + feed.name.replace('"', '""') + '__nothing"'
        conn.execute(f"create table raw.main.{nothing} ({columns_of(feed)})")
        conn.execute(
            f"create view raw.main.{name} as"
            f" select * exclude (__file), null::bigint as load_seq from raw.main.{nothing}"
        )


def columns_of(feed: Feed) -> str:
    """The raw columns of a feed: for CSV the fields of its format, all text, then payload and envelope."""
    fields = "".join(f'"{name}" varchar, ' for name in feed.fields) if feed.format == "csv" else "key blob, "
    return fields + ENVELOPE
