"""Daily research tables: what they answer as of a time, against NumPy, and against a warehouse that knows no more.

a world of day bars ── first deliveries, a build ── corrections and late news, a build ──> whole
    ├── Known(world, K) in NumPy ── equal to 1e-9 ── X_as_of(K)
    ├── only the facts known by K ── one build ──> cut ── equal ── X_as_of(K)
    └── mdp build --full-refresh ── equal
"""

from __future__ import annotations

import datetime as dt
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from worlds.days import EXAMPLE, FIRST, KINDS, MEMBER_ENDS, MINUTE, SESSIONS, Known, World, cut_days, draw_days
from worlds.reference import DAY, File
from worlds.warehouse import DAILY, Warehouse, differences, needless_versions, read_sorted

import market_data
from market_data import client, lake, leakcheck, releases
from market_data.build import build

SEED = 1
TABLES: dict[str, Callable[[Known], dict[Any, Any]]] = {
    "bars_1d_adjusted": Known.adjusted,
    "returns_1d": Known.returns,
    "volatility_1d": Known.volatility,
    "momentum_1d": Known.momentum,
    "liquidity_1d": Known.liquidity,
}


@dataclass
class Days:
    world: World
    warehouse: Warehouse
    counts: list[tuple[int, int]] = field(default_factory=list)
    """Rows of canonical.bars and returns_1d after the first build, one without daily tables, and the last."""

    def count(self) -> None:
        ((bars, returns),) = self.ask(
            "select (select count(*) from canonical.bars), (select count(*) from research.returns_1d)"
        )
        self.counts.append((bars, returns))

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        return self.warehouse.ask(query)


def iso(time: int) -> str:
    seconds, nanoseconds = divmod(time, 10**9)
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def load(warehouse: Warehouse, files: list[File]) -> None:
    for file in files:
        path = warehouse.root / "files" / str(len(list((warehouse.root / "files").glob("*")))) / file.name
        path.parent.mkdir(parents=True)
        path.write_bytes(file.body)
        outcome = warehouse.load(path, file.feed, iso(file.delivered_at or 0))
        assert outcome.status in ("loaded", "redelivered"), outcome.message


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    """Long enough for a year's estimates, which need four fifths of it."""
    return make_days(tmp_path_factory.mktemp("days"), count=215)


@pytest.fixture(scope="module")
def more_days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    """Long enough for a year's momentum too."""
    return make_days(tmp_path_factory.mktemp("more_days"), count=285)


def make_days(root: Path, count: int) -> Days:
    """Built twice: a third of the deliveries, whichever they are, comes later, and the daily tables last."""
    found = Days(draw_days(SEED, count), Warehouse(root))
    files = list(found.world.files)
    random.Random(SEED).shuffle(files)
    load(found.warehouse, files[: len(files) * 2 // 3])
    found.warehouse.build()
    found.count()
    load(found.warehouse, files[len(files) * 2 // 3 :])
    build(found.warehouse.settings, leave=600)
    found.count()
    assert found.warehouse.build().built, "the daily tables were behind"
    found.count()
    return found


STEPS = (-1, 0, MINUTE)
"""Just before something became known, at that time, and once its cell of the grid is over."""


def time_of(world: World, kind: str) -> int:
    """A time at which something of a kind became known, amid others like it."""
    times = sorted(set(world.kinds[kind]))
    return times[len(times) // 2]


def some_times(world: World) -> list[int]:
    """A third of the kinds, in each of the three places; and long after all."""
    chosen = enumerate(KINDS[::3])
    return [time_of(world, kind) + STEPS[number % 3] for number, kind in chosen] + [world.known_times()[-1] + 9 * DAY]


def test_every_fact_of_the_world_has_a_kind(days: Days) -> None:
    world = days.world
    facts = [*world.bars.values(), *world.splits.values(), *world.dividends.values(), *world.vintages.values()]
    assert {known for versions in facts for known, *_ in versions} <= set(world.known_times())
    assert set(world.kinds) == set(KINDS)


def test_daily_tables_may_stay_behind_and_catch_up(days: Days) -> None:
    (bars, returns), (more_bars, as_before), (all_bars, all_returns) = days.counts
    assert (as_before, all_bars) == (returns, more_bars)
    assert more_bars > bars and all_returns > returns
    version = client.published_version(days.warehouse.settings)
    assert days.warehouse.build().version == version, "nothing is left to do"


@pytest.mark.parametrize("table", TABLES)
def test_tables_answer_what_the_formulas_say(days: Days, table: str) -> None:
    check_table(days, table, some_times(days.world), every=1 if table in ("bars_1d_adjusted", "returns_1d") else 5)


@pytest.mark.long
@pytest.mark.parametrize("table", TABLES)
def test_tables_answer_so_around_every_kind_of_revision(more_days: Days, table: str) -> None:
    times = [time_of(more_days.world, kind) + step for kind in KINDS for step in STEPS]
    check_table(more_days, table, times, every=2)


def check_table(days: Days, table: str, times: list[int], every: int) -> None:
    compared = 0
    with days.warehouse.reader() as connection:
        for time in times:
            known = Known(days.world, time, every)
            expected = TABLES[table](known)
            columns = list(next(iter(expected.values())))
            rows = connection.execute(
                f"select instrument_id, session_date, {', '.join(columns)} from research.{table}_as_of('{iso(time)}')"
                " where venue = 'us_equities'"
            ).fetchall()
            found = {row[:2]: dict(zip(columns, row[2:], strict=True)) for row in rows}
            days_there = {(one, day.session.date) for one, chain in known.days.items() for day in chain}
            assert set(found) == days_there, f"{table} as of {iso(time)}"
            check(table, found, expected, time)
            compared += len(expected)
    assert compared > 1_000


def check(table: str, found: dict[Any, Any], expected: dict[Any, Any], time: int) -> None:
    wrong = [
        f"{table} as of {iso(time)}, {key}: {column} is {found[key][column]!r}, expected {value!r}"
        for key, row in expected.items()
        for column, value in row.items()
        if not close(found[key][column], value)
    ]
    assert not wrong, "\n".join(wrong[:5])


def close(a: Any, b: Any) -> bool:
    """Equal to 1e-9 relative; what is a difference of numbers near 1 to 1e-12."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return bool(a == b)


def test_decisions_see_what_was_known(days: Days) -> None:
    time = days.world.known_times()[-1]
    expected = Known(days.world, time).decisions()
    columns = list(next(iter(expected.values())))
    rows = days.ask(
        f"select instrument_id, session_date, {', '.join(columns)}"
        f" from research.features_1d_at_decision_as_of('{iso(time)}') where venue = 'us_equities'"
    )
    found = {row[:2]: dict(zip(columns, row[2:], strict=True)) for row in rows}
    assert set(found) == set(expected)
    check("features_1d_at_decision", found, expected, time)
    # Bars of the next morning: at a session's decision the newest is that of the session before.
    assert all(date > row["feature_session_date"] for (_, date), row in found.items())


def test_the_top_is_chosen_once_a_month(days: Days) -> None:
    time = days.world.known_times()[-1]
    rows = days.ask(
        f"select instrument_id, valid_from, valid_to from research.universe_as_of('{iso(time)}')"
        " where universe = 'top_500'"
    )
    expected = Known(days.world, time).universe()
    newest = max(start for _, start, _ in expected)
    assert {row[:2] for row in rows} == {row[:2] for row in expected}
    assert {row[2] for row in rows if row[1] == newest} == {None}, "an end that lies ahead is not known"
    assert len({row[1] for row in rows}) > 8
    ahead = days.ask("select instrument_id, valid_from, valid_to from research.universe where universe = 'top_500'")
    assert expected <= set(ahead)


def test_the_published_example(days: Days) -> None:
    """The adjusted closes that the contract gives for four raw ones."""
    fifth = SESSIONS[FIRST + 4]
    rows = days.ask(
        f"select close, round(adj_close, 4) from research.bars_1d_adjusted_as_of('{iso(fifth.close)}')"
        " where symbol = 'EXAM' order by session_date"
    )
    assert rows == list(zip(EXAMPLE, (23.4197, 24.0726, 24.88, 24.53), strict=True))


def test_a_doubled_split_is_one_at_the_later_date(days: Days) -> None:
    rows = days.ask(
        "select session_date::varchar, split_ratio, not_applied from versioned.int_bars_1d__chained"
        " where symbol = 'SHOP' and known_to is null and (split_ratio != 1 or len(not_applied) > 0) order by all"
    )
    assert [(date, ratio, len(refused)) for date, ratio, refused in rows] == [
        ("2022-06-22", 1, 1),
        ("2022-06-29", 10, 0),
    ]
    reported = days.ask("select symbol, action_type, reason from observability.actions_not_applied order by all")
    assert reported == [
        ("PLAIN", "split", "an equal split follows within 10 sessions"),
        ("SHOP", "split", "an equal split follows within 10 sessions"),
        ("WRONG", "dividend", "not below the close before"),
        ("WRONG", "dividend", "paid in CAD, priced in USD"),
        ("WRONG", "split", "the price did not change by it"),
    ]


def test_a_rename_makes_one_series_once_it_is_known(days: Days) -> None:
    rename = days.world.renames[0]
    series = "select distinct instrument_id from research.returns_1d_as_of('{}') where symbol = 'NEW'"
    assert days.ask(series.format(iso(rename.known_from - 1))) == [("us_equities:NEW",)]
    assert days.ask(series.format(iso(rename.known_from + MINUTE))) == [("us_equities:OLD",)]
    ((gap,),) = days.ask(
        "select gap_sessions from research.returns_1d where instrument_id = 'us_equities:OLD'"
        f" and session_date = '{rename.date}' and known_to is null"
    )
    assert gap == 1


def test_the_client_names_an_instrument_as_it_was_called(days: Days) -> None:
    renamed = days.world.renames[1].known_from
    with market_data.connect(days.warehouse.settings) as md:
        called = [
            md.instruments(["FB", "META"], known_at=iso(time)).arrow.select(["instrument_id", "symbol"]).to_pylist()
            for time in (renamed - 1, renamed)
        ]
    assert called == [[{"instrument_id": "us_equities:FB", "symbol": symbol}] for symbol in ("FB", "META")]


def test_a_leak_through_a_name_is_found(days: Days) -> None:
    """A query that asks whom a listing means as known at the end, for rows that were to be had before."""
    rename = days.world.renames[0]
    sql = """
        -- leakcheck: key = session_date; time = had
        select session_date, instrument_id, (session_date + 2)::timestamp as had
        from research.bars_1d_as_of('{}') where symbol = 'NEW' and session_date < '2022-09-01'
    """
    before = dt.datetime.fromtimestamp(rename.known_from / 10**9, dt.UTC).replace(tzinfo=None) - dt.timedelta(minutes=1)
    version = client.published_version(days.warehouse.settings)
    looks_ahead = leakcheck.Query.read(sql.format("2100-01-01"))
    report = leakcheck.check(days.warehouse.settings, version, looks_ahead, known_at=[before])
    assert report.leaks and {leak.inputs for leak in report.leaks} == {("versioned.int_listing_spans",)}
    assert report.leaks[0].differs == {"instrument_id": ("us_equities:OLD", "us_equities:NEW")}
    honest = leakcheck.Query.read(sql.format(before))
    assert leakcheck.check(days.warehouse.settings, version, honest, known_at=[before]).leaks == []


def test_a_leak_through_a_view_of_the_present_is_found(days: Days) -> None:
    """That SHOP's first split is not applied is known once the second is there; the view says it of all days."""
    sql = """
        -- leakcheck: key = symbol, ex_date; time = had
        select symbol, ex_date, reason, (ex_date + 2)::timestamp as had
        from observability.actions_not_applied
        semi join research.bars_1d using (symbol)
    """
    version = client.published_version(days.warehouse.settings)
    between = dt.datetime(2022, 6, 25)
    report = leakcheck.check(days.warehouse.settings, version, leakcheck.Query.read(sql), known_at=[between])
    assert [(leak.row["symbol"], list(leak.differs)) for leak in report.leaks] == [("SHOP", ["reason"])]
    assert report.leaks[0].inputs == ("versioned.int_bars_1d__chained",) and report.not_cut == ()


def test_a_model_is_checked_by_its_own_inputs(days: Days) -> None:
    """All of its rows, although the last build made only some of them."""
    settings = days.warehouse.settings
    asked = leakcheck.Query.read(leakcheck.find(settings, "momentum_1d"), time="known_from")
    known = days.ask("select quantile_disc(known_from, 0.5) from research.momentum_1d")[0][0]
    report = leakcheck.check(settings, client.published_version(settings), asked, known_at=[known])
    assert {"research.universe", "versioned.int_momentum_1d"} <= {*report.tables}
    ((rows,),) = days.ask(f"select count(*) from research.momentum_1d where known_from <= '{known}'")
    assert report.rows == rows > 0
    assert [leakcheck.told(leak) for leak in report.leaks] == []


def test_meta_is_one_series_across_its_tickers(days: Days) -> None:
    """The vendor dates the change to Saturday the 11th; it traded as META from the 9th."""
    after = (
        "select session_date::varchar, symbol, gap_sessions from research.returns_1d_as_of('{}') where {} order by 1"
    )
    rows = days.ask(after.format("2022-06-15", "instrument_id = 'us_equities:FB'"))
    assert rows[-4:] == [
        ("2022-06-08", "FB", 1),
        ("2022-06-09", "META", 1),
        ("2022-06-10", "META", 1),
        ("2022-06-13", "META", 1),
    ]
    assert days.ask(after.format("2022-06-11 03:59", "symbol = 'META'")) == [("2022-06-09", "META", None)]
    bars = days.ask(
        "select session_date::varchar, symbol, listing_id from research.bars_1d_as_of('2022-06-15')"
        " where instrument_id = 'us_equities:FB' order by 1"
    )
    assert bars[-4:] == [
        ("2022-06-08", "FB", "us_equities:FB"),
        ("2022-06-09", "META", "us_equities:META"),
        ("2022-06-10", "META", "us_equities:META"),
        ("2022-06-13", "META", "us_equities:META"),
    ]


@pytest.mark.long
def test_looking_up_follows_an_instrument_through_renames(days: Days) -> None:
    """Each decision gets what X_as_of says of its instrument then; the bars of a day alike from SQL and from Python."""
    meta = days.world.renames[1].known_from
    times = [meta + day * DAY + step for day in range(-6, 7) for step in (-1, 0, 12 * 3600 * 10**9)]
    times += [rename.known_from + step for rename in days.world.renames for step in (-1, 0, MINUTE)]
    asked = [(f"us_equities:{name}", time) for time in times for name in ("FB", "META", "OLD", "NEW")]
    decisions = pa.table(
        {
            "instrument_id": [instrument for instrument, _ in asked],
            "decision_time": pa.array([time for _, time in asked], pa.timestamp("ns")),
        }
    )
    newest = (
        "select {} from research.{}_as_of(make_timestamp_ns({})) where instrument_id = '{}' order by {} desc limit 1"
    )
    with market_data.connect(days.warehouse.settings) as md:

        def looked_up(columns: list[str]) -> list[tuple[Any, ...]]:
            table = md.features(decisions, columns).arrow
            return list(zip(*(table[column].to_pylist() for column in columns), strict=True))

        def as_known(table: str, columns: str, period: str) -> list[tuple[Any, ...]]:
            rows = (
                md._connection.execute(newest.format(columns, table, time, instrument, period)).fetchone()
                for instrument, time in asked
            )
            return [row or (None,) * len(columns.split(",")) for row in rows]

        daily = looked_up(["bars_1d.close", "bars_1d.symbol", "bars_1d.session_date"])
        minutes = looked_up(["bars_1m.close", "bars_1m.listing_id", "bars_1m.bar_start"])
        assert daily == as_known("bars_1d_adjusted", "close, symbol, session_date", "session_date")
        assert minutes == as_known("bars_1m", "close, listing_id, bar_start", "bar_start")
        # With a column that only the row by listing has, all are of that row.
        columns = ["bars_1d.close", "bars_1d.listing_id", "bars_1d.last_trade_at"]
        assert looked_up(columns) == as_known("bars_1d", "close, listing_id, last_trade_at", "session_date")
        md._connection.register("given", decisions)
        query = "select close, symbol, session_date from lake.research.point_in_time('given', 'bars_1d', {0}, null)"
        assert md._connection.execute(query.format("interval '0 minutes'")).fetchall() == daily
    found = {key: (day[1], minute[1]) for key, day, minute in zip(asked, daily, minutes, strict=True)}
    assert found["us_equities:FB", meta - 1] == ("FB", "us_equities:FB")
    assert found["us_equities:FB", meta + MINUTE] == ("META", "us_equities:META"), "it does not end with its first name"
    assert found["us_equities:META", meta - 1] == ("META", "us_equities:META"), "nobody knew better"
    assert found["us_equities:META", meta + MINUTE] == (None, None)


def test_an_index_member_is_whom_its_ticker_means_as_known(days: Days) -> None:
    """The file names NEW from a date on which it was called OLD; only the rename, once known, says so."""
    rename = days.world.renames[0]
    members = "select instrument_id from research.universe_as_of('{}') where universe = 'worlds' and symbol = 'NEW'"
    assert days.ask(members.format(iso(rename.known_from - 1))) == [("us_equities:NEW",)]
    assert days.ask(members.format(iso(rename.known_from + MINUTE))) == [("us_equities:OLD",)]
    assert days.ask("select symbol from observability.unresolved_members") == [("PLAIN",)]


@pytest.mark.parametrize("as_of", ["", "_as_of('2022-09-01')"])
def test_a_consumer_of_version_1_still_runs(days: Days, as_of: str) -> None:
    asked = "select instrument_id, session_date, return_simple, return_log, return_total, known_to from research.{}{}"
    one, two = (days.ask(asked.format(table, as_of) + " order by all") for table in ("returns_1d_v1", "returns_1d"))
    assert one == two and len(one) > 1_000
    columns = [name for name, *_ in days.ask(f"describe from research.returns_1d_v1{as_of}")]
    assert columns == [
        "instrument_id", "symbol", "venue", "currency", "session_date", "session_close", "return_simple", "return_log",
        "return_total", "known_from", "known_to",
    ]  # fmt: skip


def test_features_are_the_tables_joined(days: Days) -> None:
    """The view of versions, cut at K, is what the macro answers from the tables as of K."""
    time = time_of(days.world, "a member's end")
    with days.warehouse.reader() as connection:
        moment = f"'{iso(time)}'::timestamp_ns"
        known = f"known_from <= {moment} and (known_to is null or known_to > {moment})"
        rest = "* exclude (known_to)"
        view = read_sorted(connection, f"(select {rest} from research.features_1d where {known})")
        macro = read_sorted(connection, f"(select {rest} from research.features_1d_as_of('{iso(time)}'))")
    assert view.num_rows > 1_000
    assert {"open", "high", "low", "close", "volume", "vwap", "trade_count", "bar_source"} <= set(view.column_names)
    assert differences({"features_1d": view}, {"features_1d": macro}) == []


def quiet_instruments(world: World) -> set[str]:
    """Of which all was said once, before the days that it bears on."""
    facts = (world.bars, world.splits, world.dividends)
    loud = {ticker for kind in facts for (ticker, _), versions in kind.items() if len(versions) > 1}
    loud |= {ticker for rename in world.renames for ticker in (rename.old, rename.new, "OTHER")}
    loud |= {"SHOP"}  # one split takes the place of another
    return {f"us_equities:{ticker}" for ticker, _ in world.bars if ticker not in loud}


def test_a_version_says_something_new(days: Days) -> None:
    """What changed nothing made no version: of a row, and of the instruments that no news were about."""
    assert needless_versions(days.warehouse) == []
    quiet = quiet_instruments(days.world)
    assert "us_equities:EXAM" in quiet and len(quiet) > 1
    names = ", ".join(f"'{name}'" for name in sorted(quiet))
    of_others = {"momentum_1d", "features_1d"}  # ranks, and what shows them
    for table in [*(table for table in DAILY if table not in of_others), "bars_1d"]:
        ended = f"from research.{table} where instrument_id in ({names}) and known_to is not null"
        assert days.ask(ended) == [], table
    own = "select count(*) from versioned.int_momentum_1d where known_to is not null and instrument_id"
    assert days.ask(f"{own} in ({names})") == [(0,)] != days.ask(f"{own} not in ({names})")


def test_a_backfill_is_named_by_the_version_that_it_changed(days: Days) -> None:
    """Old decisions answer otherwise once bars from before them are loaded; `mdp releases` says of how many."""
    with lake.open_version(days.warehouse.settings, None) as connection:
        newest, before = releases.published(connection, 2)
    for table in ("features_1d_at_decision", "liquidity_1d"):
        name = f"research.{table}"
        now, then = (
            Counter(map(repr, days.warehouse.tables([name], version=one.version)[name].to_pylist()))
            for one in (newest, before)
        )
        came, went = (now - then).total(), (then - now).total()
        revised = min(came, went)
        assert revised > 100, "a third of the bars came later"
        assert newest.changes[name] == releases.Change(came - revised, revised, went - revised)
    assert newest.changes["research.universe"].added > 0
    assert "research.features_1d" not in newest.changes, "a view of those that are named"
    assert "canonical.instruments" not in newest.changes, "its loads were in the version before"


def compare_with_cut(days: Days, time: int, root: Path) -> None:
    cut = Warehouse(root)
    load(cut, cut_days(days.world, time))
    cut.build()
    with days.warehouse.reader() as whole, cut.reader() as less:
        for table in DAILY:
            asked = f"(from research.{table}_as_of('{iso(time)}'))"
            left, right = read_sorted(whole, asked), read_sorted(less, asked)
            assert differences({table: left}, {table: right}) == [], iso(time)
            assert left.num_rows > 10, table


def test_no_look_ahead(days: Days, tmp_path: Path) -> None:
    """Of all that a warehouse knows, X_as_of(K) shows what one that knows no more shows."""
    time = days.world.renames[0].known_from + MINUTE
    compare_with_cut(days, time, tmp_path)
    # What became known later could have been seen: a member's end, and wider quotes.
    end = "select valid_to from research.universe_as_of('{}') where universe = 'worlds' and symbol = 'PLAIN'"
    spreads = (
        "select quoted_spread_bps, effective_spread_bps from research.liquidity_1d_as_of('{}')"
        " where symbol = 'META' and session_date = '2022-06-09'"
    )
    last = days.world.known_times()[-1] + DAY
    assert (days.ask(end.format(iso(time))), days.ask(end.format(iso(last)))) == (
        [(None,)],
        [(SESSIONS[FIRST + MEMBER_ENDS].date,)],
    )
    (then,), (later,) = days.ask(spreads.format(iso(time))), days.ask(spreads.format(iso(last)))
    assert later[0] == pytest.approx(3 * then[0], rel=1e-3) and None not in (then[1], later[1]) and later != then


@pytest.mark.long
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_look_ahead_around_every_kind_of_revision(more_days: Days, tmp_path: Path, kind: str, step: int) -> None:
    compare_with_cut(more_days, time_of(more_days.world, kind) + step, tmp_path)


@pytest.mark.long
def test_a_rebuild_gives_equal_tables(more_days: Days) -> None:
    names = [f"research.{table}" for table in DAILY] + ["versioned.int_bars_1d__chained"]
    before = more_days.warehouse.tables(names)
    more_days.warehouse.build(full_refresh=True)
    assert differences(before, more_days.warehouse.tables(names)) == []
