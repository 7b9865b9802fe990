"""Look-ups at many points in time: of each key the newest period alive then, and of that its version then.

    versions of one table, sorted by (key, period, known_from)
        ├─ of periods that live on ──────> steps: from here on this row is the newest ── binary search ─┐
        └─ of periods taken back later ──> intervals [known_from, until) ─────────────── range join ────┴─> a row

A plain as-of join on known_from answers with an old period whenever an old period was revised last. Here a version
counts from its known_from until the first of two things: its own known_to, and the moment when a newer period became
known that is still alive today. The intervals of versions that live on then tile each key's time without gap or
overlap, in the order of known_from, and one binary search finds the row. Versions whose period was taken back are
few, and looked for one by one; of the two rows the later in the sort order has the newer period, or the newer version.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
NEVER = np.iinfo(np.int64).max
NO_ROW = -1


@dataclass(frozen=True)
class Versions:
    """Versions in the order of (key, period, known_from). Times are nanoseconds since 1970, UTC."""

    key: Ints
    """Numbers of the keys, from 0."""
    period: Ints
    known_from: Ints
    known_to: Ints
    """NEVER where the version is current."""

    @classmethod
    def in_order(cls, key: Ints, period: Ints, known_from: Ints, known_to: Ints) -> tuple[Versions, Ints | None]:
        """The versions sorted, and the order that sorts them, or None where they were already."""
        same_key = key[1:] == key[:-1]
        same_period = same_key & (period[1:] == period[:-1])
        rises = (key[1:] > key[:-1]) | (same_key & (period[1:] > period[:-1]))
        if np.all(rises | (same_period & (known_from[1:] >= known_from[:-1]))):
            return cls(key, period, known_from, known_to), None
        # NumPy sorts 16 bits by radix, much faster than what is wider; the times stand in runs, as their files do.
        is_narrow = not len(key) or key.max() < 2**16
        order = np.lexsort((known_from, period, key.astype(np.uint16) if is_narrow else key))
        return cls(key[order], period[order], known_from[order], known_to[order]), order

    def newest(self, key: Ints, known_at: Ints) -> Ints:
        """For each look-up the row of the newest period alive then, in its version then; NO_ROW where there is none.

        ``key`` may be NO_ROW, for a key that has no versions.
        """
        rows = self._steps.at(key, known_at)
        if len(self._mortals.row):
            n, row = self._mortals.at(key, known_at)
            rows[n] = np.maximum(rows[n], row)
        return rows

    @cached_property
    def _chains(self) -> _Chains:
        """Versions of one period, each of which replaces the one before, make a chain."""
        is_first = np.ones(len(self.key), bool)
        is_first[1:] = (
            (self.key[1:] != self.key[:-1])
            | (self.period[1:] != self.period[:-1])
            | (self.known_to[:-1] != self.known_from[1:])
        )
        first = np.flatnonzero(is_first)
        last = np.append(first, len(self.key))[1:] - 1
        lives = self.known_to[last] == NEVER
        immortal = first[lives]
        start = _least_from_here_on(self.key[immortal], self.known_from[immortal])
        # A chain shows until the first start of what lives on and comes after it.
        after = np.searchsorted(immortal, first, side="right")
        is_followed = after < len(immortal)
        is_followed[is_followed] = self.key[immortal[after[is_followed]]] == self.key[first[is_followed]]
        until = np.full(len(first), NEVER)
        until[is_followed] = start[after[is_followed]]
        return _Chains(lives, until, np.cumsum(is_first) - 1)

    @cached_property
    def _steps(self) -> _Steps:
        chains = self._chains
        row = np.flatnonzero(chains.lives[chains.of_row] & (self.known_from < chains.until[chains.of_row]))
        size = int(self.key[-1]) + 1 if len(self.key) else 0
        return _Steps(np.searchsorted(self.key[row], np.arange(size + 1)), row, self.known_from[row])

    @cached_property
    def _mortals(self) -> _Mortals:
        chains = self._chains
        until = np.minimum(self.known_to, chains.until[chains.of_row])
        row = np.flatnonzero(~chains.lives[chains.of_row] & (self.known_from < until))
        return _Mortals(self.key[row], row, self.known_from[row], until[row])


@dataclass(frozen=True)
class _Chains:
    lives: npt.NDArray[np.bool_]
    """Whether its last version is current."""
    until: Ints
    of_row: Ints
    """The chain that each row belongs to."""


@dataclass(frozen=True)
class _Steps:
    block: Ints
    """Where each key's steps begin; one more for the end."""
    row: Ints
    known_from: Ints

    def at(self, key: Ints, known_at: Ints) -> Ints:
        """The row of the last step at or before each time, by a binary search in its key's block, all at once."""
        answer = np.full(len(key), NO_ROW)
        asked = np.flatnonzero((key >= 0) & (key < len(self.block) - 1))
        key, known_at = key[asked], known_at[asked]
        before = self.block[key] - 1
        low, high = before, self.block[key + 1]  # the step that is sought is in [low, high)
        for _ in range((int((high - low).max(initial=1)) - 1).bit_length()):
            middle = (low + high) >> 1
            is_open = high - low > 1
            is_known = self.known_from[middle] <= known_at
            low = np.where(is_open & is_known, middle, low)
            high = np.where(is_open & ~is_known, middle, high)
        found = low > before
        answer[asked[found]] = self.row[low[found]]
        return answer


@dataclass(frozen=True)
class _Mortals:
    key: Ints
    row: Ints
    known_from: Ints
    until: Ints

    def at(self, key: Ints, known_at: Ints) -> tuple[Ints, Ints]:
        """The look-ups that find any of these rows alive, and the last such row."""
        asked = np.flatnonzero(np.isin(key, np.unique(self.key)))
        with duckdb.connect() as connection:
            connection.register("asked", pa.table({"n": asked, "key": key[asked], "known_at": known_at[asked]}))
            connection.register(
                "mortals",
                pa.table({"key": self.key, "row": self.row, "known_from": self.known_from, "until": self.until}),
            )
            found = connection.execute(
                "select n, max(row) as row from asked inner join mortals using (key)"
                " where known_from <= known_at and known_at < until group by n"
            ).fetchnumpy()
        return np.asarray(found["n"], np.int64), np.asarray(found["row"], np.int64)


def _least_from_here_on(key: Ints, values: Ints) -> Ints:
    """Of each value the least among it and those that follow it of the same key, which stand together."""
    least = values.copy()
    step = 1
    while step < len(key):  # after each round, a value has seen twice as many of those that follow
        is_same = key[step:] == key[:-step]
        is_less = is_same & (least[step:] < least[:-step])
        # Where newer periods become known later, as they do, the first round finds nothing to do.
        if not is_same.any() or (step == 1 and not is_less.any()):
            break
        least[:-step] = np.where(is_less, least[step:], least[:-step])
        step *= 2
    return least
