"""What all connections that the project opens to a lake share."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from loaders.settings import Settings
from market_data import bookkeeping, lake, lake_plugin, publishing

NOWHERE = Settings(raw="raw", lake="lake.sqlite", lake_data="lake")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(raw=str(tmp_path / "raw"), lake=str(tmp_path / "lake.sqlite"), lake_data=str(tmp_path / "lake"))


def test_the_extensions_are_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a lake may need: the tests' own connections do not look (tests/conftest.py)."""
    monkeypatch.setattr(duckdb, "connect", inspect.unwrap(duckdb.connect))
    with duckdb.connect() as connection:
        assert connection.execute("select current_setting('allow_unsigned_extensions')").fetchone() == (False,)
        needed = {*lake.extensions(NOWHERE), *lake.extensions(replace(NOWHERE, lake="postgres:", raw="s3://raw"))}
        for name in needed:
            connection.execute(f"load '{lake.extension_file(name)}'")
        loaded = "select extension_name from duckdb_extensions() where loaded and install_mode != 'STATICALLY_LINKED'"
        assert {name for (name,) in connection.execute(loaded).fetchall()} == needed


def test_no_connection_plans_an_asof_join_as_a_loop(settings: Settings) -> None:
    """Nor does a cursor, as dbt uses them."""
    asked = "select current_setting('asof_loop_join_threshold')"
    with lake.open_for_writing(settings) as head:
        assert head.cursor().execute(asked).fetchone() == (0,)
    with lake.open_version(settings, None) as reader:
        assert reader.execute(asked).fetchone() == (0,)


def test_no_connection_loses_rows_whose_place_in_an_order_is_null(settings: Settings) -> None:
    asked = """
        select n from lake.main.numbers qualify row_number() over (order by nullif(n % 3, 0) desc nulls last) <= 3
    """
    with lake.open_for_writing(settings) as head:
        head.execute("create table lake.main.numbers as select i::integer as n from range(1, 4) as numbers (i)")
        assert sorted(head.cursor().execute(asked).fetchall()) == [(1,), (2,), (3,)]
    with lake.open_version(settings, None) as reader:
        assert sorted(reader.execute(asked).fetchall()) == [(1,), (2,), (3,)]


def test_a_build_reads_what_its_window_holds() -> None:
    """Not the backlog behind it, of which later slices read theirs; without a mark, what was published is read too."""
    with duckdb.connect() as connection:
        connection.execute("attach ':memory:' as lake; create schema lake.observability; attach ':memory:' as raw")
        connection.execute("create table lake.observability.loads (load_seq bigint, outcome varchar, records bigint)")
        connection.execute(
            "insert into lake.observability.loads values"
            " (1, 'loaded', 1), (2, 'failed', 10), (3, 'loaded', 100), (4, 'loaded', 1000), (5, 'loaded', 10000)"
        )
        connection.execute("create table raw.main.build_window as select 4 as last_load_seq, 1 as published_load_seq")
        assert lake_plugin.records_to_read(connection, False) == 1100
        assert lake_plugin.records_to_read(connection, True) == 1101


@pytest.mark.parametrize(
    ("records", "memory", "bound"),
    [
        (publishing.SLICE_RECORDS, None, publishing.SLICE_MEMORY),
        (publishing.SLICE_RECORDS, 4 * 10**9, publishing.SLICE_MEMORY),
        (publishing.SLICE_RECORDS, 10**9, 10**9),
        (publishing.SLICE_RECORDS + 1, 4 * 10**9, 4 * 10**9),
    ],
)
def test_a_slice_takes_no_more_memory_than_it_needs(records: int, memory: int | None, bound: int) -> None:
    with duckdb.connect() as connection, duckdb.connect() as other:
        other.execute(f"set memory_limit = '{bound} B'")
        lake_plugin.suit(connection, replace(NOWHERE, memory=memory), records)
        asked = "select current_setting('memory_limit')"
        assert connection.execute(asked).fetchone() == other.execute(asked).fetchone()


def test_a_long_build_after_a_slice_takes_what_the_machine_has() -> None:
    with duckdb.connect() as connection:
        asked = "select current_setting('memory_limit')"
        before = connection.execute(asked).fetchone()
        lake_plugin.suit(connection, NOWHERE, 1)
        assert connection.execute(asked).fetchone() != before
        lake_plugin.suit(connection, NOWHERE, publishing.SLICE_RECORDS + 1)
        assert connection.execute(asked).fetchone() == before


def test_a_lake_that_is_there_writes_its_next_files_as_a_new_one(settings: Settings) -> None:
    with lake.open_for_writing(settings) as head:
        bookkeeping.create_tables(head)
        head.execute(
            "call lake.set_option('parquet_compression', 'snappy'); call lake.set_option('parquet_version', '1')"
        )
        bookkeeping.create_tables(head)
        head.execute("create table lake.main.numbers as select n from range(10000) as numbers (n)")
        (file,) = Path(settings.lake_data).rglob("*.parquet")
        written = "select distinct compression, encodings from parquet_metadata(?)"
        assert head.execute(written, [str(file)]).fetchall() == [("ZSTD", "DELTA_BINARY_PACKED")]


COLUMNS = """
    number integer not null, name varchar, size double, names varchar[], seen_at timestamp_ns, is_so boolean,
    bytes blob, place struct(load varchar, position bigint), levels struct(side varchar, price double)[], never date
"""
ROWS = """
    select
        n + {first}, if({first} > 0, 'x' || n, null), n / 2, ['a'], make_timestamp_ns(n), n > 1, 'ab'::blob,
        {{'load': 'l', 'position': n}}, [{{'side': 'bid', 'price': n / 3}}], null
    from range(5) as numbers (n)
"""


@pytest.mark.parametrize("limit", [0, 10])
def test_begun_statistics_become_those_of_any_table(settings: Settings, limit: int) -> None:
    """A table that had no row when they were begun ends with the same as one of which they never were."""
    with lake.open_for_writing(settings) as head:
        head.execute(f"call lake.set_option('data_inlining_row_limit', {limit})")
        head.execute(f"create table lake.main.begun ({COLUMNS})")
        bookkeeping.begin_statistics(head)
        head.execute(f"create table lake.main.other ({COLUMNS})")
        for first in (0, 100):
            for table in ("begun", "other"):
                head.execute(f"insert into lake.main.{table} {ROWS.format(first=first)}")
            assert statistics(head, "begun") == statistics(head, "other")
        assert len(statistics(head, "begun")) == 12
        bookkeeping.begin_statistics(head)
        assert statistics(head, "begun") == statistics(head, "other"), "and stay as they are"


def statistics(connection: duckdb.DuckDBPyConnection, table: str) -> list[tuple[object, ...]]:
    of_table = f"(select table_id from __ducklake_metadata_lake.ducklake_table where table_name = '{table}')"
    return connection.execute(
        f"""
        select whole.* exclude (table_id), columns.* exclude (table_id)
        from __ducklake_metadata_lake.ducklake_table_stats as whole
        inner join __ducklake_metadata_lake.ducklake_table_column_stats as columns using (table_id)
        where table_id = {of_table}
        order by column_id
        """
    ).fetchall()


def test_a_table_without_rows_is_planned_without_asking_for_each_of_its_columns(settings: Settings) -> None:
    with lake.open_for_writing(settings) as head:
        head.execute(f"create table lake.main.nothing ({COLUMNS})")
        before = questions(head)
        bookkeeping.begin_statistics(head)
        assert questions(head) < before / 4


def questions(connection: duckdb.DuckDBPyConnection) -> int:
    """How often the catalog is asked to plan a query of a table."""
    query = "explain select * from lake.main.nothing as a inner join lake.main.nothing as b using (number, name, size)"
    connection.execute(query)
    connection.execute("call truncate_duckdb_logs()")
    connection.execute("call enable_logging(level = 'debug')")
    connection.execute(query)
    connection.execute("call disable_logging()")
    row = connection.execute("select count(*) from duckdb_logs where type = 'QueryLog'").fetchone()
    return int(row[0]) if row else 0
