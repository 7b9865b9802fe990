"""What is planted inside the flat files, by session number, ticker, and which of the ticker's rows."""

from __future__ import annotations

from collections.abc import Mapping

from market_data.demo.defects import (
    Planting,
    Spot,
    column,
    long_row,
    not_utf8,
    short_row,
    twice,
    with_columns,
)
from market_data.demo.truth import Record

TRADES = (
    "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,sip_timestamp,"
    "size,tape,trf_id,trf_timestamp"
)
QUOTES = (
    "ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,conditions,indicators,"
    "participant_timestamp,sequence_number,sip_timestamp,tape,trf_timestamp"
)
BARS = "ticker,volume,open,close,high,low,window_start,transactions"
CANCELLING = {7, 8, 10, 11, 12}


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
