"""The trading sessions of the New York Stock Exchange, as the seed that models read.

    python -m market_data.sessions   exchange_calendars (XNYS) ──> dbt_project/seeds/sessions.csv

Start and end are fixed: the library's own defaults move with today, and a seed must not.
"""

from __future__ import annotations

import csv
from pathlib import Path

from loaders.registry import REGISTRY

SEED = REGISTRY.parent / "sessions.csv"
START, END = "1996-01-01", "2030-12-31"


def write(path: Path = SEED) -> int:
    """Write one row a session, numbered from 1, with opening and closing time in UTC; how many there are."""
    import exchange_calendars

    calendar = exchange_calendars.get_calendar("XNYS", start=START, end=END)
    sessions = zip(calendar.sessions, calendar.opens, calendar.closes, strict=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["calendar", "session_date", "session_seq", "open_at", "close_at"])
        for number, (session, opens, closes) in enumerate(sessions, start=1):
            writer.writerow(["XNYS", session.date(), number, f"{opens:%F %T}", f"{closes:%F %T}"])
    return len(calendar.sessions)


if __name__ == "__main__":
    print(f"{SEED}: {write()} sessions")  # noqa: T201
