"""The Python client: questions to a published version, as of a time.

    connect(), at(version) ── one version ──┬─ .bars() .trades() .macro() … ─┬─> Answer ── Arrow, .pl(), .df()
    features(decisions, names) ── the last ─┼─ .features(decisions, names)  ─┤
                                            └─ .sql()                       ─┘

Every question about the past says as of when: ``known_at`` is a time, or ``market_data.LATEST``, which says aloud that
one wants all that the version knows, what is not over included. Times in answers are UTC, in nanoseconds, without a
zone.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from loaders.settings import Settings
from loaders.store import StoreError
from market_data import bookkeeping, lake, publishing, releases
from market_data.names import unknown
from market_data.times import LATEST, KnownAt, Time, instant
from market_data.training_sets import FeatureReader

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["LATEST", "Answer", "Client", "Header", "KnownAt", "NotPublishedError", "at", "connect", "features"]

NotPublishedError = releases.NotPublishedError
Names = str | Sequence[str] | None


@dataclass(frozen=True)
class Header:
    """What reproduces a result: the version that answered, and as of when it was asked. For the head of a backtest.

    ``str(header)`` is one line; ``Header.parse`` reads it back, and ``market_data.at(header.version)`` opens that
    version again, for ever if it is pinned (``mdp releases pin``).
    """

    version: int
    known_at: str
    """UTC, ISO; the far end of time for LATEST."""

    def __str__(self) -> str:
        return f"version={self.version} known_at={self.known_at}"

    @classmethod
    def parse(cls, text: str) -> Header:
        """The header that a line states. Raises ``ValueError`` where it states none."""
        fields = dict(word.split("=", 1) for word in text.split() if "=" in word)
        try:
            return cls(int(fields["version"]), fields["known_at"])
        except (KeyError, ValueError):
            raise ValueError(f"{text!r} is no header such as 'version=48 known_at=2024-05-01T00:00:00Z'") from None


@dataclass(frozen=True)
class Answer:
    """The answer to a question, and what reproduces it: ``version`` and ``known_at``."""

    arrow: pa.Table
    """Columns and rows as Arrow; times are UTC, nanoseconds, without a zone."""
    version: int
    """The lake version that answered."""
    known_at: KnownAt | None
    """As of when it was asked; None for plain SQL, and for features, where each decision has a time of its own."""

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


class Client:
    """A reader of one version of the lake, made by ``market_data.connect()``; as a context manager it closes itself."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, version: int) -> None:
        self._connection = connection
        self.version = version

    def header(self, known_at: KnownAt) -> Header:
        """What a backtest as of ``known_at`` writes down to be run again: this version, and that time in UTC."""
        return Header(self.version, instant(known_at).replace(" ", "T") + "Z")

    def sql(self, query: str, parameters: Sequence[Any] | dict[str, Any] | None = None) -> Answer:
        """Ask in SQL. Tables are ``canonical.trades``, ``research.bars_1m`` and so on, or as macros
        ``research.bars_1m_as_of('2024-08-09')``; values go by ``parameters``, for ``?`` or ``$name``. Raises
        duckdb.Error for what DuckDB refuses; of a name that is not there it says which are like it."""
        relation = self._connection.execute(query, parameters or [])
        return Answer(relation.to_arrow_table(), self.version, None)

    def features(
        self,
        decisions: Any,
        names: Sequence[str],
        *,
        lag: dt.timedelta = dt.timedelta(),
        max_age: dt.timedelta | None = None,
    ) -> Answer:
        """A training set: the decisions with a column for each feature, as it was known at decision_time - ``lag``.

        ``decisions``: an Arrow, Polars or pandas table with instrument_id (as ``bars`` and ``instruments`` name it) and
        decision_time (timestamps; without a zone they are UTC); further columns stay, as do order and duplicates.
        ``names``: ``<table>.<column>`` of schema research, or ``macro_series.<series>``, for its value, and
        ``macro_series.<series>.<column>``. Bars are those of all listings that meant the instrument, as known then.

        Of each the newest session (bar, observation) is taken that was known, and not taken back, at that time, in the
        version known then, with its units as the table has them. Null where there is none, where it says null itself,
        and where it is older than ``max_age``: from the session's close, the bar's start or the observation date on.
        Raises ``ValueError`` for names that are not there, and names those like them.

        A table's versions are read for the first question and kept for the next ones.
        """
        return Answer(self._features.features(decisions, names, lag, max_age), self.version, None)

    def bars(
        self,
        symbol: Names = None,
        *,
        known_at: KnownAt,
        interval: str = "1d",
        adjusted: bool = False,
        venue: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
    ) -> Answer:
        """Bars as they were known at ``known_at``: prices raw, in the listing's currency; volumes in units or shares.

        ``symbol``: the venue's spelling, one or several, or None for all; ``interval``: 1m or 1d; ``start`` and
        ``end``: half-open, of bar_start (UTC) or session_date. ``adjusted``, for 1d: also split_adj_ prices and volume
        (for splits) and adj_ prices (for dividends too), by what was known at ``known_at``, on the scale of the
        instrument's newest session then. Ordered by instrument and time.
        """
        times = {"1m": "bar_start", "1d": "session_date"}
        if interval not in times:
            raise ValueError(f"interval {interval!r} is not one of {', '.join(times)}")
        if adjusted and interval != "1d":
            raise ValueError("only bars of 1d are adjusted: a minute's are of one session, and on its scale")
        return self._as_of(
            f"research.bars_{interval}{'_adjusted' if adjusted else ''}", known_at,
            order=("instrument_id", "venue", times[interval]), time=times[interval], start=start, end=end,
            among={"symbol": symbol, "venue": venue},
        )  # fmt: skip

    def trades(
        self,
        symbol: Names = None,
        *,
        known_at: KnownAt,
        venue: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
    ) -> Answer:
        """Trades as they were known at ``known_at``: price in the listing's currency, size in units or shares, side of
        the aggressor. Those that were cancelled by then are there, with is_cancelled. ``start`` and ``end``: half-open,
        of event_time, UTC. Ordered by listing, event_time, sequence."""
        return self._as_of(
            "canonical.trades", known_at, order=("listing_id", "event_time", "sequence", "trade_id"),
            time="event_time", start=start, end=end, among={"symbol": symbol, "venue": venue},
        )  # fmt: skip

    def quotes(
        self,
        symbol: Names = None,
        *,
        known_at: KnownAt,
        venue: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
    ) -> Answer:
        """Best bids and offers as they were known at ``known_at``: prices in the listing's currency, sizes in units or
        shares. ``start`` and ``end``: half-open, of event_time, UTC. Ordered by listing, event_time, sequence."""
        return self._as_of(
            "canonical.quotes", known_at, order=("listing_id", "event_time", "sequence", "update_id"),
            time="event_time", start=start, end=end, among={"symbol": symbol, "venue": venue},
        )  # fmt: skip

    def book(
        self,
        symbol: Names = None,
        *,
        known_at: KnownAt,
        venue: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
    ) -> Answer:
        """Order books at the registry's grid of event time: lists of prices and sizes, best first; is_valid is false
        where the book could not be followed. ``start`` and ``end``: half-open, of event_time, UTC. Ordered by listing
        and event_time.

        They are what is known now, without versions: those whose known_from is up to ``known_at``. A late update writes
        its rows anew, with the later known_from, so an earlier ``known_at`` shows no row where it showed one before.
        """
        return self._as_of(
            "canonical.book_snapshots", known_at, order=("listing_id", "event_time"),
            time="event_time", start=start, end=end, among={"symbol": symbol, "venue": venue},
        )  # fmt: skip

    def macro(
        self,
        series_id: Names = None,
        *,
        known_at: KnownAt,
        start: Time | None = None,
        end: Time | None = None,
    ) -> Answer:
        """Macro series as they were known at ``known_at``: one row per observation date, with value (in the source's
        units), first print, revision, surprise, published_on and age_days (null for LATEST, which is no date).
        ``series_id``: one or several, or None for all; ``start`` and ``end``: half-open, of observation_date."""
        return self._as_of(
            "research.macro_series", known_at, order=("series_id", "observation_date"),
            time="observation_date", start=start, end=end, among={"series_id": series_id},
            columns="* replace (null::bigint as age_days)" if instant(known_at) == instant(LATEST) else "*",
        )  # fmt: skip

    def universe(self, name: Names = None, *, known_at: KnownAt, on: dt.date | str | None = None) -> Answer:
        """Who was in an index or universe, as it was known at ``known_at``; those that were delisted since are there.

        ``name``: one or several, or None for all; ``on``: only members of that date, [valid_from, valid_to); without it
        all memberships known. valid_to is null until the end was known. Ordered by name, symbol, valid_from.
        """
        table, column = "research.universe", "universe"
        if table not in self._names:
            table, column = "canonical.universe_membership", "index_name"
        return self._as_of(
            table, known_at, order=(column, "symbol", "valid_from"), among={column: name},
            valid_on=None if on is None else instant(on, "on"),
        )  # fmt: skip

    def instruments(self, symbol: Names = None, *, known_at: KnownAt) -> Answer:
        """Instruments as they were known at ``known_at``, with the symbols that they had. ``symbol``: as venues write
        them, one or several, or None for all."""
        return self._as_of("canonical.instruments", known_at, order=("instrument_id",), among={"symbol": symbol})

    def _as_of(
        self,
        table: str,
        known_at: KnownAt,
        *,
        order: Sequence[str],
        among: dict[str, Names],
        time: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
        valid_on: str | None = None,
        columns: str = "*",
    ) -> Answer:
        """Rows of a table as of a time, of which columns are among some values, a time is in [start, end), or which are
        valid on a date."""
        values: dict[str, Any] = {"known_at": instant(known_at)}
        conditions = []
        for column, names in among.items():
            if names is not None:
                conditions.append(f"{column} in (select unnest(${column}::varchar[]))")
                values[column] = [names] if isinstance(names, str) else list(names)
        for sign, name, bound in ((">=", "start", start), ("<", "end", end)):
            if bound is not None:
                conditions.append(f"{time} {sign} ${name}_time::timestamp_ns")
                values[f"{name}_time"] = instant(bound, name)
        if valid_on is not None:
            conditions.append("valid_from <= $valid_on::date and (valid_to is null or valid_to > $valid_on::date)")
            values["valid_on"] = valid_on
        where = f" where {' and '.join(conditions)}" if conditions else ""
        query = f"select {columns} from {self._known(table)}{where} order by {', '.join(order)}"
        return Answer(self._connection.execute(query, values).to_arrow_table(), self.version, known_at)

    def _known(self, table: str) -> str:
        """A table as of $known_at, as SQL: by its macro, which every later version has, or by the rule itself."""
        if f"{table}_as_of" in self._names:
            return f"lake.{table}_as_of($known_at)"
        if table not in self._names:
            tables = [name for name in self._names if not name.endswith("_as_of")]
            raise ValueError(unknown("table", table, tables, f"version {self.version}"))
        return (
            f"(select * replace (null::timestamp_ns as known_to) from lake.{table} where known_from <= $known_at"
            "::timestamp_ns and (known_to is null or known_to > $known_at::timestamp_ns))"
        )

    @cached_property
    def _names(self) -> set[str]:
        """The tables, views and table macros of canonical and research that this version has."""
        return {
            name
            for (name,) in self._connection.execute(
                """
                select schema_name || '.' || function_name
                from duckdb_functions()
                where database_name = 'lake' and function_type = 'table_macro'
                union all
                select table_schema || '.' || table_name
                from information_schema.tables
                where table_catalog = 'lake' and table_schema in ('canonical', 'research')
                """
            ).fetchall()
        }

    @cached_property
    def _features(self) -> FeatureReader:
        return FeatureReader(self._connection)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(settings: Settings | None = None, *, version: int | str | None = None) -> Client:
    """Open a version of the lake that MDP_LAKE and MDP_LAKE_DATA name; it stays the same while open.

    ``version``: one that was published, as an answer names it, or the name of a pin; by default the last. Raises
    ``NotPublishedError`` where nothing was published yet, or not that one, or where it is not kept any more.
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
        with lake.open_version(settings, None) as connection:
            version = releases.kept_version(connection, version)
    return Client(lake.open_version(settings, version), version)


def at(version: int | str, settings: Settings | None = None) -> Client:
    """Open one published version: by its number, as an answer or a backtest's header names it, or by a pin's name.

    Raises ``TypeError`` for None, which ``connect`` takes for the last version, and else what ``connect`` does.
    """
    if version is None:
        raise TypeError("at(None) names no version; connect() opens the last")
    return connect(settings, version=version)


def features(
    decisions: Any,
    names: Sequence[str],
    *,
    lag: dt.timedelta = dt.timedelta(),
    max_age: dt.timedelta | None = None,
) -> Answer:
    """``Client.features`` of the last published version, for one question: arguments, answer and errors are as there.

    Several questions are answered faster, and from one version, by a client of one's own, which keeps what it has read.
    Raises ``NotPublishedError`` where nothing was published yet.
    """
    with connect() as client:
        return client.features(decisions, names, lag=lag, max_age=max_age)


def published_version(settings: Settings) -> int:
    """The lake version that readers get. Raises ``NotPublishedError`` where there is none."""
    if lake.exists(settings):
        with lake.open_version(settings, None) as connection:
            if bookkeeping.are_there(connection, ["releases"]):
                release = publishing.published(connection)
                if release:
                    return release.version
    raise NotPublishedError(f"nothing is published in the lake {settings.lake}; {_first_step(settings)}")


def _first_step(settings: Settings) -> str:
    """How to begin: by what there is in the raw zone, as far as that answers."""
    try:
        waiting = bookkeeping.waiting_loads(settings)
    except StoreError:
        waiting = 0
    if waiting:
        return f"{waiting:,} load{'s wait' if waiting > 1 else ' waits'} for `mdp build` in the raw zone {settings.raw}"
    return "load files and run `mdp build`, or see `mdp demo`"
