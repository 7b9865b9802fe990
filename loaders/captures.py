"""Recorded streams: one message a line, with the time at which it was received.

    1723161254087896568 {"stream": …}                     nanoseconds, JSON
    wss://host <- 1618677817.020616: {"type": …}          endpoint, direction, seconds, JSON
    1618677817.061845: {"type": …}                        seconds, JSON
    wss://host <-> 1618677816.8434298                     a connection was made: no JSON

    chunks ── cut at line ends ── prefix off, in bulk ──▶ payload, source_time, headers, source_position

A line is a record, whatever is in it: blank, or without a prefix (then all of it is the payload).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loaders.instruments import Instruments
from loaders.segments import TIME, header_lists
from loaders.sources import Refusal

# Up to 8,999,999,999,999,999,999 ns (the year 2255): what lies beyond is no receive time.
_NANOSECONDS = r"^(?P<ns>[0-8]?\d{1,18}) "
_SECONDS = (
    r"^(?:(?P<endpoint>\S+) (?P<direction><->|<-|->) )?"
    r"(?P<seconds>[0-8]?\d{1,9})(?:\.(?P<fraction>\d+)(?:: ?| |\r?$)|: ?)"
)


def read_lines(
    chunks: Iterable[bytes], instruments: Instruments, attributes: Mapping[str, str], record_bytes: int
) -> Iterator[pa.Table]:
    """Yield the records of a capture. Raises Refusal for a line longer than `record_bytes`."""
    rest, position = b"", 0
    for chunk in chunks:
        data = rest + chunk
        end = data.rfind(b"\n")
        rest = data[end + 1 :]
        if end >= 0:
            lines = _lines(data[:end])
            _check_lengths(lines, position, record_bytes)
            yield _records(lines, position, instruments, attributes)
            position += len(lines)
        _check_lengths(pa.array([rest], pa.binary()), position, record_bytes)
    if rest:
        yield _records(_lines(rest), position, instruments, attributes)


def _lines(text: bytes) -> pa.Array:
    return pc.list_flatten(pc.split_pattern(pa.array([text], pa.binary()), pattern=b"\n"))


def _check_lengths(lines: pa.Array, position: int, record_bytes: int) -> None:
    long = pc.index(pc.greater(pc.binary_length(lines), record_bytes), True).as_py()
    if long >= 0:
        raise Refusal(f"line {position + long + 1:,} is longer than {record_bytes:,} bytes")


def _records(lines: pa.Array, position: int, instruments: Instruments, attributes: Mapping[str, str]) -> pa.Table:
    """Return the records of lines, given without their ends; `position` lines came before."""
    rows = len(lines)
    nanoseconds = pc.struct_field(pc.extract_regex(lines, _NANOSECONDS), "ns")
    others = lines.filter(pc.is_null(nanoseconds))
    parts = pc.extract_regex(others, _SECONDS)
    payload = pc.replace_substring_regex(
        lines, pattern=f"{_NANOSECONDS}|{_SECONDS}", replacement="", max_replacements=1
    )
    payload = pc.if_else(pc.equal(payload, b"\r"), b"", payload)
    varying = {}
    if len(others):
        where = _places(nanoseconds)
        varying = {name: _nonempty(pc.struct_field(parts, name)).take(where) for name in ("endpoint", "direction")}
        received = pc.coalesce(nanoseconds.cast(pa.string()).cast(pa.int64()), _from_seconds(parts).take(where))
    else:
        received = nanoseconds.cast(pa.string()).cast(pa.int64())
    return pa.table(
        {
            "payload": payload,
            "key": pa.nulls(rows, pa.binary()),
            "source_position": pa.array(np.arange(position + 1, position + rows + 1)),
            "source_time": received.cast(TIME),
            "headers": header_lists(rows, attributes, varying),
            "instrument": instruments.of_json(payload.to_pylist()),
        }
    )


def _places(nanoseconds: pa.Array) -> pa.Array:
    """Return, for each line, its place among those without nanoseconds; null for the others."""
    missing = np.asarray(nanoseconds.is_null())
    return pa.array(np.cumsum(missing) - 1, mask=~missing)


def _from_seconds(parts: pa.Array) -> pa.Array:
    """Return nanoseconds from decimal text, exactly; digits beyond the ninth are cut off."""
    seconds = pc.struct_field(parts, "seconds").cast(pa.string()).cast(pa.int64())
    fraction = pc.struct_field(parts, "fraction").cast(pa.string())
    digits = pc.utf8_slice_codeunits(pc.ascii_rpad(fraction, 9, padding="0"), 0, 9)
    return pc.add(pc.multiply(seconds, 1_000_000_000), digits.cast(pa.int64()))


def _nonempty(values: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(values, b""), pa.scalar(None, pa.binary()), values)
