"""The Python client: questions to a published version, as of a time.

    connect() ── last published version ── .sql() .bars() .macro() ── Answer ── Arrow, .pl(), .df()

Every question says as of when: ``known_at`` is a time, or ``market_data.LATEST``, which says aloud that one wants
all that the version knows.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa

from loaders.settings import Settings
from market_data import bookkeeping, lake, publishing

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["LATEST", "Answer", "Client", "KnownAt", "NotPublishedError", "connect"]


class _Latest:
    """All that the version knows."""

    def __repr__(self) -> str:
        return "market_data.LATEST"


LATEST: Final = _Latest()
KnownAt = dt.datetime | dt.date | str | _Latest

# The last time that TIMESTAMP_NS holds; nothing is known later.
_END_OF_TIME = "2262-04-11 23:47:16.854775806"


class NotPublishedError(RuntimeError):
    """The lake has no published version yet, or not the one that was asked for."""


@dataclass(frozen=True)
class Answer:
    """The answer to a question, and what reproduces it: ``version`` and ``known_at``."""

    arrow: pa.Table
    """Columns and rows as Arrow; times are UTC, nanoseconds, without a zone."""
    version: int
    """The lake version that answered."""
    known_at: KnownAt | None
    """As of when it was asked; None for plain SQL."""

    def pl(self) -> pl.DataFrame:
        """The rows as a Polars data frame."""
        import polars

        frame = polars.from_arrow(self.arrow)
        assert isinstance(frame, polars.DataFrame)  # noqa: S101
        return frame

    def df(self) -> pd.DataFrame:
        """The rows as a pandas data frame."""
        frame: pd.DataFrame = self.arrow.to_pandas()
        return frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Arrow's own interface, so that any library that speaks Arrow takes an answer as it is."""
        return self.arrow.__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return int(self.arrow.num_rows)


def instant(known_at: KnownAt) -> str:
    """``known_at`` as UTC text for the ``_as_of`` macros.

    A datetime without a zone is UTC; one with a zone is turned to UTC; a date is its first instant, UTC. Raises
    ``ValueError`` for text that is no time, and for a local time that a change of clocks skips.
    """
    if isinstance(known_at, _Latest):
        return _END_OF_TIME
    nanoseconds = ""
    if isinstance(known_at, str):
        # datetime holds microseconds: what text says beyond them is kept aside.
        beyond = re.fullmatch(r"(.*\.\d{6})(\d{1,3})(\D.*)?", known_at)
        if beyond:
            nanoseconds = beyond[2]
        try:
            known_at = dt.datetime.fromisoformat(beyond[1] + (beyond[3] or "") if beyond else known_at)
        except ValueError:
            raise ValueError(
                f"known_at {known_at!r} is no time; give a datetime, a date, ISO text such as '2024-03-08T16:00:00Z',"
                " or market_data.LATEST"
            ) from None
    if not isinstance(known_at, dt.datetime):
        if not isinstance(known_at, dt.date):
            raise TypeError(f"known_at is a {type(known_at).__name__}; give a time, or market_data.LATEST")
        known_at = dt.datetime.combine(known_at, dt.time())
    if known_at.tzinfo is not None:
        utc = known_at.astimezone(dt.UTC)
        if utc.astimezone(known_at.tzinfo).replace(tzinfo=None) != known_at.replace(tzinfo=None):
            zone = known_at.tzinfo.key if isinstance(known_at.tzinfo, ZoneInfo) else known_at.tzname()
            raise ValueError(f"known_at {known_at:%Y-%m-%d %H:%M} does not exist in {zone}")
        known_at = utc
    # pandas' own type holds nanoseconds beside datetime's microseconds.
    if own := getattr(known_at, "nanosecond", 0):
        nanoseconds = f"{own:03}"
    return known_at.strftime("%Y-%m-%d %H:%M:%S.%f") + nanoseconds


class Client:
    """A reader of one version of the lake, made by ``market_data.connect()``; as a context manager it closes itself."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, version: int) -> None:
        self._connection = connection
        self.version = version

    def sql(self, query: str, parameters: list[Any] | None = None) -> Answer:
        """Ask in SQL. Tables are ``canonical.trades``, ``research.bars_1m`` and so on, or as macros
        ``research.bars_1m_as_of('2024-08-09')``. Raises duckdb.Error for what DuckDB refuses."""
        relation = self._connection.execute(query, parameters or [])
        return Answer(relation.to_arrow_table(), self.version, None)

    def bars(
        self,
        symbol: str | list[str] | None = None,
        *,
        known_at: KnownAt,
        interval: str = "1d",
        venue: str | None = None,
        start: dt.date | dt.datetime | str | None = None,
        end: dt.date | dt.datetime | str | None = None,
    ) -> Answer:
        """Bars as they were known at ``known_at``: prices raw, in the listing's currency; volumes in units or shares.

        ``symbol``: the venue's spelling, one or several, or None for all; ``interval``: 1m or 1d; ``start`` and
        ``end``: half-open, of bar_start (UTC) or session_date. Ordered by listing and time.
        """
        times = {"1m": "bar_start", "1d": "session_date"}
        if interval not in times:
            raise ValueError(f"interval {interval!r} is not one of {', '.join(times)}")
        time = times[interval]
        symbols = [symbol] if isinstance(symbol, str) else symbol
        conditions = ["true"]
        values: list[Any] = [instant(known_at)]
        for condition, value in (
            ("symbol in (select unnest(?))", symbols),
            ("venue = ?", venue),
            (f"{time} >= ?::timestamp", start),
            (f"{time} < ?::timestamp", end),
        ):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        return self._as_of(
            f"select * from lake.research.bars_{interval}_as_of(?) where {' and '.join(conditions)}"
            f" order by listing_id, {time}",
            values,
            known_at,
        )

    def macro(self, series_id: str | list[str], *, known_at: KnownAt) -> Answer:
        """A macro series as it was known at ``known_at``: one row per observation date, with value (in the source's
        units), first print, revision, surprise, published_on and age_days (null for LATEST, which is no date).
        ``series_id``: one or several."""
        series = [series_id] if isinstance(series_id, str) else series_id
        age = " replace (null::bigint as age_days)" if known_at is LATEST else ""
        return self._as_of(
            f"select *{age} from lake.research.macro_series_as_of(?) where series_id in (select unnest(?))"
            " order by series_id, observation_date",
            [instant(known_at), series],
            known_at,
        )

    def _as_of(self, query: str, values: list[Any], known_at: KnownAt) -> Answer:
        return Answer(self._connection.execute(query, values).to_arrow_table(), self.version, known_at)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(settings: Settings | None = None, *, version: int | None = None) -> Client:
    """Open a version of the lake that MDP_LAKE and MDP_LAKE_DATA name; it stays the same while open.

    ``version``: one that was published, as an answer names it; by default the last. Raises ``NotPublishedError`` where
    nothing was published yet, or not that one.
    """
    if settings is not None and not isinstance(settings, Settings):
        raise TypeError(
            f"connect() takes no path such as {settings!r}: set MDP_LAKE, or give loaders.settings.Settings"
        )
    settings = settings or Settings.from_env()
    last = published_version(settings)
    if version is None:
        version = last
    else:
        _check_is_kept(settings, version, last)
    return Client(lake.open_version(settings, version), version)


def _check_is_kept(settings: Settings, version: int, last: int) -> None:
    with lake.open_version(settings, None) as connection:
        rows = connection.execute(
            "select version, version in (select snapshot_id from lake.snapshots()) from observability.releases"
        ).fetchall()
    is_kept = dict(rows)
    if version not in is_kept:
        raise NotPublishedError(f"version {version} was not published; the last one is {last}")
    if not is_kept[version]:
        kept = [other for other in is_kept if is_kept[other]]
        earlier = max((other for other in kept if other < version), default=None)
        later = min((other for other in kept if other > version), default=None)
        nearest = " and ".join(str(other) for other in (earlier, later) if other is not None)
        raise NotPublishedError(f"version {version} is not kept any more; the nearest that are: {nearest}")


def published_version(settings: Settings) -> int:
    """The lake version that readers get. Raises ``NotPublishedError`` where there is none."""
    if lake.exists(settings):
        with lake.open_version(settings, None) as connection:
            if bookkeeping.are_there(connection, ["releases"]):
                release = publishing.published(connection)
                if release:
                    return release.version
    raise NotPublishedError(
        f"nothing is published in the lake {settings.lake}; load files and run `mdp build`, or see `mdp demo`"
    )
