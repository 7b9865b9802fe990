"""Small adversarial worlds: few keys, few values, and every way to say them twice, late, wrongly or not.

    draw(kind, how many, seed) ──> worlds ── files_of(worlds) ──> files to load, in any order

Worlds are disjoint (symbols, sessions, series and indices of their own), so that many stand in one warehouse,
and a world that fails can be looked at alone.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from worlds.reference import DAY, MINUTE, SECOND, File, new_york, utc

Draw = Callable[[st.SearchStrategy[Any]], Any]
Made = TypeVar("Made")
CAPTURES = 4  # the binance worlds share this many capture files
MILLISECOND = 1_000_000


@dataclass(frozen=True)
class World:
    """The lines of each capture file, or whole files; and what to call its rows."""

    name: str
    files: tuple[File, ...] = ()
    lines: tuple[tuple[int, bytes], ...] = ()


def draw(kind: str, count: int, chance: int) -> list[World]:
    """As many worlds of a kind, each drawn by hypothesis, the same for the same `chance`."""
    return [draw_world(KINDS[kind], number, chance) for number in range(count)]


def draw_world(make: Callable[[int, Draw], Made], number: int, chance: int) -> Made:
    """One world, the same for the same `number` and `chance`."""
    found: list[Made] = []

    @seed(chance * 1_000 + number)
    @settings(
        max_examples=3,  # the first is the simplest
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        found.append(make(number, data.draw))

    collect()
    return found[-1]


def files_of(worlds: list[World]) -> list[File]:
    """The files of all worlds; the captures hold the lines of all."""
    captures: dict[int, list[bytes]] = {}
    for world in worlds:
        for capture, line in world.lines:
            captures.setdefault(capture, []).append(line)
    return [
        *(
            File("binance_spot", f"binance_spot_worlds_{capture}", b"".join(line + b"\n" for line in lines))
            for capture, lines in sorted(captures.items())
        ),
        *(file for world in worlds for file in world.files),
    ]


# A stream: binance_spot

STREAM_DAY = utc(dt.datetime(2024, 3, 4, 23, 57, tzinfo=dt.UTC))
DELAYS = st.sampled_from([-1_270, 0, 3, 40, 20_000, 61_000, 125_000, 600_000])
HOSTILE = ["BTC USDT", 'a"; drop table x; --', "../../x", "NULL", "nan", "Ünï", "%2F", "x'y"]


def binance_world(number: int, draw_one: Draw) -> World:
    symbol = f"{HOSTILE[number % len(HOSTILE)]}{number}" if number % 3 == 0 else f"B{number}USDT"
    lines: list[tuple[int, bytes]] = []
    said: list[tuple[int, bytes]] = []
    for _ in range(draw_one(st.integers(6, 16))):
        capture = draw_one(st.integers(0, CAPTURES - 1))
        what = draw_one(st.sampled_from(["trade"] * 8 + ["quote"] * 3 + ["repeat"] * 4 + ["defect"] * 3))
        if what == "repeat" and said:
            # The same message again: later, earlier, or by the very same clock; at times spelt otherwise.
            received, payload = draw_one(st.sampled_from(said))
            received += draw_one(DELAYS) * MILLISECOND
            if draw_one(st.booleans()):
                payload = payload.replace(b'.5"', b'.500"')
        elif what == "quote":
            update = draw_one(st.integers(1, 3))
            received = STREAM_DAY + update * 40 * SECOND + draw_one(DELAYS) * MILLISECOND
            bid = draw_one(st.sampled_from(["99.5", "99.0"]))
            quote = {
                "u": update,
                "s": symbol,
                "b": bid,
                "B": "1.5",
                "a": "101.0",
                "A": draw_one(st.sampled_from(["2.0", "0.5"])),
            }
            payload = encoded(quote, symbol, "bookTicker")
        else:
            trade_id = draw_one(st.sampled_from([1, 2, 3, 10]))
            event = (STREAM_DAY + trade_id * 17 * SECOND) // MILLISECOND
            event += draw_one(st.sampled_from([0, 0, 0, 0, 43_000]))  # a correction may move it to another minute
            received = event * MILLISECOND + draw_one(DELAYS) * MILLISECOND
            price = draw_one(st.sampled_from(["100.5", "100.5", "101.0", "99.25"]))
            size = draw_one(st.sampled_from(["0.5", "2.0"]))
            trade = {"e": "trade", "E": event, "s": symbol, "t": trade_id, "p": price, "q": size, "T": event}
            trade |= {"m": draw_one(st.booleans()), "M": True}
            payload = encoded(trade, symbol, "trade")
            if what == "defect":
                payload = draw_one(st.sampled_from(DEFECTS))(trade, symbol)
        if what != "defect":
            said.append((received, payload))
        lines.append((capture, b"%d %s" % (received, payload)))
    return World(f"binance:{symbol}", lines=tuple(lines))


def encoded(data: dict[str, Any], symbol: str, stream: str) -> bytes:
    return json.dumps({"stream": f"{symbol.lower()}@{stream}", "data": data}, ensure_ascii=False).encode()


def without(trade: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in trade.items() if key != name}


Defect = Callable[[dict[str, Any], str], bytes]
DEFECTS: list[Defect] = [
    lambda trade, symbol: encoded(trade, symbol, "trade")[:-7],
    lambda trade, symbol: encoded(trade, symbol, "trade").replace(b'"trade"', b'"\xff\xfe"'),
    lambda trade, symbol: b"",
    lambda trade, symbol: b"\x00" + encoded(trade, symbol, "trade"),
    lambda trade, symbol: b"[" * 10_000,
    lambda trade, symbol: encoded(without(trade, "p"), symbol, "trade"),
    lambda trade, symbol: encoded(without(trade, "T"), symbol, "trade"),
    lambda trade, symbol: encoded(without(trade, "m"), symbol, "trade"),
    lambda trade, symbol: encoded(trade | {"m": "yes"}, symbol, "trade"),
    lambda trade, symbol: encoded(without(trade, "t") | {"t": None}, symbol, "trade"),
    lambda trade, symbol: encoded(trade | {"p": "0.-10000"}, symbol, "trade"),
    lambda trade, symbol: encoded(trade | {"q": "NaN"}, symbol, "trade"),
    lambda trade, symbol: encoded(trade | {"q": "1e400"}, symbol, "trade"),
    lambda trade, symbol: encoded(trade | {"q": "0.00000000"}, symbol, "trade"),
    lambda trade, symbol: encoded(trade | {"p": "-1"}, symbol, "trade"),
    lambda trade, symbol: encoded(trade | {"T": trade["T"] + 90_000_000}, symbol, "trade"),
    lambda trade, symbol: encoded(trade | {"T": 0}, symbol, "trade"),
    lambda trade, symbol: encoded(trade | {"e": "kline"}, symbol, "kline"),
    lambda trade, symbol: encoded({"e": "depthUpdate", "s": symbol, "u": 5}, symbol, "depth"),
    lambda trade, symbol: encoded({"e": "serverShutdown"}, symbol, "x"),
]

# Deliveries of days: massive_trades

COLUMNS = [
    "ticker",
    "conditions",
    "correction",
    "exchange",
    "id",
    "participant_timestamp",
    "price",
    "sequence_number",
]
COLUMNS += ["sip_timestamp", "size", "tape", "trf_id", "trf_timestamp"]
FIRST_SESSION = dt.date(2023, 3, 6)  # a Monday; the change of clocks is on the Sunday after


def session_of(number: int) -> dt.date:
    """A session of its own for each world: Mondays to Thursdays, none of them a holiday."""
    week, day = divmod(number, 4)
    date = FIRST_SESSION + dt.timedelta(7 * week + day)
    return date if date not in HOLIDAYS else date + dt.timedelta(4 - date.weekday())


HOLIDAYS = {
    dt.date(2023, 5, 29),
    dt.date(2023, 6, 19),
    dt.date(2023, 7, 3),
    dt.date(2023, 7, 4),
    dt.date(2023, 9, 4),
}
MINUTES = {
    1: 30,
    2: 30,
    3: 34,
    4: 390,
    5: -60,
}  # a trade's minute after 9:30: before, within and after the session


def massive_world(number: int, draw_one: Draw) -> World:
    session = session_of(number)
    tickers = ["NA", "NULL", "nan"][: 1 + number % 3] if number % 4 == 0 else [f"M{number}A", f"M{number}B"]
    files: list[File] = []
    last: dict[tuple[str, int], bool] = {}  # of each key that was delivered, whether it is cancelled
    delivered_at = new_york(session, days=1, hour=draw_one(st.sampled_from([6, 11, 13])))
    for delivery in range(draw_one(st.integers(1, 4))):
        rows: list[dict[str, str]] = []
        for ticker in tickers:
            for trade_id in range(1, 6):
                # What was cancelled stays in the file; anything else may be missing from a later one.
                if not last.get((ticker, trade_id)) and draw_one(st.integers(0, 3)) == 0:
                    last.pop((ticker, trade_id), None)
                    continue
                row = massive_row(session, ticker, trade_id, draw_one)
                rows.append(row)
                if draw_one(st.integers(0, 5)) == 0:  # its cancel, or a correction, in the same file
                    later = {
                        "correction": draw_one(st.sampled_from(["8", "1"])),
                        "sequence_number": str(int(row["sequence_number"]) + 500),
                    }
                    rows.append(row | later | ({"price": "12.25"} if later["correction"] == "1" else {}))
                last[ticker, trade_id] = any(
                    one["correction"] == "8" for one in rows if (one["ticker"], one["id"]) == (ticker, str(trade_id))
                )
        rows = rows or [massive_row(session, tickers[0], 1, draw_one)]
        spare = massive_row(session, tickers[0], 9, draw_one)
        lines = poisoned(draw_one(st.permutations(rows)), spare, ROW_DEFECTS, in_columns, draw_one)
        name = f"massive_trades_{session}.csv"
        files.append(File("massive_trades", name, table([COLUMNS, *lines]), delivered_at))
        if draw_one(st.integers(0, 4)) == 0:  # a vendor that takes a correction back sends earlier bytes again
            again = draw_one(st.sampled_from(files))
            delivered_at += draw_one(st.sampled_from([30 * MINUTE, DAY]))
            files.append(File("massive_trades", name, again.body, delivered_at))
            last = dict.fromkeys(last, True)
        delivered_at += draw_one(st.sampled_from([MINUTE, 2 * 60 * MINUTE, DAY, 9 * DAY])) + delivery
    return World(f"session:{session}", files=tuple(files))


Row = TypeVar("Row")
Spelling = Callable[[Row], list[str]]


def poisoned(
    rows: list[Row], spare: Row, defects: list[Spelling[Row]], whole: Spelling[Row], draw_one: Draw
) -> list[list[str]]:
    """The lines of a delivery, now and then with some that cannot be used: of its own rows, or of the spare one."""
    said = [(row, whole) for row in rows]
    for defect in draw_one(st.lists(st.sampled_from(defects), max_size=2)) if draw_one(st.booleans()) else []:
        place = draw_one(st.integers(0, len(said) - 1))
        if draw_one(st.booleans()):
            said[place] = (said[place][0], defect)
        else:
            said.insert(place, (spare, defect))
    return [spelling(row) for row, spelling in said]


def in_columns(row: dict[str, str]) -> list[str]:
    return [row[column] for column in COLUMNS]


def massive_row(session: dt.date, ticker: str, trade_id: int, draw_one: Draw) -> dict[str, str]:
    event = new_york(session, hour=9, minute=30) + MINUTES.get(trade_id, 0) * MINUTE + trade_id * 1_234_567_891
    exchange, facility = draw_one(st.sampled_from([("4", "202"), ("12", "")])) if trade_id == 3 else ("11", "")
    conditions = (
        "8"
        if trade_id == 4
        else draw_one(st.sampled_from(["", "", "", "12", "37", "14,41", "12,37", "10", "16", "38", "99"]))
    )
    return {
        **{
            "ticker": ticker,
            "conditions": conditions,
            "correction": "0",
            "exchange": exchange,
            "id": str(trade_id),
        },
        **{
            "participant_timestamp": str(event),
            "price": draw_one(st.sampled_from(["12.5", "12.5", "12.75"])),
        },
        **{
            "sequence_number": str(trade_id * 3 + (exchange == "12")),
            "sip_timestamp": str(event + 1000),
            "trf_id": facility,
        },
        **{"size": draw_one(st.sampled_from(["100", "100", "0.5"])), "tape": "1", "trf_timestamp": ""},
    }


def table(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


ROW_DEFECTS: list[Spelling[dict[str, str]]] = [
    lambda row: list(row.values())[:4],
    lambda row: [*in_columns(row), "one more"],
    lambda row: in_columns(row | {"price": ""}),
    lambda row: in_columns(row | {"id": ""}),
    lambda row: in_columns(row | {"price": "12,5"}),
    lambda row: in_columns(row | {"size": "inf"}),
    lambda row: in_columns(row | {"size": "0"}),
    lambda row: in_columns(row | {"correction": "08"}),
    lambda row: in_columns(row | {"participant_timestamp": "2000000000000000000"}),
]

# Vintages: alfred_observations

QUARTERS = [dt.date(2019, 1, 1), dt.date(2019, 4, 1), dt.date(2019, 7, 1), dt.date(2019, 10, 1)]


def alfred_world(number: int, draw_one: Draw) -> World:
    series = f"S{number}"
    vintages = sorted(
        draw_one(st.lists(st.integers(0, 500), min_size=2, max_size=6, unique=True)), key=int
    )  # days after the first
    history: list[list[tuple[dt.date, dt.date, str]]] = []
    newest = draw_one(st.integers(0, 2))
    for days in vintages:
        published = dt.date(2019, 3, 8) + dt.timedelta(days)
        newest = min(newest + draw_one(st.integers(0, 1)), len(QUARTERS) - 1)
        periods = draw_one(st.lists(st.sampled_from(QUARTERS[: newest + 1]), min_size=1, unique=True))
        history.append(
            [(published, period, draw_one(st.sampled_from(["1.5", "2.5", "3.0", "."]))) for period in periods]
        )
    files = []
    last = dt.date(2019, 3, 8) + dt.timedelta(vintages[-1])
    firsts = {period: published for rows in reversed(history) for published, period, _ in rows}
    for fetch in range(draw_one(st.integers(1, 3))):
        fetched = (
            last + dt.timedelta(30 * fetch)
            if fetch
            else dt.date(2019, 3, 8) + dt.timedelta(vintages[len(vintages) // 2])
        )
        elements = []
        for published, period, value in (row for rows in history for row in rows):
            if published > fetched:
                continue
            said = value
            if firsts[period] != published and draw_one(st.integers(0, 7)) == 0:
                # The vendor now says otherwise of that vintage.
                said = draw_one(st.sampled_from(["1.5", "9.5"]))
            elements.append(
                {
                    "realtime_start": str(published),
                    "realtime_end": "9999-12-31",
                    "date": str(period),
                    "value": said,
                }
            )
        if draw_one(st.booleans()):
            elements = draw_one(st.permutations(elements))
        for defect in draw_one(st.lists(st.sampled_from(ELEMENT_DEFECTS), max_size=2)):
            elements.insert(draw_one(st.integers(0, len(elements))), dict(defect))
        body = json.dumps({"realtime_start": "1776-07-04", "count": len(elements), "observations": elements}).encode()
        time = utc(dt.datetime.combine(fetched, dt.time(), dt.UTC))
        files.append(File("alfred_observations", f"alfred_{series}_fetched_{fetched}.json", body, time))
    return World(f"series:{series}", files=tuple(files))


ELEMENT_DEFECTS = [
    {"realtime_start": "2019-03-08", "date": "2019-01-01"},
    {"realtime_start": "2019-03-08", "date": "2019-01-01", "value": "n/a"},
    {"realtime_start": "2019-02-30", "date": "2019-01-01", "value": "1.5"},
    {"realtime_start": "2019-03-08", "value": "1.5"},
]

# Two facts a line: index_membership


def membership_world(number: int, draw_one: Draw) -> World:
    index = f"index{number}"
    files = []
    delivered = dt.datetime(2020, 1, 1, 12, tzinfo=dt.UTC)
    for _ in range(draw_one(st.integers(1, 4))):
        rows = []
        for ticker in ("AA", "NULL", "ZZ"):
            for start in ("2001-02-03", "2010-11-07"):
                if draw_one(st.integers(0, 2)):
                    end = draw_one(st.sampled_from(["", "", "2011-03-14", "2015-05-05"]))
                    rows += [[ticker, start, end]] * (2 if draw_one(st.integers(0, 9)) == 0 else 1)
        rows = rows or [["AA", "2001-02-03", ""]]
        rows = draw_one(st.permutations(rows))
        lines = poisoned(rows, ["QQ", "2001-02-03", ""], MEMBER_DEFECTS, list, draw_one)
        body = table([["ticker", "start_date", "end_date"], *lines])
        files.append(File("index_membership", f"{index}_ticker_start_end.csv", body, utc(delivered)))
        delivered += dt.timedelta(days=draw_one(st.sampled_from([1, 30, 400])))
    return World(f"index:{index}", files=tuple(files))


MEMBER_DEFECTS: list[Spelling[list[str]]] = [
    lambda row: row[:1],
    lambda row: [row[0], "", ""],
    lambda row: [row[0], "2001-02-30", ""],
    lambda row: [row[0], "2010-01-01", "2009-01-01"],
    lambda row: ["", *row[1:]],
]

KINDS: dict[str, Callable[[int, Draw], World]] = {
    "binance": binance_world,
    "massive": massive_world,
    "alfred": alfred_world,
    "membership": membership_world,
}
