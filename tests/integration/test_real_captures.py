"""The real captures, end to end: what they hold is known, and counted again here from the vendors' own bytes.

captures ── one order, one build ───────────── forward ──┐
         ├─ the other order, three builds ──── backward ─┴─ equal; loaded and built again: no new version
         └─ only what was known by K, one build ── cut ──── X_as_of(K) is that of forward
"""

from __future__ import annotations

import bisect
import csv
import datetime as dt
import gzip
import json
import math
import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest
from worlds.reference import MINUTE, cell_end
from worlds.warehouse import RESEARCH, Warehouse, differences, needless_versions, read_sorted

import market_data
from market_data import client, lake, publishing, releases

NEW_YORK = ZoneInfo("America/New_York")
BINANCE = "binance_spot_btcusdt_20240808.gz"
COINBASE = "coinbase_exchange_ws_2021.txt.gz"
GDP_2024 = "alfred_GDP_fetched_2024-11-03.json.gz"
GDP_2025 = "alfred_GDP_fetched_2025-01-20.json.gz"


@dataclass(frozen=True)
class Capture:
    name: str
    feed: str
    delivered_at: str | None = None


CAPTURES = [
    Capture(BINANCE, "binance_spot"),
    Capture(COINBASE, "coinbase_exchange"),
    Capture(GDP_2024, "alfred_observations"),
    Capture(GDP_2025, "alfred_observations"),
    Capture("massive_splits.json", "massive_splits", "2022-08-01"),
    Capture("massive_dividends.json", "massive_dividends", "2025-07-01"),
    Capture("massive_ticker_events_META.json", "massive_ticker_events", "2025-01-01"),
    Capture("openfigi_mapping_IBM.json", "openfigi_mapping", "2025-02-01"),
    Capture("sp500_ticker_start_end.csv", "index_membership", "2025-03-01"),
]


@dataclass
class Loaded:
    """A warehouse with all captures in it, and the version that its last build published."""

    warehouse: Warehouse
    version: int = 0
    files: dict[str, str] = field(default_factory=dict)  # load_id → the capture's name

    def ask(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.warehouse.reader(self.version) as connection:
            return connection.execute(query, parameters).fetchall()


def loaded(warehouse: Warehouse, captures: Path, orders: list[list[Capture]]) -> Loaded:
    found = Loaded(warehouse)
    for part in orders:
        for capture in part:
            outcome = warehouse.load(captures / capture.name, capture.feed, capture.delivered_at)
            assert outcome.status == "loaded", outcome.message
            found.files[outcome.entry.load_id] = capture.name
        found.version = warehouse.build().version
    return found


@pytest.fixture(scope="module")
def forward(captures: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return loaded(Warehouse(tmp_path_factory.mktemp("forward")), captures, [CAPTURES])


@pytest.fixture(scope="module")
def backward(captures: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    reverse = CAPTURES[::-1]
    orders = [
        reverse[:3],
        reverse[3:6],
        reverse[6:],
    ]  # ALFRED's two files, and the streams, in builds of their own
    return loaded(Warehouse(tmp_path_factory.mktemp("backward")), captures, orders)


CONSERVED = (
    "select raw_records, canonical_records, duplicates, quarantined, control, unread from observability.conservation"
)


# What the captures hold, read without the project's own code.


def lines_of(path: Path) -> list[bytes]:
    lines = gzip.decompress(path.read_bytes()).split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def binance_messages(captures: Path) -> Iterator[tuple[str, int, Any]]:
    """kind, receive time in ns, data: one for each line."""
    for line in lines_of(captures / BINANCE):
        received, _, text = line.partition(b" ")
        message = json.loads(text, parse_float=Decimal)
        data = message.get("data", message)
        kind = data.get("e") or ("bookTicker" if message.get("stream", "").endswith("bookTicker") else "snapshot")
        yield kind, int(received), data


def coinbase_messages(captures: Path) -> Iterator[tuple[str, Decimal, Any]]:
    """kind, receive time in seconds, message: one for each line."""
    for line in lines_of(captures / COINBASE):
        match = re.fullmatch(rb"(?:wss://\S+ \S+ )?([0-9.]+):? ?(.*)", line)
        if match is None:
            assert line == b""
            yield "blank", Decimal(0), None
        elif not match[2]:
            yield "connect", Decimal(match[1].decode()), None
        else:
            message = json.loads(match[2], parse_float=Decimal)
            yield message["type"], Decimal(match[1].decode()), message


def observations_of(path: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(gzip.decompress(path.read_bytes()))["observations"]
    return found


def nanoseconds(time: dt.datetime) -> int:
    return (
        int((time.replace(tzinfo=dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) / dt.timedelta(microseconds=1))
        * 1000
    )


def start_of_day_in_new_york(date: dt.date) -> dt.datetime:
    midnight = dt.datetime.combine(date, dt.time(), NEW_YORK)
    return midnight.astimezone(dt.UTC).replace(tzinfo=None)


# Binance


def test_binance_is_counted(forward: Loaded, captures: Path) -> None:
    kinds = Counter(kind for kind, _, _ in binance_messages(captures))
    assert kinds == {"bookTicker": 28_040, "trade": 9_757, "depthUpdate": 3_451, "snapshot": 1}
    assert forward.ask(CONSERVED + " where feed = 'binance_spot'") == [(41_249, sum(kinds.values()), 0, 0, 0, 0)]
    assert forward.ask("select count(*) from canonical.trades where venue = 'binance'") == [(9_757,)]
    assert forward.ask("select count(*) from canonical.quotes where venue = 'binance'") == [(28_040,)]
    messages = [data for kind, _, data in binance_messages(captures) if kind in ("depthUpdate", "snapshot")]
    levels = sum(len(data.get(name, ())) for data in messages for name in ("b", "a", "bids", "asks"))
    assert levels == 124_090 + 2_000
    assert forward.ask("select count(*) from canonical.book_updates where venue = 'binance'") == [(levels,)]
    ((total,),) = forward.ask("select sum(size::decimal(18, 8)) from canonical.trades where venue = 'binance'")
    assert total == Decimal("212.03315000")


def test_every_binance_trade_and_quote_says_what_its_line_says(forward: Loaded, captures: Path) -> None:
    trades, quotes = {}, {}
    for position, (kind, received, data) in enumerate(binance_messages(captures), start=1):
        if kind == "trade":
            event = data["T"] * 1_000_000
            side = "sell" if data["m"] else "buy"
            trades[position] = (
                *("binance:BTCUSDT", str(data["t"]), event, received, float(data["p"]), float(data["q"])),
                *(side, max(event, received), None, "received"),
            )
        elif kind == "bookTicker":
            prices = tuple(float(data[name]) for name in "bBaA")
            quotes[position] = ("binance:BTCUSDT", data["u"], received, received, *prices, received, None)
    rows = forward.ask(
        "select source_position, listing_id, trade_id, epoch_ns(event_time), epoch_ns(received_time), price,"
        " size, side, epoch_ns(known_from), known_to, knowledge_basis"
        " from canonical.trades where venue = 'binance'"
    )
    assert {position: tuple(rest) for position, *rest in rows} == trades
    rows = forward.ask(
        "select source_position, listing_id, update_id, epoch_ns(event_time), epoch_ns(received_time),"
        " bid_price, bid_size, ask_price, ask_size, epoch_ns(known_from), known_to"
        " from canonical.quotes where venue = 'binance'"
    )
    assert {position: tuple(rest) for position, *rest in rows} == quotes


def test_binance_minute_bars(forward: Loaded, captures: Path) -> None:
    minutes: dict[int, list[tuple[int, int, float, float]]] = {}
    for kind, _, data in binance_messages(captures):
        if kind == "trade":
            trade = (data["T"], data["t"], float(data["p"]), float(data["q"]))
            minutes.setdefault(data["T"] // 60_000 * 60_000, []).append(trade)
    expected = []
    for minute, trades in sorted(minutes.items()):
        trades.sort()
        prices, sizes = [trade[2] for trade in trades], [trade[3] for trade in trades]
        dollars = math.fsum(price * size for price, size in zip(prices, sizes, strict=True))
        expected.append(
            (
                *(minute * 1_000_000, prices[0], max(prices), min(prices), prices[-1]),
                *(
                    pytest.approx(math.fsum(sizes), rel=1e-12),
                    pytest.approx(dollars / math.fsum(sizes), rel=1e-12),
                ),
                *(
                    pytest.approx(dollars, rel=1e-12),
                    len(trades),
                    trades[0][0] * 1_000_000,
                    trades[-1][0] * 1_000_000,
                ),
                *("trades", (minute + 60_000) * 1_000_000, None),
            )
        )
    rows = forward.ask(
        "select epoch_ns(bar_start), open, high, low, close, volume, vwap, dollar_volume, trade_count,"
        " epoch_ns(first_trade_at), epoch_ns(last_trade_at), bar_source, epoch_ns(known_from), known_to"
        " from research.bars_1m where listing_id = 'binance:BTCUSDT' order by bar_start, known_from"
    )
    assert rows == expected
    first, last = rows[0], rows[-1]
    assert len(rows) == 7
    assert first[0] == nanoseconds(dt.datetime(2024, 8, 8, 23, 54))
    assert last[0] == nanoseconds(dt.datetime(2024, 8, 9))
    assert first[1:5] == (61837.63, 61855.37, 61824.00, 61828.00)
    assert first[5] == pytest.approx(12.43238, rel=1e-12)
    assert first[8] == 875


def test_binance_spreads_of_the_day(forward: Loaded, captures: Path) -> None:
    """By the receive clock: its quotes have no other. Each quote lasts to the next one, or to midnight."""
    midnight = nanoseconds(dt.datetime(2024, 8, 9))
    quotes: dict[int, tuple[int, float, float]] = {}
    trades: list[tuple[int, float, float]] = []
    for kind, received, data in binance_messages(captures):
        if kind == "bookTicker":
            quotes[received] = max((data["u"], float(data["b"]), float(data["a"])), quotes.get(received, (0, 0.0, 0.0)))
        elif kind == "trade" and data["T"] * 1_000_000 < midnight:
            trades.append((received, float(data["p"]), float(data["q"])))
    times = sorted(quotes)
    lasts = [until - start for start, until in zip(times, [*times[1:], midnight], strict=True)]
    weighted = [
        (min(last, midnight - time), 10_000 * (quotes[time][2] - quotes[time][1]) / (sum(quotes[time][1:]) / 2))
        for time, last in zip(times, lasts, strict=True)
        if time < midnight
    ]
    quoted = math.fsum(last * spread for last, spread in weighted) / sum(last for last, _ in weighted)
    dollars, paid = 0.0, 0.0
    for received, price, size in trades:
        place = bisect.bisect_left(times, received)
        if place:
            mid = sum(quotes[times[place - 1]][1:]) / 2
            paid += 10_000 * 2 * abs(price - mid) / mid * price * size
            dollars += price * size
    assert forward.ask(
        "select session_date::varchar, quoted_spread_bps, effective_spread_bps from research.liquidity_1d"
        " where instrument_id = 'binance:BTCUSDT' and session_date = '2024-08-08' and known_to is null"
    ) == [("2024-08-08", pytest.approx(quoted, rel=1e-9), pytest.approx(paid / dollars, rel=1e-9))]


def test_decisions_carry_the_macro_values_of_their_time(forward: Loaded) -> None:
    """Bitcoin's day closes at midnight; a quarter of an hour later the newest quarter known is the second of 2024."""
    rows = forward.ask(
        "select session_date::varchar, feature_session_date::varchar, decision_time, macro['GDP'] = newest.value, close"
        " from research.features_1d_at_decision as decisions, ("
        "    select value from research.macro_series_as_of('2024-08-09 00:15') where series_id = 'GDP'"
        "    order by observation_date desc limit 1"
        " ) as newest where instrument_id = 'binance:BTCUSDT' and session_date = '2024-08-08'"
    )
    ((session, of_session, decision_time, is_newest, close),) = rows
    assert (session, of_session) == ("2024-08-08", "2024-08-08")
    assert decision_time == dt.datetime(2024, 8, 9, 0, 15)
    assert is_newest and close > 0


# Coinbase


def test_coinbase_is_counted_and_sides_are_the_aggressors(forward: Loaded, captures: Path) -> None:
    messages = list(coinbase_messages(captures))
    kinds = Counter(kind for kind, _, _ in messages)
    assert (kinds["match"], kinds["last_match"], kinds["blank"]) == (97, 10, 2)
    control = sum(kinds[kind] for kind in ("subscribe", "subscriptions", "connect", "blank"))
    assert (kinds["l2update"], kinds["snapshot"]) == (9_719, 10)
    made = sum(kinds[kind] for kind in ("match", "last_match", "ticker", "l2update", "snapshot"))
    assert len(messages) == made + control
    assert forward.ask(CONSERVED + " where feed = 'coinbase_exchange'") == [(len(messages), made, 0, 0, control, 0)]
    levels = sum(len(message.get(name, ())) for kind, _, message in messages if kind in ("l2update", "snapshot")
                 for name in ("bids", "asks", "changes"))  # fmt: skip
    assert forward.ask("select count(*) from canonical.book_updates where venue = 'coinbase'") == [(levels,)]
    turned = {"buy": "sell", "sell": "buy"}
    expected = {}
    for position, (kind, received, message) in enumerate(messages, start=1):
        if kind in ("match", "last_match"):
            event = nanoseconds(dt.datetime.fromisoformat(message["time"]).replace(tzinfo=None))
            expected[position] = (
                *(f"coinbase:{message['product_id']}", str(message["trade_id"]), message["sequence"], event),
                *(
                    int(received * 10**9),
                    float(message["price"]),
                    float(message["size"]),
                    turned[message["side"]],
                ),
                max(event, int(received * 10**9)),
            )
    rows = forward.ask(
        "select source_position, listing_id, trade_id, sequence, epoch_ns(event_time), epoch_ns(received_time),"
        " price, size, side, epoch_ns(known_from) from canonical.trades where venue = 'coinbase'"
    )
    assert {position: tuple(rest) for position, *rest in rows} == expected
    assert len({row[1:3] for row in rows}) == len(rows) == 107


def test_recorded_streams_are_of_known_formats(forward: Loaded) -> None:
    """The captures are older than the second version of either format, and hold no field that the registry lacks."""
    assert forward.ask(
        "select distinct schema_version, bid_size is null from canonical.quotes where venue = 'coinbase'"
    ) == [("1", True)]
    assert forward.ask("select distinct schema_version from canonical.trades where venue = 'binance'") == [("1",)]
    assert forward.ask("select feed, field from observability.schema_drift order by all") == []


# Pairs of both venues


def test_pairs_are_instruments_of_their_venue_from_their_first_record_on(forward: Loaded, captures: Path) -> None:
    kinds = ("match", "last_match", "ticker", "snapshot", "l2update")
    made = {message["product_id"] for kind, _, message in coinbase_messages(captures) if kind in kinds}
    pairs = {("coinbase", product, *product.split("-")) for product in made} | {("binance", "BTCUSDT", "BTC", "USDT")}
    named = forward.ask(
        "select venue, symbol, base_currency, quote_currency, instrument_id, known_to"
        " from canonical.instruments where asset_class = 'crypto'"
    )
    assert {row[:4] for row in named} == pairs
    assert all(row[4:] == (f"{row[0]}:{row[1]}", None) for row in named)
    first_known = (
        "select listing_id, min(known_from) from (select listing_id, known_from from canonical.trades"
        " union all select listing_id, known_from from canonical.quotes"
        " union all select listing_id, known_from from canonical.book_updates) group by listing_id"
    )
    meant = forward.ask(
        "select listing_id, instrument_id, known_from from canonical.symbology where venue in ('binance', 'coinbase')"
    )
    assert sorted(meant) == sorted((listing, listing, known) for listing, known in forward.ask(first_known))
    assert forward.ask(
        "select count(*) from observability.unnamed_listings where venue in ('binance', 'coinbase')"
    ) == [(0,)]


# ALFRED


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_gdp_in_either_order(order: str, request: pytest.FixtureRequest, captures: Path) -> None:
    found: Loaded = request.getfixturevalue(order)
    vintages = {
        (row["date"], row["realtime_start"], row["value"])
        for name in (GDP_2024, GDP_2025)
        for row in observations_of(captures / name)
    }
    assert len(vintages) == 3_201
    rows = found.ask(
        "select observation_date::varchar, published_on::varchar, value, known_from"
        " from canonical.macro_observations where series_id = 'GDP'"
    )
    expected = {
        (
            *(date, start, None if value == "." else float(value)),
            start_of_day_in_new_york(dt.date.fromisoformat(start) + dt.timedelta(days=1)),
        )
        for date, start, value in vintages
    }
    assert len(rows) == 3_201
    assert set(rows) == expected
    assert found.ask("select count(*) from canonical.quarantine where feed = 'alfred_observations'") == [(0,)]
    newest = (
        "select observation_date::varchar, value from research.macro_series_as_of(?) where series_id = 'GDP'"
        " order by observation_date desc limit 1"
    )
    assert found.ask(newest, "2009-02-01") == [("2008-10-01", 14264.6)]
    assert found.ask(newest, "2008-12-31") == [("2008-07-01", 14412.8)]
    first_prints = (
        "select count(*), count(first_print) from research.macro_series_as_of('2025-06-01') where series_id = 'GDP'"
    )
    assert found.ask(first_prints) == [(315, 132)]


def test_gdp_as_of_every_vintage_and_the_instant_before(forward: Loaded, captures: Path) -> None:
    rows = observations_of(captures / GDP_2025)
    day = dt.timedelta(days=1)
    parsed = [
        (
            dt.date.fromisoformat(row["date"]),
            None if row["value"] == "." else float(row["value"]),
            dt.date.fromisoformat(row["realtime_start"]),
            dt.date.max if row["realtime_end"] == "9999-12-31" else dt.date.fromisoformat(row["realtime_end"]),
        )
        for row in rows
    ]
    times: dict[dt.datetime, dt.date] = {}  # asked at → the last vintage date that has ended by then
    for vintage in sorted({start for _, _, start, _ in parsed}):
        known_from = start_of_day_in_new_york(vintage + day)
        times[known_from] = vintage
        times[known_from - dt.timedelta(microseconds=1)] = vintage - day
    expected = {
        (time, date, value)
        for time, ended in times.items()
        for date, value, start, end in parsed
        if start <= ended <= end
    }
    with forward.warehouse.reader(forward.version) as connection:
        found = connection.execute(
            "select asked.time, answer.observation_date, answer.value"
            " from (select unnest(?::timestamp[]) as time) as asked,"
            " lateral research.macro_series_as_of(asked.time) as answer where answer.series_id = 'GDP'",
            [list(times)],
        ).fetchall()
    assert len(found) == len(set(found))
    assert set(found) == expected


# The rest: conservation of every load, the other files, lineage


def test_every_load_is_conserved(forward: Loaded, captures: Path) -> None:
    documents = [capture.name for capture in CAPTURES if capture.name.endswith(".json")]
    elements = {name: json.loads((captures / name).read_bytes()) for name in documents}
    raw = {
        BINANCE: len(lines_of(captures / BINANCE)),
        COINBASE: len(lines_of(captures / COINBASE)),
        GDP_2024: len(observations_of(captures / GDP_2024)),
        GDP_2025: len(observations_of(captures / GDP_2025)),
        "massive_splits.json": len(elements["massive_splits.json"]["results"]),
        "massive_dividends.json": len(elements["massive_dividends.json"]["results"]),
        "massive_ticker_events_META.json": len(elements["massive_ticker_events_META.json"]["results"]["events"]),
        "openfigi_mapping_IBM.json": sum(len(answer["data"]) for answer in elements["openfigi_mapping_IBM.json"]),
        "sp500_ticker_start_end.csv": len(
            list(csv.DictReader((captures / "sp500_ticker_start_end.csv").open(newline="")))
        ),
    }
    rows = forward.ask(
        "select load_id, raw_records, canonical_records, duplicates, quarantined, control, unread,"
        " is_conserved from observability.conservation"
    )
    assert {forward.files[load]: records for load, records, *_ in rows} == raw
    for load, records, *terms, is_conserved in rows:
        assert records == sum(terms), forward.files[load]
        assert is_conserved
    by_file = {forward.files[load]: tuple(terms) for load, _, *terms, _ in rows}
    first = {(row["date"], row["realtime_start"], row["value"]) for row in observations_of(captures / GDP_2024)}
    again = sum(
        (row["date"], row["realtime_start"], row["value"]) in first for row in observations_of(captures / GDP_2025)
    )
    assert by_file[GDP_2024] == (raw[GDP_2024], 0, 0, 0, 0)
    assert by_file[GDP_2025] == (raw[GDP_2025] - again, again, 0, 0, 0)
    assert by_file["massive_splits.json"] == (10, 0, 0, 0, 0)
    assert by_file["massive_dividends.json"] == (10, 0, 0, 0, 0)
    assert by_file["massive_ticker_events_META.json"] == (2, 0, 0, 0, 0)
    assert by_file["openfigi_mapping_IBM.json"] == (198, 0, 0, 0, 0)
    assert by_file["sp500_ticker_start_end.csv"] == (raw["sp500_ticker_start_end.csv"], 0, 0, 0, 0)


def test_memberships_are_two_facts(forward: Loaded, captures: Path) -> None:
    expected = set()
    with (captures / "sp500_ticker_start_end.csv").open(newline="") as file:
        for position, row in enumerate(csv.DictReader(file), start=1):
            begins = dt.date.fromisoformat(row["start_date"])
            ends = dt.date.fromisoformat(row["end_date"]) if row["end_date"] else None
            closes = start_of_day_in_new_york(ends) if ends else None
            opens = start_of_day_in_new_york(begins)
            expected.add(("sp500", f"us_equities:{row['ticker']}", begins, None, opens, closes, 0, position))
            if ends:
                expected.add(("sp500", f"us_equities:{row['ticker']}", begins, ends, closes, None, 1, position))
    rows = forward.ask(
        "select index_name, listing_id, valid_from, valid_to, known_from, known_to, revision, source_position"
        " from canonical.universe_membership"
    )
    assert len(rows) == len(set(rows))
    assert set(rows) == expected


def test_actions_say_what_their_elements_say(forward: Loaded, captures: Path) -> None:
    splits = json.loads((captures / "massive_splits.json").read_bytes())["results"]
    dividends = json.loads((captures / "massive_dividends.json").read_bytes())["results"]

    def date(text: str | None) -> dt.date | None:
        return dt.date.fromisoformat(text) if text else None

    expected = set()
    for position, row in enumerate(splits, start=1):
        ex_date = dt.date.fromisoformat(row["execution_date"])
        known_from = start_of_day_in_new_york(ex_date)
        expected.add(
            (
                row["ticker"],
                "split",
                ex_date,
                row["split_from"],
                row["split_to"],
                None,
                None,
                known_from,
                "assumed",
                position,
            )
        )
    for position, row in enumerate(dividends, start=1):
        ex_date, declared = dt.date.fromisoformat(row["ex_dividend_date"]), date(row.get("declaration_date"))
        known_from = start_of_day_in_new_york(declared + dt.timedelta(days=1) if declared else ex_date)
        basis = "published" if declared else "assumed"
        kind = {"CD": "dividend", "SC": "special_dividend"}[row["dividend_type"]]
        expected.add(
            (
                row["ticker"],
                kind,
                ex_date,
                None,
                None,
                row["cash_amount"],
                declared,
                known_from,
                basis,
                position,
            )
        )
    rows = forward.ask(
        "select symbol, action_type, ex_date, split_from, split_to, cash_amount, declared_on, known_from,"
        " knowledge_basis, source_position from canonical.corporate_actions"
    )
    assert set(rows) == expected


def test_shops_doubled_split_is_reported_once(forward: Loaded) -> None:
    """The file has it on 22 and on 29 June 2022, and no bar of SHOP is there to answer for either."""
    reported = forward.ask("select symbol, action_type, ex_date, reason from observability.actions_not_applied")
    assert reported == [("SHOP", "split", dt.date(2022, 6, 22), "an equal split follows within 10 sessions")]


def test_releases_tell_of_views_by_the_rows_they_show(forward: Loaded) -> None:
    with lake.open_version(forward.warehouse.settings, None) as connection:
        changes = {one.version: one.changes for one in releases.published(connection, 5)}[forward.version]
    for view in ("canonical.book_snapshots", "canonical.instruments", "canonical.symbology"):
        ((rows,),) = forward.ask(f"select count(*) from {view}")
        assert changes[view] == releases.Change(added=rows, revised=0, removed=0) and rows > 0, view
    assert changes["research.universe"].added > 1_000


# Properties 2 and 3


def test_the_other_order_in_three_builds_gives_equal_tables(forward: Loaded, backward: Loaded) -> None:
    assert forward.files == backward.files
    left = forward.warehouse.tables(version=forward.version)
    right = backward.warehouse.tables(version=backward.version)
    assert differences(left, right) == []


def test_loading_and_building_again_changes_nothing(backward: Loaded, captures: Path) -> None:
    warehouse = backward.warehouse
    before = warehouse.tables()
    raw_files = sorted(path for path in Path(warehouse.settings.raw).rglob("*") if path.is_file())
    for capture in CAPTURES:
        outcome = warehouse.load(captures / capture.name, capture.feed, capture.delivered_at)
        assert outcome.status == "unchanged", outcome.message
    built = warehouse.build()
    assert (built.version, built.new_loads, built.built) == (backward.version, 0, False)
    assert raw_files == sorted(path for path in Path(warehouse.settings.raw).rglob("*") if path.is_file())
    assert client.published_version(warehouse.settings) == backward.version
    assert differences(before, warehouse.tables()) == []


# Property 5


def stream_known(captures: Path, capture: Capture) -> Iterator[tuple[bytes, str, int]]:
    """Each line of a recorded stream, its kind, and when it was known: on receipt, and not before what it tells of."""
    lines = lines_of(captures / capture.name)
    if capture.name == BINANCE:
        for line, (kind, received, data) in zip(lines, binance_messages(captures), strict=True):
            yield line, kind, max(received, data.get("T", data.get("E", 0)) * 1_000_000)
    else:
        for line, (kind, seconds, message) in zip(lines, coinbase_messages(captures), strict=True):
            happened = (message or {}).get("time")
            event = nanoseconds(dt.datetime.fromisoformat(happened).replace(tzinfo=None)) if happened else 0
            yield line, kind, max(int(seconds * 10**9), event)


def day_known(date: str, days: int = 0) -> int:
    """When what a vendor dates so was known: when the day begins in New York, or that many days later."""
    return nanoseconds(start_of_day_in_new_york(dt.date.fromisoformat(date) + dt.timedelta(days)))


def action_known(row: dict[str, Any]) -> int:
    """When a split or a dividend was known: on its day, or after the day on which it was declared."""
    if declared := row.get("declaration_date"):
        return day_known(declared, 1)
    return day_known(row.get("execution_date") or row["ex_dividend_date"])


def cut_capture(captures: Path, capture: Capture, known_at: int) -> bytes:
    """A capture's file as it would be with only the facts that were known by then; empty where there are none."""
    path = captures / capture.name
    if capture.name in (BINANCE, COINBASE):
        lines = [line for line, _, known in stream_known(captures, capture) if known <= known_at]
        return gzip.compress(b"".join(line + b"\n" for line in lines)) if any(lines) else b""
    if capture.feed == "index_membership":
        with path.open(newline="") as file:
            members = [row for row in csv.DictReader(file) if day_known(row["start_date"]) <= known_at]
        for row in members:
            if row["end_date"] and day_known(row["end_date"]) > known_at:
                row["end_date"] = ""
        text = "".join(f"{row['ticker']},{row['start_date']},{row['end_date']}\n" for row in members)
        return f"ticker,start_date,end_date\n{text}".encode() if members else b""
    if capture.feed == "openfigi_mapping":
        assert capture.delivered_at is not None
        delivered = nanoseconds(dt.datetime.fromisoformat(capture.delivered_at))
        return path.read_bytes() if delivered <= known_at else b""
    body = path.read_bytes()
    document = json.loads(gzip.decompress(body) if path.suffix == ".gz" else body)
    if capture.feed == "alfred_observations":
        rows = document["observations"]
        rows[:] = [row for row in rows if day_known(row["realtime_start"], 1) <= known_at]
        for row in rows:
            if row["realtime_end"] != "9999-12-31" and day_known(row["realtime_end"], 1) > known_at:
                row["realtime_end"] = "9999-12-31"
    elif capture.feed == "massive_ticker_events":
        rows = document["results"]["events"]
        rows[:] = [row for row in rows if day_known(row["date"]) <= known_at]
    else:
        rows = document["results"]
        rows[:] = [row for row in rows if action_known(row) <= known_at]
    cut = json.dumps(document).encode()
    return (gzip.compress(cut) if path.suffix == ".gz" else cut) if rows else b""


DATED = {
    "a day's end": nanoseconds(dt.datetime(2024, 8, 9)),
    "a vintage": day_known("2009-01-30", 1),
    "a member": day_known("2013-12-23"),
    "a member's end": day_known("2022-06-09"),
    "a ticker event": day_known("2022-06-11"),
    "an openfigi answer": nanoseconds(dt.datetime(2025, 2, 1)),
    "a split": day_known("2022-06-29"),
    "a dividend": day_known("2022-02-10", 1),
}
"""When something of a capture became known that is dated: FB joins the index, and leaves it as META joins."""


def a_time(captures: Path, kind: str) -> int:
    """A time at which something of a capture became known."""
    if kind in DATED:
        return DATED[kind]
    binance, coinbase, *_ = CAPTURES
    capture, of_trade, after = {
        "a trade of binance": (binance, "trade", dt.datetime(2024, 8, 8, 23, 57)),
        "a trade of coinbase": (coinbase, "match", dt.datetime(2021, 4, 17, 16, 44)),
    }[kind]
    known = (known for _, which, known in stream_known(captures, capture) if which == of_trade)
    return next(time for time in known if time > nanoseconds(after))


KINDS = [*DATED, "a trade of binance", "a trade of coinbase"]
STEPS = (-1, 0, MINUTE)
"""Just before the end of the cell of the grid in which it became known, at it, and a cell later."""
TIMES_OF_CUTS = [
    pytest.param(kind, step, marks=[] if (kind, step) == ("a day's end", 0) else [pytest.mark.long])
    for kind in KINDS
    for step in STEPS
]


@pytest.mark.parametrize(("kind", "step"), TIMES_OF_CUTS)
def test_no_look_ahead(forward: Loaded, captures: Path, tmp_path: Path, kind: str, step: int) -> None:
    """Every table of research answers as of K from all captures what it answers from what was known by K."""
    known_at = cell_end(a_time(captures, kind)) + step
    with forward.warehouse.reader(forward.version) as whole:
        rows = compare_with_cut(whole, cut_warehouse(captures, tmp_path, known_at), known_at)
    assert rows["macro_series"] > 100 and rows["universe"] > 100
    assert kind in DATED or rows["bars_1m"] > 0
    assert kind != "a day's end" or step < 0 or rows["liquidity_1d"] > 0


def cut_warehouse(captures: Path, root: Path, known_at: int, *, late: Path | None = None) -> Warehouse:
    """A warehouse of only what was known by then; of a late trade's file too, if there is one."""
    cut = Warehouse(root)
    for number, capture in enumerate(CAPTURES):
        body = cut_capture(captures, capture, known_at)
        if body:
            path = root / "files" / str(number) / capture.name
            path.parent.mkdir(parents=True)
            path.write_bytes(body)
            outcome = cut.load(path, capture.feed, capture.delivered_at)
            assert outcome.status in ("loaded", "redelivered"), outcome.message
    if late is not None and known_at >= LATE:
        assert cut.load(late, "binance_spot").status == "loaded"
    cut.build()
    return cut


def compare_with_cut(whole: duckdb.DuckDBPyConnection, cut: Warehouse, known_at: int) -> dict[str, int]:
    """Compare all tables of research as of then; how many rows each has."""
    asked = f"make_timestamp_ns({known_at})"
    rows = {}
    with cut.reader() as less:
        for table in RESEARCH:
            left, right = (read_sorted(one, f"(from research.{table}_as_of({asked}))") for one in (whole, less))
            assert differences({table: left}, {table: right}) == [], f"{table} as of {known_at}"
            rows[table] = left.num_rows
    return rows


# As of, by every way in


ASK_IN_A_PROCESS_OF_ITS_OWN = """
    import json, pathlib, sys
    import duckdb
    connection = duckdb.connect()
    connection.execute(pathlib.Path(sys.argv[1]).read_text())
    for statement in sys.argv[2:]:
        print(json.dumps(connection.execute(statement).fetchall(), default=str))
"""


def ask_elsewhere(warehouse: Warehouse, *statements: str) -> list[Any]:
    """What plain DuckDB answers in another process, connected by the script of publishing; as text."""
    script = str(publishing.connect_script(warehouse.settings))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ASK_IN_A_PROCESS_OF_ITS_OWN), script, *statements],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


LATE = nanoseconds(dt.datetime(2024, 8, 8, 23, 57, 30))


def late_trade(captures: Path, directory: Path) -> Path:
    """A file of one trade of 23:54 that arrived at 23:57:30: numbered first, and above the high."""
    for line in lines_of(captures / BINANCE):
        if b'"trade"' in line:
            _, _, text = line.partition(b" ")
            break
    message = json.loads(text)
    message["data"] |= {"t": 1, "p": "61900.00000000", "q": "1.00000000"}
    late = directory / "binance_spot_btcusdt_20240809.gz"
    late.write_bytes(gzip.compress(f"{LATE} {json.dumps(message)}\n".encode()))
    return late


@pytest.fixture(scope="module")
def revised(forward: Loaded, captures: Path, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """The captures, and a late trade."""
    late = late_trade(captures, tmp_path_factory.mktemp("late"))
    assert forward.warehouse.load(late, "binance_spot").status == "loaded"
    assert forward.warehouse.build().version > forward.version
    return forward.warehouse


@pytest.mark.long
@pytest.mark.parametrize("step", STEPS)
def test_no_look_ahead_around_a_late_trade(revised: Warehouse, captures: Path, tmp_path: Path, step: int) -> None:
    known_at = cell_end(LATE) + step
    cut = cut_warehouse(captures, tmp_path, known_at, late=late_trade(captures, tmp_path))
    with revised.reader() as whole:
        assert compare_with_cut(whole, cut, known_at)["bars_1m"] > 0


def test_a_version_says_something_new(revised: Warehouse) -> None:
    assert needless_versions(revised) == []


BAR_AT = [  # known at, and (open, high, trade_count) of the bar of 23:54
    ("2024-08-08 23:54:59.999999999", None),
    ("2024-08-08 23:55:00", (61837.63, 61855.37, 875)),
    ("2024-08-08 23:57:59.999999999", (61837.63, 61855.37, 875)),
    ("2024-08-08 23:58:00", (61900.0, 61900.0, 876)),
    ("2024-08-10", (61900.0, 61900.0, 876)),
]
GDP_AT = [  # known at, and 2008 Q3 as of then: advance, preliminary, final
    ("2008-10-31 03:59:59.999999999", None),
    ("2008-10-31 04:00:00", 14429.2),
    ("2008-11-26 04:59:59.999999999", 14429.2),
    ("2008-11-26 05:00:00", 14420.5),
    ("2008-12-24 05:00:00", 14412.8),
]


def test_as_of_before_between_and_after_revisions_from_sql_elsewhere(revised: Warehouse) -> None:
    bars = ask_elsewhere(
        revised,
        *(
            "select open, high, trade_count, known_to from"
            f" lake.research.bars_1m_as_of('{time}')"
            " where symbol = 'BTCUSDT' and bar_start = '2024-08-08 23:54:00'"
            for time, _ in BAR_AT
        ),
    )
    assert bars == [[] if bar is None else [[*bar, None]] for _, bar in BAR_AT]
    values = ask_elsewhere(
        revised,
        *(
            f"select value, known_to, age_days from lake.research.macro_series_as_of('{time}')"
            " where series_id = 'GDP' and observation_date = '2008-07-01'"
            for time, _ in GDP_AT
        ),
    )
    ages = [(dt.date.fromisoformat(time[:10]) - dt.date(2008, 7, 1)).days for time, _ in GDP_AT]
    assert values == [
        [] if value is None else [[value, None, age]] for (_, value), age in zip(GDP_AT, ages, strict=True)
    ]


def test_as_of_before_between_and_after_revisions_from_python(revised: Warehouse) -> None:
    with market_data.connect(revised.settings) as connection:
        for time, bar in BAR_AT:
            asked = time[:26]  # datetimes have microseconds
            answer = connection.bars(
                "BTCUSDT", known_at=asked, interval="1m", end=dt.datetime(2024, 8, 8, 23, 55)
            ).arrow.to_pylist()
            assert [(row["open"], row["high"], row["trade_count"]) for row in answer] == ([bar] if bar else [])
            assert all(row["known_to"] is None for row in answer)
        for time, value in GDP_AT:
            answer = connection.macro("GDP", known_at=time[:26]).arrow.to_pylist()
            of_period = [row["value"] for row in answer if row["observation_date"] == dt.date(2008, 7, 1)]
            assert of_period == ([value] if value else [])
        latest = connection.macro("GDP", known_at=market_data.LATEST)
        assert len(latest) == 315
        assert len(latest.pl()) == len(latest.df()) == 315


def test_books_from_python(forward: Loaded) -> None:
    start, end = dt.datetime(2024, 8, 8, 23, 55), dt.datetime(2024, 8, 8, 23, 56)
    with market_data.at(forward.version, forward.warehouse.settings) as md:
        books = md.book("BTCUSDT", known_at="2024-08-09", venue="binance", start=start, end=end).arrow.to_pylist()
        before = start - dt.timedelta(seconds=1)
        assert len(md.book("BTCUSDT", known_at=before, venue="binance", start=start, end=end)) == 0
        assert len(md.book(["BTCUSDT"], known_at=market_data.LATEST, venue="coinbase")) == 0
    expected = forward.ask(
        "select event_time, bid_prices, bid_sizes, ask_prices, ask_sizes from canonical.book_snapshots"
        " where listing_id = 'binance:BTCUSDT' and event_time >= ? and event_time < ? order by event_time",
        start,
        end,
    )
    names = ("event_time", "bid_prices", "bid_sizes", "ask_prices", "ask_sizes")
    assert [tuple(book[name] for name in names) for book in books] == expected
    assert len({book["event_time"] for book in books}) == 60
    assert all(book["is_valid"] and book["bid_prices"][0] < book["ask_prices"][0] for book in books)
    assert all(book["bid_prices"] == sorted(book["bid_prices"], reverse=True) for book in books)


def test_an_older_version_still_answers_as_it_did(revised: Warehouse, forward: Loaded) -> None:
    with revised.reader(forward.version) as connection:
        high = (
            "select high from research.bars_1m_as_of('2024-08-10') where symbol = 'BTCUSDT' order by bar_start limit 1"
        )
        assert connection.execute(high).fetchall() == [(61855.37,)]


def test_known_at_of_every_type_and_in_every_session_time_zone(forward: Loaded) -> None:
    newest = (
        "select observation_date::varchar, value from research.macro_series_as_of({}) where series_id = 'GDP'"
        " order by observation_date desc limit 1"
    )
    # 2008 Q4 was published on Friday 2009-01-30, and is known from 05:00 UTC of the day after.
    before, after = [("2008-07-01", 14412.8)], [("2008-10-01", 14264.6)]
    with forward.warehouse.reader(forward.version) as connection:
        for zone in ("UTC", "America/New_York", "Asia/Tokyo", "Asia/Kolkata", "Pacific/Chatham"):
            connection.execute(f"set TimeZone = '{zone}'")
            for known_at, expected in {
                "timestamp '2009-01-31 04:59:59.999999'": before,
                "timestamp '2009-01-31 05:00:00'": after,
                "timestamp_ns '2009-01-31 04:59:59.999999999'": before,
                "timestamp_s '2009-01-31 05:00:00'": after,
                "timestamptz '2009-01-31 04:59:59.999999+00'": before,
                "timestamptz '2009-01-31 05:00:00+00'": after,
                "timestamptz '2009-01-30 23:59:59-05:00'": before,
                "timestamptz '2009-01-31 00:00:00-05:00'": after,
                "date '2009-01-31'": before,
                "date '2009-02-01'": after,
                "'2009-01-31'": before,
                "'2009-01-31 05:00:00'": after,
                "'2009-01-31T04:59:59Z'": before,
                "'2009-01-31T00:00:00-05:00'": after,
                "'2009-01-31 14:00:00+09'": after,
                "'2009-01-31 13:59:59+09'": before,
            }.items():
                found = connection.execute(newest.format(known_at)).fetchall()
                assert found == expected, f"{known_at} in {zone}"
