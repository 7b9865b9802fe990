"""Two hours of three pairs on two venues, as two recorders wrote them down.

    one path of prices per pair ─┬─ binance_stream(pair)    ── cut by receive time ── a file per pair and part
                                 └─ coinbase_stream(pair) ×3 ── merged, cut likewise ── a file per part

Books are consistent: applying each venue's changes to its snapshot gives the best bid and ask that its
ticker shows. Prices are whole cents, sizes whole numbers of 10^-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from heapq import merge

from market_data.demo.defects import (
    Planting,
    Spot,
    cut_off,
    followed_by,
    garbage,
    json_field,
    json_without,
    not_utf8,
    nul_byte,
    planted,
    twice,
)
from market_data.demo.ticks import (
    HOUR,
    MILLISECOND,
    MINUTE,
    SECOND,
    SIZE_PLACES,
    Dice,
    decimal,
    iso,
    packed,
    trimmed,
    utc,
)
from market_data.demo.truth import Fate, Parcel, Plant, Record, repeated

START = utc(date(2024, 5, 14), 23)
SECONDS = 7200
PARTS = ("20240514T2300", "20240514T2340", "20240515T0020")
CUTS = (0, 2400, 4800, SECONDS)
"""Where the parts begin, in seconds from START; the middle one holds midnight."""
OVERLAP = 100
DEPTH = 4
"""Levels of a book behind its best one."""
ENDPOINT = "wss://ws-feed.exchange.coinbase.com"
LATE = {"ETHUSDT/20240514T2340", "coinbase/20240514T2340"}
"""Parts that reach the warehouse only after all others."""


@dataclass(frozen=True)
class Pair:
    """A coin against the dollar. `step` is the most that its price moves in a second, `grid` the distance
    of a book's levels (both in cents), `lot` the venues' smallest size step (in 10^-8)."""

    base: str
    price: int
    step: int
    grid: int
    lot: int
    most_lots: int
    microseconds: bool = False
    skew: int = 0
    """Binance's recorder: ns by which its clock is wrong."""

    @property
    def binance(self) -> str:
        """Binance's name of the pair."""
        return f"{self.base}USDT"

    @property
    def coinbase(self) -> str:
        """Coinbase's name of the pair."""
        return f"{self.base}-USD"


PAIRS = (
    Pair("BTC", 6_150_000, 400, 500, 1_000, 30_000),
    Pair("ETH", 288_000, 25, 30, 10_000, 40_000),
    Pair("SOL", 14_300, 4, 5, 100_000, 60_000, microseconds=True, skew=-1_270 * MILLISECOND),
)


class Book:
    """The best levels of both sides, and what has changed since one last looked."""

    def __init__(self, dice: Dice, pair: Pair) -> None:
        self._dice = dice
        self._pair = pair
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}

    def size(self) -> int:
        """A size that somebody might offer."""
        return (1 + self._dice.below(self._pair.most_lots)) * self._pair.lot

    def move(self, bid: int, bid_size: int, ask: int, ask_size: int) -> tuple[dict[int, int], dict[int, int]]:
        """Move the touch; answers the levels that changed (size 0: gone), best first."""
        grid = self._pair.grid
        under, over = (bid - 1) // grid * grid, (ask // grid + 1) * grid
        bids = self._side(self.bids, [bid, *range(under, under - DEPTH * grid, -grid)], bid_size)
        asks = self._side(self.asks, [ask, *range(over, over + DEPTH * grid, grid)], ask_size)
        changed = _changes(self.bids, bids, best_first=-1), _changes(self.asks, asks, best_first=1)
        self.bids, self.asks = bids, asks
        return changed

    def _side(self, before: dict[int, int], prices: list[int], best_size: int) -> dict[int, int]:
        side = {price: before.get(price) or self.size() for price in prices}
        side[prices[0]] = best_size
        return side


def _changes(before: dict[int, int], after: dict[int, int], best_first: int) -> dict[int, int]:
    prices = sorted({*before, *after}, key=lambda price: price * best_first)
    return {price: after.get(price, 0) for price in prices if before.get(price) != after.get(price)}


def fair_path(seed: int, pair: Pair) -> list[int]:
    """The pair's fair price in every second, in cents: a walk that is drawn back to where it began."""
    dice = Dice(seed, "fair", pair.base)
    path, price = [], pair.price
    for _ in range(SECONDS):
        price += dice.between(-pair.step, pair.step) + (pair.price - price) // 1000
        path.append(price)
    return path


# --- Binance ----------------------------------------------------------------------------------------------


def binance_stream(seed: int, pair: Pair) -> Iterator[Record]:
    """All messages of a pair in the order of their receipt."""
    dice = Dice(seed, "binance", pair.base)
    book = Book(dice, pair)
    symbol, low = pair.binance, pair.binance.lower()
    unit = 1_000 if pair.microseconds else MILLISECOND
    trade_id = 3_600_000_000 + dice.below(10_000_000)
    update = first_update = 47_000_000_000 + dice.below(10_000_000)
    received = 0

    def receive(event: int) -> int:
        return max(received + 1_000, event + pair.skew + 2 * MILLISECOND + dice.below(30 * MILLISECOND))

    def ticker() -> Record:
        data = (
            f'"u":{update},"s":"{symbol}","b":"{decimal(bid, 2)}000000","B":"{decimal(bid_size, 8)}",'
            f'"a":"{decimal(ask, 2)}000000","A":"{decimal(ask_size, 8)}"'
        )
        text = f'{received} {{"stream":"{low}@bookTicker","data":{{{data}}}}}'.encode()
        return Record(text, Fate.CANONICAL, "quotes", symbol, (symbol, update), received=received)

    for second, fair in enumerate(fair_path(seed, pair)):
        start = START + second * SECOND
        bid = fair - dice.below(4)
        ask, bid_size, ask_size = bid + 1 + dice.below(3), book.size(), book.size()
        for moment in dice.moments(2 + dice.below(5), 970 * MILLISECOND):
            event = start + moment
            received = receive(event)
            if dice.below(5) < 2:
                trade_id += 1
                sold = dice.below(2) == 1
                size = (1 + dice.below(pair.most_lots // 10)) * pair.lot
                happened = event // unit
                data = (
                    f'"e":"trade","E":{happened + 1},"s":"{symbol}","t":{trade_id},'
                    f'"p":"{decimal(bid if sold else ask, 2)}000000","q":"{decimal(size, SIZE_PLACES)}",'
                    f'"T":{happened},"m":{"true" if sold else "false"},"M":true'
                )
                text = f'{received} {{"stream":"{low}@trade","data":{{{data}}}}}'.encode()
                yield Record(
                    text, Fate.CANONICAL, "trades", symbol, (symbol, trade_id), size, received=received
                )
            else:
                update += 1 + dice.below(9)
                bid_size, ask_size = book.size(), book.size()
                yield ticker()
        if second % 2:
            continue
        event = start + 980 * MILLISECOND
        update += 1 + dice.below(9)
        received = receive(event)
        yield ticker()
        bids, asks = book.move(bid, bid_size, ask, ask_size)
        received = receive(event)
        data = (
            f'"e":"depthUpdate","E":{event // unit},"s":"{symbol}","U":{first_update + 1},"u":{update},'
            f'"b":{_binance_levels(bids)},"a":{_binance_levels(asks)}'
        )
        text = f'{received} {{"stream":"{low}@depth@100ms","data":{{{data}}}}}'.encode()
        yield Record(text, Fate.UNREAD, symbol=symbol, received=received)
        first_update = update
        if second == 0:
            received = receive(event)
            levels = f'"bids":{_binance_levels(book.bids)},"asks":{_binance_levels(book.asks)}'
            text = f'{received} {{"lastUpdateId":{update},{levels}}}'.encode()
            yield Record(text, Fate.UNREAD, symbol=symbol, received=received)


def _binance_levels(levels: Mapping[int, int]) -> str:
    pairs = (f'["{decimal(price, 2)}000000","{decimal(size, 8)}"]' for price, size in levels.items())
    return f"[{','.join(pairs)}]"


def _received_again(record: Record, received: int) -> Record:
    """A Binance line as another connection received it."""
    text = str(received).encode() + record.text[record.text.index(b" ") :]
    return repeated(record, text)._replace(received=received)


def _corrected_price(record: Record) -> list[Record]:
    """A trade, the same trade with another price, and a late repeat of the first."""
    revision = _received_again(record, record.received + MILLISECOND)
    revision = revision._replace(
        text=json_field("p", '"60000.00000000"', "", "")(revision)[0].text,
        fate=Fate.CANONICAL,
        planted="revision",
        why="the same trade id with another price: the stream corrects itself",
    )
    repeat = _received_again(record, record.received + 2 * MILLISECOND)
    return [record, revision, repeat._replace(planted="duplicate", why="a late repeat of the first version")]


def _binance_text(stream: str, data: str) -> Planting:
    def text(record: Record) -> bytes:
        return f'{record.received} {{"stream":"{stream}","data":{{{data}}}}}'.encode()

    if "serverShutdown" in data:
        return followed_by(text, Fate.CONTROL, "control", "the venue says that it will shut down")
    return followed_by(text, Fate.QUARANTINED, "defect", f"a kind nobody knows: {stream}", "unknown_kind")


BINANCE_PLANTINGS: Mapping[str, Mapping[Spot, Planting]] = {
    "BTCUSDT/20240514T2300": {
        ("trades", "BTCUSDT", 100): cut_off,
        ("trades", "BTCUSDT", 150): not_utf8,
        ("trades", "BTCUSDT", 200): nul_byte,
        ("trades", "BTCUSDT", 250): json_without("t"),
        ("trades", "BTCUSDT", 300): json_without("p"),
        ("trades", "BTCUSDT", 350): json_field("p", '"abc"', "invalid_value", "price abc"),
        ("trades", "BTCUSDT", 400): json_field("q", '"0.-10000"', "invalid_value", "size 0.-10000"),
        ("trades", "BTCUSDT", 450): json_field("p", '"0.00000000"', "impossible_value", "price 0"),
        ("trades", "BTCUSDT", 500): json_field("q", '"0.00000000"', "impossible_value", "size 0"),
        ("trades", "BTCUSDT", 550): json_field("q", '"-0.50000000"', "impossible_value", "size -0.5"),
        ("trades", "BTCUSDT", 600): json_field(
            "T", "4102444800000", "impossible_time", "it happened on 2100-01-01"
        ),
        ("quotes", "BTCUSDT", 700): json_field("B", '"many"', "invalid_value", "bid size many"),
        ("quotes", "BTCUSDT", 710): cut_off,
        ("trades", "BTCUSDT", 700): _binance_text(
            "btcusdt@aggTrade", '"e":"aggTrade","E":1715727900000,"s":"BTCUSDT","a":2990000000'
        ),
    },
    "BTCUSDT/20240514T2340": {
        ("trades", "BTCUSDT", 120): _corrected_price,
        **{("trades", "BTCUSDT", 200 + 40 * index): twice for index in range(6)},
        **{("quotes", "BTCUSDT", 300 + 40 * index): twice for index in range(6)},
    },
    "ETHUSDT/20240514T2340": {
        ("trades", "ETHUSDT", 333): twice,
        ("quotes", "ETHUSDT", 333): twice,
        ("trades", "ETHUSDT", 444): json_field("q", '"1,5"', "invalid_value", "size 1,5"),
        ("quotes", "ETHUSDT", 555): _binance_text(
            "ethusdt@kline_1m", '"e":"kline","E":1715731500000,"s":"ETHUSDT"'
        ),
    },
    "SOLUSDT/20240515T0020": {
        ("trades", "SOLUSDT", 250): _binance_text(
            "!serverShutdown", '"e":"serverShutdown","E":1715733000000000'
        ),
    },
}

OVERLAPPING = {"BTCUSDT/20240515T0020", "ETHUSDT/20240514T2340", "ETHUSDT/20240515T0020"}
"""Parts that begin with what the part before ended with: the recorder opened its connection anew."""


def binance(seed: int) -> Iterator[Parcel]:
    """Binance's files, and one of them once more under another name."""
    for pair in PAIRS:
        tail: list[Record] = []
        for index, records in enumerate(_parts(binance_stream(seed, pair))):
            name = f"{pair.binance}/{PARTS[index]}"
            path = f"crypto/binance/binance_spot_{pair.binance.lower()}_{PARTS[index]}.gz"
            opening = START + CUTS[index] * SECOND
            copies = [
                _received_again(record, opening + (1 + position) * 50_000)
                for position, record in enumerate(tail)
                if name in OVERLAPPING
            ]
            tail = [record for record in records if record.fate is Fate.CANONICAL][-OVERLAP:]
            own = planted(records, BINANCE_PLANTINGS.get(name, {}))
            parcel = _capture(
                path,
                "binance_spot",
                sorted(copies + own, key=lambda record: record.received),
                index,
                late=name in LATE,
                notes=_notes(path, len(copies), pair, index),
            )
            yield parcel
            if name == "BTCUSDT/20240514T2300":
                yield _renamed(parcel)


def _notes(path: str, copies: int, pair: Pair, index: int) -> tuple[Plant, ...]:
    notes = []
    if copies:
        notes.append(
            Plant("overlap", path, None, "begins with the end of the part before, received again", "", copies)
        )
    if index == 0 and pair.microseconds:
        notes.append(Plant("unit", path, None, "this pair's connection asked for microseconds"))
    if index == 0 and pair.skew:
        notes.append(Plant("skew", path, None, "this recorder's clock is 1.27 s behind the venue's"))
    return tuple(notes)


def _renamed(parcel: Parcel) -> Parcel:
    path = parcel.path.replace("crypto/binance/", "crypto/again/").replace(".gz", "_copy.gz")
    return Parcel(
        path,
        parcel.feed,
        parcel.body,
        parcel.records,
        arrives=parcel.arrives + 6 * HOUR,
        outcome="unchanged",
        notes=(Plant("same_bytes", path, None, f"the bytes of {parcel.path} under another name"),),
    )


# --- Coinbase ---------------------------------------------------------------------------------------------


def coinbase_stream(seed: int, pair: Pair) -> Iterator[Record]:
    """All messages of a product in the order of their receipt, and at each part's begin what a new
    subscription sends first: the book, the last ticker and the last match."""
    dice = Dice(seed, "coinbase", pair.base)
    book = Book(dice, pair)
    symbol = pair.coinbase
    trade_id, sequence = 600_000_000 + dice.below(10_000_000), 80_000_000_000 + dice.below(10_000_000)
    path = fair_path(seed, pair)
    volume = 900_000 * pair.lot * 1_000
    received = START

    def message(body: str, fate: Fate, table: str = "", number: int = 0, size: int = 0) -> Record:
        text = f"{_seconds(received)}: {body}".encode()
        return Record(text, fate, table, symbol, (symbol, number), size, received=received)

    def receive(event: int, latency: int = 20 * MILLISECOND) -> int:
        return max(received + 1_000, (event + latency + dice.below(40 * MILLISECOND)) // 1_000 * 1_000)

    def print_trade(event: int, sized: bool) -> tuple[str, str, int]:
        """The JSON of a new trade as a match and as a ticker, and its size."""
        maker_sold = dice.below(2) == 1
        size = (1 + dice.below(pair.most_lots // 10)) * pair.lot
        price, when = trimmed(ask if maker_sold else bid, 2), _clock(event)
        maker, taker = ("sell", "buy") if maker_sold else ("buy", "sell")
        match = (
            f'"trade_id":{trade_id},"maker_order_id":"{_uuid(dice)}","taker_order_id":"{_uuid(dice)}",'
            f'"side":"{maker}","size":"{trimmed(size, SIZE_PLACES)}","price":"{price}",'
            f'"product_id":"{symbol}","sequence":{sequence},"time":"{when}"}}'
        )
        sizes = (
            f'"best_bid_size":"{trimmed(bid_size, SIZE_PLACES)}",'
            f'"best_ask_size":"{trimmed(ask_size, SIZE_PLACES)}",'
        )
        ticker = (
            f'{{"type":"ticker","sequence":{sequence},"product_id":"{symbol}","price":"{price}",'
            f'"open_24h":"{trimmed(pair.price, 2)}","volume_24h":"{decimal(volume, SIZE_PLACES)}",'
            f'"low_24h":"{trimmed(pair.price * 19 // 20, 2)}",'
            f'"high_24h":"{trimmed(pair.price * 21 // 20, 2)}",'
            f'"volume_30d":"{decimal(volume * 30, SIZE_PLACES)}","best_bid":"{trimmed(bid, 2)}",'
            f'"best_ask":"{trimmed(ask, 2)}",{sizes if sized else ""}"side":"{taker}","time":"{when}",'
            f'"trade_id":{trade_id},"last_size":"{trimmed(size, SIZE_PLACES)}"}}'
        )
        return match, ticker, size

    bid, ask, bid_size, ask_size = path[0] - 1, path[0] + 1, book.size(), book.size()
    book.move(bid, bid_size, ask, ask_size)
    match, ticker, size = print_trade(START - 4 * SECOND, sized=False)
    for second, fair in enumerate(path):
        start = START + second * SECOND
        if second in CUTS:
            fate = Fate.CANONICAL if second == 0 else Fate.DUPLICATE
            received = receive(start, latency=2 * MILLISECOND)
            levels = f'"asks":{_coinbase_levels(book.asks)},"bids":{_coinbase_levels(book.bids)}'
            yield message(f'{{"type":"snapshot","product_id":"{symbol}",{levels}}}', Fate.UNREAD)
            received += 20_000
            yield message(ticker, fate, "quotes", sequence)
            received += 20_000
            yield message(f'{{"type":"last_match",{match}', fate, "trades", trade_id, size)
        if second % 10 == 5:
            received = receive(start)
            yield message(
                f'{{"type":"heartbeat","last_trade_id":{trade_id},"product_id":"{symbol}",'
                f'"sequence":{sequence},"time":"{_clock(start)}"}}',
                Fate.CONTROL,
            )
        for moment in dice.moments(1 + dice.below(2), 900 * MILLISECOND):
            event = start + 60 * MILLISECOND + moment
            bid = fair - dice.below(6)
            ask, bid_size, ask_size = bid + 1 + dice.below(4), book.size(), book.size()
            bids, asks = book.move(bid, bid_size, ask, ask_size)
            received = receive(event)
            changes = [*_coinbase_changes("buy", bids), *_coinbase_changes("sell", asks)]
            yield message(
                f'{{"type":"l2update","product_id":"{symbol}","changes":[{",".join(changes)}],'
                f'"time":"{_clock(event)}"}}',
                Fate.UNREAD,
            )
            trade_id, sequence = trade_id + 1, sequence + 1 + dice.below(30)
            match, ticker, size = print_trade(event, sized=second >= CUTS[1])
            volume += size
            received = receive(event)
            yield message(f'{{"type":"match",{match}', Fate.CANONICAL, "trades", trade_id, size)
            received += 14_000 + dice.below(5) * 1_000
            yield message(ticker, Fate.CANONICAL, "quotes", sequence)


def _seconds(moment: int) -> str:
    """A receive time as a recorder writes a float: `1715727600.84347`."""
    text = decimal(moment // 1_000, 6).rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def _clock(moment: int) -> str:
    """The venue's time, `2024-05-14T23:00:00.244075Z`."""
    second, rest = divmod(moment, SECOND)
    return f"{iso(second * SECOND)[:-1]}.{rest // 1_000:06d}Z"


def _uuid(dice: Dice) -> str:
    digits = f"{dice.word():016x}{dice.word():016x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _coinbase_levels(levels: Mapping[int, int]) -> str:
    pairs = (f'["{decimal(price, 2)}","{trimmed(size, 8)}"]' for price, size in levels.items())
    return f"[{','.join(pairs)}]"


def _coinbase_changes(side: str, levels: Mapping[int, int]) -> Iterator[str]:
    return (f'["{side}","{decimal(price, 2)}","{trimmed(size, 8)}"]' for price, size in levels.items())


def _opening(index: int) -> list[Record]:
    """What the recorder does first in a part: it connects, subscribes, and is told so."""
    products = ",".join(f'"{pair.coinbase}"' for pair in PAIRS)
    channels = ("level2", "ticker", "matches", "heartbeat")
    names = ",".join(f'"{channel}"' for channel in channels)
    confirmed = ",".join(f'{{"name":"{channel}","product_ids":[{products}]}}' for channel in channels)
    moments = [START + CUTS[index] * SECOND + offset * 1_000 for offset in (-843_470, -821_061, -3_200)]
    lines = (
        f"{ENDPOINT} <-> {_seconds(moments[0])}",
        f"{ENDPOINT} <- {_seconds(moments[1])}: "
        f'{{"type":"subscribe","product_ids":[{products}],"channels":[{names}]}}',
        f'{_seconds(moments[2])}: {{"type":"subscriptions","channels":[{confirmed}]}}',
    )
    return [
        Record(line.encode(), Fate.CONTROL, received=moment)
        for line, moment in zip(lines, moments, strict=True)
    ]


def _coinbase_text(body: str, fate: Fate, planted: str, why: str, reason: str = "") -> Planting:
    def text(record: Record) -> bytes:
        return f"{_seconds(record.received)}: {body}".encode()

    return followed_by(text, fate, planted, why, reason)


_YEAR_ONE = '"0001-01-01T00:00:00.000000Z"'
_FAR = '"2099-12-31T00:00:00.000000Z"'
COINBASE_PLANTINGS: Mapping[str, Mapping[Spot, Planting]] = {
    "coinbase/20240514T2300": {
        ("trades", "BTC-USD", 100): cut_off,
        ("trades", "BTC-USD", 150): not_utf8,
        ("trades", "BTC-USD", 200): nul_byte,
        ("trades", "BTC-USD", 250): json_without("trade_id"),
        ("trades", "BTC-USD", 300): json_field("time", _YEAR_ONE, "impossible_time", "it happened in year 1"),
        ("trades", "BTC-USD", 350): json_field("time", _FAR, "impossible_time", "it happened in 2099"),
        ("trades", "BTC-USD", 400): json_field("size", '"0.-10000"', "invalid_value", "size 0.-10000"),
        ("trades", "BTC-USD", 450): json_field("price", '"abc"', "invalid_value", "price abc"),
        ("trades", "BTC-USD", 500): json_field("time", '"noon"', "invalid_value", "time noon"),
        ("trades", "BTC-USD", 550): json_field("size", '"0"', "impossible_value", "size 0"),
        ("trades", "BTC-USD", 600): json_field("price", '"-1.00"', "impossible_value", "price -1"),
        ("quotes", "ETH-USD", 100): json_field("best_bid", '"abc"', "invalid_value", "best bid abc"),
        ("quotes", "ETH-USD", 150): json_field("time", _YEAR_ONE, "impossible_time", "it happened in year 1"),
        ("quotes", "ETH-USD", 200): garbage,
    },
    "coinbase/20240514T2340": {
        **{("trades", "SOL-USD", 50 + 40 * index): twice for index in range(4)},
        **{("quotes", "SOL-USD", 60 + 40 * index): twice for index in range(4)},
    },
    "coinbase/20240515T0020": {
        ("trades", "ETH-USD", 100): _coinbase_text(
            '{"type":"status","products":[],"currencies":[]}',
            Fate.QUARANTINED,
            "defect",
            "a kind nobody knows: status",
            "unknown_kind",
        ),
        ("trades", "ETH-USD", 200): _coinbase_text(
            '{"type":"error","message":"rate limit exceeded"}', Fate.CONTROL, "control", "the venue complains"
        ),
    },
}


def coinbase(seed: int) -> Iterator[Parcel]:
    """Coinbase's files: one connection for all three products."""
    streams = [coinbase_stream(seed, pair) for pair in PAIRS]
    for index, records in enumerate(_parts(merge(*streams, key=lambda record: record.received))):
        name = f"coinbase/{PARTS[index]}"
        path = f"crypto/coinbase/coinbase_exchange_ws_{PARTS[index]}.txt.gz"
        blank = Record(b"", Fate.CONTROL, received=records[-1].received, planted="blank", why="a blank line")
        own = planted(records, COINBASE_PLANTINGS[name])
        notes = (
            [Plant("drift", path, None, "tickers without best_bid_size and best_ask_size, which come later")]
            if index == 0
            else []
        )
        yield _capture(
            path,
            "coinbase_exchange",
            [*_opening(index), *own, blank, blank],
            index,
            late=name in LATE,
            notes=tuple(notes),
        )


# --- both -------------------------------------------------------------------------------------------------


def _parts(records: Iterable[Record]) -> list[list[Record]]:
    """Cut a stream by receive time, as a recorder does that opens a new file."""
    parts: list[list[Record]] = [[] for _ in PARTS]
    opens = [START + cut * SECOND for cut in CUTS[1:-1]]
    for record in records:
        parts[sum(record.received >= moment for moment in opens)].append(record)
    return parts


def _capture(
    path: str, feed: str, records: list[Record], index: int, *, late: bool, notes: tuple[Plant, ...]
) -> Parcel:
    if late:
        notes += (Plant("late", path, None, "loaded after the parts that follow it"),)
    closed = START + CUTS[index + 1] * SECOND + MINUTE
    return Parcel(
        path,
        feed,
        packed(b"".join(record.text + b"\n" for record in records)),
        tuple(records),
        arrives=closed + 9 * HOUR if late else closed,
        late=late,
        notes=notes,
    )
