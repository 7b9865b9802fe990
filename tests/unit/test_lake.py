"""What all connections that the project opens to a lake share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from loaders.settings import Settings
from market_data import lake, lake_plugin, publishing

NOWHERE = Settings(raw="raw", lake="lake.sqlite", lake_data="lake")


def test_no_connection_plans_an_asof_join_as_a_loop(tmp_path: Path) -> None:
    """Nor does a cursor, as dbt uses them."""
    settings = Settings(raw=str(tmp_path / "raw"), lake=str(tmp_path / "lake.sqlite"), lake_data=str(tmp_path / "lake"))
    asked = "select current_setting('asof_loop_join_threshold')"
    with lake.open_for_writing(settings) as head:
        assert head.cursor().execute(asked).fetchone() == (0,)
    with lake.open_version(settings, None) as reader:
        assert reader.execute(asked).fetchone() == (0,)


def test_no_connection_loses_rows_whose_place_in_an_order_is_null(tmp_path: Path) -> None:
    settings = Settings(raw=str(tmp_path / "raw"), lake=str(tmp_path / "lake.sqlite"), lake_data=str(tmp_path / "lake"))
    asked = """
        select n from (values (1), (2), (3)) as numbers (n)
        qualify row_number() over (order by nullif(n % 3, 0) desc nulls last) <= 3
    """
    with lake.open_for_writing(settings) as head:
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
