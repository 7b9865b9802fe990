"""Times as written here: nanoseconds since 1970-01-01 UTC, and ISO text with nine digits of fraction.

"2024-11-03", "2024-11-03T10:00:00.5+01:00" ── parse_time ──▶ ns ── iso ──▶ "2024-11-03T09:00:00.500000000Z"
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(
    r"(?P<date>\d{4}-\d{2}-\d{2}|\d{8})"
    r"(?:[T ](?P<clock>\d{2}(?::\d{2}(?::\d{2})?|\d{2}(?:\d{2})?)?)(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"(?P<zone>Z|[+-]\d{2}:?\d{2})?",
    re.IGNORECASE,
)
FIRST_YEAR, LAST_YEAR = 1678, 2261
"""The whole years that 64 bits of nanoseconds can hold."""


def parse_time(text: str) -> int:
    """Return the nanoseconds since 1970-01-01 UTC of an ISO 8601 date or date and time.

    Without a zone the text is read as UTC; a bare date is its first instant, 00:00 UTC. Nine digits of
    fraction are kept. Raises ValueError, with the reason, for anything else and for years outside 1678..2261.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None or (match["zone"] and not match["clock"]):
        raise ValueError(f"{text!r} is not an ISO date or time, such as 2024-11-03 or 2024-11-03T09:30:00Z")
    try:
        moment = datetime.fromisoformat(match["date"] + ("T" + match["clock"] if match["clock"] else ""))
        offset = _offset(match["zone"] or "Z")
    except ValueError as error:
        raise ValueError(f"{text!r} is not a date or time that exists: {error}") from error
    micros = (moment.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
    seconds = micros // 1_000_000 - offset
    year = (_EPOCH + timedelta(seconds=seconds)).year if abs(seconds) < 60_000_000_000 else moment.year
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise ValueError(f"{text!r} lies outside the years {FIRST_YEAR} to {LAST_YEAR} that nanoseconds can hold")
    return seconds * 1_000_000_000 + int((match["fraction"] or "0").ljust(9, "0"))


def _offset(zone: str) -> int:
    """Return the seconds by which a zone such as +05:30 is ahead of UTC."""
    if zone.upper() == "Z":
        return 0
    hours, minutes = int(zone[1:3]), int(zone[-2:])
    if hours > 23 or minutes > 59:
        raise ValueError(f"no zone is {zone}")
    return (hours * 3600 + minutes * 60) * (-1 if zone[0] == "-" else 1)


def iso(ns: int) -> str:
    """Return nanoseconds since 1970-01-01 UTC as 2024-11-03T09:30:00.123456789Z."""
    seconds, fraction = divmod(ns, 1_000_000_000)
    return f"{_at(seconds):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def compact(ns: int) -> str:
    """Return nanoseconds since 1970-01-01 UTC as 20241103T093000.123456789Z, as ledger keys hold it."""
    return iso(ns).replace("-", "").replace(":", "")


def day(ns: int) -> str:
    """Return the UTC date of nanoseconds since 1970-01-01 UTC, as 2024-11-03."""
    return iso(ns)[:10]


def _at(seconds: int) -> datetime:
    return _EPOCH + timedelta(seconds=seconds)
