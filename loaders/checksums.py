"""One number for a set of rows, whatever their order: equal sets have equal sums.

    table ── each column's values ── hashed, salted by the column's name ──▶ a hash per row ── added up ──▶ per load

A multiset hash: row hashes of 64 bits, added modulo 2**64. It tells apart a null, an empty text and a missing column,
and sees a lost, doubled or changed row. It shows that a copy is complete; it is no signature (SHA-256 is for that).
The numbers are kept in the ledger: how they are made must not change.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loaders.segments import UNLIKE
from loaders.settings import MIB

Hashes = npt.NDArray[np.uint64]

_ODD = np.uint64(0x9E3779B97F4A7C15)
_NULL = np.uint64(0xA0761D6478BD642F)
_BLOCK = MIB // 8
"""Bytes of text that are looked at together: each takes 8 bytes in each of four arrays."""
_WEIGHTS = 1 << 16


class Totals:
    """Rows and checksum of each load, of the tables that were added."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self._sums: dict[str, int] = {}

    def add(self, table: pa.Table) -> None:
        """Count rows in, by their column `load_id`."""
        if not table.num_rows:
            return
        loads = table["load_id"].combine_chunks().dictionary_encode()
        codes = loads.indices.to_numpy(zero_copy_only=False)
        sums = np.zeros(len(loads.dictionary), np.uint64)
        np.add.at(sums, codes, row_hashes(table))
        counts = np.bincount(codes, minlength=len(loads.dictionary))
        for load_id, rows, total in zip(loads.dictionary.to_pylist(), counts.tolist(), sums.tolist(), strict=True):
            self.rows[load_id] = self.rows.get(load_id, 0) + rows
            self._sums[load_id] = (self._sums.get(load_id, 0) + total) % (1 << 64)

    def checksum(self, load_id: str) -> str:
        """Return the sum over a load's rows, as 16 hexadecimal digits."""
        return f"{self._sums.get(load_id, 0):016x}"

    def differences(self, other: Totals) -> list[str]:
        """Return the loads of which the two do not hold the same rows."""
        loads = sorted(self.rows.keys() | other.rows.keys())
        return [
            load_id
            for load_id in loads
            if self.rows.get(load_id) != other.rows.get(load_id) or self._sums.get(load_id) != other._sums.get(load_id)
        ]


def row_hashes(table: pa.Table) -> Hashes:
    """Return a number for each row, from the names and values of all its columns; their order does not matter.

    Raises TypeError for a column of a kind that the raw zone does not have.
    """
    total = np.zeros(table.num_rows, np.uint64)
    for name in table.column_names:
        total += _mix(_column(table[name], repeats=name not in UNLIKE) ^ _salt(name))
    return _mix(total)


def _column(column: pa.ChunkedArray, *, repeats: bool) -> Hashes:
    if not column.num_chunks:
        return np.zeros(0, np.uint64)
    is_text = pa.types.is_string(column.type) or pa.types.is_binary(column.type)
    return np.concatenate([_repeated(chunk) if repeats and is_text else _values(chunk) for chunk in column.chunks])


def _repeated(array: pa.Array) -> Hashes:
    """Hash each distinct value once."""
    encoded = array.dictionary_encode()
    of_values = np.append(_values(encoded.dictionary), _NULL)
    codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    hashes: Hashes = of_values[codes]
    return hashes


def _values(array: pa.Array) -> Hashes:
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        hashes = _texts(array)
    elif pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
        hashes = _mix(array.fill_null(0).cast(pa.int64()).to_numpy(zero_copy_only=False).view(np.uint64) + _ODD)
    elif pa.types.is_list(kind):
        hashes = _lists(array)
    elif pa.types.is_struct(kind):
        hashes = np.zeros(len(array), np.uint64)
        for field, values in zip(kind, array.flatten(), strict=True):
            hashes += _mix(_values(values) ^ _salt(field.name))
    else:
        raise TypeError(f"a column of type {kind} has no checksum")
    if array.null_count:
        hashes[~array.is_valid().to_numpy(zero_copy_only=False)] = _NULL
    return hashes


def _texts(array: pa.Array) -> Hashes:
    """Hash bytes: their sum, each weighted by its place, and their number."""
    buffers: list[Any] = array.buffers()
    offsets = np.frombuffer(buffers[1], np.int32)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    data = np.frombuffer(buffers[2], np.uint8) if buffers[2] is not None else np.zeros(0, np.uint8)
    sums = np.zeros(len(array), np.uint64)
    first = 0
    while first < len(array):
        after = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _BLOCK, side="right")) - 1)
        after = min(after, len(array))
        ends = offsets[first : after + 1] - offsets[first]
        places = np.arange(ends[-1]) - np.repeat(ends[:-1], np.diff(ends))
        weighted = (data[offsets[first] : offsets[after]].astype(np.uint64) + np.uint64(1)) * _weight(places)
        sums[first:after] = _sums(weighted, ends)
        first = after
    return _mix(sums + np.diff(offsets).astype(np.uint64) * _ODD)


def _lists(array: pa.Array) -> Hashes:
    offsets = np.asarray(array.offsets).astype(np.int64)
    ends = offsets - offsets[0]
    items = _values(array.values.slice(offsets[0], ends[-1]))
    places = np.arange(ends[-1]) - np.repeat(ends[:-1], np.diff(ends))
    return _mix(_sums(_mix(items + _weight(places)), ends) + np.diff(ends).astype(np.uint64) * _ODD)


def _sums(values: Hashes, ends: npt.NDArray[np.int64]) -> Hashes:
    """Return the sum of each run of values."""
    running = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values, out=running[1:])
    sums: Hashes = running[ends[1:]] - running[ends[:-1]]
    return sums


def _weight(places: npt.NDArray[np.int64]) -> Hashes:
    """Return an odd number for each place in a text or list."""
    weights: Hashes = _table()[places & (_WEIGHTS - 1)]
    if len(places) and int(places.max()) >= _WEIGHTS:
        weights = weights * (_mix((places >> 16).astype(np.uint64)) | np.uint64(1))
    return weights


@cache
def _table() -> Hashes:
    return _mix(np.arange(1, _WEIGHTS + 1, dtype=np.uint64) * _ODD) | np.uint64(1)


def _mix(numbers: Hashes) -> Hashes:
    """Spread the bits of numbers over all of each (the finaliser of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


@cache
def _salt(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
