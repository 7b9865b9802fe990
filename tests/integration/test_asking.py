"""Asking a published lake: the client's functions, training sets, versions and pins.

small_research ── two builds ── two published versions ──┬─ Client, each function
                                                         ├─ features and the SQL macros against brute force
                                                         ├─ releases, pins, attaching by version
                                                         └─ leak checks: classic leaks, and their honest twins
"""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from worlds.small_research import CORRECTED, LAST_OF_DOWN, SPLIT, close_of, load, sessions
from worlds.warehouse import Warehouse

import market_data
from market_data import cli, client, lake, leakcheck, publishing, releases, status
from market_data.build import Outcome

UP, DOWN = "us_equities:UP", "us_equities:DOWN"
NAMES = ["bars_1d.close", "bars_1d.volume", "macro_series.GDP", "macro_series.GDP.first_print"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Warehouse, list[Outcome]]:
    """Published twice: with the first twelve sessions, and with all of them. Tests may pin, and load nothing.

    A broken file came before the first version, and is refused again before the second.
    """
    warehouse = Warehouse(tmp_path_factory.mktemp("asking"), from_nothing=True)
    outcomes = []
    broken = warehouse.root / "massive_splits_2024-06-01.json"
    broken.write_text('{"results": [')
    for until in (12, 30):
        load(warehouse, warehouse.root / "files", until=until)
        assert warehouse.load(broken, "massive_splits").status == "refused"
        outcomes.append(warehouse.build())
    return warehouse, outcomes


@pytest.fixture
def md(world: tuple[Warehouse, list[Outcome]]) -> Iterator[market_data.Client]:
    with market_data.connect(world[0].settings) as reader:
        yield reader


def mdp(warehouse: Warehouse, *arguments: str) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(cli.main, arguments, env=warehouse.environment)


# --- the client's functions ------------------------------------------------------------------------------------


def test_bars_are_as_known_then(md: market_data.Client) -> None:
    day = sessions()[CORRECTED]
    before, after = (
        md.bars("UP", known_at=known_at, start=day, end=day + dt.timedelta(1)).pl()["close"].to_list()
        for known_at in (sessions()[CORRECTED + 3], market_data.LATEST)
    )
    assert (before, after) == ([close_of("UP", CORRECTED)], [close_of("UP", CORRECTED) + 10])
    both = md.bars(["UP", "DOWN"], known_at=market_data.LATEST, venue="us_equities").pl()
    assert sorted(set(both["symbol"])) == ["DOWN", "UP"]
    assert md.bars("UP", known_at="2023-01-01").pl().is_empty()


def test_adjusted_bars_are_on_the_scale_of_the_newest_session_known(md: market_data.Client) -> None:
    def adjusted(known_at: market_data.KnownAt) -> list[dict[str, Any]]:
        return md.bars("UP", known_at=known_at, adjusted=True, end=sessions()[SPLIT + 2]).arrow.to_pylist()

    raw = [close_of("UP", number) + (10 if number == CORRECTED else 0) for number in range(SPLIT + 2)]
    for known_at, count in ((sessions()[SPLIT], SPLIT - 1), (market_data.LATEST, SPLIT + 2)):
        rows = adjusted(known_at)
        scale = [2 if number < SPLIT < count else 1 for number in range(count)]
        assert [row["close"] for row in rows] == raw[:count]
        assert [row["split_adj_close"] * two for row, two in zip(rows, scale, strict=True)] == raw[:count]
        assert [row["split_adj_volume"] for row in rows] == [two * (1000.0 + n) for n, two in enumerate(scale)]
        assert [row["adj_close"] for row in rows] == pytest.approx([row["split_adj_close"] for row in rows], rel=1e-12)
    with pytest.raises(ValueError, match="only bars of 1d are adjusted"):
        md.bars("UP", known_at=market_data.LATEST, interval="1m", adjusted=True)


def test_instruments_are_there_from_their_first_record_on(md: market_data.Client) -> None:
    assert len(md.instruments("BTCUSDT", known_at="2024-01-03 10:59")) == 0
    (pair,) = md.instruments("BTCUSDT", known_at="2024-01-03 11:01").arrow.to_pylist()
    assert (pair["instrument_id"], pair["base_currency"], pair["quote_currency"]) == ("binance:BTCUSDT", "BTC", "USDT")
    assert md.instruments(known_at=market_data.LATEST).arrow["symbol"].to_pylist() == ["BTCUSDT"]


def test_trades_and_quotes(md: market_data.Client) -> None:
    trades = md.trades("BTCUSDT", known_at="2024-01-03 11:00:15").pl()
    assert trades["price"].to_list() == [42000.0, 42001.0]
    assert trades["known_to"].to_list() == [None, None]
    assert (
        len(md.trades("BTCUSDT", known_at=market_data.LATEST, start="2024-01-03 11:00:10", end="2024-01-03 11:00:30"))
        == 2
    )
    quotes = md.quotes("BTCUSDT", venue="binance", known_at=market_data.LATEST)
    assert quotes.df()["ask_price"].tolist() == [42001.0, 42002.0]
    assert len(md.quotes("BTCUSDT", venue="coinbase", known_at=market_data.LATEST)) == 0


def test_macro_between_dates(md: market_data.Client) -> None:
    rows = md.macro("GDP", known_at="2024-02-10", start="2023-10-01").arrow
    assert rows["value"].to_pylist() == [103.0]
    assert len(md.macro(known_at=market_data.LATEST)) == 2


def test_the_universe_keeps_those_that_left(md: market_data.Client) -> None:
    end = sessions()[LAST_OF_DOWN]
    then, later = sessions()[10], end + dt.timedelta(3)
    assert md.universe("demo", known_at=then, on=then).pl()["symbol"].to_list() == ["DOWN", "UP"]
    assert md.universe("demo", known_at=later, on=later).pl()["symbol"].to_list() == ["UP"]
    known = md.universe("demo", known_at=later).pl().filter(symbol="DOWN").to_dicts()
    assert [row["valid_to"] for row in known] == [end]
    assert md.universe("demo", known_at=then).pl().filter(symbol="DOWN")["valid_to"].to_list() == [None]


def test_names_and_times_are_values_and_no_sql(md: market_data.Client) -> None:
    poison = "x'); drop table canonical.trades; --"
    assert len(md.bars(poison, known_at=market_data.LATEST)) == 0
    assert len(md.trades([poison, "BTCUSDT"], venue="binance", known_at=market_data.LATEST)) == 4
    with pytest.raises(ValueError, match=r"start .* is no time"):
        md.bars("UP", known_at=market_data.LATEST, start=poison)
    with pytest.raises(ValueError, match="there is no column"):
        md.features(decisions([(UP, "2024-02-01")]), [f"bars_1d.{poison}"])


def test_what_is_not_there_is_named_with_what_is_like_it(md: market_data.Client) -> None:
    asked = decisions([(UP, "2024-02-01")])
    for names, message in (
        (["bars_1day.close"], "there is no table bars_1day in research; did you mean bars_1d"),
        (["bars_1d.closs"], "there is no column closs in bars_1d; did you mean close"),
        (["macro_series.GPD"], "there is no series_id GPD in research.macro_series; did you mean GDP"),
        (["macro_series.GDP.vale"], "there is no column vale in macro_series; did you mean value"),
        (["bars_1d"], "names no column; write bars_1d.<column>"),
        (["bars_1d.close", "bars_1d.close"], "asked for twice"),
    ):
        with pytest.raises(ValueError, match=message):
            md.features(asked, names)
    with pytest.raises(ValueError, match=r"there is no instrument_id UP in research.*; did you mean us_equities:UP"):
        md.features(decisions([("UP", "2024-02-01")]), ["bars_1d.close"])
    with pytest.raises(duckdb.Error, match=r"Did you mean .*bars_1d"):
        md.sql("from research.bars_1day")
    with pytest.raises(duckdb.Error, match="close"):
        md.sql("select closs from research.bars_1d")


# --- training sets ---------------------------------------------------------------------------------------------


def decisions(rows: list[tuple[str | None, str]]) -> pa.Table:
    times = [dt.datetime.fromisoformat(time) for _, time in rows]
    return pa.table({"instrument_id": [name for name, _ in rows], "decision_time": pa.array(times, pa.timestamp("us"))})


def many_decisions() -> pa.Table:
    chance = random.Random(7)
    names = [UP, DOWN, "us_equities:NONE", None]
    start = dt.datetime(2023, 12, 20)
    rows = [
        (chance.choice(names), (start + dt.timedelta(minutes=chance.randrange(110_000))).isoformat())
        for _ in range(400)
    ]
    grid = dt.datetime(2024, 1, 31, 17)  # known_from stands on whole minutes: at it, and just before
    rows += [(name, (grid + dt.timedelta(days=day, microseconds=offset)).isoformat())
             for name in (UP, DOWN) for day in range(-20, 20) for offset in (-1, 0)]  # fmt: skip
    return decisions([*rows, rows[3], rows[3]])


BRUTE_FORCE = """
    select asked.place, v
    from asked
    left join {table} as v
        on v.{key} = {asked} and v.known_from <= known_at and (v.known_to is null or v.known_to > known_at)
    qualify row_number() over (partition by asked.place order by v.{period} desc, v.known_from desc) = 1
"""


def brute_force(
    md: market_data.Client, asked: pa.Table, lag: dt.timedelta, max_age: dt.timedelta | None
) -> list[tuple[Any, ...]]:
    """Each version of each table looked at for each decision."""
    connection = md._connection
    connection.register("given", asked)
    parts = {
        "bars": BRUTE_FORCE.format(
            table="lake.research.bars_1d", key="instrument_id", asked="asked.instrument_id", period="session_date"
        ),
        "gdp": BRUTE_FORCE.format(
            table="lake.research.macro_series", key="series_id", asked="'GDP'", period="observation_date"
        ),
    }  # fmt: skip
    old = "false" if max_age is None else "known_at - {}::timestamp > $max_age"
    return connection.execute(
        f"""
        with asked as (select *, row_number() over () as place, decision_time - $lag::interval as known_at from given),
        bars as ({parts["bars"]}), gdp as ({parts["gdp"]})
        select
            if({old.format("bars.v.session_close")}, null, bars.v.close),
            if({old.format("bars.v.session_close")}, null, bars.v.volume),
            if({old.format("gdp.v.observation_date")}, null, gdp.v.value),
            if({old.format("gdp.v.observation_date")}, null, gdp.v.first_print)
        from asked inner join bars using (place) inner join gdp using (place) order by place
        """,
        {"lag": lag} | ({"max_age": max_age} if max_age is not None else {}),
    ).fetchall()


@pytest.mark.parametrize("lag", [dt.timedelta(), dt.timedelta(hours=30, microseconds=1)])
@pytest.mark.parametrize("max_age", [None, dt.timedelta(days=4)])
def test_features_are_what_was_known_at_each_decision(
    md: market_data.Client, lag: dt.timedelta, max_age: dt.timedelta | None
) -> None:
    asked = many_decisions()
    expected = brute_force(md, asked, lag, max_age)
    answer = md.features(asked, NAMES, lag=lag, max_age=max_age)
    assert answer.arrow.column_names == ["instrument_id", "decision_time", *NAMES]
    assert answer.arrow.select(asked.column_names).equals(asked), "order and duplicates stay"
    assert list(zip(*(answer.arrow[name].to_pylist() for name in NAMES), strict=True)) == expected
    assert sum(row[0] is not None for row in expected) > 100
    # The table macros of SQL say the same.
    arguments = [lag, max_age]
    bars = md.sql("select close, volume from lake.research.point_in_time('given', 'bars_1d', ?, ?)", arguments).arrow
    gdp = md.sql(
        "select value, first_print from lake.research.macro_point_in_time('given', 'GDP', ?, ?)", arguments
    ).arrow
    columns = [bars["close"], bars["volume"], gdp["value"], gdp["first_print"]]
    assert list(zip(*(column.to_pylist() for column in columns), strict=True)) == expected


def test_no_table_macro_takes_what_is_no_time(md: market_data.Client) -> None:
    """The rule itself is in tests/unit/test_research_sql.py; here is that all go by it."""
    macros = md.sql(
        "select schema_name || '.' || function_name as name from duckdb_functions()"
        " where database_name = 'lake' and parameters = ['known_at']"
    ).arrow["name"]
    assert len(macros) == 18
    for name in macros.to_pylist():
        for given in ("null", "20240220"):
            with pytest.raises(duckdb.Error, match="known_at is no time from 1677 to 2262"):
                md.sql(f"from {name}({given})").arrow  # noqa: B018


def test_features_without_a_client_are_those_of_the_last_version(
    world: tuple[Warehouse, list[Outcome]], md: market_data.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in world[0].environment.items():
        monkeypatch.setenv(name, value)
    asked, lag, max_age = many_decisions(), dt.timedelta(hours=1), dt.timedelta(days=4)
    answer = market_data.features(asked, NAMES, lag=lag, max_age=max_age)
    assert answer.version == md.version
    assert answer.arrow.equals(md.features(asked, NAMES, lag=lag, max_age=max_age).arrow)


def test_an_old_quarter_revised_last_is_not_the_newest(md: market_data.Client) -> None:
    known = md.features(decisions([(UP, "2024-02-10")]), ["macro_series.GDP", "macro_series.GDP.observation_date"])
    assert known.arrow["macro_series.GDP"].to_pylist() == [103.0]
    assert known.arrow["macro_series.GDP.observation_date"].to_pylist() == [dt.date(2023, 10, 1)]


def test_what_was_taken_back_is_answered_by_what_was_there_before(tmp_path: Path) -> None:
    """A day is taken back and given again; a whole instrument ends. In a lake of its own, without dbt."""
    from market_data.training_sets import FeatureReader

    rows = [  # session, known from, known to, close: day 2 is taken back from hour 50 to 60, day 3 for ever at 90
        (1, 10, None, 1.0), (2, 30, 50, 2.0), (2, 60, None, 2.5), (3, 70, 90, 3.0), (4, 100, None, 4.0),
    ]  # fmt: skip
    base = dt.datetime(2024, 1, 1)
    hour = [None if at is None else base + dt.timedelta(hours=at) for at in range(120)]
    with duckdb.connect() as connection:
        connection.execute("attach ':memory:' as lake; create schema lake.research")
        connection.execute(
            "create table lake.research.bars_1d (instrument_id text, session_date date, session_close timestamp_ns,"
            " known_from timestamp_ns, known_to timestamp_ns, close double)"
        )
        for day, known_from, known_to, close in rows:
            ended, date = None if known_to is None else hour[known_to], base + dt.timedelta(day)
            connection.execute(
                "insert into lake.research.bars_1d values ('a', ?, ?, ?, ?, ?)",
                [date, date, hour[known_from], ended, close],
            )
        times = [9, 10, 29, 30, 49, 50, 59, 60, 69, 70, 89, 90, 99, 100]
        asked = pa.table({"instrument_id": ["a"] * len(times), "decision_time": [hour[at] for at in times]})
        answer = FeatureReader(connection).features(asked, ["bars_1d.close"], dt.timedelta(), None)
    expected = [None, 1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.5, 2.5, 3.0, 3.0, 2.5, 2.5, 4.0]
    assert answer["bars_1d.close"].to_pylist() == expected


def test_decisions_keep_their_own_columns_and_a_zone(md: market_data.Client) -> None:
    import polars

    asked = polars.DataFrame(
        {
            "label": [1, 2],
            "instrument_id": [UP, DOWN],
            "decision_time": [dt.datetime(2024, 2, 1, 12), dt.datetime(2024, 2, 1)],
        }
    )
    plain = md.features(asked, ["bars_1d.close"]).pl()
    assert plain.columns == ["label", "instrument_id", "decision_time", "bars_1d.close"]
    zoned = asked.with_columns(
        polars.col("decision_time").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    )
    assert md.features(zoned, ["bars_1d.close"]).pl()["bars_1d.close"].equals(plain["bars_1d.close"])
    with pytest.raises(ValueError, match="lag -1 day, 0:00:00 is negative"):
        md.features(asked, ["bars_1d.close"], lag=dt.timedelta(days=-1))
    with pytest.raises(ValueError, match="max_age -1 day, 0:00:00 is negative"):
        md.features(asked, ["bars_1d.close"], max_age=dt.timedelta(days=-1))
    with pytest.raises(TypeError, match=r"lag is 15; give a datetime\.timedelta"):
        md.features(asked, ["bars_1d.close"], lag=15)
    with pytest.raises(TypeError, match="decision_time is string; give timestamps"):
        md.features(pa.table({"instrument_id": [UP], "decision_time": ["2024-02-01"]}), ["bars_1d.close"])


# --- versions and pins -----------------------------------------------------------------------------------------


def test_releases_say_what_changed(world: tuple[Warehouse, list[Outcome]]) -> None:
    warehouse, (first, second) = world
    releases.pin(warehouse.settings, "audit", first.version)
    done = mdp(warehouse, "releases", "--json")
    assert done.exit_code == 0, done.stderr
    newest, oldest = (json.loads(line) for line in done.stdout.splitlines())
    assert (newest["version"], oldest["version"]) == (second.version, first.version)
    bars = len(warehouse.tables(["research.bars_1d"])["research.bars_1d"])
    before = len(warehouse.tables(["research.bars_1d"], version=first.version)["research.bars_1d"])
    # UP's corrected session ended one version, and began one.
    assert newest["changes"]["research.bars_1d"] == {
        "added": bars - before, "revised": 1, "removed": 0, "is_new": False
    }  # fmt: skip
    assert oldest["changes"]["research.bars_1d"] == {"added": before, "revised": 0, "removed": 0, "is_new": True}
    assert "canonical.trades" not in newest["changes"]
    assert [(one["loads"], one["read_again"], one["refused"]) for one in (newest, oldest)] == [
        (second.new_loads, 0, 1), (first.new_loads, 0, 1)
    ]  # fmt: skip
    found = status.overview(warehouse.settings)
    assert sum(feed.loads for feed in found.feeds) == first.new_loads + second.new_loads
    assert sum(feed.refused for feed in found.feeds) == 2
    assert (newest["pins"], oldest["pins"]) == ([], ["audit"])
    said = mdp(warehouse, "releases", "--last", "1").stdout
    assert f", {second.new_loads} new loads, 1 refused, code " in said and "research.bars_1d" in said
    assert "1 of 2 versions that are kept; --last 2 shows all" in said
    # Maintenance expires what lies between; what changed is told all the same.
    with lake.open_for_writing(warehouse.settings) as connection:
        between = list(range(first.version + 1, second.version))
        connection.execute(f"call ducklake_expire_snapshots('lake', versions => {between})")
        assert [one.as_json() for one in releases.published(connection, 1)] == [newest | {"pins": ()}]


def test_a_pinned_version_is_found_by_its_name(world: tuple[Warehouse, list[Outcome]]) -> None:
    warehouse, (first, second) = world
    done = mdp(warehouse, "releases", "pin", "paper", "--version", str(first.version))
    assert (done.exit_code, done.stdout) == (0, f"version {first.version} is kept as paper\n"), done.stderr
    with market_data.at("paper", warehouse.settings) as reader:
        header = reader.header("2024-03-01 12:00")
        then = reader.bars("UP", known_at="2024-03-01 12:00").arrow
    assert str(header) == f"version={first.version} known_at=2024-03-01T12:00:00.000000Z"
    again = market_data.Header.parse(f"# {header}")
    assert again == header
    with market_data.at(str(again.version), warehouse.settings) as reader:
        assert reader.bars("UP", known_at=again.known_at).arrow.equals(then)
    assert mdp(warehouse, "sql", "select max(session_date) as day from research.bars_1d", "--csv", "--version", "paper"
                         ).stdout == f"day\n{sessions()[11]}\n"  # fmt: skip
    once_more = mdp(warehouse, "releases", "pin", "paper", "--version", "paper")
    assert (once_more.exit_code, once_more.stdout) == (0, done.stdout), once_more.stderr
    for name in ("", " ", "paper ", "48"):
        with pytest.raises(releases.PinError, match="is no name for a pin"):
            releases.pin(warehouse.settings, name)
    taken = mdp(warehouse, "releases", "pin", "paper")
    assert taken.exit_code == 1 and f"paper pins version {first.version} already" in taken.stderr
    with lake.open_for_writing(warehouse.settings) as connection:
        publishing.restore(connection, warehouse.settings)
        assert releases.pins(connection)["paper"] == first.version, "what failed takes no pin with it"
    with pytest.raises(client.NotPublishedError, match="there is no pin papre in this lake; did you mean paper"):
        market_data.at("papre", warehouse.settings)
    assert releases.unpin(warehouse.settings, "paper") == first.version
    gone = mdp(warehouse, "releases", "unpin", "paper")
    assert gone.exit_code == 1 and "there is no pin paper" in gone.stderr
    with pytest.raises(
        client.NotPublishedError, match=rf"version 1 was not published; .* are kept: {second.version}, "
    ):
        market_data.at(1, warehouse.settings)
    assert client.published_version(warehouse.settings) == second.version, "a pin publishes nothing"
    assert not warehouse.build().built, "and leaves nothing to build"


def test_sql_clients_attach_a_version_by_its_number(world: tuple[Warehouse, list[Outcome]]) -> None:
    """By the statements that mdp connect prints, pasted into DuckDB as they are."""
    warehouse, outcomes = world
    for outcome in outcomes:
        said = mdp(warehouse, "connect", "--version", str(outcome.version)).stdout.splitlines()
        statements = [line.strip() for line in said if line.strip().startswith(("LOAD ", "ATTACH "))]
        assert f"SNAPSHOT_VERSION {outcome.version}," in statements[-1]
        with duckdb.connect() as connection:
            for statement in statements:
                connection.execute(statement)
            rows = connection.execute("select count(*) from lake.research.bars_1d_as_of('2024-03-01')").fetchone()
        with market_data.at(outcome.version, warehouse.settings) as reader:
            assert rows == (len(reader.bars(known_at="2024-03-01")),)
    assert len(outcomes) == 2


LAST_OF_EACH = """
    select * from lake.{table} qualify row_number() over (partition by {key} order by known_from desc) = 1
"""


def test_plain_duckdb_answers_for_the_last_row_of_each_key(world: tuple[Warehouse, list[Outcome]]) -> None:
    """Without the setting that mdp connect prints."""
    warehouse, outcomes = world
    statements = [*lake.load_statements(warehouse.settings), "RESET GLOBAL disabled_optimizers"]
    with duckdb.connect() as connection:
        for statement in [*statements, lake.attach_statement(warehouse.settings, outcomes[-1].version)]:
            connection.execute(statement)
        described = connection.execute(
            "select table_schema || '.' || table_name, list(column_name) from information_schema.columns"
            " where table_schema in ('canonical', 'research') group by all order by all"
        ).fetchall()
        asked = 0
        for table, columns in described:
            for key in ("listing_id", "instrument_id", "series_id"):
                if {key, "known_from"} <= set(columns):
                    keys = connection.execute(f"select count(distinct {key}) from lake.{table}").fetchone()
                    rows = connection.execute(LAST_OF_EACH.format(table=table, key=key)).fetchall()
                    assert keys == (len(rows),), (table, key)
                    asked += 1
    assert asked > 20


# --- leak checks -----------------------------------------------------------------------------------------------

# Of each kind: what looks ahead, the tables that it does so by, and how it is done honestly.
REVISED_MACRO = """
    -- leakcheck: key = decided_at; time = decided_at
    select decided_at, arg_max(value, observation_date) as gdp
    from generate_series(timestamp '2024-01-27 12:00', timestamp '2024-03-10', interval 1 day) as decisions (decided_at)
    inner join research.macro_series on {known}
    where series_id = 'GDP'
    group by decided_at
"""
TODAYS_PRICE = """
    -- leakcheck: key = symbol, session_date; time = decided_at
    with bars as (
        select symbol, session_date, close, session_close + interval 24 hours as decided_at
        from research.bars_1d
        where known_from <= session_close + interval 24 hours
            and (known_to is null or known_to > session_close + interval 24 hours)
    ),
    splits as (
        select symbol, ex_date, split_to / split_from as ratio, known_from
        from canonical.corporate_actions
        where action_type = 'split' and known_to is null
    )
    select bars.symbol, session_date, decided_at, close / coalesce(product(ratio), 1) as adjusted
    from bars
    left join splits on splits.symbol = bars.symbol and ex_date > session_date {and_known}
    group by bars.symbol, session_date, decided_at, close
"""
SURVIVORS = """
    select session_date, avg(close) as mean_price, count(*) as members
    from research.bars_1d_as_of({bars_known}) as bars
    where symbol in (
        select symbol
        from canonical.universe_membership
        where index_name = 'demo' and {member}
    )
    group by session_date
"""
AS_KNOWN = "known_from <= {0} and (known_to is null or known_to > {0})"
CLASSICS = {
    "a revised macro value": (
        REVISED_MACRO.format(known="known_to is null"),
        "research.macro_series",
        REVISED_MACRO.format(known=AS_KNOWN.format("decided_at")),
    ),
    "today's adjusted price": (
        TODAYS_PRICE.format(and_known=""),
        "canonical.corporate_actions",
        TODAYS_PRICE.format(and_known="and known_from <= decided_at and ex_date <= decided_at::date"),
    ),
    "a corrected bar": (
        "select symbol, session_date, close from research.bars_1d where known_to is null and session_date < $known_at",
        "research.bars_1d",
        "select symbol, session_date, close from research.bars_1d_as_of($known_at) where session_date < $known_at",
    ),
    "a survivor-only universe": (
        SURVIVORS.format(bars_known="$known_at", member="known_to is null and valid_to is null"),
        "canonical.universe_membership",
        SURVIVORS.format(bars_known="$known_at", member=AS_KNOWN.format("$known_at")),
    ),
}


# The same by the tables of research that were made for it.
ADJUSTED = """
    -- leakcheck: key = instrument_id, session_date; time = decided_at
    select instrument_id, session_date, session_close + interval 24 hours as decided_at, {price} as price
    from research.bars_1d_adjusted{as_of}
    where venue = 'us_equities' and {known}
"""
CLASSICS |= {
    "an adjusted price as of today": (
        ADJUSTED.format(price="adj_close", as_of="_as_of('2262-01-01')", known="known_from <= decided_at"),
        "research.bars_1d_adjusted",
        ADJUSTED.format(price="close", as_of="", known=AS_KNOWN.format("session_close + interval 24 hours")),
    ),
    "an adjusted price as known": (
        "select instrument_id, session_date, adj_close from research.bars_1d_adjusted_as_of(now())"
        " where session_date < $known_at - interval 3 days",
        "research.bars_1d_adjusted",
        "select instrument_id, session_date, adj_close from research.bars_1d_adjusted_as_of($known_at)",
    ),
    "a universe of those who are members today": (
        "select session_date, count(*) as members from research.bars_1d_as_of($known_at) where symbol in"
        " (select symbol from research.universe_as_of(now()) where universe = 'demo' and valid_to is null)"
        " group by all",
        "research.universe",
        "select session_date, count(*) as members from research.bars_1d_as_of($known_at) as bars inner join"
        " research.universe_as_of($known_at) as members on bars.symbol = members.symbol and universe = 'demo'"
        " and session_date >= valid_from and (valid_to is null or session_date < valid_to) group by all",
    ),
    "volatility of today's versions": (
        "-- leakcheck: key = instrument_id, session_date; time = session_close + interval 24 hours\n"
        "select instrument_id, session_date, session_close, yang_zhang_5 from research.volatility_1d"
        " where known_to is null",
        "research.volatility_1d",
        "-- leakcheck: key = instrument_id, session_date; time = session_close + interval 24 hours\n"
        "select instrument_id, session_date, session_close, yang_zhang_5 from research.volatility_1d where "
        + AS_KNOWN.format("session_close + interval 24 hours"),
    ),
}
# The same by a table of the project's own, as a model's compiled query reads them.
BEFORE = """
    -- leakcheck: key = instrument_id, session_date; time = decided_at
    with days as (
        select *, session_close + interval 24 hours as decided_at from research.returns_1d
    )
    select instrument_id, session_date, decided_at, chained.previous_close
    from days
    inner join versioned.int_bars_1d__chained as chained using (instrument_id, session_date)
    where days.known_from <= decided_at and (days.known_to is null or days.known_to > decided_at) and {known}
"""
CLASSICS["the bar before, of the chained table"] = (
    BEFORE.format(known="chained.known_to is null"),
    "versioned.int_bars_1d__chained",
    BEFORE.format(
        known="chained.known_from <= decided_at and (chained.known_to is null or chained.known_to > decided_at)"
    ),
)


def check(world: tuple[Warehouse, list[Outcome]], sql: str) -> leakcheck.Report:
    warehouse, (_, second) = world
    return leakcheck.check(warehouse.settings, second.version, leakcheck.Query.read(sql))


@pytest.mark.parametrize("kind", CLASSICS)
def test_a_classic_leak_is_found_with_its_input(world: tuple[Warehouse, list[Outcome]], kind: str) -> None:
    sql, table, _ = CLASSICS[kind]
    report = check(world, sql)
    assert report.leaks, "nothing was found"
    assert {leak.inputs for leak in report.leaks} == {(table,)}


@pytest.mark.parametrize("kind", CLASSICS)
def test_its_honest_twin_passes(world: tuple[Warehouse, list[Outcome]], kind: str) -> None:
    report = check(world, CLASSICS[kind][2])
    assert [leakcheck.told(leak) for leak in report.leaks] == []
    assert report.rows > 20 and CLASSICS[kind][1] in report.tables


def test_a_leak_names_the_row_and_what_could_be_known(world: tuple[Warehouse, list[Outcome]]) -> None:
    report = check(world, CLASSICS["a revised macro value"][0])
    leaks = {leak.row["decided_at"]: leak for leak in report.leaks}
    first = leaks[dt.datetime(2024, 1, 27, 12)]
    assert first.differs == {"gdp": (102.5, 103.0)}
    # From 29 February on the last value was known: those rows may say it.
    assert max(leaks) == dt.datetime(2024, 2, 28, 12)
    assert min(leaks) == dt.datetime(2024, 1, 27, 12) and len(leaks) == 33


def test_leakcheck_from_the_command_line(world: tuple[Warehouse, list[Outcome]], tmp_path: Path) -> None:
    warehouse = world[0]
    leaking, _, honest = CLASSICS["a revised macro value"]
    query = tmp_path / "features.sql"
    query.write_text(leaking)
    done = mdp(warehouse, "leakcheck", str(query), "--rows", "1")
    assert done.exit_code == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("decided_at 2024-01-27 12:00:00: gdp is 102.5, and could be 103.0, as known at 2024-0")
    assert "33 rows looked ahead, by research.macro_series" in lines[-1]
    query.write_text(honest)
    done = mdp(warehouse, "leakcheck", str(query), "--at", "2024-02-10", "--at", "2024-02-20 16:00 America/New_York")
    assert (done.exit_code, done.stdout.startswith("no leak found: compared ")) == (0, True), done.stdout + done.stderr
    # A model of another dbt project is checked as its last build compiled it.
    models = warehouse.settings.state_dir / "target" / "compiled" / "mine" / "models"
    models.mkdir(parents=True)
    (models / "gdp_features.sql").write_text(
        leaking.replace("research.macro_series", '"lake"."research"."macro_series"')
    )
    done = mdp(warehouse, "leakcheck", "gdp_features", "--json")
    first = json.loads(done.stdout.splitlines()[0])
    assert (done.exit_code, first["inputs"], first["differs"]["gdp"]) == (1, ["research.macro_series"], [102.5, 103.0])
    done = mdp(warehouse, "leakcheck", "gdp_feature")
    assert done.exit_code == 1 and "did you mean gdp_features" in done.stderr


@pytest.mark.long
def test_what_shows_only_the_present_is_named_as_not_cut(
    world: tuple[Warehouse, list[Outcome]], tmp_path: Path
) -> None:
    sql = (
        "select session_date, close, (select count(*) from observability.loads, canonical.quarantine) as n,"
        " (select max(session_seq) from reference.sessions) as last from research.bars_1d_as_of($known_at)"
    )
    report = check(world, sql)
    assert (report.leaks, report.not_cut) == ([], ("canonical.quarantine", "observability.loads"))
    assert check(world, CLASSICS["a corrected bar"][2]).not_cut == ()
    (tmp_path / "features.sql").write_text(sql)
    done = mdp(world[0], "leakcheck", str(tmp_path / "features.sql"))
    assert (done.exit_code, done.stdout.startswith("no leak found in what could be cut: ")) == (0, True), done.stderr
    assert "not cut, for they show only the present: canonical.quarantine, observability.loads;" in done.stdout
    done = mdp(world[0], "leakcheck", str(tmp_path / "features.sql"), "--json")
    assert json.loads(done.stdout) == {"not_cut": ["canonical.quarantine", "observability.loads"]}


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("select 1", "must say as of when"),
        ("-- leakcheck: time = known_from\nfrom research.bars_1d where known_from < $known_at", "must say as of when"),
        ("-- leakcheck: tim = x\nselect 1", "'tim = x' is no declaration"),
        ("from research.bars_1d where close > $price", "other parameters than"),
        ("drop table research.bars_1d", "takes one query"),
        ("select 1 where $known_at is null", "reads no table"),
        (
            "-- leakcheck: key = symbl; time = known_from\nfrom research.bars_1d",
            "no column symbl .* did you mean symbol",
        ),
        ("-- leakcheck: time = known_from\nselect *, random() as r from research.bars_1d", "asked twice"),
    ],
)
def test_what_cannot_be_checked_says_why(world: tuple[Warehouse, list[Outcome]], sql: str, message: str) -> None:
    with pytest.raises(leakcheck.LeakCheckError, match=message):
        check(world, sql)
