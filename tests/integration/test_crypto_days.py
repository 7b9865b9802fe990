"""Daily tables of a market that never closes: a year has 365 sessions, a month 30; trades come late, in any order.

three symbols over 420 days ── three files, a build after each ── X_as_of(K) ── equal to 1e-9 ── worlds.days' formulas
                                                               └── mdp build --full-refresh ── equal
"""

from __future__ import annotations

import datetime as dt
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from worlds import days
from worlds.days import Bar, Day, Session, liquidity_of, momentum_of, volatility_of
from worlds.reference import DAY, cell_end
from worlds.warehouse import DAILY, Warehouse, differences, needless_versions

FIRST, COUNT = dt.date(2022, 1, 1), 420
MS_A_DAY = 86_400_000
FORMULAS: dict[str, Callable[[list[Day]], dict[str, Any]]] = {
    "volatility_1d": lambda chain: volatility_of(chain, chain[-1]),
    "momentum_1d": momentum_of,
    "liquidity_1d": lambda chain: liquidity_of(chain, chain[-1]),
}


class Trade(NamedTuple):
    symbol: str
    event: int
    """Unix milliseconds, as is received."""
    received: int
    number: int
    price: float
    size: float

    @property
    def known_from(self) -> int:
        return cell_end(self.received * 10**6)

    @property
    def line(self) -> bytes:
        data = {"e": "trade", "E": self.event, "s": self.symbol, "t": self.number, "p": str(self.price)}
        data |= {"q": str(self.size), "T": self.event, "m": False, "M": True}
        message = {"stream": f"{self.symbol.lower()}@trade", "data": data}
        return f"{self.received}000000 {json.dumps(message)}\n".encode()


@dataclass(frozen=True, eq=False)
class TradedDay(Day):
    traded: float

    @property
    def dollars(self) -> float:
        return self.traded


def draw_trades(chance: random.Random) -> list[Trade]:
    """One to three trades a day, one in ten received late; CUSDT misses a day in ten, and two weeks."""
    trades: list[Trade] = []
    start = int(dt.datetime.combine(FIRST, dt.time(), dt.UTC).timestamp()) * 1000
    for symbol in ("AUSDT", "BUSDT", "CUSDT"):
        price = chance.uniform(10, 100)
        for day in range(COUNT):
            if symbol == "CUSDT" and (chance.random() < 0.1 or 200 <= day < 214):
                continue
            for _ in range(chance.randint(1, 3)):
                price *= math.exp(chance.gauss(0, 0.02))
                event = start + day * MS_A_DAY + chance.randrange(MS_A_DAY)
                late = chance.choice([*[5] * 30, 1000, 3_600_000, 40 * MS_A_DAY])
                size = round(chance.uniform(0.1, 9), 3)
                trades.append(Trade(symbol, event, event + late, len(trades) + 1, round(price, 4), size))
    return trades


def chains(trades: list[Trade], known_at: int) -> dict[str, list[Day]]:
    """Each instrument's days as they were known, one after the other."""
    of_days: dict[tuple[str, int], list[Trade]] = defaultdict(list)
    for trade in sorted(trades, key=lambda trade: (trade.event, trade.number)):
        if trade.known_from <= known_at:
            of_days[trade.symbol, trade.event // MS_A_DAY].append(trade)
    found: dict[str, list[Day]] = defaultdict(list)
    for (symbol, number), of_day in sorted(of_days.items()):
        if (number + 1) * DAY > known_at:
            continue
        prices = [trade.price for trade in of_day]
        bar = Bar(prices[0], max(prices), min(prices), prices[-1], sum(trade.size for trade in of_day))
        session = Session(dt.date(1970, 1, 1) + dt.timedelta(number), number, (number + 1) * DAY)
        chain = found[f"binance:{symbol}"]
        traded = sum(trade.price * trade.size for trade in of_day)
        chain.append(TradedDay(session, symbol, bar, chain[-1] if chain else None, 1.0, 0.0, traded))
    return found


@pytest.mark.long
def test_days_of_crypto_are_what_the_formulas_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(days, "A", 365)
    monkeypatch.setattr(days, "M", 30)
    chance, warehouse = random.Random(7), Warehouse(tmp_path)
    trades = draw_trades(chance)
    parts: list[list[Trade]] = [[], [], []]
    for trade in sorted(trades, key=lambda trade: trade.received):
        chance.choice(parts).append(trade)
    for number, part in enumerate(parts):
        path = tmp_path / f"binance_spot_{number}"
        path.write_bytes(b"".join(trade.line for trade in part))
        assert warehouse.load(path, "binance_spot").status == "loaded"
        warehouse.build()
    late = sorted({trade.known_from for trade in trades if trade.received - trade.event > 5})
    times = [time + step for time in chance.sample(late, 4) for step in (-1, 0)] + [late[-1] + 100 * DAY]
    for time in times:
        compare(warehouse, time, chains(trades, time))
    assert needless_versions(warehouse) == []
    names = [f"research.{table}" for table in ("bars_1m", "bars_1d", *DAILY)]
    before = warehouse.tables(names)
    warehouse.build(full_refresh=True)
    assert differences(before, warehouse.tables(names)) == []


def compare(warehouse: Warehouse, time: int, known: dict[str, list[Day]]) -> None:
    moment = f"{dt.datetime.fromtimestamp(time // 10**9, dt.UTC):%Y-%m-%d %H:%M:%S}.{time % 10**9:09d}"
    with warehouse.reader() as connection:
        for table, formula in FORMULAS.items():
            answer = connection.execute(f"from research.{table}_as_of('{moment}')").to_arrow_table().to_pylist()
            found = {(row["instrument_id"], row["session_date"]): row for row in answer}
            assert set(found) == {(one, day.session.date) for one, chain in known.items() for day in chain}
            wrong = [
                f"{table} as of {moment}, {instrument} {row['session_date']}: {column} is {row[column]}, not {value}"
                for instrument, chain in known.items()
                for place in range(0, len(chain), 3)
                for row in [found[instrument, chain[place].session.date]]
                for column, value in formula(chain[: place + 1]).items()
                if not same(row[column], value)
            ]
            assert not wrong, "\n".join(wrong[:5])


def same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
