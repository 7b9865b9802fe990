"""Points in time, as people write them and as the lake reads them.

datetime, date, ISO text, "2024-03-08 16:00 America/New_York", LATEST ──> UTC text, to the nanosecond
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final
from zoneinfo import ZoneInfo

__all__ = ["LATEST", "KnownAt", "Time", "instant"]


class _Latest:
    """All that the version knows."""

    def __repr__(self) -> str:
        return "market_data.LATEST"


LATEST: Final = _Latest()
"""As of all that the version knows: today's eyes, which no decision of the past had.

So also what is not over, as ``known_to is null`` in SQL: the open day and minute of crypto, decisions up to nine
sessions ahead, the provisional members of the next top_<N>. A backtest names a time.
"""
Time = dt.datetime | dt.date | str
KnownAt = Time | _Latest

# The last time that TIMESTAMP_NS holds; nothing is known later.
_END_OF_TIME = "2262-04-11 23:47:16.854775806"
_NAMED_ZONE = re.compile(r"(?P<time>.*\S)\s+(?P<zone>[A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+)")


def instant(time: KnownAt, name: str = "known_at") -> str:
    """``time`` as UTC text for the ``_as_of`` macros; ``name`` is what errors call it.

    A datetime or text without a zone is UTC; one with a zone is turned to UTC; a date is its first instant, UTC. Text
    is ISO, with an offset or with a zone's name after it. Raises ``ValueError`` for text that is no time, and for a
    local time that a change of clocks skips.
    """
    if isinstance(time, _Latest):
        return _END_OF_TIME
    nanoseconds = ""
    if isinstance(time, str):
        time, nanoseconds = _read(time, name)
    if time != time:  # pandas' NaT
        raise ValueError(f"{name} is NaT, which is no time")
    if not isinstance(time, dt.datetime):
        if not isinstance(time, dt.date):
            raise TypeError(f"{name} is a {type(time).__name__}; give a time, or market_data.LATEST")
        time = dt.datetime.combine(time, dt.time())
    if time.tzinfo is not None:
        utc = time.astimezone(dt.UTC)
        if utc.astimezone(time.tzinfo).replace(tzinfo=None) != time.replace(tzinfo=None):
            zone = time.tzinfo.key if isinstance(time.tzinfo, ZoneInfo) else time.tzname()
            raise ValueError(f"{name} {time:%Y-%m-%d %H:%M} does not exist in {zone}")
        time = utc
    # pandas' own type holds nanoseconds beside datetime's microseconds.
    if own := getattr(time, "nanosecond", 0):
        nanoseconds = f"{own:03}"
    return time.strftime("%Y-%m-%d %H:%M:%S.%f") + nanoseconds


def _read(text: str, name: str) -> tuple[dt.datetime, str]:
    """Text as a datetime, and the nanoseconds beyond its microseconds."""
    named = _NAMED_ZONE.fullmatch(text)
    iso = named["time"] if named else text
    # datetime holds microseconds: what text says beyond them is kept aside.
    beyond = re.fullmatch(r"(.*\.\d{6})(\d{1,3})(\D.*)?", iso)
    try:
        time = dt.datetime.fromisoformat(beyond[1] + (beyond[3] or "") if beyond else iso)
        if named:
            if time.tzinfo is not None:
                raise ValueError("two zones")
            time = time.replace(tzinfo=ZoneInfo(named["zone"]))
    except (ValueError, KeyError, OSError):  # KeyError, OSError: no such zone, or a directory of zones
        raise ValueError(
            f"{name} {text!r} is no time; give a datetime, a date, ISO text such as '2024-03-08T16:00:00Z' or"
            " '2024-03-08 16:00 America/New_York'" + (", or market_data.LATEST" if name == "known_at" else "")
        ) from None
    return time, beyond[2] if beyond else ""
