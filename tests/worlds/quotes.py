"""Small worlds of quotes and trades with revisions, and the spreads that they make, by loops.

draw_stock(chance)  ── days of quotes and trades, delivered three times each, always otherwise ──┐
draw_stream(chance) ── three days of UTC, trades received late or much too late ─────────────────┴─> World
    World.spreads_at(K) ──> (symbol, session) -> (quoted, effective), in basis points

A fact is (known_from, value); None is a value that was taken back.
"""

from __future__ import annotations

import datetime as dt
import json
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from worlds.adversarial import COLUMNS, table
from worlds.reference import DAY, MINUTE, File, cell_end, new_york

SECOND = 10**9
HOUR = 60 * MINUTE
DATES = (
    dt.date(2023, 3, 6),
    dt.date(2023, 3, 7),
    dt.date(2023, 3, 10),
    dt.date(2023, 3, 13),
)  # with a change of clocks
MIDNIGHT = int(dt.datetime(2024, 1, 4, tzinfo=dt.UTC).timestamp()) * SECOND
NO_HIGH_LOW = {"2", "7", "12", "13", "15", "16", "20", "21", "37", "52", "53"}
QUOTE_COLUMNS = [
    "ticker",
    "ask_exchange",
    "ask_price",
    "ask_size",
    "bid_exchange",
    "bid_price",
    "bid_size",
    "conditions",
    "indicators",
    "participant_timestamp",
    "sequence_number",
    "sip_timestamp",
    "tape",
    "trf_timestamp",
]


@dataclass(frozen=True)
class Quote:
    clock: int
    number: int
    bid: float
    ask: float

    @property
    def is_valid(self) -> bool:
        return self.bid > 0 and self.ask >= self.bid

    @property
    def mid(self) -> float:
        return (self.bid + self.ask) / 2


@dataclass(frozen=True)
class Trade:
    clock: int
    event: int
    price: float
    size: float
    conditions: str = ""


T = TypeVar("T")
Session = tuple[str, dt.date]


@dataclass(eq=False)
class World:
    """Facts, each by its key with all that was ever said of it, and the files that say so."""

    sessions: dict[Session, tuple[int, int]] = field(default_factory=dict)
    """Open and close."""
    quotes: dict[tuple[str, int], list[tuple[int, Quote | None]]] = field(default_factory=lambda: defaultdict(list))
    trades: dict[tuple[Session, int], list[tuple[int, Trade | None]]] = field(default_factory=lambda: defaultdict(list))
    files: list[File] = field(default_factory=list)

    def known_times(self) -> list[int]:
        quotes = {known for versions in self.quotes.values() for known, _ in versions}
        trades = {known for versions in self.trades.values() for known, _ in versions}
        return sorted({cell_end(known) for known in quotes | trades})

    def spreads_at(self, known_at: int) -> dict[Session, tuple[float | None, float | None]]:
        return {session: self._spreads(session, known_at) for session in self.sessions}

    def _spreads(self, session: Session, known_at: int) -> tuple[float | None, float | None]:
        start, end = self.sessions[session]
        at_clock: dict[int, Quote] = {}
        said = (last(versions, known_at) for (symbol, _), versions in self.quotes.items() if symbol == session[0])
        for quote in sorted(filter(None, said), key=lambda quote: quote.number):
            if quote.clock >= start - DAY:
                at_clock[quote.clock] = quote
        clocks = sorted(at_clock)
        inside = [clock for clock in clocks if start <= clock < end]
        lasting = [
            (at_clock[clock], until - clock) for clock, until in pairwise([*inside, end]) if at_clock[clock].is_valid
        ]
        quoted = mean((1e4 * (quote.ask - quote.bid) / quote.mid, time) for quote, time in lasting)
        met = []
        for (of_session, _), versions in self.trades.items():
            trade = last(versions, known_at)
            if of_session != session or trade is None or not may_set_high_low(trade, start, end):
                continue
            before = [clock for clock in clocks if clock < trade.clock]
            if trade.clock < end + HOUR and before and at_clock[before[-1]].is_valid:
                mid = at_clock[before[-1]].mid
                met.append((1e4 * 2 * abs(trade.price - mid) / mid, trade.price * trade.size))
        return quoted, mean(met)


def last(versions: list[tuple[int, T | None]], known_at: int) -> T | None:
    seen = [value for known, value in versions if cell_end(known) <= known_at]
    return seen[-1] if seen else None


def mean(weighted: Iterable[tuple[float, float]]) -> float | None:
    pairs = list(weighted)
    weights = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / weights if weights else None


def may_set_high_low(trade: Trade, start: int, end: int) -> bool:
    codes = set(filter(None, trade.conditions.split(",")))
    if start <= trade.event < end:
        return not codes & NO_HIGH_LOW
    return trade.event >= end and "8" in codes and not codes & (NO_HIGH_LOW - {"12", "13"})


def draw_stock(world: World, chance: random.Random) -> None:
    """Each day's files three times, the second and third with quotes and trades changed, new and gone."""
    for date in DATES:
        start, end = new_york(date, hour=9, minute=30), new_york(date, hour=16)
        world.sessions["X", date] = (start, end)
        quotes = {number: draw_quote(number, start, end, chance) for number in range(1, 60)}
        trades = {number: draw_trade(start, end, chance) for number in range(1, 40)}
        base = 1000 * DATES.index(date)
        for delivery in range(3):
            at = new_york(date, days=1, hour=10)
            if delivery:
                at = new_york(date, days=2 + 3 * delivery, hour=13, minute=7)
                for number in chance.sample(sorted(quotes), 4):
                    del quotes[number]
                quotes[60 + delivery] = draw_quote(60 + delivery, start, end, chance)
                for number in chance.sample(sorted(trades), 3):
                    trades[number] = draw_trade(start, end, chance)
                for number in chance.sample(sorted(trades), 2):
                    del trades[number]
            first = new_york(date, days=1, hour=11)
            for number in {key - base for symbol, key in world.quotes if symbol == "X" and base < key < base + 1000} | {
                *quotes
            }:
                note(world.quotes["X", base + number], quotes.get(number), first, at)
            for number in {number for session, number in world.trades if session == ("X", date)} | {*trades}:
                note(world.trades[("X", date), number], trades.get(number), first, at)
            world.files += [
                File("massive_quotes", f"massive_quotes_{date}.csv", quote_file(quotes.values()), at),
                File("massive_trades", f"massive_trades_{date}.csv", trade_file(trades), at),
            ]


def note(versions: list[tuple[int, T | None]], value: T | None, first: int, at: int) -> None:
    """What a delivery says of a key; the first that is said is known by the feed's rule."""
    if not versions:
        versions.append((first, value))
    elif versions[-1][1] != value:
        versions.append((at, value))


def draw_quote(number: int, start: int, end: int, chance: random.Random) -> Quote:
    clock = chance.choice(
        [
            start - chance.randrange(3600) * SECOND,
            start + chance.randrange(23_400) * SECOND,
            start + chance.randrange(600) * SECOND,
            end + chance.randrange(20) * SECOND,
        ]
    )
    bid = round(chance.uniform(99, 101), 2)
    ask = round(bid + chance.choice([0.01, 0.02, 0.05, -0.03]), 2)
    return Quote(clock, number, 0.0 if chance.random() < 0.1 else bid, ask)


def draw_trade(start: int, end: int, chance: random.Random) -> Trade:
    at = chance.choice(
        [
            start + chance.randrange(23_400) * SECOND + chance.choice([0, 1]),
            start + chance.randrange(600) * SECOND,
            end + chance.randrange(30) * SECOND,
            start - 100 * SECOND,
        ]
    )
    conditions = chance.choice(["", "", "37", "8", "8,9", "12", "22", "15"])
    return Trade(at, at, round(chance.uniform(99, 101), 2), float(chance.randint(1, 500)), conditions)


def quote_file(quotes: Iterable[Quote]) -> bytes:
    rows = []
    for quote in quotes:
        said = dict.fromkeys(QUOTE_COLUMNS, "") | {
            "ticker": "X",
            "ask_exchange": "11",
            "bid_exchange": "12",
            "tape": "1",
        }
        said |= {"ask_price": repr(quote.ask), "bid_price": repr(quote.bid), "ask_size": "1", "bid_size": "1"}
        said |= {"participant_timestamp": str(quote.clock), "sip_timestamp": str(quote.clock)}
        said |= {"sequence_number": str(quote.number)}
        rows.append([said[column] for column in QUOTE_COLUMNS])
    return table([QUOTE_COLUMNS, *rows])


def trade_file(trades: dict[int, Trade]) -> bytes:
    rows = []
    for number, trade in trades.items():
        said = dict.fromkeys(COLUMNS, "") | {"ticker": "X", "conditions": trade.conditions, "correction": "0"}
        said |= {"exchange": "11", "id": str(number), "sequence_number": str(number), "tape": "1"}
        said |= {"participant_timestamp": str(trade.event), "sip_timestamp": str(trade.event)}
        said |= {"price": repr(trade.price), "size": repr(trade.size)}
        rows.append([said[column] for column in COLUMNS])
    return table([COLUMNS, *rows])


def draw_stream(world: World, chance: random.Random) -> None:
    """Four symbols in two files. Of EARLY a quote just after midnight comes with the second file, of LATE a trade three
    days after it was made; of the others any half."""
    parts: list[list[tuple[int, bytes]]] = [[], []]

    def quote(part: int, symbol: str, at: int, number: int, bid: float, ask: float) -> None:
        world.quotes[symbol, number] = [(at, Quote(at, number, bid, ask))]
        data = {"u": number, "s": symbol, "b": str(bid), "B": "1", "a": str(ask), "A": "1"}
        parts[part].append((at, line(at, f"{symbol.lower()}@bookTicker", data)))

    def trade(part: int, symbol: str, event: int, late: int, number: int, price: float) -> None:
        date = dt.datetime.fromtimestamp(event // SECOND, dt.UTC).date()
        start = int(dt.datetime.combine(date, dt.time(), dt.UTC).timestamp()) * SECOND
        world.sessions[symbol, date] = (start, start + DAY)
        known = event + late
        world.trades[(symbol, date), number] = [(known, Trade(known, event, price, 1.0))]
        at = event // 10**6
        data = {
            "e": "trade",
            "E": at,
            "s": symbol,
            "t": number,
            "p": str(price),
            "q": "1",
            "T": at,
            "m": False,
            "M": True,
        }
        parts[part].append((known, line(known, f"{symbol.lower()}@trade", data)))

    quote(0, "EARLYUSDT", MIDNIGHT - 10 * SECOND, 1, 99, 101)
    trade(0, "EARLYUSDT", MIDNIGHT - SECOND // 2, 3 * SECOND // 2, 1, 101)
    quote(1, "EARLYUSDT", MIDNIGHT + SECOND // 2, 2, 100, 102)
    quote(0, "LATEUSDT", MIDNIGHT - 10 * SECOND, 1, 99, 101)
    trade(0, "LATEUSDT", MIDNIGHT - 9 * SECOND, SECOND, 1, 100)
    quote(0, "LATEUSDT", MIDNIGHT + 3 * DAY, 2, 199, 201)
    trade(0, "LATEUSDT", MIDNIGHT + 3 * DAY + SECOND, SECOND, 3, 200)
    trade(1, "LATEUSDT", MIDNIGHT - SECOND, 3 * DAY + 2 * SECOND, 2, 101)
    for symbol in ("AUSDT", "BUSDT"):
        for number in range(1, 80):
            at = MIDNIGHT + chance.choice([-1, 0, 1]) * DAY + chance.choice([-1, 1]) * chance.randrange(2 * HOUR)
            bid = round(chance.uniform(99, 101), 2)
            part = chance.randrange(2)
            quote(part, symbol, at // 10**6 * 10**6, number, bid, round(bid + chance.choice([0.01, 0.05, -0.03]), 2))
            late = chance.choice([5 * 10**6, SECOND, 5 * MINUTE, 50 * MINUTE, 70 * MINUTE, 2 * DAY])
            price = round(chance.uniform(99, 101), 2)
            trade(chance.randrange(2), symbol, (at + chance.randrange(MINUTE)) // 10**6 * 10**6, late, number, price)
    for number, lines in enumerate(parts):
        body = b"".join(text for _, text in sorted(lines))
        world.files.append(File("binance_spot", f"binance_spot_{number}", body, None))


def line(received: int, stream: str, data: dict[str, object]) -> bytes:
    return f"{received} {json.dumps({'stream': stream, 'data': data})}\n".encode()
