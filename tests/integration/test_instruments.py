"""Instruments and symbology: renames, re-used tickers, and deliveries in any order, against a plain reference.

worlds ── files ──┬─ in a random order, two builds ── whole (`long`: three, the last killed once and done again)
                  ├─ in another order, one build ──── fresh, equal
                  └─ worlds.renames.Masters ── asked at each time at which anything became known
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import random
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from worlds.adversarial import COLUMNS, draw_world, table
from worlds.reference import DAY, File, Version, expect, new_york
from worlds.renames import (
    SESSIONS,
    Masters,
    RenameWorld,
    State,
    day_files,
    midnight,
    rename_world,
    ticker_events,
    trade_row,
)
from worlds.warehouse import TABLES, Warehouse, differences

from market_data.build import build

OF_MASTERS = "symbology|instruments|ticker_changes|listings|last_trades"
SEED = int(os.environ.get("MDP_TEST_SEED", "1"))
WORLDS = 12

KILLED = """
import os, signal, sys
from loaders.settings import Settings
from market_data.build import build

def die(what, done, total):
    if what == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)

build(Settings.from_env(), progress=die)
"""


def load(warehouse: Warehouse, file: File, number: int) -> None:
    path = warehouse.root / "files" / str(number) / file.name
    path.parent.mkdir(parents=True)
    path.write_bytes(file.body)
    outcome = warehouse.load(path, file.feed, iso(file.delivered_at))
    assert outcome.status in ("loaded", "redelivered"), outcome.message


def load_all(warehouse: Warehouse, files: list[File], order: list[int]) -> None:
    for number in order:
        load(warehouse, files[number], number)


def iso(time: int | None) -> str:
    assert time is not None
    return f"{dt.datetime.fromtimestamp(time // 10**9, dt.UTC):%Y-%m-%dT%H:%M:%S}.{time % 10**9:09d}Z"


@dataclass
class Batch:
    worlds: list[RenameWorld]
    files: list[File]
    masters: Masters
    trades: list[Version]
    warehouse: Warehouse
    chance: random.Random


def make_batch(root: Path, seed: int, count: int, *, builds: int) -> Batch:
    worlds = [draw_world(rename_world, number, seed) for number in range(count)]
    said = [file for world in worlds for file in world.files]
    sessions = day_files(worlds)
    files = [*said, *sessions]
    trades = expect(sessions).versions["trades"]
    batch = Batch(worlds, files, Masters(said), trades, Warehouse(root), random.Random(seed))
    order = list(range(len(files)))
    batch.chance.shuffle(order)
    cuts = sorted(batch.chance.sample(range(1, len(files)), builds - 1))
    for start, end in itertools.pairwise((0, *cuts)):
        load_all(batch.warehouse, files, order[start:end])
        batch.warehouse.build()
    load_all(batch.warehouse, files, order[cuts[-1] :])
    return batch


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    batch = make_batch(tmp_path_factory.mktemp("whole"), SEED, WORLDS, builds=2)
    batch.warehouse.build()
    return batch


# What was known when


def test_symbology_is_what_the_reference_says_at_each_time(batch: Batch) -> None:
    check_symbology(batch)


def check_symbology(batch: Batch) -> None:
    changes = batch.masters.times()
    times = sorted({time + step for time in changes for step in (-1, 0)} | {changes[-1] + 900 * DAY})
    with batch.warehouse.reader() as connection:
        for time in times:
            found = connection.execute(
                "select listing_id, instrument_id, valid_from, valid_to from canonical.symbology_as_of(?)", [iso(time)]
            ).fetchall()
            assert len(found) == len(set(found))
            assert set(found) == batch.masters.symbology(time), iso(time)


def test_trades_have_the_instrument_that_their_ticker_meant_as_known_then(batch: Batch) -> None:
    check_trades(batch)


def check_trades(batch: Batch) -> None:
    known = {version.known_from for version in batch.trades}
    changes = [time for time in {*batch.masters.times(), *known} if time >= min(known)]
    times = batch.chance.sample(sorted(changes), min(len(changes), 16))
    renamed = 0
    with batch.warehouse.reader() as connection:
        for time in [*times, max(changes) + 900 * DAY]:
            alive = [v for v in batch.trades if v.known_from <= time and (v.known_to is None or v.known_to > time)]
            standing = [v for v in alive if not v.fact.is_deletion and not v.fact.row["is_cancelled"]]
            expected = {
                (
                    row["symbol"],
                    row["trade_id"],
                    row["event_time"],
                    batch.masters.meaning(time, row["symbol"], row["event_time"], standing),
                )
                for row in (version.fact.row for version in alive)
            }
            found = connection.execute(
                "select symbol, trade_id, epoch_ns(event_time), instrument_id from canonical.trades_as_of(?)",
                [iso(time)],
            ).fetchall()
            assert len(found) == len(set(found)) == len(alive)
            assert set(found) == expected, iso(time)
            renamed += sum(instrument != f"us_equities:{symbol}" for symbol, *_, instrument in found)
    assert renamed > 0


def test_ticks_keep_their_listing(batch: Batch) -> None:
    assert batch.warehouse.ask(
        "select count(*) from canonical.trades_as_of('2024-01-01') where listing_id != 'us_equities:' || symbol"
    ) == [(0,)]


# Snapshots


def test_snapshots_hold_what_each_delivery_changed(batch: Batch) -> None:
    check_snapshots(batch)


def check_snapshots(batch: Batch) -> None:
    both = {"ticker_changes": batch.masters.changes, "figi_listings": batch.masters.answers}
    columns = {"ticker_changes": ("composite_figi", "event_date"), "figi_listings": ("asked_for", "figi")}
    for snapshot, said in both.items():
        expected = {(*key, *row) for key, states in said.items() for row in rows_of(states)}
        found = batch.warehouse.ask(
            f"select {', '.join(columns[snapshot])}, epoch_ns(dbt_valid_from), epoch_ns(dbt_valid_to), is_deleted,"
            f" case when not is_deleted then symbol end from snapshots.{snapshot}"
        )
        assert len(found) == len(set(found))
        assert set(found) == expected


def rows_of(states: list[State]) -> Iterator[tuple[Any, ...]]:
    for place, state in enumerate(states):
        until = states[place + 1].delivered_at if place + 1 < len(states) else None
        ticker = None if state.content is None else state.content[-2]
        yield (state.delivered_at, until, state.content is None, ticker)


@pytest.fixture(scope="module")
def whole_tables(batch: Batch) -> dict[str, pa.Table]:
    return batch.warehouse.tables()


@pytest.mark.long
def test_another_order_in_one_build_gives_equal_tables(
    batch: Batch, whole_tables: dict[str, pa.Table], tmp_path: Path
) -> None:
    fresh = Warehouse(tmp_path)
    order = list(range(len(batch.files)))
    batch.chance.shuffle(order)
    load_all(fresh, batch.files, order)
    fresh.build()
    assert differences(whole_tables, fresh.tables()) == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(200, 206))
def test_many_more_worlds(seed: int, tmp_path: Path) -> None:
    batch = make_batch(tmp_path, seed, 40, builds=3)
    before = batch.warehouse.tables()
    at = batch.chance.choice(["ticker_changes", "figi_listings", "int_symbology__versioned", "int_last_trades"])
    killed = batch.warehouse.run([sys.executable, "-c", KILLED, at])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert differences(before, batch.warehouse.tables()) == []
    assert batch.warehouse.build().restored
    check_symbology(batch)
    check_trades(batch)
    check_snapshots(batch)
    before = batch.warehouse.tables()
    batch.warehouse.build(full_refresh=True)
    assert differences(before, batch.warehouse.tables()) == []


# The same by hand: Facebook, and the fund that had its ticker before

FUND, RENAMED, DATED = dt.date(2022, 1, 28), dt.date(2022, 6, 9), dt.date(2022, 6, 11)


@pytest.fixture(scope="module")
def meta(captures: Path, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Trades of both tickers, in files of three sessions, built; and masters' real answers, loaded only."""
    warehouse = Warehouse(tmp_path_factory.mktemp("meta"))
    rows = [
        (FUND, "META", 1), (FUND, "FB", 2), (dt.date(2022, 6, 8), "FB", 3), (RENAMED, "META", 4),
        (dt.date(2022, 6, 13), "META", 5), (dt.date(2022, 6, 13), "FB", 6),
    ]  # fmt: skip
    sessions = sorted({session for session, *_ in rows})
    files = [
        File(
            "massive_trades",
            f"massive_trades_{session}.csv",
            table([COLUMNS, *(trade_row(*row, 60) for row in rows if row[0] == session)]),
            new_york(session, days=1, hour=11),
        )
        for session in sessions
    ]
    files += [delivered for days, price in ((1, "190.5"), (5, "190.25")) for delivered in quotes_and_bars(days, price)]
    # Declared under the fund's name, and paid by the company that has the ticker on the ex-date.
    dividends = [
        {"ticker": "META", "cash_amount": 0.5, "currency": "USD", "declaration_date": declared, "ex_dividend_date": ex}
        for declared, ex in (("2022-02-21", "2022-03-01"), ("2022-05-23", "2022-06-20"))
    ]
    body = json.dumps({"results": dividends}).encode()
    files.append(File("massive_dividends", "massive_dividends_2022-07-01.json", body, midnight(dt.date(2022, 7, 1))))
    load_all(warehouse, files, list(range(len(files))))
    warehouse.build()
    for name, feed, delivered_at in (
        ("massive_ticker_events_META.json", "massive_ticker_events", "2025-01-01"),
        ("openfigi_mapping_IBM.json", "openfigi_mapping", "2025-02-01"),
    ):
        assert warehouse.load(captures / name, feed, delivered_at).status == "loaded"
    return warehouse


def quotes_and_bars(days: int, price: str) -> list[File]:
    """A quote and a bar of the first day under the new ticker, delivered so many days later."""
    at = str(new_york(RENAMED, hour=10))
    header = "ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,conditions,indicators"
    quote = ["META", "11", "191", "1", "11", price, "1", "", "", at, "1", at, "1", ""]
    rest = "participant_timestamp,sequence_number,sip_timestamp,tape,trf_timestamp"
    bar = ["META", "100", "190", price, "191", "189", str(new_york(RENAMED)), "1"]
    said = {
        "massive_quotes": [f"{header},{rest}".split(","), quote],
        "massive_day_aggs": [["ticker", "volume", "open", "close", "high", "low", "window_start", "transactions"], bar],
    }
    delivered_at = new_york(RENAMED, days=days, hour=11)
    return [File(feed, f"{feed}_{RENAMED}.csv", table(rows), delivered_at) for feed, rows in said.items()]


def instruments(warehouse: Warehouse, known_at: str) -> list[str]:
    return [
        instrument.removeprefix("us_equities:")
        for (instrument,) in warehouse.ask(
            "select instrument_id from canonical.trades_as_of(?) order by trade_id", known_at
        )
    ]


def test_an_instrument_is_there_before_its_master_and_stays(meta: Warehouse) -> None:
    later = "2022-07-01"
    assert instruments(meta, later) == ["META", "FB", "FB", "META", "META", "FB"]
    assert meta.ask("select listing_id, reason from observability.unnamed_listings order by 1") == [
        ("us_equities:FB", "no master names it"),
        ("us_equities:META", "no master names it"),
    ]
    meta.build()
    # The fund keeps the ticker's own name; the renamed company keeps its first, and who follows it has another.
    assert instruments(meta, later) == ["META", "FB", "FB", "FB", "FB", "FB@2022-06-11"]
    assert instruments(meta, "2022-06-11 03:59:59.999999999") == ["META", "FB", "FB", "META"]
    assert instruments(meta, "2022-06-11 04:00:00") == ["META", "FB", "FB", "FB"]
    assert meta.ask(
        "select instrument_id, unnamed_from, unnamed_to from observability.unnamed_listings order by 1"
    ) == [
        ("us_equities:FB@2022-06-11", DATED, None),
        ("us_equities:META", None, RENAMED - dt.timedelta(1)),
    ]
    assert meta.ask("select listing_id, instrument_id, valid_from, valid_to, known_from, known_to, revision"
                    " from canonical.symbology where symbol != 'IBM' order by known_from, listing_id") == [
        ("us_equities:FB", "us_equities:FB", dt.date(2012, 5, 18), None, dt.datetime(2012, 5, 18, 4),
         dt.datetime(2022, 6, 11, 4), 0),
        ("us_equities:FB", "us_equities:FB", dt.date(2012, 5, 18), DATED, dt.datetime(2022, 6, 11, 4), None, 1),
        ("us_equities:META", "us_equities:FB", DATED, None, dt.datetime(2022, 6, 11, 4), None, 0),
    ]  # fmt: skip
    # What no master names has no row among the instruments (docs/instruments.md): the fund, and who follows as FB.
    assert meta.ask(
        "select count(*), count(named.instrument_id) from canonical.trades_as_of('2022-07-01') as trades"
        " left join canonical.instruments_as_of('2022-07-01') as named on trades.instrument_id = named.instrument_id"
    ) == [(6, 4)]
    # The name has no date: it is known from the answer that gives it.
    named = "select symbol, name, composite_figi from canonical.instruments_as_of(?) where symbol != 'IBM'"
    assert meta.ask(named, "2022-06-11") == [("FB", None, "BBG000MM2P62")]
    assert meta.ask(named, "2022-06-12") == [("META", None, "BBG000MM2P62")]
    assert meta.ask(named, "2025-01-01") == [("META", "Meta Platforms, Inc. Class A Common Stock", "BBG000MM2P62")]


@pytest.mark.parametrize(("name", "rows"), [("trades", 6), ("quotes", 1), ("bars", 1), ("corporate_actions", 2)])
def test_as_of_shows_the_versions_known_and_whose_they_are(meta: Warehouse, name: str, rows: int) -> None:
    meta.build()
    for known_at in ("2022-06-09", "2022-06-10 15:00", "2022-06-14 15:00", "2022-07-01"):
        known = (
            f"from canonical.{name} where known_from <= timestamp '{known_at}'"
            f" and (known_to is null or known_to > timestamp '{known_at}')"
        )
        expected = meta.ask(f"select * replace (null as known_to) {known} order by all")
        found = meta.ask(f"select * exclude (instrument_id) from canonical.{name}_as_of('{known_at}') order by all")
        assert found == expected, known_at
    assert len(expected) == rows


def test_quotes_bars_and_actions_are_of_the_instrument_of_their_own_day(meta: Warehouse) -> None:
    meta.build()
    for name in ("quotes", "bars"):
        asked = f"select instrument_id from canonical.{name}_as_of(?)"
        assert meta.ask(asked, "2022-06-11 03:59") == [("us_equities:META",)]
        assert meta.ask(asked, "2022-06-11 04:00") == [("us_equities:FB",)]
    assert meta.ask(
        "select ex_date::varchar, instrument_id from canonical.corporate_actions_as_of('2022-07-01') order by 1"
    ) == [("2022-03-01", "us_equities:META"), ("2022-06-20", "us_equities:FB")]


def test_openfigi_names_a_listing_and_re_keys_nothing(meta: Warehouse, captures: Path) -> None:
    meta.build()
    answer = json.loads((captures / "openfigi_mapping_IBM.json").read_bytes())[0]["data"]
    composite = next(row for row in answer if row["exchCode"] == "US")
    assert meta.ask("select count(*) from snapshots.figi_listings") == [(len(answer),)]
    assert meta.ask("select listing_id, instrument_id, valid_from, valid_to, known_from, knowledge_basis"
                    " from canonical.symbology where symbol = 'IBM'") == [
        ("us_equities:IBM", "us_equities:IBM", None, None, dt.datetime(2025, 2, 1), "loaded")
    ]  # fmt: skip
    assert meta.ask(
        "select instrument_id, name, composite_figi, share_class_figi, security_type, quote_currency, known_from"
        " from canonical.instruments where symbol = 'IBM'"
    ) == [
        (
            "us_equities:IBM", composite["name"], composite["figi"], composite["shareClassFIGI"],
            composite["securityType"], "USD", dt.datetime(2025, 2, 1),
        )
    ]  # fmt: skip
    assert meta.ask("select count(*) from canonical.symbology_as_of('2025-01-31') where symbol = 'IBM'") == [(0,)]


# Snapshots by hand: several deliveries, a late one, and none


@pytest.mark.long
def test_a_late_delivery_rebuilds_the_keys_it_touches_and_no_other(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    day = dt.date(2015, 6, 1)

    numbers = itertools.count()

    def deliver(figi: str, january: int, events: list[tuple[dt.date, str]]) -> None:
        body = ticker_events(figi, "Name", events, january)
        name = f"massive_ticker_events_{figi}.json"
        file = File("massive_ticker_events", name, body, midnight(dt.date(2023, 1, january)))
        load(warehouse, file, next(numbers))

    def history(figi: str) -> list[tuple[Any, ...]]:
        return warehouse.ask(
            "select symbol, is_deleted, day(dbt_valid_from), day(dbt_valid_to) from snapshots.ticker_changes"
            " where composite_figi = ? order by dbt_valid_from",
            figi,
        )

    deliver("F1", 2, [(day, "AAA")])
    deliver("F2", 2, [(day, "KKK")])
    # Four deliveries before one build: none of them is lost, and what the last one lacks is deleted by it.
    deliver("F1", 6, [(day, "BBB")])
    deliver("F1", 9, [(day, "AAA")])
    deliver("F1", 12, [(day + dt.timedelta(1), "CCC")])
    warehouse.build()
    whole = [("AAA", False, 2, 6), ("BBB", False, 6, 9), ("AAA", False, 9, 12)]
    assert [row for row in history("F1") if row[0] != "CCC"] == [*whole, ("AAA", True, 12, None)]
    untouched = warehouse.ask("select rowid from snapshots.ticker_changes where composite_figi = 'F2'")
    # One that is older than what is fed.
    deliver("F1", 4, [(day, "DDD")])
    assert "figi_listings" not in (ran := build_and_list(warehouse)) and "ticker_changes" in ran
    rebuilt = [("AAA", False, 2, 4), ("DDD", False, 4, 6), ("BBB", False, 6, 9), ("AAA", False, 9, 12)]
    assert [row for row in history("F1") if row[0] != "CCC"] == [*rebuilt, ("AAA", True, 12, None)]
    assert warehouse.ask("select rowid from snapshots.ticker_changes where composite_figi = 'F2'") == untouched
    # Trades alone: what masters say is not looked at.
    rows = [COLUMNS, trade_row(SESSIONS[0], "AAA", 1, 60)]
    at = new_york(SESSIONS[0], days=1, hour=6)
    load(warehouse, File("massive_trades", f"massive_trades_{SESSIONS[0]}.csv", table(rows), at), next(numbers))
    assert {name for name in build_and_list(warehouse) if re.search(OF_MASTERS, name)} == {
        "int_listings", "unique_int_listings_listing_id",
        "int_last_trades", "one_version_at_a_time_int_last_trades_listing_id_renamed_on",
    }  # fmt: skip
    before = warehouse.tables(TABLES)
    warehouse.build(full_refresh=True)
    assert differences(before, warehouse.tables(TABLES)) == []


def build_and_list(warehouse: Warehouse) -> list[str]:
    """The nodes of dbt that a build runs."""
    ran: list[str] = []
    build(warehouse.settings, progress=lambda name, done, total: ran.append(name))
    return ran
