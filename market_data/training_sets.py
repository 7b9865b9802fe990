"""Training sets: features at many decisions, each as it was known then.

decisions (instrument_id, decision_time) ── known_at = decision_time - lag ──┐
research.<table>, research.macro_series ── versions, read once a version ────┴─> decisions with a column a feature
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from market_data.lake import identifier
from market_data.names import unknown
from market_data.point_in_time import NEVER, NO_ROW, Ints, Versions

MACRO = "macro_series"
PERIODS = ("session_date", "bar_start")
"""What tells the newest row of an instrument: the period of a table, by the first of these columns that it has."""
BY_INSTRUMENT = {"bars_1d": "bars_1d_adjusted"}
"""Tables by listing, and those that have the same rows by instrument already, sorted so: quicker to read."""
_SECOND = 1_000_000_000

_BY_LISTING = """
    with every_span as (
        select
            *,
            dense_rank() over (partition by instrument_id order by starts_at nulls first, listing_id) as listing_number
        from lake.versioned.int_listing_spans
    ),

    listings as (
        select instrument_id as listing_id from asked_keys
        union
        select listing_id from every_span semi join asked_keys using (instrument_id)
    ),

    spans as (select * from every_span semi join listings using (listing_id)),

    versions as (select *, {happened_at} as happened_at from {table} semi join listings using (listing_id))

    select
        versions.* replace (
            coalesce(spans.instrument_id, versions.listing_id) as instrument_id,
            greatest(versions.known_from, spans.known_from) as known_from,
            least(versions.known_to, spans.known_to) as known_to
        ),
        coalesce(listing_number, 0) as listing_number
    from versions
    left join spans
        on versions.listing_id = spans.listing_id
        and (spans.starts_at is null or happened_at >= spans.starts_at)
        and (spans.ends_at is null or happened_at < spans.ends_at)
        and spans.known_from < coalesce(versions.known_to, timestamp_ns '2262-04-11')
        and (spans.known_to is null or spans.known_to > versions.known_from)
"""
"""Versions of a table by listing, each for as long as its listing was known to mean an instrument, as ``X_as_of`` says.

Of two listings of one instrument with a bar in one period, the later name's counts as the newer."""


@dataclass(frozen=True)
class Feature:
    """A column of a table of schema ``research``; of ``macro_series`` a column of one series."""

    name: str
    table: str
    column: str
    series: str | None = None


@dataclass(frozen=True)
class _Loaded:
    """The versions of some keys of a table, with some of its columns, as the lake gave them."""

    keys: pa.Array
    """In order; a key's number is its place."""
    versions: Versions
    order: Ints | None
    """Where the rows of ``versions`` are among the columns; None where they are in the same order."""
    columns: pa.Table
    ages: Ints
    """From when a row's age counts: the session's close, the bar's start, the observation date."""

    def serves(self, keys: pa.Array, columns: Iterable[str]) -> bool:
        return set(columns) <= set(self.columns.column_names) and bool(
            pc.all(pc.is_in(keys.drop_null(), value_set=self.keys), min_count=0).as_py()
        )

    def find(self, keys: pa.Array, known_at: Ints, max_age: dt.timedelta | None) -> pa.Array:
        """For each key and time the place of the newest row, null where there is none or it is too old."""
        number = pc.index_in(keys, value_set=self.keys).fill_null(NO_ROW).cast(pa.int64()).to_numpy()
        found = self.versions.newest(number, known_at)
        is_missing = found == NO_ROW
        places = found if self.order is None else self.order[found]
        if max_age is not None and len(self.ages):
            is_missing |= known_at - self.ages[places] > _nanoseconds(max_age)
        return pa.array(places, mask=is_missing)


class FeatureReader:
    """Answers for one version of the lake. What was read of a table is kept until other instruments are asked for."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._loaded: dict[str, _Loaded] = {}
        self._schema: dict[str, list[str]] = {}

    def features(
        self, decisions: Any, names: Sequence[str], lag: dt.timedelta, max_age: dt.timedelta | None
    ) -> pa.Table:
        """The decisions, in their order, with a column for each name. See ``Client.features``."""
        for name, span in (("lag", lag), ("max_age", max_age)):
            if not isinstance(span, dt.timedelta) and (name == "lag" or span is not None):
                raise TypeError(f"{name} is {span!r}; give a datetime.timedelta")
        if lag < dt.timedelta():
            raise ValueError(f"lag {lag} is negative: a decision would see what became known after it")
        if max_age is not None and max_age < dt.timedelta():
            raise ValueError(f"max_age {max_age} is negative: nothing is so young")
        wanted = [self._feature(name) for name in ([names] if isinstance(names, str) else names)]
        wanted = self._by_instrument(wanted)
        rows = as_table(decisions)
        as_asked, names = rows.column_names, [feature.name for feature in wanted]
        for name in names:
            if name in as_asked or names.count(name) > 1:
                raise ValueError(f"{name} is a column of the decisions already, or was asked for twice")
        known_at = _known_at(rows) - _nanoseconds(lag)
        for table in dict.fromkeys(feature.table for feature in wanted):
            of_table = [feature for feature in wanted if feature.table == table]
            instruments = None if table == MACRO else _instruments(rows)
            series = pa.array(dict.fromkeys(feature.series for feature in of_table), pa.string())
            keys = series if instruments is None else instruments.unique()
            loaded = self._load(table, keys, [feature.column for feature in of_table])
            for key in series.to_pylist():
                asked = pa.repeat(pa.scalar(key, pa.string()), rows.num_rows) if instruments is None else instruments
                places = loaded.find(asked, known_at, max_age)
                for feature in of_table:
                    if feature.series == key:
                        rows = rows.append_column(feature.name, loaded.columns[feature.column].take(places))
        return rows.select([*as_asked, *(feature.name for feature in wanted)])

    def _feature(self, name: str) -> Feature:
        table, _, rest = name.partition(".")
        columns = self._tables().get(table)
        if columns is None or not rest:
            raise ValueError(
                f"feature {name!r}: " + unknown("table", table, self._tables(), "research")
                if columns is None
                else f"feature {name!r} names no column; write {table}.<column>, or macro_series.<series>"
            )
        series, _, column = rest.partition(".") if table == MACRO else ("", "", rest)
        column = column or "value"
        if column not in columns:
            raise ValueError(f"feature {name!r}: " + unknown("column", column, columns, table))
        return Feature(name, table, column, series or None)

    def _by_instrument(self, wanted: Sequence[Feature]) -> list[Feature]:
        """The same of tables that are by instrument, where these have all columns: those of a table are of one row."""
        found = list(wanted)
        for by_listing, table in BY_INSTRUMENT.items():
            columns = {feature.column for feature in wanted if feature.table == by_listing}
            if columns <= {*self._tables().get(table, ())}:
                found = [replace(one, table=table) if one.table == by_listing else one for one in found]
        return found

    def _tables(self) -> dict[str, list[str]]:
        """The tables of research that can be asked, with their columns."""
        if not self._schema:
            found: dict[str, list[str]] = {}
            for table, column in self._connection.execute(
                "select table_name, column_name from duckdb_columns()"
                " where database_name = 'lake' and schema_name = 'research' order by table_name, column_index"
            ).fetchall():
                found.setdefault(table, []).append(column)
            self._schema = {
                table: columns
                for table, columns in found.items()
                if table == MACRO or ({"instrument_id", "known_from"} <= {*columns} and {*PERIODS} & {*columns})
            }
        return self._schema

    def _load(self, table: str, keys: pa.Array, columns: Sequence[str]) -> _Loaded:
        loaded = self._loaded.get(table)
        if loaded is None or not loaded.serves(keys, columns):
            kept = [] if loaded is None else loaded.columns.column_names
            loaded = self._loaded[table] = self._read(table, keys, list(dict.fromkeys([*kept, *columns])))
        return loaded

    def _read(self, table: str, keys: pa.Array, columns: list[str]) -> _Loaded:
        key = "series_id" if table == MACRO else "instrument_id"
        there = self._tables()[table]
        period = "observation_date" if table == MACRO else next(name for name in PERIODS if name in there)
        keys = keys.drop_null().sort()
        self._connection.register("asked_keys", pa.table({key: keys, "key_number": np.arange(len(keys))}))
        rows = _BY_LISTING if "listing_id" in there else "select *, 0 as listing_number from {table}"
        aged_from = f"{'session_close' if 'session_close' in there else period}::timestamp_ns"
        try:
            read = self._connection.execute(
                f"""
                with rows as ({rows.format(table=f"lake.research.{identifier(table)}", happened_at=aged_from)})

                select
                    key_number,
                    epoch_ns({period}::timestamp_ns) + listing_number as period,
                    epoch_ns(known_from) as known_from,
                    coalesce(epoch_ns(known_to), {NEVER}) as known_to,
                    epoch_ns({aged_from}) as age_from,
                    {", ".join(f"{identifier(column)} as c{n}" for n, column in enumerate(columns))}
                from rows
                inner join asked_keys using ({key})
                """
            ).to_arrow_table()
        finally:
            self._connection.unregister("asked_keys")
        strangers = keys.take(pa.array(np.setdiff1d(np.arange(len(keys)), read["key_number"].to_numpy())))
        if len(strangers) and (table == MACRO or len(strangers) == len(keys)):
            self._refuse(table, key, str(strangers[0]))
        number, periods, known_from, known_to, age = (
            read.column(name).to_numpy() for name in ("key_number", "period", "known_from", "known_to", "age_from")
        )
        versions, order = Versions.in_order(number, periods, known_from, known_to)
        values = read.select([f"c{n}" for n in range(len(columns))]).rename_columns(columns).combine_chunks()
        return _Loaded(keys, versions, order, values, age)

    def _refuse(self, table: str, key: str, stranger: str) -> None:
        """A series that is not there, or decisions of which no instrument is: mistaken names, not late data."""
        query = f"select distinct {key} from lake.research.{identifier(table)} order by all"
        there = [name for (name,) in self._connection.execute(query).fetchall()]
        raise ValueError(unknown(key, stranger, there, f"research.{table}"))


def as_table(decisions: Any) -> pa.Table:
    """Decisions as an Arrow table; they may be Arrow, Polars, pandas, an answer, or what else speaks Arrow."""
    try:
        if type(decisions).__module__.partition(".")[0] == "pandas":
            table = pa.Table.from_pandas(decisions, preserve_index=False)
        else:
            table = pa.table(decisions)
    except (TypeError, ValueError) as error:
        raise TypeError(f"decisions are a {type(decisions).__name__}; give an Arrow, Polars or pandas table") from error
    if "decision_time" not in table.column_names:
        raise ValueError(f"decisions have no column decision_time; they have {', '.join(table.column_names)}")
    return table


def _known_at(decisions: pa.Table) -> Ints:
    times = decisions["decision_time"]
    if not (pa.types.is_timestamp(times.type) or pa.types.is_date(times.type)):
        raise TypeError(f"decision_time is {times.type}; give timestamps, in UTC or with a zone")
    if times.null_count:
        raise ValueError(f"decision_time is null in {times.null_count:,} decisions")
    try:
        numbers = times.cast(pa.timestamp("ns")).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise ValueError("decision_time is outside the years 1677 to 2262, which nanoseconds can say") from error
    return np.asarray(numbers.to_numpy(), np.int64)


def _instruments(decisions: pa.Table) -> pa.Array:
    if "instrument_id" not in decisions.column_names:
        raise ValueError(f"decisions have no column instrument_id; they have {', '.join(decisions.column_names)}")
    ids = decisions["instrument_id"].cast(pa.string()).combine_chunks()
    return ids if isinstance(ids, pa.Array) else pa.concat_arrays(ids.chunks)


def _nanoseconds(span: dt.timedelta) -> int:
    return (span.days * 86_400 + span.seconds) * _SECOND + span.microseconds * 1000
