"""Integers that stand for chance, prices and times, so that every machine writes the same bytes."""

from __future__ import annotations

import gzip
import io
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from hashlib import sha256
from zoneinfo import ZoneInfo

SIZE_PLACES = 8
"""Sizes are whole numbers of 10^-8."""
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

_NEW_YORK = ZoneInfo("America/New_York")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WORD = (1 << 64) - 1


class Dice:
    """SplitMix64 (Steele, Lea and Flood 2014, figure 17), one independent stream for every name."""

    def __init__(self, *name: str | int) -> None:
        digest = sha256("/".join(map(str, name)).encode()).digest()
        self._state = int.from_bytes(digest[:8], "big")

    def word(self) -> int:
        """64 bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _WORD
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _WORD
        return mixed ^ (mixed >> 31)

    def below(self, bound: int) -> int:
        """A number in [0, bound)."""
        return self.word() % bound

    def between(self, low: int, high: int) -> int:
        """A number in [low, high], both ends included."""
        return low + self.word() % (high - low + 1)

    def moments(self, count: int, span: int) -> list[int]:
        """`count` ascending moments in [0, span), one in each of as many equal parts."""
        part = span // count
        return [index * part + self.word() % part for index in range(count)]


@lru_cache(maxsize=1 << 17)
def decimal(units: int, places: int) -> str:
    """Units of 10^-places as decimal text with all its places: (123, 2) is 1.23."""
    digits = str(abs(units)).zfill(places + 1)
    return f"{'-' if units < 0 else ''}{digits[:-places]}.{digits[-places:]}"


@lru_cache(maxsize=1 << 17)
def trimmed(units: int, places: int) -> str:
    """The same without the zeros at its end: (1200, 2) is 12."""
    return decimal(units, places).rstrip("0").rstrip(".")


def ns(moment: datetime) -> int:
    """Nanoseconds since the epoch of an aware time of whole microseconds."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1_000


def utc(day: date, hour: int = 0, minute: int = 0) -> int:
    """A UTC time of day, in ns since the epoch."""
    return ns(datetime.combine(day, time(hour, minute), UTC))


def new_york(day: date, hour: int = 0, minute: int = 0) -> int:
    """A New York time of day, in ns since the epoch."""
    return ns(datetime.combine(day, time(hour, minute), _NEW_YORK))


@lru_cache(maxsize=1 << 10)
def iso(moment: int) -> str:
    """A time of whole seconds (ns since the epoch) as `2024-05-14T23:00:00Z`."""
    return (_EPOCH + timedelta(seconds=moment // SECOND)).strftime("%Y-%m-%dT%H:%M:%SZ")


def packed(body: bytes) -> bytes:
    """gzip without name or time: the same bytes from the same zlib."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=4, mtime=0) as stream:
        stream.write(body)
    return buffer.getvalue()
