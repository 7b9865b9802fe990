"""Plantings: each is a function from a good record to the records that stand in its place.

records ── planted(records, {(table, symbol, n): planting, ...}) ── records, some of them marked
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from market_data.demo.truth import Fate, Record, repeated

Planting = Callable[[Record], list[Record]]
Spot = tuple[str, str, int]
"""Table, symbol, and n: the n-th canonical record (from 1) of these two in a file."""


def planted(records: Iterable[Record], plantings: Mapping[Spot, Planting]) -> list[Record]:
    """The records with each planting done at its spot. A spot that is not there is an error."""
    seen: Counter[tuple[str, str]] = Counter()
    left = dict(plantings)
    result: list[Record] = []
    for record in records:
        if record.fate is not Fate.CANONICAL:
            result.append(record)
            continue
        seen[record.table, record.symbol] += 1
        planting = left.pop((record.table, record.symbol, seen[record.table, record.symbol]), None)
        result += [record] if planting is None else planting(record)
    if left:
        raise AssertionError(f"no such record to plant at: {sorted(left)}")
    return result


def bad(record: Record, text: bytes, reason: str, why: str) -> Record:
    """A record that must be quarantined, in the place of a good one."""
    return Record(text, Fate.QUARANTINED, received=record.received, reason=reason, planted="defect", why=why)


def twice(record: Record) -> list[Record]:
    """The record, and its exact duplicate behind it."""
    return [record, repeated(record)._replace(planted="duplicate", why="the same record again")]


def followed_by(text: Callable[[Record], bytes], fate: Fate, planted: str, why: str, reason: str = "") -> Planting:
    """The record, and another of no canonical kind behind it."""

    def plant(record: Record) -> list[Record]:
        other = Record(text(record), fate, received=record.received, reason=reason, planted=planted, why=why)
        return [record, other]

    return plant


# --- any record -------------------------------------------------------------------------------------------


def not_utf8(record: Record) -> list[Record]:
    """A byte that no UTF-8 text has, put inside the symbol."""
    symbol = record.symbol.encode()
    text = record.text.replace(symbol, symbol + b"\xff", 1)
    return [bad(record, text, "not_utf8", "the byte 0xFF inside the symbol")]


# --- JSON -------------------------------------------------------------------------------------------------


def cut_off(record: Record) -> list[Record]:
    """The record without its last third."""
    text = record.text[: len(record.text) * 2 // 3]
    return [bad(record, text, "malformed_json", "cut off before its end")]


def nul_byte(record: Record) -> list[Record]:
    """A NUL byte between two fields."""
    text = record.text.replace(b",", b",\x00", 1)
    return [bad(record, text, "malformed_json", "a NUL byte between two fields")]


def garbage(record: Record) -> list[Record]:
    """A line that has neither receive time nor JSON."""
    return [bad(record, b"reader stalled, resuming", "malformed_json", "no message at all")]


def json_field(name: str, value: str, reason: str, why: str) -> Planting:
    """The record with another JSON value (as text) in each field of that name."""
    pattern = re.compile(rb'"' + name.encode() + rb'":("[^"]*"|[^,}\]]*)')
    replacement = f'"{name}":{value}'.encode()

    def plant(record: Record) -> list[Record]:
        return [bad(record, pattern.sub(replacement, record.text, count=1), reason, why)]

    return plant


def json_without(name: str) -> Planting:
    """The record without the field of that name (never the last one of its object)."""
    pattern = re.compile(rb'"' + name.encode() + rb'":("[^"]*"|[^,}\]]*),')

    def plant(record: Record) -> list[Record]:
        text = pattern.sub(b"", record.text, count=1)
        return [bad(record, text, "missing_field", f"no field {name}")]

    return plant


# --- CSV --------------------------------------------------------------------------------------------------


def with_columns(record: Record, header: str, **values: str | int) -> bytes:
    """The row's text with other values in the columns named."""
    (cells,) = csv.reader([record.text.decode()])
    names = header.split(",")
    for name, value in values.items():
        cells[names.index(name)] = str(value)
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow(cells)
    return row.getvalue().encode()


def column(header: str, name: str, value: str, reason: str, why: str) -> Planting:
    """The row with one column spoilt."""

    def plant(record: Record) -> list[Record]:
        return [bad(record, with_columns(record, header, **{name: value}), reason, why)]

    return plant


def short_row(record: Record) -> list[Record]:
    """A row without its last field."""
    return [bad(record, record.text.rpartition(b",")[0], "malformed_row", "one field too few")]


def long_row(record: Record) -> list[Record]:
    """A row with one field too many."""
    return [bad(record, record.text + b",0", "malformed_row", "one field too many")]
