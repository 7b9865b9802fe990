"""A small world for those who ask: a macro series with revisions, two stocks, a split, a correction, an index.

GDP, three quarters, the first revised twice ── ALFRED's vintages, in one file
UP, DOWN: 30 sessions of vendor bars ── UP splits 2:1 at session 20; DOWN leaves the index and the market at 25
session 5 of UP is delivered again, corrected, after session 12
BTCUSDT: four trades and two quotes of one minute
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from pathlib import Path
from zoneinfo import ZoneInfo

from worlds.warehouse import REPOSITORY, Warehouse

NEW_YORK = ZoneInfo("America/New_York")
SPLIT, LAST_OF_DOWN, CORRECTED, CORRECTED_AFTER = 20, 25, 5, 12
VINTAGES = [  # published, quarter, value
    ("2023-10-27", "2023-07-01", "100.0"),
    ("2023-11-30", "2023-07-01", "101.0"),
    ("2024-01-26", "2023-10-01", "103.0"),
    ("2024-02-06", "2023-07-01", "99.5"),  # the old quarter, revised after the next one was there
    ("2024-02-28", "2023-10-01", "102.5"),
]
T0 = 1_704_279_600_000  # 2024-01-03 11:00:00 UTC, ms


def sessions(count: int = 30) -> list[dt.date]:
    """The first sessions of 2024 in New York."""
    with (REPOSITORY / "dbt_project" / "seeds" / "sessions.csv").open() as file:
        days = [dt.date.fromisoformat(row["session_date"]) for row in csv.DictReader(file)]
    return [day for day in days if day.year == 2024][:count]


def close_of(ticker: str, number: int) -> float:
    """The vendor's close of a session, before corrections."""
    price = 100.0 + number + 3.0 * (number % 4) if ticker == "UP" else 50.0 - 0.5 * number + (number % 3)
    return price / 2 if ticker == "UP" and number >= SPLIT else price


def day_file(day: dt.date, number: int, *, corrected: bool = False) -> bytes:
    """Vendor bars of one session, as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["ticker", "volume", "open", "close", "high", "low", "window_start", "transactions"])
    start = int(dt.datetime.combine(day, dt.time(), NEW_YORK).timestamp()) * 10**9
    for ticker in ("UP", "DOWN"):
        if ticker == "DOWN" and number > LAST_OF_DOWN:
            continue
        close = close_of(ticker, number) + (10.0 if corrected and ticker == "UP" else 0.0)
        writer.writerow([ticker, 1000 + number, close - 0.5, close, close + 1.0, close - 1.0, start, 50])
    return out.getvalue().encode()


def load(warehouse: Warehouse, files: Path, *, until: int = 30) -> None:
    """Load the world, of the stocks the first sessions; again with more of them, what is new."""
    files.mkdir(exist_ok=True)
    days = sessions()

    def add(name: str, body: bytes, feed: str, delivered: dt.datetime | None = None) -> None:
        (files / name).write_bytes(body)
        outcome = warehouse.load(files / name, feed, delivered.isoformat() if delivered else None)
        assert outcome.status in ("loaded", "unchanged", "redelivered"), outcome.message

    def morning_after(number: int) -> dt.datetime:
        return dt.datetime.combine(days[number] + dt.timedelta(1), dt.time(12), NEW_YORK)

    for number, day in enumerate(days[:until]):
        add(f"massive_day_aggs_{day}.csv", day_file(day, number), "massive_day_aggs", morning_after(number))
    if until > CORRECTED_AFTER:
        again = files / "again"
        again.mkdir(exist_ok=True)
        name, body = f"massive_day_aggs_{days[CORRECTED]}.csv", day_file(days[CORRECTED], CORRECTED, corrected=True)
        (again / name).write_bytes(body)
        warehouse.load(again / name, "massive_day_aggs", morning_after(CORRECTED_AFTER).isoformat())
    split = {"ticker": "UP", "execution_date": f"{days[SPLIT]}", "split_from": 1, "split_to": 2}
    add(f"massive_splits_{days[SPLIT]}.json", json.dumps({"results": [split]}).encode(), "massive_splits")
    observations = [
        {"realtime_start": published, "realtime_end": "9999-12-31", "date": quarter, "value": value}
        for published, quarter, value in VINTAGES
    ]
    add(
        "alfred_GDP_fetched_2024-03-15.json", json.dumps({"observations": observations}).encode(), "alfred_observations"
    )
    members = f"ticker,start_date,end_date\nUP,2023-05-01,\nDOWN,2023-05-01,{days[LAST_OF_DOWN]}\n"
    add("demo_ticker_start_end.csv", members.encode(), "index_membership", dt.datetime(2024, 3, 15, tzinfo=dt.UTC))
    add("binance_spot_1", b"".join(_ticks()), "binance_spot")


def _ticks() -> list[bytes]:
    lines = []
    for number in range(4):
        at = T0 + number * 10_000
        data = {"e": "trade", "E": at, "s": "BTCUSDT", "t": number + 1, "p": f"{42_000 + number}", "q": "0.5"}
        lines.append((at, {"stream": "btcusdt@trade", "data": data | {"T": at, "m": number % 2 == 0, "M": True}}))
    for number in range(2):
        at = T0 + 5_000 + number * 10_000
        data = {"u": 70 + number, "s": "BTCUSDT", "b": "41999", "B": "1", "a": f"{42_001 + number}", "A": "2"}
        lines.append((at, {"stream": "btcusdt@bookTicker", "data": data}))
    return [f"{at}000000 {json.dumps(message)}\n".encode() for at, message in sorted(lines, key=lambda line: line[0])]
