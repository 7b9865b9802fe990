"""The equities' files as the vendor delivers them: gzipped CSV, one a session and kind.

company_days() ×20 ── turned by session ─┬─ trades (58 sessions)
                                         ├─ minute_aggs (the 2 others)
                                         ├─ quotes (5)
                                         └─ day_aggs (60)
     plantings, re-deliveries, refusals ─┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta

from market_data.demo.defects import planted, with_columns
from market_data.demo.equities import (
    ARCA,
    CENT,
    COMPANIES,
    PRICE_PLACES,
    WHOLE,
    WITHOUT_TRADES,
    Bar,
    Company,
    Day,
    Print,
    company_days,
    sessions,
    step,
)
from market_data.demo.flat_plantings import (
    BAR_PLANTINGS,
    BARS,
    QUOTE_PLANTINGS,
    QUOTES,
    TRADE_PLANTINGS,
    TRADES,
)
from market_data.demo.ticks import HOUR, MINUTE, SIZE_PLACES, Dice, iso, new_york, packed, trimmed
from market_data.demo.truth import Fate, Parcel, Plant, Record, repeated

QUOTED = (10, 11, 12, 13, 14)
HEADER_ONLY = 15
DELIVERED_LATE = 12
LOADED_LATE = 50
CORRECTED = 25
"""Trades are delivered again, corrected; the day's bars too, and then as they first were."""
SENT_TWICE = 18
WIDER = 44
"""Session numbers, from 0, at which deliveries are not as usual."""
CORRECTED_TICKER, MISSING_TICKER = "ABLX", "CADE"
CORRECTED_NUMBER, MISSING_NUMBER = 12, 20


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
        price = step(dice, price, 5)
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
        yield _flat("trades", day, TRADES, corrected, days_after=5, minute=30, retracted=(missing,), notes=notes)


def _corrected_rows(records: Sequence[Record]) -> tuple[list[Record], Record]:
    """The day's rows when they are delivered again, and the one that is no longer among them."""
    missing = _nth(records, MISSING_TICKER, MISSING_NUMBER)
    changed = _nth(records, CORRECTED_TICKER, CORRECTED_NUMBER)

    def again(record: Record) -> Record:
        if record is not changed:
            return repeated(record)
        size = record.size + 100 * WHOLE
        text = with_columns(record, TRADES, correction=1, size=trimmed(size, SIZE_PLACES))
        return record._replace(text=text, size=size, planted="revision", why="delivered again, 100 shares more")

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
        yield _flat("day_aggs", day, header, again, days_after=3, minute=15, outcome="redelivered", notes=notes)
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
        yield _flat("day_aggs", day, header, taken_back, days_after=6, minute=30, outcome="redelivered", notes=notes)


def _quote_files(seed: int, session: int, day: date, traded: Sequence[tuple[Company, Day]]) -> Iterator[Parcel]:
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
