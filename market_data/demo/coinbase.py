"""Coinbase Exchange: one connection for all products, as `<receive epoch s>: <JSON>` lines.

coinbase_stream(pair) ×3 ── merged by receive time ── parts() ── plantings ── a file
                               _opening(), blank lines ─────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import merge

from market_data.demo.crypto import CUTS, LATE, PAIRS, PARTS, START, Book, Pair, capture, fair_path, parts
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
from market_data.demo.ticks import MILLISECOND, SECOND, SIZE_PLACES, Dice, decimal, iso, trimmed
from market_data.demo.truth import Fate, Parcel, Plant, Record

ENDPOINT = "wss://ws-feed.exchange.coinbase.com"


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

    def message(body: str, fate: Fate, table: str = "", number: int = 0, size: int = 0, levels: int = 0) -> Record:
        text = f"{_seconds(received)}: {body}".encode()
        return Record(text, fate, table, symbol, (symbol, number), size, received=received, levels=levels)

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
            f'"best_bid_size":"{trimmed(bid_size, SIZE_PLACES)}","best_ask_size":"{trimmed(ask_size, SIZE_PLACES)}",'
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
            body = f'{{"type":"snapshot","product_id":"{symbol}",{levels}}}'
            whole = len(book.bids) + len(book.asks)
            yield message(body, Fate.CANONICAL, "book_updates", received, levels=whole)
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
                Fate.CANONICAL,
                "book_updates",
                received,
                levels=len(changes),
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
        f'{ENDPOINT} <- {_seconds(moments[1])}: {{"type":"subscribe","product_ids":[{products}],"channels":[{names}]}}',
        f'{_seconds(moments[2])}: {{"type":"subscriptions","channels":[{confirmed}]}}',
    )
    return [Record(line.encode(), Fate.CONTROL, received=moment) for line, moment in zip(lines, moments, strict=True)]


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
    for index, records in enumerate(parts(merge(*streams, key=lambda record: record.received))):
        name = f"coinbase/{PARTS[index]}"
        path = f"crypto/coinbase/coinbase_exchange_ws_{PARTS[index]}.txt.gz"
        blank = Record(b"", Fate.CONTROL, received=records[-1].received, planted="blank", why="a blank line")
        own = planted(records, COINBASE_PLANTINGS[name])
        notes = (
            [Plant("drift", path, None, "tickers without best_bid_size and best_ask_size, which come later")]
            if index == 0
            else []
        )
        yield capture(
            path,
            "coinbase_exchange",
            [*_opening(index), *own, blank, blank],
            index,
            late=name in LATE,
            notes=tuple(notes),
        )
