"""Small worlds of daily bars, and what the daily research tables must answer, by the contract alone, in NumPy.

    draw_days(seed) ──> deliveries of day bars, trades, splits, dividends, ticker events, memberships, vintages
        └── Known(world, K) ──> .adjusted() .returns() .volatility() .momentum() .liquidity() .universe() .decisions()

Everything is worked out anew from the facts known at K, by loops over sessions: no versions, no windows kept between
two questions, and nothing shared with the models. A fact is (known_from, value); None is a value that was taken back.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import math
import random
from collections import defaultdict
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from worlds.adversarial import COLUMNS, table
from worlds.quotes import QUOTE_COLUMNS
from worlds.reference import DAY, MINUTE, File, cell_end, new_york, utc
from worlds.warehouse import REPOSITORY

Listing = str
Row = dict[str, Any]
BAR_COLUMNS = ["ticker", "volume", "open", "close", "high", "low", "window_start", "transactions"]
A, M = 252, 21
LAG = 15 * MINUTE


@dataclass(frozen=True)
class Bar:
    open: float
    high: float
    low: float
    close: float
    volume: float
    source: str = "vendor"


@dataclass(frozen=True)
class Rename:
    """From `date` on the new ticker means the old one's instrument, as known from `known_from`."""

    old: str
    new: str
    date: dt.date
    known_from: int


@dataclass(eq=False)
class World:
    """Facts by key, each with all that was ever said of it, and the files that say so."""

    bars: dict[tuple[str, dt.date], list[tuple[int, Bar | None]]] = field(default_factory=lambda: defaultdict(list))
    splits: dict[tuple[str, dt.date], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    dividends: dict[tuple[str, dt.date], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    vintages: dict[tuple[str, dt.date], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    renames: list[Rename] = field(default_factory=list)
    kinds: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Times at which something became known, by what it was. Members, quotes and crypto have no formula here."""
    files: list[File] = field(default_factory=list)

    def known_times(self) -> list[int]:
        """Every time at which something became known."""
        return sorted({time for times in self.kinds.values() for time in times})


@dataclass(frozen=True)
class Session:
    date: dt.date
    number: int
    close: int

    @property
    def decision(self) -> int:
        return self.close + LAG


def read_sessions() -> list[Session]:
    with (REPOSITORY / "dbt_project" / "seeds" / "sessions.csv").open() as file:
        return [
            Session(
                dt.date.fromisoformat(row["session_date"]),
                int(row["session_seq"]),
                utc(dt.datetime.fromisoformat(row["close_at"]).replace(tzinfo=dt.UTC)),
            )
            for row in csv.DictReader(file)
        ]


SESSIONS = read_sessions()
BY_DATE = {session.date: session for session in SESSIONS}
FIRST = next(number for number, session in enumerate(SESSIONS) if session.date >= dt.date(2022, 1, 3))


EXAMPLE = (46.99, 48.30, 24.96, 24.53)
"""The closes of the contract's example: two for one on the third day, a dividend of 0.08 on the fourth."""
MEMBER_BEGINS, MEMBER_ENDS = 90, 190
"""The sessions on which PLAIN joins the index and leaves it."""


KINDS = (
    *("a day's bars", "a bar corrected", "a bar taken back", "a bar given again"),
    *("a trade in place of a vendor's bar", "a trade corrected", "a trade cancelled", "a trade taken back"),
    *("a split", "a split corrected", "an equal split", "a dividend declared", "a dividend corrected"),
    *("a ticker event", "a ticker event corrected", "a rename of sessions before"),
    *("a member", "a member's end", "quotes corrected", "a vintage", "a vintage revised"),
    *("a trade of crypto", "a late trade of crypto"),
)
"""What may become known in a world."""


TRADED = {"OLD": range(150), "NEW": range(150, 10_000), "LATE": range(140), "LATER": range(140, 10_000)}
"""On which days tickers were used that are not used on all."""


# Drawing


def draw_days(seed: int, count: int) -> World:
    """Ten tickers over so many sessions, and every kind of revision."""
    chance = random.Random(seed)
    world = World()
    days = SESSIONS[FIRST : FIRST + count]
    rows: dict[dt.date, list[list[str]]] = {day.date: [] for day in days}
    splits = {"SPLIT": {days[60].date: 2.0, days[200].date: 0.1}, "SHOP": {dt.date(2022, 6, 29): 10.0}}
    for ticker in ("PLAIN", "SPLIT", "SHOP", "GAPS", "OLD", "NEW", "LATE", "LATER", "WRONG"):
        price = chance.uniform(20, 200)
        for number, day in enumerate(days):
            price *= math.exp(chance.gauss(0, 0.02)) / splits.get(ticker, {}).get(day.date, 1)
            if ticker == "GAPS" and (chance.random() < 0.15 or 120 <= number < 135):
                continue
            if number not in TRADED.get(ticker, range(count)):
                continue
            bar = draw_bar(price, chance)
            price = bar.close
            known = new_york(day.date, days=1, hour=11)
            world.kinds["a day's bars"].append(known)
            world.bars[ticker, day.date].append((known, bar))
            rows[day.date].append(bar_row(ticker, day.date, bar))
    for day, close in zip(days, EXAMPLE, strict=False):
        bar = Bar(close, close, close, close, 100.0)
        world.bars["EXAM", day.date].append((new_york(day.date, days=1, hour=11), bar))
        rows[day.date].append(bar_row("EXAM", day.date, bar))
    # Of META's first days there are vendor's bars too, whose place its trades take.
    for day in days:
        if meta_ticker(day.date) and day.date.day % 3 == 0:
            bar = Bar(90.0, 95.0, 85.0, 92.0, 1000.0)
            world.kinds["a trade in place of a vendor's bar"].append(new_york(day.date, days=1, hour=11))
            rows[day.date].append(bar_row(meta_ticker(day.date), day.date, bar))
    world.files += [day_file(date, of_day, new_york(date, days=1, hour=10)) for date, of_day in rows.items()]
    for number, at in ((30, 45), (100, 101), (101, 101), (180, 200), (count - 1, count + 3)):
        if number < count:
            correct(world, days[number].date, new_york(days[0].date, days=at * 7 // 5, hour=13, minute=7), chance)
    add_actions(world, days, chance)
    add_rename(world, days)
    add_meta(world, chance)
    add_late_rename(world, "LATE", "LATER", traded=days[140].date, dated=days[142].date + dt.timedelta(1))
    add_quotes(world, days)
    add_vintages(world, days)
    add_crypto(world)
    # A file names its members by the tickers of the day on which it was made.
    begins, ends = days[MEMBER_BEGINS].date, days[MEMBER_ENDS].date
    rows = [
        ["ticker", "start_date", "end_date"],
        ["NEW", str(days[0].date), ""],
        ["PLAIN", str(begins), str(ends)],
    ]
    world.kinds["a member"].append(new_york(begins))
    world.kinds["a member's end"].append(new_york(ends))
    delivered = new_york(days[-1].date, days=30)
    world.files.append(File("index_membership", "worlds_ticker_start_end.csv", table(rows), delivered))
    return world


def draw_bar(price: float, chance: random.Random) -> Bar:
    start, end = (round(price * math.exp(chance.gauss(0, 0.01)), 2) for _ in range(2))
    high = round(max(start, end) * math.exp(abs(chance.gauss(0, 0.005))), 2)
    low = round(min(start, end) * math.exp(-abs(chance.gauss(0, 0.005))), 2)
    return Bar(start, max(high, start, end), min(low, start, end), end, float(chance.randint(1, 10**6)))


def bar_row(ticker: str, date: dt.date, bar: Bar) -> list[str]:
    prices = (bar.volume, bar.open, bar.close, bar.high, bar.low)
    return [ticker, *map(repr, prices), str(new_york(date, hour=9, minute=30)), "7"]


def day_file(date: dt.date, rows: list[list[str]], delivered: int) -> File:
    return File("massive_day_aggs", f"massive_day_aggs_{date}.csv", table([BAR_COLUMNS, *rows]), delivered)


def correct(world: World, date: dt.date, delivered: int, chance: random.Random) -> None:
    """Deliver a session once more: one ticker otherwise, one that was missing, another missing now and then again."""
    present = sorted(ticker for ticker, day in world.bars if day == date and world.bars[ticker, day][-1][1])
    changed = chance.choice(present)
    bars = {ticker: world.bars[ticker, date][-1][1] for ticker in present}
    kinds = ("a bar corrected", "a bar taken back", "a bar given again")
    for number, without in enumerate(("", chance.choice(present), "")):
        at = max(delivered, new_york(date, days=1, hour=11) + MINUTE) + number * 3 * DAY
        rows = []
        for ticker, bar in bars.items():
            assert bar is not None
            said = replace(bar, close=bar.low) if ticker == changed and number == 0 else bar
            said = replace(said, volume=said.volume + number) if ticker == changed else said
            was = world.bars[ticker, date][-1][1]
            if ticker == without:
                world.bars[ticker, date].append((at, None))
            else:
                rows.append(bar_row(ticker, date, said))
                if was != said:
                    world.bars[ticker, date].append((at, said))
        world.kinds[kinds[number]].append(at)
        world.files.append(day_file(date, rows, at))


def add_actions(world: World, days: list[Session], chance: random.Random) -> None:
    """Quarterly dividends, splits as they happened, one doubled, one that the price denies, and late ones."""

    def split(ticker: str, day: int, ratio: float, *, late: int = 0) -> None:
        deliver(world, "massive_splits", ticker, days[day].date, ratio, late=late)

    def dividend(ticker: str, date: dt.date, cash: float, *, late: int = 0) -> None:
        deliver(world, "massive_dividends", ticker, date, cash, late=late)

    split("SPLIT", 60, 2.0)
    split("SPLIT", 200, 0.1)
    split("WRONG", 80, 5.0)
    # Two splits that are corrected beside another: one becomes equal to it, one ceases to be.
    for day, first, corrected in ((110, 1.25, 1.1), (160, 1.1, 1.25)):
        split("PLAIN", day, first)
        split("PLAIN", day + 4, 1.1)
        split("PLAIN", day, corrected, late=new_york(days[day + 8].date, hour=15, minute=3))
    for date in (dt.date(2022, 6, 22), dt.date(2022, 6, 29)):
        deliver(world, "massive_splits", "SHOP", date, 10.0, late=0)
    for day in range(20, len(days), 63):
        dividend("PLAIN", days[day].date, 0.5)
        dividend("SPLIT", days[day].date, 0.25)
        dividend("OLD" if day < 150 else "NEW", days[day].date, 0.1)
    split("EXAM", 2, 2.0)
    dividend("EXAM", days[3].date, 0.08)
    dividend("SPLIT", days[60].date, 1.0)  # on the day of a split
    dividend("GAPS", days[125].date, 0.75)  # while there is no bar
    dividend("WRONG", days[40].date, 100_000.0)
    dividend("WRONG", dt.date(2022, 5, 1), 0.3)  # a Sunday
    deliver(world, "massive_dividends", "WRONG", days[50].date, 0.2, late=0, currency="CAD")
    late = new_york(days[130].date, hour=15, minute=3)
    dividend("LATE", days[90].date, 0.4)
    dividend("LATE", days[90].date, 0.6, late=late)  # a correction, known when it came


def deliver(
    world: World, feed: str, ticker: str, date: dt.date, value: float, *, late: int, currency: str = "USD"
) -> None:
    """What a vendor says of an action; cash in another currency than the listing's is no dividend of the world."""
    if feed == "massive_splits":
        ratio = Fraction(value).limit_denominator(100)
        said = {"execution_date": str(date), "split_from": ratio.denominator, "split_to": ratio.numerator}
        said["ticker"] = ticker
        rule, facts = new_york(date), world.splits
    else:
        declared = date - dt.timedelta(21)
        said = {
            "cash_amount": value,
            "declaration_date": str(declared),
            "dividend_type": "CD",
            "ex_dividend_date": str(date),
            "ticker": ticker,
            "currency": currency,
        }
        rule, facts = new_york(declared, days=1), world.dividends
    delivered = late or utc(dt.datetime.combine(dt.date(2021, 1, 1), dt.time(), dt.UTC))
    number = len(world.files)
    body = json.dumps({"results": [said], "request_id": str(number)}).encode()
    world.files.append(File(feed, f"{feed}_{number}.json", body, delivered))
    if currency != "USD":
        return
    kind = "a split" if feed == "massive_splits" else "a dividend declared"
    if late:
        kind = "a split corrected" if feed == "massive_splits" else "a dividend corrected"
    elif feed == "massive_splits" and any(
        ticker == other and 0 < (date - before).days < 14 and versions[-1][1] == value
        for (other, before), versions in facts.items()
    ):
        kind = "an equal split"
    world.kinds[kind].append(max(rule, late))
    facts[ticker, date].append((max(rule, late), value))


def add_rename(world: World, days: list[Session]) -> None:
    """OLD becomes NEW, which the master first calls OTHER; it says so months later."""
    date, said_otherwise = days[150].date, new_york(days[170].date, hour=12, minute=30)
    for new, at in (("OTHER", new_york(date)), ("NEW", said_otherwise)):
        events = [
            {"type": "ticker_change", "date": str(date), "ticker_change": {"ticker": new}},
            {"type": "ticker_change", "date": "2012-05-18", "ticker_change": {"ticker": "OLD"}},
        ]
        body = json.dumps({"results": {"name": "Old", "composite_figi": "BBG1", "events": events}, "status": "OK"})
        world.files.append(File("massive_ticker_events", f"massive_ticker_events_{new}.json", body.encode(), at))
    world.renames.append(Rename("OLD", "NEW", date, said_otherwise))
    world.kinds["a ticker event"].append(new_york(date))
    world.kinds["a ticker event corrected"].append(said_otherwise)


def meta_ticker(date: dt.date) -> str:
    """What FB was called on the days of which there are trades; nothing on others."""
    if not dt.date(2022, 5, 2) <= date <= dt.date(2022, 7, 29):
        return ""
    return "FB" if date < dt.date(2022, 6, 9) else "META"


def add_meta(world: World, chance: random.Random) -> None:
    """FB becomes META: a session's bar is made of one trade; the master dates the change to a Saturday.

    Three sessions are delivered again, months later: with another price, a cancel, without the second of two trades.
    """
    corrected, cancelled, shortened = dt.date(2022, 5, 12), dt.date(2022, 5, 18), dt.date(2022, 5, 25)
    for day in SESSIONS[FIRST:]:
        if ticker := meta_ticker(day.date):
            price, size = round(chance.uniform(150, 200), 2), float(chance.randint(1, 500))
            known = new_york(day.date, days=1, hour=11)
            trades = [(price, size, "0"), (price, 70.0, "0")][: 1 + (day.date == shortened)]
            world.files.append(trade_file(ticker, day.date, trades, new_york(day.date, days=1, hour=10)))
            bar = Bar(price, price, price, price, sum(size for _, size, _ in trades), "trades")
            world.bars[ticker, day.date].append((known, bar))
            world.kinds["a day's bars"].append(known)
    for kind, date, minute in (
        ("a trade corrected", corrected, 11),
        ("a trade cancelled", cancelled, 12),
        ("a trade taken back", shortened, 13),
    ):
        (_, bar), again = world.bars["FB", date][-1], new_york(dt.date(2022, 8, 9), hour=12, minute=minute)
        assert bar is not None
        price = bar.close + (1.5 if date == corrected else 0)
        size = bar.volume - (70 if date == shortened else 0)
        correction = {corrected: "1", cancelled: "8", shortened: "0"}[date]
        world.files.append(trade_file("FB", date, [(price, size, correction)], again + 1))
        said = None if date == cancelled else Bar(price, price, price, price, size, "trades")
        world.bars["FB", date].append((again + 1, said))
        world.kinds[kind].append(again + 1)
    add_late_rename(world, "FB", "META", traded=dt.date(2022, 6, 9), dated=dt.date(2022, 6, 11))


def trade_file(ticker: str, date: dt.date, trades: list[tuple[float, float, str]], delivered: int) -> File:
    """A session's trades, a minute apart, each with its price, size and correction code."""
    rows = []
    for number, (price, size, correction) in enumerate(trades, start=1):
        event = new_york(date, hour=12) + number * MINUTE
        trade = {"ticker": ticker, "conditions": "", "correction": correction, "exchange": "11", "id": str(number)}
        trade |= {"participant_timestamp": str(event), "price": repr(price), "sequence_number": str(number)}
        trade |= {"sip_timestamp": str(event), "size": repr(size), "tape": "1", "trf_id": "", "trf_timestamp": ""}
        rows.append([trade[column] for column in COLUMNS])
    return File("massive_trades", f"massive_trades_{date}.csv", table([COLUMNS, *rows]), delivered)


def add_crypto(world: World) -> None:
    """A pair's trades of five days, every eight hours; one is received four days late, above all others."""
    lines = []
    late = 4 * DAY + 17 * MINUTE + 1
    for number in range(15):
        event = utc(dt.datetime(2022, 6, 1, 4, tzinfo=dt.UTC)) + number * DAY // 3
        price = 30_000.0 + number * 10 + (5_000 if number == 4 else 0)
        data = {"e": "trade", "E": event // 10**6, "s": "BTCUSDT", "t": number, "p": repr(price), "q": "1.5"}
        data |= {"T": event // 10**6, "m": False, "M": True}
        received = event + (late if number == 4 else 0)
        lines.append(f"{received} {json.dumps({'stream': 'btcusdt@trade', 'data': data})}\n".encode())
        world.kinds["a late trade of crypto" if number == 4 else "a trade of crypto"].append(received)
    delivered = utc(dt.datetime(2022, 7, 1, tzinfo=dt.UTC))
    world.files.append(File("binance_spot", "binance_spot_btcusdt_20220601", b"".join(lines), delivered))


def add_late_rename(world: World, old: str, new: str, traded: dt.date, dated: dt.date) -> None:
    """The master dates a change to days after the first use of the new ticker."""
    events = [
        {"type": "ticker_change", "date": str(dated), "ticker_change": {"ticker": new}},
        {"type": "ticker_change", "date": "2012-05-18", "ticker_change": {"ticker": old}},
    ]
    body = json.dumps({"results": {"name": new.title(), "composite_figi": f"BBG{old}", "events": events}}).encode()
    name = f"massive_ticker_events_{new}.json"
    world.files.append(File("massive_ticker_events", name, body, new_york(dt.date(2023, 6, 1))))
    world.renames.append(Rename(old, new, traded, new_york(dated)))
    world.kinds["a rename of sessions before"].append(new_york(dated))


def add_quotes(world: World, days: list[Session]) -> None:
    """Two quotes a session around META's first trade; one session is delivered again, with wider ones, months later."""
    again = new_york(days[195].date, hour=12, minute=15)
    for ticker, date, spread, delivered in (
        ("FB", dt.date(2022, 6, 8), 0.02, 0),
        ("META", dt.date(2022, 6, 9), 0.02, 0),
        ("META", dt.date(2022, 6, 9), 0.06, again),
    ):
        rows = []
        for number, bid in enumerate((170.0, 180.0)):
            at = new_york(date, hour=11, minute=50) + number * 20 * MINUTE
            said = {"ticker": ticker, "bid_price": repr(bid), "ask_price": repr(bid + spread), "bid_size": "1"}
            said |= {"ask_size": "1", "sip_timestamp": str(at), "participant_timestamp": str(at)}
            rows.append([(said | {"sequence_number": str(number)}).get(column, "") for column in QUOTE_COLUMNS])
        at = delivered or new_york(date, days=1, hour=10)
        world.files.append(File("massive_quotes", f"massive_quotes_{date}.csv", table([QUOTE_COLUMNS, *rows]), at))
    world.kinds["quotes corrected"].append(again)


def add_vintages(world: World, days: list[Session]) -> None:
    observations = []
    for number, day in enumerate(range(5, len(days), 50)):
        period, published = dt.date(2021, 1 + number % 12, 1), days[day].date
        for published_on, value, kind in (
            (published, 100.0 + number, "a vintage"),
            (published + dt.timedelta(30), 100.5 + number, "a vintage revised"),
        ):
            observations.append(
                {
                    "realtime_start": str(published_on),
                    "realtime_end": "9999-12-31",
                    "date": str(period),
                    "value": str(value),
                }
            )
            world.kinds[kind].append(new_york(published_on, days=1))
            world.vintages["SERIES", period].append((new_york(published_on, days=1), value))
    body = json.dumps({"observations": observations}).encode()
    name = "alfred_SERIES_fetched_2024-01-01.json"
    world.files.append(File("alfred_observations", name, body, utc(dt.datetime(2024, 1, 1, tzinfo=dt.UTC))))


def cut_days(world: World, known_at: int) -> list[File]:
    """The files, with only the facts that were known by then, each by its feed's rule."""
    kept = []
    for file in world.files:
        delivered = file.delivered_at or 0
        if file.feed in ("massive_day_aggs", "massive_trades", "massive_quotes"):
            session = dt.date.fromisoformat(file.name.removesuffix(".csv")[-10:])
            # The first delivery of a session is known by the rule, any other when it came.
            is_first = delivered < new_york(session, days=1, hour=11)
            if (new_york(session, days=1, hour=11) if is_first else delivered) <= known_at:
                kept.append(file)
            continue
        if file.feed == "binance_spot":
            lines = [line for line in file.body.splitlines(keepends=True) if int(line.split()[0]) <= known_at]
            if lines:
                kept.append(replace(file, body=b"".join(lines)))
            continue
        if file.feed == "index_membership":
            header, *members = csv.reader(file.body.decode().splitlines())
            members = [one for one in members if new_york(dt.date.fromisoformat(one[1])) <= known_at]
            for one in members:
                if one[2] and new_york(dt.date.fromisoformat(one[2])) > known_at:
                    one[2] = ""
            kept.append(replace(file, body=table([header, *members])))
            continue
        document = json.loads(file.body)
        if file.feed == "alfred_observations":
            rows = document["observations"]
            rows[:] = [
                one for one in rows if new_york(dt.date.fromisoformat(one["realtime_start"]), days=1) <= known_at
            ]
        elif file.feed == "massive_ticker_events":
            rows = document["results"]["events"]
            # The second delivery of OLD's events says otherwise of one, and is known when it came.
            since = delivered if file.name.endswith("_NEW.json") else 0
            rows[:] = [one for one in rows if max(since, new_york(dt.date.fromisoformat(one["date"]))) <= known_at]
        else:
            rows = document["results"]
            (said,) = rows
            date = said.get("execution_date")
            rule = new_york(dt.date.fromisoformat(date or said["declaration_date"]), days=0 if date else 1)
            rows[:] = [one for one in rows if max(rule, delivered) <= known_at]
        if rows:
            kept.append(replace(file, body=json.dumps(document).encode()))
    return kept


# Answering


@dataclass(frozen=True)
class Day:
    """A bar, the one before it, and what the splits and dividends between them come to."""

    session: Session
    symbol: str
    bar: Bar
    previous: Day | None
    q: float
    d: float

    @property
    def gap(self) -> int | None:
        return self.session.number - self.previous.session.number if self.previous else None

    @property
    def has_return(self) -> bool:
        return self.gap is not None and self.gap <= 10

    @property
    def total(self) -> float | None:
        if not self.has_return:
            return None
        assert self.previous is not None
        return (self.q * self.bar.close + self.d) / self.previous.bar.close - 1

    @property
    def dollars(self) -> float:
        return self.bar.close * self.bar.volume


def last(versions: list[tuple[int, Any]], at: int) -> Any:
    """What was known of a fact; None where nothing was, or it was taken back."""
    known = [value for known_from, value in versions if cell_end(known_from) <= at]
    return known[-1] if known else None


class Known:
    """All daily tables as of K; windows for each `every`th session only."""

    def __init__(self, world: World, known_at: int, every: int = 1) -> None:
        self.world, self.at, self.every = world, known_at // MINUTE * MINUTE, every

    def is_asked(self, day: Day) -> bool:
        return day.session.number % self.every == 0

    def instrument(self, ticker: str, at: int) -> str:
        """Whom a ticker meant at a time."""
        for rename in self.world.renames:
            if ticker == rename.new and cell_end(rename.known_from) <= self.at and at >= new_york(rename.date):
                return f"us_equities:{rename.old}"
        return f"us_equities:{ticker}"

    def of_instruments(self, facts: dict[tuple[str, dt.date], Any]) -> dict[str, dict[dt.date, Any]]:
        found: dict[str, dict[dt.date, Any]] = defaultdict(dict)
        for (ticker, date), versions in facts.items():
            value = last(versions, self.at)
            if value is not None:
                found[self.instrument(ticker, new_york(date))][date] = value
        return found

    @cached_property
    def days(self) -> dict[str, list[Day]]:
        splits, dividends = self.of_instruments(self.world.splits), self.of_instruments(self.world.dividends)
        bars: dict[str, dict[dt.date, tuple[str, Bar]]] = defaultdict(dict)
        for (ticker, date), versions in self.world.bars.items():
            bar = last(versions, self.at)
            if bar is not None:
                bars[self.instrument(ticker, BY_DATE[date].close)][date] = (ticker, bar)
        return {
            instrument: list(self.chain(of_dates, splits[instrument], dividends[instrument]))
            for instrument, of_dates in bars.items()
        }

    def chain(
        self,
        bars: dict[dt.date, tuple[str, Bar]],
        splits: dict[dt.date, float],
        dividends: dict[dt.date, float],
    ) -> list[Day]:
        chained: list[Day] = []
        for date in sorted(bars):
            symbol, bar = bars[date]
            previous = chained[-1] if chained else None
            q, d = 1.0, 0.0
            if previous:
                between = [ex for ex in sorted({*splits, *dividends}) if previous.session.date < ex <= date]
                for ex in between:
                    if ex in splits and self.is_applied(ex, splits, previous.bar.close, bar.open):
                        q *= splits[ex]
                    d += q * dividends.get(ex, 0.0)
                if d >= previous.bar.close:
                    d = 0.0
            chained.append(Day(BY_DATE[date], symbol, bar, previous, q, d))
        return chained

    def is_applied(self, ex: dt.date, splits: dict[dt.date, float], before: float, opened: float) -> bool:
        ratio = splits[ex]
        for later, other in splits.items():
            if other == ratio and later > ex and first_session(later) - first_session(ex) <= 10:
                return False
        moved = math.log(before / opened)
        is_large = max(ratio, 1 / ratio) >= 1.5
        return not (is_large and abs(moved) < abs(moved - math.log(ratio)))

    def adjusted(self) -> dict[tuple[str, dt.date], Row]:
        found = {}
        for instrument, days in self.days.items():
            split, total = 1.0, 1.0
            factors = []
            for day in days:
                split *= day.q
                total *= day.q / (1 - day.d / day.previous.bar.close) if day.previous else 1
                factors.append((split, total))
            for day, (split, total) in zip(days, factors, strict=True):
                found[instrument, day.session.date] = {
                    "symbol": day.symbol,
                    "close": day.bar.close,
                    "split_factor": split,
                    "total_factor": total,
                    "split_adj_open": day.bar.open * split / factors[-1][0],
                    "split_adj_volume": day.bar.volume * factors[-1][0] / split,
                    "adj_close": day.bar.close * total / factors[-1][1],
                }
        return found

    def returns(self) -> dict[tuple[str, dt.date], Row]:
        found = {}
        for instrument, days in self.days.items():
            for day in days:
                row: Row = dict.fromkeys(
                    ("return_simple", "return_log", "return_total", "return_total_log", "return_overnight")
                )
                row["gap_sessions"] = day.gap
                row["return_intraday"] = day.bar.close / day.bar.open - 1
                if day.has_return:
                    assert day.previous is not None and day.total is not None
                    before = day.previous.bar.close
                    row["return_simple"] = day.q * day.bar.close / before - 1
                    row["return_log"] = math.log(day.q * day.bar.close / before)
                    row["return_total"] = day.total
                    row["return_total_log"] = math.log((day.q * day.bar.close + day.d) / before)
                    row["return_overnight"] = (day.q * day.bar.open + day.d) / before - 1
                found[instrument, day.session.date] = row
        return found

    def volatility(self) -> dict[tuple[str, dt.date], Row]:
        return {
            (instrument, day.session.date): volatility_of(days, day)
            for instrument, days in self.days.items()
            for day in days
            if self.is_asked(day)
        }

    def own_momentum(self) -> dict[tuple[str, dt.date], Row]:
        """Momentum before it is ranked."""
        return {
            (instrument, day.session.date): momentum_of(days[: place + 1])
            for instrument, days in self.days.items()
            for place, day in enumerate(days)
            if self.is_asked(day)
        }

    def momentum(self) -> dict[tuple[str, dt.date], Row]:
        """With ranks and scores as of the last decision time of any session."""
        rows = self.own_momentum()
        decision = max((session.decision for session in SESSIONS if session.decision <= self.at), default=None)
        sections: dict[dt.date, dict[str, Row]] = defaultdict(dict)
        if decision is not None:
            then = Known(self.world, decision, self.every)
            members = then.universe()
            for (instrument, date), row in then.own_momentum().items():
                if any(one == instrument and start <= date < end for one, start, end in members):
                    sections[date][instrument] = row
        for (instrument, date), row in rows.items():
            for measure in MEASURES:
                values = {one: of[measure] for one, of in sections[date].items() if of[measure] is not None}
                row |= {f"{measure}_rank": None, f"{measure}_z": None}
                if instrument in values and len(values) > 1:
                    rounded = [round(value, 12) for value in values.values()]
                    below = sum(value < round(values[instrument], 12) for value in rounded)
                    row[f"{measure}_rank"] = below / (len(values) - 1)
                    scores = np.array(list(values.values()))
                    row[f"{measure}_z"] = float((values[instrument] - scores.mean()) / scores.std(ddof=1))
        return rows

    def liquidity(self) -> dict[tuple[str, dt.date], Row]:
        return {
            (instrument, day.session.date): liquidity_of(days, day)
            for instrument, days in self.days.items()
            for day in days
            if self.is_asked(day)
        }

    def universe(self) -> set[tuple[str, dt.date, dt.date]]:
        """Who was chosen, from when until when."""
        members = set()
        for session, following in pairwise(SESSIONS):
            if session.date.month == following.date.month or session.decision > self.at:
                continue
            if session.date < SESSIONS[FIRST].date:
                continue
            end = next(
                one.date
                for one, after in pairwise(SESSIONS)
                if one.date > session.date and one.date.month != after.date.month
            )
            for instrument, days in known(self.world, session.decision).days.items():
                newest = days[-1]
                if newest.session.number > session.number - 10 and liquidity_of(days, newest)["adv_20"] is not None:
                    members.add((instrument, session.date + dt.timedelta(1), end + dt.timedelta(1)))
        return members

    def decisions(self) -> dict[tuple[str, dt.date], Row]:
        """What was known at each session's decision, of the newest day."""
        rows = {}
        for session in SESSIONS[FIRST:]:
            if session.decision > self.at:
                break
            then = known(self.world, session.decision)
            macro = then.macro()
            for instrument, days in then.days.items():
                newest = days[-1]
                if newest.session.number > session.number - 10:
                    rows[instrument, session.date] = {
                        "feature_session_date": newest.session.date,
                        "symbol": newest.symbol,
                        "open": newest.bar.open,
                        "high": newest.bar.high,
                        "low": newest.bar.low,
                        "close": newest.bar.close,
                        "volume": newest.bar.volume,
                        "bar_source": newest.bar.source,
                        "return_total": newest.total,
                        "adv_20": liquidity_of(days, newest)["adv_20"],
                        "yang_zhang_20": volatility_of(days, newest)["yang_zhang_20"],
                        "momentum_3_1": momentum_of(days)["momentum_3_1"],
                        "macro": macro,
                    }
        return rows

    def macro(self) -> dict[str, float]:
        values = {
            period: last(versions, self.at)
            for (_, period), versions in self.world.vintages.items()
            if last(versions, self.at) is not None
        }
        return {"SERIES": values[max(values)]} if values else {}


@cache
def known(world: World, known_at: int) -> Known:
    return Known(world, known_at)


MEASURES = ("momentum_3_1", "momentum_6_1", "momentum_12_1", "reversal_1m")


def momentum_of(days: list[Day]) -> Row:
    """Momentum of the last of these days, by products of returns."""
    here = days[-1]

    def back(sessions: int) -> int | None:
        for place in range(len(days) - 1, -1, -1):
            behind = here.session.number - days[place].session.number
            if behind >= sessions:
                return place if behind <= sessions + 10 else None
        return None

    def growth(start: int | None, end: int | None) -> float | None:
        if start is None or end is None:
            return None
        returns = [day.total for day in days[start + 1 : end + 1]]
        if any(one is None for one in returns):
            return None
        return math.prod(1 + one for one in returns if one is not None)

    row: Row = {}
    for months in (3, 6, 12):
        grown = growth(back(months * M), back(M))
        row[f"momentum_{months}_1"] = None if grown is None else grown - 1
    grown = growth(back(M), len(days) - 1)
    row["reversal_1m"] = None if grown is None else -(grown - 1)
    volatility = volatility_of(days, here)["close_to_close_252"]
    for measure in MEASURES:
        row[f"{measure}_scaled"] = None if row[measure] is None or not volatility else row[measure] / volatility
    return row


def liquidity_of(days: list[Day], day: Day) -> Row:
    row: Row = {"dollar_volume": day.dollars}
    for n in (20, 252):
        seen = [one for one in days if day.session.number - n < one.session.number <= day.session.number]
        impacts = [abs(one.total) / one.dollars for one in seen if one.total is not None and one.dollars > 0]
        row[f"observations_{n}"] = len(impacts)
        row[f"amihud_{n}"] = 1e6 * float(np.mean(impacts)) if len(impacts) >= math.ceil(0.8 * n) else None
        if n == 20:
            row["volume_observations_20"] = len(seen)
            row["adv_20"] = float(np.mean([one.dollars for one in seen])) if len(seen) >= 16 else None
    return row


def volatility_of(days: list[Day], day: Day) -> Row:
    """The five estimators, from their papers' formulas."""
    row: Row = {}
    for n in (5, 20, 60, 252):
        seen = [
            one for one in days if day.session.number - n < one.session.number <= day.session.number and one.has_return
        ]
        m = len(seen)
        row[f"observations_{n}"] = m
        names = ("close_to_close", "parkinson", "garman_klass", "rogers_satchell", "yang_zhang")
        row |= {f"{name}_{n}": None for name in names}
        if m < math.ceil(0.8 * n):
            continue
        o = np.array([math.log(x.q * x.bar.open / (x.previous.bar.close - x.d)) for x in seen if x.previous])
        h = np.array([math.log(x.bar.high / x.bar.open) for x in seen])
        low = np.array([math.log(x.bar.low / x.bar.open) for x in seen])
        c = np.array([math.log(x.bar.close / x.bar.open) for x in seen])
        rs = A * np.mean(h * (h - c) + low * (low - c))
        k = 0.34 / (1.34 + (m + 1) / (m - 1))
        row[f"close_to_close_{n}"] = math.sqrt(A * np.var(o + c, ddof=1))
        row[f"parkinson_{n}"] = math.sqrt(A / (4 * math.log(2)) * np.mean((h - low) ** 2))
        row[f"garman_klass_{n}"] = math.sqrt(A * np.mean(0.5 * (h - low) ** 2 - (2 * math.log(2) - 1) * c**2))
        row[f"rogers_satchell_{n}"] = math.sqrt(rs)
        row[f"yang_zhang_{n}"] = math.sqrt(A * (np.var(o, ddof=1) + k * np.var(c, ddof=1)) + (1 - k) * rs)
    return row


def first_session(date: dt.date) -> int:
    """The number of the first session on or after a date."""
    return next(session.number for session in SESSIONS if session.date >= date)
