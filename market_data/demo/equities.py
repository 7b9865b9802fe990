"""Twenty US companies over sixty sessions, in the vendor's flat files and reference answers.

    company_days(company) ×20 ── prints, minutes, a day's bar ── turned by session ─┬─ trades (58 sessions)
                                                                                    ├─ minute_aggs (2)
                                                                                    ├─ quotes (5)
                                                                                    └─ day_aggs (60)

A session without trades has minute bars instead. Prices are whole numbers of 10^-4 dollars.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import NamedTuple

from market_data.demo.defects import (
    Planting,
    Spot,
    column,
    long_row,
    not_utf8,
    planted,
    short_row,
    twice,
    with_columns,
)
from market_data.demo.ticks import (
    HOUR,
    MILLISECOND,
    MINUTE,
    SIZE_PLACES,
    Dice,
    iso,
    new_york,
    packed,
    trimmed,
)
from market_data.demo.truth import Fate, Parcel, Plant, Record, repeated

FIRST_SESSION = date(2024, 3, 4)
SESSION_COUNT = 60
HOLIDAYS = {date(2024, 3, 29), date(2024, 5, 27)}
"""Good Friday and Memorial Day: the exchange's only ones in the demo's time, which has no early close."""

WITHOUT_TRADES = (20, 41)
QUOTED = (10, 11, 12, 13, 14)
HEADER_ONLY = 15
DELIVERED_LATE = 12
LOADED_LATE = 50
CORRECTED = 25
"""Trades are delivered again, corrected; the day's bars too, and then as they first were."""
SENT_TWICE = 18
WIDER = 44
RENAMED = 30
EX_DIVIDEND = 27
SPLIT = 33
DELISTED = 36
"""Session numbers, from 0; of the last four, the first session on which it is so."""

PRICE_PLACES = 4
CENT = 100
WHOLE = 10**SIZE_PLACES
CANCELLING = {7, 8, 10, 11, 12}

TRADES = (
    "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,sip_timestamp,"
    "size,tape,trf_id,trf_timestamp"
)
QUOTES = (
    "ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,conditions,indicators,"
    "participant_timestamp,sequence_number,sip_timestamp,tape,trf_timestamp"
)
BARS = "ticker,volume,open,close,high,low,window_start,transactions"


@dataclass(frozen=True)
class Company:
    """A listed company. `listing` is the vendor's number of its exchange, `price` its first, in cents."""

    ticker: str
    price: int
    listing: int
    tape: int
    later: str = ""

    def ticker_on(self, session: int) -> str:
        """The ticker under which it trades."""
        return self.later if self.later and session >= RENAMED else self.ticker


NYSE, NASDAQ, ARCA, IEX, OFF_EXCHANGE = 10, 12, 11, 15, 4
COMPANIES = (
    Company("ABLX", 18_745, NASDAQ, 3),
    Company("BRQ.B", 41_210, NYSE, 1),
    Company("CADE", 9_234, NASDAQ, 3),
    Company("DRFT", 5_612, NASDAQ, 3, later="DRFX"),
    Company("ENVO", 2_388, NYSE, 1),
    Company("FNDR", 15_420, NYSE, 1),
    Company("GLYF", 7_721, NASDAQ, 3),
    Company("HALO.W", 312, NASDAQ, 3),
    Company("ITHK", 24_190, NASDAQ, 3),
    Company("JNPR.P", 2_555, NYSE, 1),
    Company("KOLT", 33_004, NASDAQ, 3),
    Company("LUMN.X", 1_044, NYSE, 1),
    Company("NA", 6_780, NASDAQ, 3),
    Company("NULL", 4_125, NASDAQ, 3),
    Company("ORBT", 11_890, NYSE, 1),
    Company("PIVT", 52_640, NASDAQ, 3),
    Company("QUAY", 8_015, NYSE, 1),
    Company("TWIN", 21_480, NASDAQ, 3),
    Company("VANE", 876, NYSE, 1),
    Company("nan", 3_390, NASDAQ, 3),
)
SPLITTING, DYING, PAYING = "TWIN", "VANE", "FNDR"
DIVIDEND_CENTS = 62


def sessions() -> list[date]:
    """The exchange's sessions of the demo."""
    days = (FIRST_SESSION + timedelta(days=offset) for offset in range(2 * SESSION_COUNT))
    return [day for day in days if day.weekday() < 5 and day not in HOLIDAYS][:SESSION_COUNT]


class Print(NamedTuple):
    """A trade, in the vendor's column order."""

    ticker: str
    conditions: str
    correction: int
    exchange: int
    id: int
    participant_timestamp: int
    price: int
    sequence_number: int
    sip_timestamp: int
    size: int
    tape: int
    trf_id: int
    trf_timestamp: int


class Bar(NamedTuple):
    """An aggregate; volume in 10^-8 shares."""

    ticker: str
    volume: int
    open: int
    close: int
    high: int
    low: int
    window_start: int
    transactions: int


class Day(NamedTuple):
    """A company's session: prints or minute bars, and the day's bar."""

    prints: list[Print]
    minutes: list[Bar]
    bar: Bar


# --- the market -------------------------------------------------------------------------------------------


def company_days(seed: int, company: Company, days: Sequence[date]) -> Iterator[Day | None]:
    """The company's sessions; none once it is delisted."""
    dice = Dice(seed, "company", company.ticker)
    price = company.price * CENT
    for session, day in enumerate(days):
        if company.ticker == DYING and session >= DELISTED:
            yield None
            continue
        if company.ticker == SPLITTING and session == SPLIT:
            price = price // 2 // CENT * CENT
        if company.ticker == PAYING and session == EX_DIVIDEND:
            price -= DIVIDEND_CENTS * CENT
        price = _step(dice, price, 120)
        ticker = company.ticker_on(session)
        if session in WITHOUT_TRADES:
            minutes = list(_minutes(dice, ticker, day, price))
            price = minutes[-1].close
            yield Day([], minutes, _day_bar_of_minutes(ticker, day, minutes))
        else:
            prints = list(_prints(dice, company, ticker, day, price))
            price = prints[-1].price // CENT * CENT
            yield Day(prints, [], _day_bar(ticker, day, prints))


def _step(dice: Dice, price: int, ten_thousandths: int) -> int:
    """A step of the price by so much at most, to a whole cent above a dollar."""
    reach = max(price * ten_thousandths // 10_000 // CENT, 1)
    return max(price + dice.between(-reach, reach) * CENT, 100 * CENT)


def _prints(dice: Dice, company: Company, ticker: str, day: date, price: int) -> Iterator[Print]:
    """The session's trades in time order: before the open, the day, the closing prints, afterwards."""
    midnight = new_york(day)
    opening, closing = midnight + 9 * HOUR + 30 * MINUTE, midnight + 16 * HOUR
    ids: Counter[tuple[int, int]] = Counter()
    sequence = 1_000 + dice.below(1_000)

    def sale(moment: int, price: int, size: int, conditions: Sequence[int], exchange: int) -> Print:
        nonlocal sequence
        sequence += 1 + dice.below(40)
        trf = 201 + dice.below(2) if exchange == OFF_EXCHANGE else 0
        ids[exchange, trf] += 1
        reported = moment + 150 * MILLISECOND if trf else 0
        sip = (reported or moment) + 15_000 + dice.below(400_000)
        return Print(
            ticker,
            ",".join(map(str, conditions)),
            0,
            exchange,
            ids[exchange, trf],
            moment,
            price,
            sequence,
            sip,
            size,
            company.tape,
            trf,
            reported,
        )

    def any_sale(moment: int, conditions: Sequence[int]) -> Print:
        exchange = (company.listing, ARCA, IEX, OFF_EXCHANGE)[dice.below(4)]
        kind = dice.below(10)
        if kind < 3:
            size, codes = (1 + dice.below(99)) * WHOLE, [*conditions, 37]
        elif kind == 3 and exchange == OFF_EXCHANGE:
            size, codes = (1 + dice.below(9_999)) * WHOLE // 1_000, [*conditions, 37]
        elif kind == 4:
            size, codes = (100 + 100 * dice.below(5)) * WHOLE, [*conditions, 14, 41]
        else:
            size, codes = (100 + 100 * dice.below(8)) * WHOLE, list(conditions)
        improved = dice.below(CENT) if exchange == OFF_EXCHANGE else 0
        return sale(moment, price + improved, size, codes, exchange)

    for moment in dice.moments(2, 5 * HOUR):
        price = _step(dice, price, 15)
        yield any_sale(midnight + 4 * HOUR + moment, [12])
    for moment in dice.moments(42 + dice.below(16), closing - opening):
        price = _step(dice, price, 20)
        yield any_sale(opening + moment, [])
    cross = closing + 90 * MILLISECOND + dice.below(800 * MILLISECOND)
    yield sale(cross, price, (2_000 + 100 * dice.below(90)) * WHOLE, [8], company.listing)
    yield sale(cross + 40 * MILLISECOND, price, (100 + dice.below(900)) * WHOLE, [15], company.listing)
    for moment in dice.moments(2, 3 * HOUR):
        price = _step(dice, price, 15)
        yield any_sale(closing + 5 * MINUTE + moment, [13] if dice.below(4) == 0 else [12])


_VOLUME_ONLY = {"2", "7", "12", "13", "20", "21", "37", "52", "53"}


def _day_bar(ticker: str, day: date, prints: Sequence[Print]) -> Bar:
    """The bar of the session and its closing print. An odd lot adds volume only, code 15 nothing."""
    opening, closing = new_york(day, 9, 30), new_york(day, 16)
    counted = [
        (one, set(one.conditions.split(",")))
        for one in prints
        if opening <= one.participant_timestamp < closing or one.conditions == "8"
    ]
    priced = [one.price for one, codes in counted if not codes & _VOLUME_ONLY]
    volume = sum(one.size for one, _ in counted)
    return Bar(ticker, volume, priced[0], priced[-1], max(priced), min(priced), new_york(day), len(counted))


def _minutes(dice: Dice, ticker: str, day: date, price: int) -> Iterator[Bar]:
    """Minute bars; a minute in ten has no trade and so no bar."""
    opening = new_york(day, 9, 30)
    for minute in range(390):
        if minute % 389 and dice.below(10) == 0:
            continue
        path = [price := _step(dice, price, 6) for _ in range(4)]
        yield Bar(
            ticker,
            (100 + dice.below(4_000)) * WHOLE,
            path[0],
            path[-1],
            max(path),
            min(path),
            opening + minute * MINUTE,
            3 + dice.below(40),
        )


def _day_bar_of_minutes(ticker: str, day: date, minutes: Sequence[Bar]) -> Bar:
    return Bar(
        ticker,
        sum(bar.volume for bar in minutes),
        minutes[0].open,
        minutes[-1].close,
        max(bar.high for bar in minutes),
        min(bar.low for bar in minutes),
        new_york(day),
        sum(bar.transactions for bar in minutes),
    )


# --- records ----------------------------------------------------------------------------------------------


def trade_record(day: date, one: Print) -> Record:
    """A row of the trades file."""
    conditions = f'"{one.conditions}"' if "," in one.conditions else one.conditions
    text = (
        f"{one.ticker},{conditions},{one.correction},{one.exchange},{one.id},{one.participant_timestamp},"
        f"{trimmed(one.price, PRICE_PLACES)},{one.sequence_number},{one.sip_timestamp},"
        f"{trimmed(one.size, SIZE_PLACES)},{one.tape},{one.trf_id},{one.trf_timestamp}"
    )
    key = (day.isoformat(), one.ticker, one.exchange, one.trf_id, one.id)
    return Record(text.encode(), Fate.CANONICAL, "trades", one.ticker, key, one.size)


def bar_record(interval: str, bar: Bar) -> Record:
    """A row of an aggregates file."""
    prices = ",".join(trimmed(price, PRICE_PLACES) for price in (bar.open, bar.close, bar.high, bar.low))
    text = f"{bar.ticker},{trimmed(bar.volume, SIZE_PLACES)},{prices},{bar.window_start},{bar.transactions}"
    key = (bar.ticker, interval, bar.window_start)
    return Record(text.encode(), Fate.CANONICAL, "bars", bar.ticker, key)


def quote_records(seed: int, company: Company, day: date, session: int, price: int) -> Iterator[Record]:
    """A session's quotes around a price; the first has no bid yet, which is no defect."""
    dice = Dice(seed, "quotes", company.ticker, session)
    ticker, opening = company.ticker_on(session), new_york(day, 9, 30)
    sequence = 2_000 + dice.below(5_000)
    for index, moment in enumerate(dice.moments(120 + dice.below(60), 390 * MINUTE)):
        price = _step(dice, price, 5)
        sequence += 1 + dice.below(90)
        stamped = opening + moment
        bid, bid_size = (0, 0) if index == 0 else (price - CENT, 1 + dice.below(20))
        ask = price + (1 + dice.below(3)) * CENT
        text = (
            f"{ticker},{company.listing},{trimmed(ask, PRICE_PLACES)},{1 + dice.below(20)},{ARCA},"
            f"{trimmed(bid, PRICE_PLACES)},{bid_size},1,,{stamped},{sequence},{stamped + 20_000},"
            f"{company.tape},0"
        )
        key = (day.isoformat(), ticker, sequence)
        yield Record(text.encode(), Fate.CANONICAL, "quotes", ticker, key)


# --- plantings --------------------------------------------------------------------------------------------


def _corrected(code: int, why: str, **columns: str | int) -> Planting:
    """The trade as it stands, and the row that corrects or cancels it: the same id, a later sequence."""

    def plant(record: Record) -> list[Record]:
        sequence = int(record.text.split(b",")[-6]) + 500_000
        text = with_columns(record, TRADES, correction=code, sequence_number=sequence, **columns)
        return [record, _marked(record, text, code, why)]

    return plant


def _stamped(code: int, why: str) -> Planting:
    """The trade with a correction code in its only row."""

    def plant(record: Record) -> list[Record]:
        return [_marked(record, with_columns(record, TRADES, correction=code), code, why)]

    return plant


def _marked(record: Record, text: bytes, code: int, why: str) -> Record:
    kind = "cancel" if code in CANCELLING else "correction"
    return record._replace(text=text, cancelled=code in CANCELLING, planted=kind, why=why)


def _unstamped(record: Record) -> list[Record]:
    """A trade that has the tape's time only, which is then its time."""
    text = with_columns(record, TRADES, participant_timestamp="")
    return [record._replace(text=text, planted="fallback", why="no participant_timestamp: sip_timestamp")]


def _trade(name: str, value: str, reason: str, why: str) -> Planting:
    return column(TRADES, name, value, reason, why)


TRADE_PLANTINGS: Mapping[int, Mapping[Spot, Planting]] = {
    3: {("trades", ticker, 9): twice for ticker in ("NA", "PIVT", "nan")},
    5: {
        ("trades", "CADE", 5): short_row,
        ("trades", "GLYF", 5): long_row,
        ("trades", "ORBT", 5): not_utf8,
    },
    6: {("trades", "NULL", number): _unstamped for number in (8, 9)},
    8: {
        ("trades", "ITHK", 7): _trade("price", "abc", "invalid_value", "price abc"),
        ("trades", "KOLT", 7): _trade("size", "0.-10000", "invalid_value", "size 0.-10000"),
        ("trades", "QUAY", 7): _trade(
            "participant_timestamp", "yesterday", "invalid_value", "its time is the word yesterday"
        ),
    },
    9: {
        ("trades", "ENVO", 6): _trade("price", "0", "impossible_value", "price 0"),
        ("trades", "ENVO", 8): _trade("price", "-23.9", "impossible_value", "price -23.9"),
        ("trades", "ENVO", 10): _trade("size", "0", "impossible_value", "size 0"),
        ("trades", "ENVO", 12): _trade("size", "-100", "impossible_value", "size -100"),
    },
    16: {
        ("trades", "FNDR", 6): _trade(
            "participant_timestamp", "4102444800000000000", "impossible_time", "it happened on 2100-01-01"
        ),
        ("trades", "FNDR", 9): _trade("price", "", "missing_field", "no price"),
    },
    19: {
        ("trades", "ABLX", 10): _corrected(1, "another price", price="187.5"),
        ("trades", "ABLX", 14): _corrected(7, "cancelled as an error"),
        ("trades", "ABLX", 18): _corrected(8, "cancelled"),
        ("trades", "PIVT", 10): _corrected(12, "the record of a correction"),
        ("trades", "PIVT", 20): _stamped(1, "corrected before the file was made"),
    },
    28: {
        ("trades", "KOLT", 11): _stamped(10, "cancelled before the file was made"),
        ("trades", "KOLT", 12): _stamped(11, "an error, taken back before the file was made"),
        ("trades", "NULL", 13): _corrected(8, "cancelled"),
    },
}
QUOTE_PLANTINGS: Mapping[int, Mapping[Spot, Planting]] = {
    11: {
        ("quotes", "NA", 40): twice,
        ("quotes", "CADE", 30): column(QUOTES, "ask_price", "abc", "invalid_value", "ask price abc"),
        ("quotes", "CADE", 40): short_row,
        ("quotes", "CADE", 50): column(
            QUOTES, "participant_timestamp", "4102444800000000000", "impossible_time", "quoted on 2100-01-01"
        ),
    },
}
BAR_PLANTINGS: Mapping[int, Mapping[Spot, Planting]] = {
    7: {("bars", "QUAY", 1): column(BARS, "open", "n/a", "invalid_value", "open n/a")},
    9: {("bars", "nan", 1): twice},
}
CORRECTED_TICKER, MISSING_TICKER = "ABLX", "CADE"
CORRECTED_NUMBER, MISSING_NUMBER = 12, 20


# --- files ------------------------------------------------------------------------------------------------


def equities(seed: int) -> Iterator[Parcel]:
    """All flat files, for one key in the order of knowledge."""
    days = sessions()
    columns = [list(company_days(seed, company, days)) for company in COMPANIES]
    for session, day in enumerate(days):
        traded = [
            (company, found)
            for company, found in zip(COMPANIES, (column[session] for column in columns), strict=True)
            if found is not None
        ]
        yield from _trade_files(session, day, [found for _, found in traded])
        yield from _minute_files(session, day, [found for _, found in traded])
        yield from _day_files(session, day, [found for _, found in traded])
        yield from _quote_files(seed, session, day, traded)


def _flat(
    name: str,
    day: date,
    header: str,
    records: Sequence[Record],
    *,
    days_after: int = 1,
    minute: int = 2,
    kept_back: int = 0,
    retracted: tuple[Record, ...] = (),
    notes: Sequence[tuple[str, str]] = (),
    outcome: str = "loaded",
    late: bool = False,
    body: Callable[[bytes], bytes] = packed,
) -> Parcel:
    """A flat file, delivered at 11:02 New York time so many days after the session."""
    delivered = new_york(day + timedelta(days=days_after), 11, minute)
    feed = f"massive_{name}"
    folder = f"{iso(delivered)[:10]}{'-refused' if outcome == 'refused' else ''}"
    path = f"equities/{folder}/{feed}_{day}.csv.gz"
    text = b"\n".join([header.encode(), *(record.text for record in records), b""])
    return Parcel(
        path,
        feed,
        body(text),
        tuple(records),
        arrives=delivered + kept_back,
        delivered_at=iso(delivered),
        outcome=outcome,
        late=late,
        retracted=retracted,
        notes=tuple(Plant(kind, path, None, why) for kind, why in notes),
    )


def _trade_files(session: int, day: date, found: Sequence[Day]) -> Iterator[Parcel]:
    if session in WITHOUT_TRADES:
        return
    rows = [trade_record(day, one) for one_day in found for one in one_day.prints]
    records = planted(rows, TRADE_PLANTINGS.get(session, {}))
    if session == DELIVERED_LATE:
        notes = [("late", "delivered six days after the session, after files of later days")]
        yield _flat("trades", day, TRADES, records, days_after=6, late=True, notes=notes)
    elif session == LOADED_LATE:
        notes = [("late", "delivered in time, loaded after all others")]
        yield _flat("trades", day, TRADES, records, kept_back=60 * 24 * HOUR, late=True, notes=notes)
    else:
        yield _flat("trades", day, TRADES, records)
    if session == CORRECTED:
        corrected, missing = _corrected_rows(records)
        notes = [("redelivery", "the day again: one trade corrected, one missing, the rest the same")]
        yield _flat(
            "trades", day, TRADES, corrected, days_after=5, minute=30, retracted=(missing,), notes=notes
        )


def _corrected_rows(records: Sequence[Record]) -> tuple[list[Record], Record]:
    """The day's rows when they are delivered again, and the one that is no longer among them."""
    missing = _nth(records, MISSING_TICKER, MISSING_NUMBER)
    changed = _nth(records, CORRECTED_TICKER, CORRECTED_NUMBER)

    def again(record: Record) -> Record:
        if record is not changed:
            return repeated(record)
        size = record.size + 100 * WHOLE
        text = with_columns(record, TRADES, correction=1, size=trimmed(size, SIZE_PLACES))
        return record._replace(
            text=text, size=size, planted="revision", why="delivered again, 100 shares more"
        )

    return [again(record) for record in records if record is not missing], missing


def _nth(records: Sequence[Record], ticker: str, number: int) -> Record:
    return [record for record in records if record.symbol == ticker][number - 1]


def _minute_files(session: int, day: date, found: Sequence[Day]) -> Iterator[Parcel]:
    if session not in WITHOUT_TRADES:
        return
    records = [bar_record("1m", bar) for one_day in found for bar in one_day.minutes]
    if session == WITHOUT_TRADES[0]:
        foreign = b"symbol;bid;ask\nABLX;187.11;187.13\n"
        notes = [("refused", "its header shares no column with the feed's format")]
        yield _flat(
            "minute_aggs",
            day,
            BARS,
            records,
            minute=1,
            outcome="refused",
            notes=notes,
            body=lambda _: packed(foreign),
        )
    yield _flat("minute_aggs", day, BARS, records)


def _day_files(session: int, day: date, found: Sequence[Day]) -> Iterator[Parcel]:
    header = BARS
    records = planted([bar_record("1d", one.bar) for one in found], BAR_PLANTINGS.get(session, {}))
    if session == WIDER:
        header = f"{BARS},otc"
        records = [record._replace(text=record.text + b",false") for record in records]
        notes = [("drift", "a new column, otc")]
        yield _flat("day_aggs", day, header, records, notes=notes)
    else:
        # The corrected day's first file reaches the warehouse after its correction.
        kept_back = 4 * 24 * HOUR if session == CORRECTED else 0
        notes = [("late", "loaded after its own correction")] if kept_back else []
        yield _flat("day_aggs", day, header, records, kept_back=kept_back, late=kept_back > 0, notes=notes)
    if session == SENT_TWICE:
        notes = [("same_bytes", "the same bytes, delivered once more two days later")]
        again = [repeated(record) for record in records]
        yield _flat(
            "day_aggs", day, header, again, days_after=3, minute=15, outcome="redelivered", notes=notes
        )
    if session == CORRECTED:
        wrong = _nth(records, CORRECTED_TICKER, 1)
        fixed = wrong._replace(
            text=with_columns(wrong, BARS, transactions=99), planted="revision", why="99 transactions"
        )
        notes = [("redelivery", "one bar corrected")]
        corrected = [fixed if record is wrong else repeated(record) for record in records]
        yield _flat("day_aggs", day, header, corrected, days_after=4, minute=30, notes=notes)
        first = wrong._replace(planted="revision", why="the correction taken back: the first version again")
        notes = [("redelivery", "the first file's bytes again: the correction is taken back")]
        taken_back = [first if record is wrong else repeated(record) for record in records]
        yield _flat(
            "day_aggs", day, header, taken_back, days_after=6, minute=30, outcome="redelivered", notes=notes
        )


def _quote_files(
    seed: int, session: int, day: date, traded: Sequence[tuple[Company, Day]]
) -> Iterator[Parcel]:
    if session == HEADER_ONLY:
        notes = [("header_only", "a header and no row: it lands with none")]
        yield _flat("quotes", day, QUOTES, [], notes=notes)
    if session not in QUOTED:
        return
    rows = [
        record
        for company, found in traded
        for record in quote_records(seed, company, day, session, found.bar.open // CENT * CENT)
    ]
    records = planted(rows, QUOTE_PLANTINGS.get(session, {}))
    if session == QUOTED[-1]:
        notes = [("refused", "a gzip file cut off in its middle; the whole file comes a day later")]
        yield _flat("quotes", day, QUOTES, records, outcome="refused", notes=notes, body=_truncated)
    yield _flat("quotes", day, QUOTES, records, days_after=2 if session == QUOTED[-1] else 1)


def _truncated(text: bytes) -> bytes:
    whole = packed(text)
    return whole[: len(whole) // 2]
