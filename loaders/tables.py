"""CSV files: every column as text, every row kept.

    chunks ── cut at the end of a row ── Arrow's parser ───────────────────▶ columns of text
                                    └─ a row is malformed: row by row ─────▶ that row's own bytes in `payload`

A well-formed row has as many fields as the header and is UTF-8. "NA", "NULL", "nan" and "" stay text. Quotes
mean something only around a whole field, and quoted fields may hold line ends. A blank line in a file of
several columns is a malformed row.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from loaders.instruments import Instruments
from loaders.ledger import Drift
from loaders.segments import ENVELOPE
from loaders.sources import Refusal
from loaders.texts import few

BOM = b"\xef\xbb\xbf"
RESERVED = frozenset(ENVELOPE.names) | {"payload", "key", "__file"}
_FIELD = rb'(?:"[^"]*(?:""[^"]*)*(?:"[^,\r\n]*|\Z)|[^",\r\n][^,\r\n]*|)'
_A_FIELD = re.compile(_FIELD)
_A_ROW = re.compile(_FIELD + rb"(?:," + _FIELD + rb")*")
_OPEN_QUOTE = re.compile(rb'"[^"]*(?:""[^"]*)*\Z')
_DELIMITERS = np.zeros(256, bool)
_DELIMITERS[list(b",\r\n")] = True


@dataclass(frozen=True)
class _Rows:
    """The rows of a buffer up to `end`; their single places are known only if they were looked at."""

    end: int
    spans: list[tuple[int, int]] | None


def read_table(
    chunks: Iterable[bytes],
    fields: Iterable[str],
    instruments: Instruments,
    record_bytes: int,
    on_drift: Callable[[Drift], None],
) -> Iterator[pa.Table]:
    """Yield the rows of a CSV file; `fields` are the columns that the feed is known to have.

    Raises Refusal where there is no usable header, or a row is longer than `record_bytes`.
    """
    pieces = iter(chunks)
    names, rest, whole = _header(pieces, record_bytes)
    known = tuple(fields)
    on_drift(Drift.between(names, known))
    if known and not set(names) & set(known):
        raise Refusal(
            f"has a header that shares no column with the feed: it has {few(names)}; the feed has {few(known)}"
        )
    position = 0
    while True:
        rows = _cut(rest, whole)
        if rows.end:
            table = _records(rest[: rows.end], rows.spans, names)
            positions = pa.array(np.arange(position + 1, position + table.num_rows + 1))
            position += table.num_rows
            instrument = instruments.of_table(table)
            yield table.append_column("source_position", positions).append_column("instrument", instrument)
        rest = rest[rows.end :]
        if whole:
            return
        if len(rest) > record_bytes:
            raise Refusal(f"data row {position + 1:,} does not end within {record_bytes:,} bytes")
        piece = next(pieces, None)
        whole = piece is None
        rest += piece or b""


def _header(pieces: Iterator[bytes], record_bytes: int) -> tuple[list[str], bytes, bool]:
    """Return the names of the columns, the bytes after the header, and whether these are the last ones."""
    data, whole = b"", False
    while True:
        match = _A_ROW.match(data)
        end = match.end() if match else 0
        if whole or (end < len(data) and data[end : end + 2] != b"\r"):
            break
        if len(data) > record_bytes:
            raise Refusal(f"its header does not end within {record_bytes:,} bytes")
        piece = next(pieces, None)
        whole = piece is None
        data = (data + (piece or b"")).removeprefix(BOM)
    line = data[:end]
    if not line:
        raise Refusal("is empty: a CSV file begins with a header")
    try:
        names = next(csv.reader([line.decode()], strict=False))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refusal(f"has a header that cannot be read: {error}") from error
    _check_names(names)
    after = end + (2 if data[end : end + 2] == b"\r\n" else 1)
    return names, data[after:], whole


def _check_names(names: list[str]) -> None:
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        if not name.strip() or "\0" in name:
            raise Refusal(f"has a header whose column {number} has no usable name")
        if name.lower() in RESERVED:
            raise Refusal(f"has a column {name!r}, a name that the envelope of the raw zone uses")
        if name.lower() in seen:
            raise Refusal(f"has a header that names {name!r} twice")
        seen.add(name.lower())


def _cut(data: bytes, whole: bool) -> _Rows:
    """Find where the last complete row ends. Without a stray quote that needs no look at the single rows."""
    if b'"' not in data:
        return _Rows(len(data) if whole else data.rfind(b"\n") + 1, None)
    # Two quotes in a row change no parity; as other bytes they keep the places of all that follows.
    text = np.frombuffer(data.replace(b'""', b"__"), np.uint8)
    quotes = np.flatnonzero(text == ord('"'))
    opening, closing = quotes[0::2], quotes[1::2]
    fits = bool(
        np.all(_DELIMITERS[text[opening[opening > 0] - 1]])
        and np.all(_DELIMITERS[text[closing[closing < len(text) - 1] + 1]])
    )
    if not fits or (whole and len(quotes) % 2):
        return _cut_by_row(data, whole)
    if whole:
        return _Rows(len(data), None)
    end = data.rfind(b"\n")
    while end >= 0 and np.searchsorted(quotes, end) % 2:
        end = data.rfind(b"\n", 0, end)
    return _Rows(end + 1, None)


def _cut_by_row(data: bytes, whole: bool) -> _Rows:
    spans: list[tuple[int, int]] = []
    place = 0
    while place < len(data):
        match = _A_ROW.match(data, place)
        end = match.end() if match else place
        after = end + (2 if data[end : end + 2] == b"\r\n" else 1)
        if not whole and after >= len(data) and data[end:] != b"\n" and data[end:] != b"\r\n":
            break
        spans.append((place, end))
        place = min(after, len(data))
    return _Rows(place, spans)


def _records(data: bytes, spans: list[tuple[int, int]] | None, names: list[str]) -> pa.Table:
    """Return the rows' columns and `payload`: in bulk if all are well-formed, else with a look at each."""
    if spans is None:
        table = _parsed(data, names)
        if table is not None and not _may_hold_blank_lines(table):
            return table.append_column("payload", pa.nulls(table.num_rows, pa.binary()))
    rows = [data[start:end] for start, end in spans or _cut_by_row(data, True).spans or ()]
    good = np.fromiter((_is_good(row, len(names)) for row in rows), bool, len(rows))
    lines = b"".join(row + b"\n" for row, fine in zip(rows, good, strict=True) if fine)
    table = _parsed(lines, names)
    if table is None or table.num_rows != int(good.sum()):
        raise Refusal("cannot be cut into rows: its quotes do not fit together")
    table = table.take(pa.array(np.cumsum(good) - 1, mask=~good))
    payload = [None if fine else row for row, fine in zip(rows, good, strict=True)]
    return table.append_column("payload", pa.array(payload, pa.binary()))


def _may_hold_blank_lines(table: pa.Table) -> bool:
    """Say whether a row is empty in all of several columns, as Arrow makes it of a blank line too."""
    if table.num_columns < 2:
        return False
    empty = pc.equal(table.column(0), "")
    for column in table.columns[1:]:
        if not pc.any(empty).as_py():
            return False
        empty = pc.and_(empty, pc.equal(column, ""))
    return bool(pc.any(empty).as_py())


def _is_good(row: bytes, width: int) -> bool:
    """Say whether a row is UTF-8 and has as many fields as there are columns, all quotes closed."""
    try:
        row.decode()
    except UnicodeDecodeError:
        return False
    if not row:
        return width == 1
    if b'"' not in row:
        return row.count(b",") + 1 == width
    fields, place = 0, -1
    while place < len(row):
        match = _A_FIELD.match(row, place + 1)
        if match is None or _OPEN_QUOTE.fullmatch(match.group()):
            return False
        fields, place = fields + 1, match.end()
    return fields == width


def _parsed(data: bytes, names: list[str]) -> pa.Table | None:
    """Return the columns of complete rows, None if one of the rows is malformed."""
    if not data:
        return pa.table({name: pa.array([], pa.string()) for name in names})
    try:
        return pv.read_csv(
            pa.BufferReader(data),
            read_options=pv.ReadOptions(column_names=names, block_size=max(len(data), 1 << 16)),
            parse_options=pv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=pv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
