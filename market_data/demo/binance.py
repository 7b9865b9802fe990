"""Binance spot: a capture per pair and part, as `<receive ns> <combined-stream JSON>` lines.

binance_stream(pair) ── parts() ── plantings ── overlap with the part before ── a file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from market_data.demo.crypto import (
    CUTS,
    LATE,
    PAIRS,
    PARTS,
    START,
    Book,
    Pair,
    capture,
    fair_path,
    parts,
)
from market_data.demo.defects import (
    Planting,
    Spot,
    cut_off,
    followed_by,
    json_field,
    json_without,
    not_utf8,
    nul_byte,
    planted,
    twice,
)
from market_data.demo.ticks import HOUR, MILLISECOND, SECOND, SIZE_PLACES, Dice, decimal
from market_data.demo.truth import Fate, Parcel, Plant, Record, repeated

OVERLAP = 100
"""So many messages of a part's end stand at the begin of the next one again, where they do."""


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
                yield Record(text, Fate.CANONICAL, "trades", symbol, (symbol, trade_id), size, received=received)
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
        levels_changed = len(bids) + len(asks)
        yield Record(
            text, Fate.CANONICAL, "book_updates", symbol, (symbol, update), received=received, levels=levels_changed
        )
        first_update = update
        if second == 0:
            received = receive(event)
            levels = f'"bids":{_binance_levels(book.bids)},"asks":{_binance_levels(book.asks)}'
            text = f'{received} {{"lastUpdateId":{update},{levels}}}'.encode()
            whole = len(book.bids) + len(book.asks)
            key = (symbol, "snapshot", update)
            yield Record(text, Fate.CANONICAL, "book_updates", symbol, key, received=received, levels=whole)


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
        ("trades", "BTCUSDT", 600): json_field("T", "4102444800000", "impossible_time", "it happened on 2100-01-01"),
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
        ("quotes", "ETHUSDT", 555): _binance_text("ethusdt@kline_1m", '"e":"kline","E":1715731500000,"s":"ETHUSDT"'),
    },
    "SOLUSDT/20240515T0020": {
        ("trades", "SOLUSDT", 250): _binance_text("!serverShutdown", '"e":"serverShutdown","E":1715733000000000'),
    },
}

OVERLAPPING = {"BTCUSDT/20240515T0020", "ETHUSDT/20240514T2340", "ETHUSDT/20240515T0020"}
"""Parts that begin with what the part before ended with: the recorder opened its connection anew."""


def binance(seed: int) -> Iterator[Parcel]:
    """Binance's files, and one of them once more under another name."""
    for pair in PAIRS:
        tail: list[Record] = []
        for index, records in enumerate(parts(binance_stream(seed, pair))):
            name = f"{pair.binance}/{PARTS[index]}"
            path = f"crypto/binance/binance_spot_{pair.binance.lower()}_{PARTS[index]}.gz"
            opening = START + CUTS[index] * SECOND
            copies = [
                _received_again(record, opening + (1 + position) * 50_000)
                for position, record in enumerate(tail)
                if name in OVERLAPPING
            ]
            tail = [record for record in records if record.table in ("trades", "quotes")][-OVERLAP:]
            own = planted(records, BINANCE_PLANTINGS.get(name, {}))
            parcel = capture(
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
        notes.append(Plant("overlap", path, None, "begins with the end of the part before, received again", "", copies))
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
