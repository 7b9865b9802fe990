"""Twenty US companies over sixty sessions.

    company_days(company) ── prints or minute bars, and a day's bar, session by session

Prices are whole numbers of 10^-4 dollars, sizes and volumes of 10^-8 shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import NamedTuple

from market_data.demo.ticks import HOUR, MILLISECOND, MINUTE, SIZE_PLACES, Dice, new_york

FIRST_SESSION = date(2024, 3, 4)
SESSION_COUNT = 60
HOLIDAYS = {date(2024, 3, 29), date(2024, 5, 27)}
"""Good Friday and Memorial Day: the exchange's only ones in the demo's time, which has no early close."""

WITHOUT_TRADES = (20, 41)
"""Sessions that come as minute bars alone."""
RENAMED = 30
EX_DIVIDEND = 27
SPLIT = 33
DELISTED = 36
"""The first session on which it is so. Session numbers begin with 0."""

PRICE_PLACES = 4
CENT = 100
WHOLE = 10**SIZE_PLACES


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
        price = step(dice, price, 120)
        ticker = company.ticker_on(session)
        if session in WITHOUT_TRADES:
            minutes = list(_minutes(dice, ticker, day, price))
            price = minutes[-1].close
            yield Day([], minutes, _day_bar_of_minutes(ticker, day, minutes))
        else:
            prints = list(_prints(dice, company, ticker, day, price))
            price = prints[-1].price // CENT * CENT
            yield Day(prints, [], _day_bar(ticker, day, prints))


def step(dice: Dice, price: int, ten_thousandths: int) -> int:
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
        price = step(dice, price, 15)
        yield any_sale(midnight + 4 * HOUR + moment, [12])
    for moment in dice.moments(42 + dice.below(16), closing - opening):
        price = step(dice, price, 20)
        yield any_sale(opening + moment, [])
    cross = closing + 90 * MILLISECOND + dice.below(800 * MILLISECOND)
    yield sale(cross, price, (2_000 + 100 * dice.below(90)) * WHOLE, [8], company.listing)
    yield sale(cross + 40 * MILLISECOND, price, (100 + dice.below(900)) * WHOLE, [15], company.listing)
    for moment in dice.moments(2, 3 * HOUR):
        price = step(dice, price, 15)
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
        path = [price := step(dice, price, 6) for _ in range(4)]
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
