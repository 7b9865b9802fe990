"""Records of a stream as columns of the raw zone, built in bulk.

    Batch (offsets, timestamps, keys, values, headers) ── records_table ──▶ payload, key, source_partition,
                                                          source_position, source_time, headers, instrument

Bytes are kept exactly (ODD_NAME says how names of headers are); a tombstone is a null payload. `source_time` is the
header `received_ns` where there is one (the exact time of receipt, in nanoseconds), else Kafka's timestamp. The
instrument is the record's key, or what its payload says where there is no key that could be one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loaders.consumers import Batch, Headers
from loaders.instruments import Instruments
from loaders.segments import HEADERS, TIME

RECEIVED = "received_ns"
MAX_MS = 9_223_372_036_854
"""The last millisecond that 64 bits of nanoseconds can hold."""
ODD_NAME = "\ufffd"
"""How the name of a header begins that is not UTF-8 (or that begins so itself); its bytes follow in hexadecimal."""
_NANOSECONDS = r"^[0-8]?\d{1,18}$"
_PLAIN = r"^[\x21-\x7e]{1,64}$"


def records_table(batch: Batch, partition: int, instruments: Instruments) -> pa.Table:
    """Return a batch's records as a table, in the order of their offsets."""
    rows = len(batch.offsets)
    payload, key = pa.array(batch.values, pa.binary()), pa.array(batch.keys, pa.binary())
    headers, received = _headers(batch.headers)
    return pa.table(
        {
            "payload": payload,
            "key": key,
            "source_partition": pa.repeat(pa.scalar(partition, pa.int32()), rows),
            "source_position": pa.array(batch.offsets, pa.int64()),
            "source_time": _times(batch.timestamps, received),
            "headers": headers,
            "instrument": _instrument(key, batch.values, instruments),
        }
    )


def _times(timestamps: Sequence[int], received: pa.Array | None) -> pa.Array:
    ms = np.array(timestamps, np.int64)
    unknown = (ms < 0) | (ms > MAX_MS)
    times = pa.array(np.where(unknown, 0, ms) * 1_000_000, mask=unknown)
    return (times if received is None else pc.coalesce(received, times)).cast(TIME)


def _headers(headers: Sequence[Headers]) -> tuple[pa.Array, pa.Array | None]:
    """Return the headers as they came, and the times of receipt (ns) that they hold, None where none does."""
    counts = np.fromiter(map(len, headers), np.int32, len(headers))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    pairs = list(chain.from_iterable(headers))
    if not pairs:
        return pa.ListArray.from_arrays(offsets, pa.array([], HEADERS.value_type)), None
    keys, values = _names([name for name, _ in pairs]), pa.array([value for _, value in pairs], pa.binary())
    lists = pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays([keys, values], fields=list(HEADERS.value_type))
    )
    usable = pc.and_(pc.equal(keys, RECEIVED), _are_nanoseconds(values))
    usable = np.asarray(pc.fill_null(usable, False))
    where = np.repeat(np.arange(len(headers)), counts)[usable]
    if not len(where):
        return lists, None
    received, missing = np.zeros(len(headers), np.int64), np.ones(len(headers), bool)
    received[where] = np.asarray(values.filter(pa.array(usable)).cast(pa.string()).cast(pa.int64()))
    missing[where] = False
    return lists, pa.array(received, mask=missing)


def _are_nanoseconds(values: pa.Array) -> pa.Array:
    """Say which values are numbers that 64 bits hold; of 19 digits, as times of today have, they are soon seen."""
    with suppress(pa.ArrowInvalid):
        if values.null_count == 0 and pc.all(pc.equal(pc.binary_length(values), 19)).as_py():
            extremes = pc.min_max(values.cast(pa.string()).cast(pa.int64())).as_py()
            if extremes["min"] >= 10**18 and extremes["max"] < 9 * 10**18:
                return pa.repeat(pa.scalar(True), len(values))
    return pc.match_substring_regex(values, _NANOSECONDS)


def _names(names: Sequence[str]) -> pa.Array:
    """Return names of headers as text that stands for their very bytes, see ODD_NAME."""
    try:
        keys = pa.array(names, pa.string())
    except UnicodeEncodeError:
        return pa.array(map(_name, names), pa.string())
    if pc.any(pc.starts_with(keys, ODD_NAME)).as_py():
        return pa.array(map(_name, names), pa.string())
    return keys


def _name(name: str) -> str:
    try:
        name.encode("utf-8", "strict").decode("utf-8")
        odd = name.startswith(ODD_NAME)
    except UnicodeError:
        odd = True
    return ODD_NAME + name.encode("utf-8", "surrogateescape").hex() if odd else name


def _instrument(key: pa.Array, values: Sequence[bytes | None], instruments: Instruments) -> pa.Array:
    few = key.dictionary_encode()
    fits = pc.match_substring_regex(few.dictionary, _PLAIN)
    names = pc.if_else(fits, few.dictionary, pa.scalar(None, pa.binary())).cast(pa.string())
    symbols = names.take(few.indices)
    plain = symbols.is_valid()
    others = np.flatnonzero(~np.asarray(plain))
    if not len(others):
        return symbols
    found = instruments.of_json(values[row] or b"" for row in others.tolist())
    places = np.zeros(len(symbols), np.int64)
    places[others] = np.arange(len(others))
    return pc.coalesce(symbols, found.take(pa.array(places, mask=np.asarray(plain))))
