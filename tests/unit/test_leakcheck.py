"""Leak checks over a lake of a few tables, written without a build: which tables are cut, when, and of what is told."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pytest

from loaders.settings import Settings
from market_data import lake, leakcheck

TABLES = """
create schema lake.research;
create schema lake.canonical;

-- Of 60 instruments each has a price that is corrected forty times in two years, and that of S7 once, within a minute.
create table lake.research.bars_1d as
with begins as (
    select 'S' || i as symbol, n, timestamp_ns '2023-01-01' + to_hours((n * 431 + i)::bigint) as known_from
    from range(60) as instruments (i), range(41) as versions (n)
    where i != 7
    union all
    select 'S7', n, timestamp_ns '2024-02-01 12:00' + to_minutes(n::bigint) from range(2) as versions (n)
)
select
    symbol,
    date '2022-12-30' as session_date,
    100.0 + n as close,
    known_from,
    lead(known_from) over (partition by symbol order by known_from) as known_to
from begins;

create table lake.research.macro_series as
select series_id, 100.0 + n as value, known_from, lead(known_from) over (order by n) as known_to
from (values
    ('GDP', 0, timestamp_ns '2024-01-27'), ('GDP', 1, timestamp_ns '2024-02-28')
) as versions (series_id, n, known_from);

create table lake.canonical.quarantine as select 'bad' as reason;
create macro lake.research.newest(of_table) as table
select * from query_table('lake.research.' || lower(of_table)) where known_to is null;
"""
BETWEEN = dt.datetime(2024, 2, 1)
"""GDP's first value is known, and its second is not yet."""
Check = Callable[..., leakcheck.Report]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """`check(sql, *known_at)` on a lake with the tables above."""
    root = tmp_path_factory.mktemp("leaks")
    settings = Settings(raw=str(root / "raw"), lake=str(root / "lake.sqlite"), lake_data=str(root / "lake"))
    with lake.open_for_writing(settings) as head:
        head.execute(TABLES)
        ((version,),) = head.execute("select max(snapshot_id) from ducklake_snapshots('lake')").fetchall()

    def checked(sql: str, *known_at: dt.datetime) -> leakcheck.Report:
        return leakcheck.check(settings, version, leakcheck.Query.read(sql), known_at=known_at)

    return checked


@pytest.mark.parametrize(
    ("table", "beside"),
    [
        ("RESEARCH.MACRO_SERIES", "RESEARCH.BARS_1D"),
        ("RESEARCH.MACRO_SERIES", "research.bars_1d"),
        ('"Research"."Macro_Series"', "lake.research.bars_1d"),
        ("Research.Newest('Macro_Series')", "research.bars_1d"),
    ],
)
def test_names_are_the_same_in_any_case(check: Check, table: str, beside: str) -> None:
    """The table that leaks, beside one that does not."""
    sql = f"""
        select value, (select count(*) from {beside} where known_from <= $known_at) as n
        from {table} where known_to is null
    """
    report = check(sql, BETWEEN)
    assert report.tables == ("research.bars_1d", "research.macro_series")
    assert {leak.inputs for leak in report.leaks} == {("research.macro_series",)}


def test_what_a_query_does_not_name_is_cut_too(check: Check) -> None:
    sql = """
        select value, (select count(*) from research.bars_1d where known_from <= $known_at) as n
        from query_table('research.' || 'macro' || '_series') where known_to is null
    """
    report = check(sql, BETWEEN)
    assert report.tables == ("research.bars_1d",)
    assert {leak.inputs for leak in report.leaks} == {()}


def test_what_shows_only_the_present_is_named_in_any_case(check: Check) -> None:
    sql = """
        select count(*) as n, (select count(*) from CANONICAL.Quarantine) as bad
        from Research.Bars_1d where known_from <= $known_at
    """
    report = check(sql, BETWEEN)
    assert (report.leaks, report.not_cut) == ([], ("canonical.quarantine",))


@pytest.mark.parametrize(
    "sql",
    [
        "-- leakcheck: key = symbol; time = had\n"
        "select SYMBOL, timestamp '2024-02-01 12:00:30' as had, close from research.bars_1d"
        " where symbol in ('S7', 'S' || '7') and known_to is null",
        "-- leakcheck: key = had; time = had\n"
        "select timestamp '2024-02-01 12:00:30' as had, close from research.bars_1d"
        " where symbol = 'S7' and known_to is null",
        "-- leakcheck: key = symbol; time = had\n"
        "select symbol, timestamp '2024-02-01 12:00:30' as had, close from research.bars_1d"
        " where symbol = 'S' || 7 and known_to is null",
    ],
    ids=["in both", "by its text", "by its answer"],
)
def test_a_leak_of_one_among_many_is_found(check: Check, sql: str) -> None:
    """It shows for half a minute, while others are corrected all year."""
    report = check(sql)
    assert [leak.differs for leak in report.leaks] == [{"close": (101.0, 100.0)}]
    assert len(report.known_at) <= leakcheck.SAMPLES
    # Some times are those of the others: what is said of one may be made of them.
    assert sum(time.date() != dt.date(2024, 2, 1) for time in report.known_at) >= 5


def test_the_end_of_a_version_is_no_leak_where_the_answer_is_versions(check: Check) -> None:
    """Its end is cut as those of the inputs are; by another name, or had at another time, it looks ahead."""

    def versions(time: str, end: str) -> leakcheck.Report:
        sql = f"-- leakcheck: key = series_id, known_from; time = {time}\nfrom research.macro_series select *, {end}"
        return check(sql, BETWEEN)

    report = versions("known_from", "value as same")
    assert (report.leaks, report.rows) == ([], 1)
    assert versions("known_from", "known_to as until").leaks
    assert versions("known_from + interval 1 hour", "value as same").leaks


@pytest.mark.parametrize(
    ("sql", "known_at", "message"),
    [
        (
            "from research.bars_1d where symbol = '' and known_from < $known_at",
            (),
            "the query answers no row of version",
        ),
        (
            "-- leakcheck: time = known_from\nselect symbol, known_from from research.bars_1d where symbol = 'S7'",
            (dt.datetime(2024, 1, 1),),
            r"none of its 2 rows was to be had at the times tried, 2024-01-01 .*; widen .* name later times with --at",
        ),
        (
            "-- leakcheck: time = had\nselect symbol, timestamp '2030-01-01' as had from research.bars_1d",
            (),
            "no version of its inputs began or ended after .*; name times with --at",
        ),
    ],
)
def test_a_check_that_compares_nothing_is_refused(
    check: Check, sql: str, known_at: tuple[dt.datetime, ...], message: str
) -> None:
    with pytest.raises(leakcheck.LeakCheckError, match=f"nothing was compared: {message}"):
        check(sql, *known_at)


def test_a_time_after_which_nothing_changed_is_refused(check: Check) -> None:
    """Nothing is cut there, so that any query would pass. The nanosecond before the last change still cuts it."""
    leaking = "-- leakcheck: time = known_from\nselect value, known_from, known_to as until from research.macro_series"
    last = dt.datetime(2024, 2, 28)
    for known_at in (last, last + dt.timedelta(days=900)):
        with pytest.raises(
            leakcheck.LeakCheckError, match=f"at {known_at} there is nothing to cut.* ended at {last}; "
        ):
            check(leaking, BETWEEN, known_at)
    assert check(leaking, last - dt.timedelta(microseconds=1)).leaks
