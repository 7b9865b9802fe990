"""A check of one's own query: does it look ahead?

    query ──┬─ on the whole version ───────────────────────────────┐
            └─ on the same cut to what was known at K, for many K ─┴─ rows for decisions up to K that differ: leaks
                                 └─ one table cut at a time ── which input they came from

A row that one could have had at K is the same whatever became known afterwards. So the query is asked again at sampled
knowledge times K, with every table of versions cut, whether the query's text names it or not: those known after K are
gone, and nobody knows yet which will end. What shows only the present cannot be cut, and is named. The query says as of
when in one of two ways:

- it names ``$known_at`` (a TIMESTAMP, UTC), and its whole answer must be the same on whole and on cut data;
- it makes rows for many decisions at once, with ``time`` an expression of its columns that says when each row was to be
  had; then all rows with time <= K must be the same. ``key`` names the columns that tell a row from another.

Both stand in a comment of the query, ``-- leakcheck: key = instrument_id, session_date; time = decision_time``. No
difference proves nothing for the times that were not sampled; hence K is taken just before versions began or ended,
most of them of what the answer is about.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from loaders.settings import Settings
from market_data import lake
from market_data.dbt_runs import BuildFailedError, Project
from market_data.lake import identifier
from market_data.lock import writers_lock
from market_data.names import unknown

TOLERANCE = 1e-9
"""Relative: sums of doubles over other rows of a file differ in their last digits."""
SAMPLES = 24
NO_ONE_INPUT = "several inputs together, or one that the query does not name"
_CUT_SCHEMAS = ("canonical", "research", "versioned")
_CONSTANT_SCHEMA = "reference"
"""Nothing of it becomes known: calendars, codes, the registry."""
_DIRECTIVE = re.compile(r"^\s*--\s*leakcheck:(.*)$", flags=re.MULTILINE)
_JUST_BEFORE = dt.timedelta(microseconds=1)
_END = dt.datetime(2262, 1, 1)
_NAMES_OF_THINGS = ("instrument_id", "listing_id", "symbol", "series_id", "universe", "index_name")
"""Columns that say what a row is about, the narrowest first."""


class LeakCheckError(ValueError):
    """The query cannot be checked as it is."""


@dataclass(frozen=True)
class Leak:
    """A row that says something else once the data is cut to what was known."""

    row: dict[str, Any]
    """Its key."""
    known_at: dt.datetime
    """As of when the data was cut, UTC."""
    differs: dict[str, tuple[Any, Any]]
    """By column: what the query says, and what it says of the cut data. Empty for a row that only one of them has."""
    missing: str
    """"" or which of the two lacks the row: ``whole`` or ``cut``."""
    inputs: tuple[str, ...]
    """The tables that, cut alone, change the row; none where it takes several, or one that the text does not name."""


@dataclass(frozen=True)
class Report:
    """What a check found."""

    version: int
    tables: tuple[str, ...]
    """The tables that the query's text names, by itself or by macros and views."""
    known_at: tuple[dt.datetime, ...]
    """The knowledge times that were tried."""
    rows: int
    """Rows that were compared, all times together: one at least, or a leak."""
    leaks: list[Leak] = field(default_factory=list)
    not_cut: tuple[str, ...] = ()
    """Tables that the query reads and that show only the present: what looks ahead by them stays unseen."""


@dataclass(frozen=True)
class Query:
    """A query to be checked. ``time`` is None where it names $known_at."""

    sql: str
    key: tuple[str, ...]
    time: str | None

    @classmethod
    def read(cls, sql: str, key: Sequence[str] = (), time: str | None = None) -> Query:
        """A query with what its comment declares; ``key`` and ``time`` go before that."""
        declared: dict[str, str] = {}
        for line in _DIRECTIVE.findall(sql):
            for part in line.split(";"):
                name, is_said, value = part.partition("=")
                if not is_said or name.strip() not in ("key", "time"):
                    raise LeakCheckError(f"{part.strip()!r} is no declaration; write key = a, b; time = c")
                declared[name.strip()] = value.strip()
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise LeakCheckError("a leak check takes one query (SELECT or FROM)")
        columns = tuple(key) or tuple(name.strip() for name in declared.get("key", "").split(",") if name.strip())
        time = time or declared.get("time")
        if statements[0].named_parameters - {"known_at"}:
            raise LeakCheckError("the query has other parameters than $known_at")
        if (time is None) == (not statements[0].named_parameters):
            raise LeakCheckError(
                "the query must say as of when, in one way: name $known_at, as in research.bars_1d_as_of($known_at),"
                " or declare when each of its rows was to be had:"
                " -- leakcheck: key = instrument_id; time = decision_time"
            )
        return cls(re.sub(r";\s*\Z", "", sql), columns, time)


def check(
    settings: Settings, version: int, query: Query, *, samples: int = SAMPLES, known_at: Sequence[dt.datetime] = ()
) -> Report:
    """Ask the query of a published version, whole and cut at sampled times, or at ``known_at``; what differs.

    Raises ``LeakCheckError`` where the query reads no versions, answers otherwise when asked twice, or has no row to be
    compared, and duckdb.Error where DuckDB refuses it.
    """
    with duckdb.connect() as connection:
        twin = _Twin(connection, settings, version)
        tables = twin.tables_of(query.sql)
        if not tables:
            raise LeakCheckError("the query reads no table of canonical, research or versioned that has versions")
        comparison = _Comparison(connection, query, twin.ask(query, _END, ()))
        comparison.expect_stable(twin.ask(query, _END, ()))
        if known_at and max(known_at) >= (last := twin.last_change(tables)):
            raise LeakCheckError(
                f"at {max(known_at)} there is nothing to cut: the last version of what the query reads began or ended"
                f" at {last}; name earlier times"
            )
        times = sorted(known_at) or twin.sample(tables, comparison.first_time(), comparison.things(), samples)
        rows, leaks, seen = 0, [], set()
        for time in times:
            whole = comparison.whole if query.time else twin.ask(query, time, ())
            cut = twin.ask(query, time, twin.versioned)
            rows += comparison.count(whole, time)
            found = [leak for leak in comparison.differences(whole, cut, time) if str(leak.row) not in seen]
            if not found:
                continue
            alone = {
                table: {str(leak.row) for leak in comparison.differences(whole, twin.ask(query, time, [table]), time)}
                for table in tables
            }
            for leak in found:
                seen.add(str(leak.row))
                inputs = tuple(table for table in tables if str(leak.row) in alone[table])
                leaks.append(Leak(leak.row, time, leak.differs, leak.missing, inputs))
        if not rows and not leaks:
            raise LeakCheckError(_nothing_compared(version, comparison.whole.num_rows, times))
        return Report(version, tuple(tables), tuple(times), rows, leaks, tuple(twin.present_of(query.sql)))


def _nothing_compared(version: int, answered: int, times: Sequence[dt.datetime]) -> str:
    if not answered:
        why, way_out = f"the query answers no row of version {version}", "widen its conditions"
    elif not times:
        why = "no version of its inputs began or ended after its first row was to be had"
        way_out = "name times with --at"
    else:
        why = f"none of its {answered:,} rows was to be had at the times tried, {times[0]} to {times[-1]}"
        way_out = "widen its conditions, or name later times with --at"
    return f"nothing was compared: {why}; {way_out}"


class _Twin:
    """A version of the lake as ``whole``, and over it a ``lake`` of views, each of which may be cut at a time.

    The views have the names of the tables, and the stored macros, and views that are not cut themselves, are made again
    beside them: so the query, and what it calls, reads what is cut without knowing.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, settings: Settings, version: int) -> None:
        self._connection = connection
        self._columns: dict[str, list[str]] = {}
        self._text: dict[str, str] = {}
        for statement in lake.load_statements(settings):
            connection.execute(statement)
        connection.execute(lake.attach_statement(settings, version, alias="whole"))
        connection.execute(f"attach ':memory:' as {lake.ALIAS}")
        self._make_views()
        self.versioned = [name for name in self._columns if self._is_cut(name)]
        self._make_macros()
        connection.execute(f"use {lake.ALIAS}")

    def _make_views(self) -> None:
        rows = self._connection.execute(
            """
            select schema_name, table_name, list(column_name order by column_index), any_value(sql)
            from duckdb_columns()
            left join (
                select schema_name, view_name as table_name, sql from duckdb_views() where database_name = 'whole'
            ) using (schema_name, table_name)
            where database_name = 'whole'
            group by all
            """
        ).fetchall()
        for schema in dict.fromkeys(schema for schema, *_ in rows):
            self._connection.execute(f"create schema if not exists {lake.ALIAS}.{identifier(schema)}")
        self._columns = {f"{schema}.{table}": columns for schema, table, columns, _ in rows}
        self._text = {f"{schema}.{table}": view or "" for schema, table, _, view in rows}
        made: set[str] = set()
        for name in self._columns:
            self._make_view(name, made)

    def _make_view(self, name: str, made: set[str]) -> None:
        if name in made:
            return
        made.add(name)
        schema, _, table = name.partition(".")
        quoted = f"{identifier(schema)}.{identifier(table)}"
        rule = f"select * from whole.{quoted}"
        if self._is_cut(name):
            cut = f"getvariable({lake.quoted(self._variable(name))})::timestamp_ns"
            ends = f"replace (case when {cut} is null or known_to <= {cut} then known_to end as known_to)"
            rule = f"select * {ends if 'known_to' in self._columns[name] else ''} from whole.{quoted}"
            rule += f" where {cut} is null or known_from <= {cut}"
        elif text := self._text[name]:
            for other in self._named(text):
                self._make_view(other, made)
            schemas = "|".join({one.partition(".")[0] for one in self._columns})
            body = text.partition(" AS ")[2].rstrip("; \n")
            rule = re.sub(rf'\bwhole\.(?="?(?:{schemas})"?\.)', f"{lake.ALIAS}.", body)
        self._connection.execute(f"create view {lake.ALIAS}.{quoted} as {rule}")

    def _make_macros(self) -> None:
        for schema, name, kind, parameters, definition in self._connection.execute(
            "select schema_name, function_name, function_type, parameters, macro_definition from duckdb_functions()"
            " where database_name = 'whole' and macro_definition is not null"
        ).fetchall():
            self._text[f"{schema}.{name}"] = definition
            body = f"table {definition}" if kind == "table_macro" else f"({definition})"
            self._connection.execute(
                f"create macro {lake.ALIAS}.{identifier(schema)}.{identifier(name)}"
                f"({', '.join(map(identifier, parameters))}) as {body}"
            )

    def _is_cut(self, name: str) -> bool:
        return name.partition(".")[0] in _CUT_SCHEMAS and "known_from" in self._columns.get(name, ())

    @staticmethod
    def _variable(name: str) -> str:
        return f"cut {name}"

    def tables_of(self, sql: str) -> list[str]:
        """The tables and views with versions that a text names."""
        return sorted(name for name in self._read_by(sql) if self._is_cut(name))

    def present_of(self, sql: str) -> list[str]:
        """The tables that a text names and that show only the present."""
        return sorted(
            name
            for name in self._read_by(sql)
            if not self._text[name] and not self._is_cut(name) and not name.startswith(f"{_CONSTANT_SCHEMA}.")
        )

    def _read_by(self, sql: str) -> set[str]:
        """What a text names, or a macro or view that it names, and so on; of views that are cut, only themselves."""
        found: set[str] = set()
        todo = [sql]
        while todo:
            for name in self._named(todo.pop()) - found:
                found.add(name)
                if not self._is_cut(name):
                    todo.append(self._text[name])
        return found

    def _named(self, text: str) -> set[str]:
        """As schema.table, or as the text that a macro takes for a table's name; in any case, as DuckDB takes names."""
        text = text.lower()
        named = {f"{schema}.{name}" for schema, name in re.findall(r'(?=\b(\w+)"?\s*\.\s*"?(\w+))', text)}
        named |= {f"research.{name}" for name in re.findall(r"'(\w+)'", text)}
        return {name for name in self._text if name.lower() in named}

    def ask(self, query: Query, known_at: dt.datetime, cut: Sequence[str]) -> pa.Table:
        """The query's answer, with some of the tables cut at ``known_at``."""
        for table in self.versioned:
            value = f"timestamp_ns '{known_at}'" if table in cut else "null"
            self._connection.execute(f"set variable {identifier(self._variable(table))} = {value}")
        parameters = {} if query.time else {"known_at": known_at}
        return self._connection.execute(query.sql, parameters).to_arrow_table()

    def last_change(self, tables: Sequence[str]) -> dt.datetime:
        """When the last of the tables' versions began or ended; the beginning of time where they have none."""
        ends = (
            "greatest(known_from, known_to)" if "known_to" in self._columns[name] else "known_from" for name in tables
        )
        moments = " union all ".join(
            f"select max({end})::timestamp as moment from whole.{name}" for name, end in zip(tables, ends, strict=True)
        )
        (last,) = self._connection.execute(f"select max(moment) from ({moments})").fetchone() or (None,)
        return last or dt.datetime.min

    def sample(
        self, tables: Sequence[str], first: dt.datetime | None, things: dict[str, list[str]], samples: int
    ) -> list[dt.datetime]:
        """Times spread evenly over those just before a version of the tables ended or began: as many for each table,
        most of them of ends, since revisions are what is leaked most, and two thirds of them of what the query is
        about: what else a table holds may have far more versions."""
        each = max(samples // len(tables), 2)
        found: set[dt.datetime] = set()
        for table in tables:
            about, values = self._about(table, things)
            for column, count in (("known_to", each - each // 3), ("known_from", each // 3)):
                if column not in self._columns[table]:
                    continue
                rows = self._connection.execute(
                    f"""
                    with moments as (
                        select {column}::timestamp as moment, coalesce(bool_or({about}), false) as is_about
                        from whole.{table}
                        where {column} is not null and {column} > coalesce($first, '1700-01-01'::timestamp)
                        group by moment
                    ),

                    numbered as (
                        select
                            moment,
                            row_number() over (same order by moment desc) - 1 as n,
                            count(*) over same as total,
                            case
                                when total = count(*) over () then $count
                                when is_about then $count - $count // 3
                                else $count // 3
                            end as wanted
                        from moments
                        window same as (partition by is_about)
                    )

                    select moment from numbered where n * wanted % total < wanted
                    """,
                    {"first": first, "count": max(count, 1), "values": values},
                ).fetchall()
                found |= {moment - _JUST_BEFORE for (moment,) in rows}
        return sorted(found)

    def _about(self, table: str, things: dict[str, list[str]]) -> tuple[str, list[str]]:
        """Which rows of a table are about some of the things, by its narrowest column that has any: a condition, and
        its $values."""
        for column in _NAMES_OF_THINGS:
            if column in self._columns[table]:
                values = things.get(column, []) + things["said"]
                rule = f"{column} in (select unnest($values::varchar[]))"
                if self._connection.execute(
                    f"select 1 from whole.{table} where {rule} limit 1", {"values": values}
                ).fetchone():
                    return rule, values
        return "$values::varchar[] is null", []


class _Comparison:
    def __init__(self, connection: duckdb.DuckDBPyConnection, query: Query, whole: pa.Table) -> None:
        self._connection, self._query, self.whole = connection, query, whole
        names = whole.column_names
        for name in query.key:
            if name not in names:
                raise LeakCheckError(unknown("column", name, names, "the query's answer"))
        is_float = {field.name: pa.types.is_floating(field.type) for field in whole.schema}
        self._key = query.key or tuple(name for name in names if not is_float[name])
        self._others = [name for name in names if name not in self._key]
        self._differs = {
            name: f"(a.{identifier(name)} is distinct from b.{identifier(name)})"
            if not is_float[name]
            else f"(a.{identifier(name)} is distinct from b.{identifier(name)} and not coalesce("
            f"abs(a.{identifier(name)} - b.{identifier(name)})"
            f" <= {TOLERANCE} * greatest(abs(a.{identifier(name)}), abs(b.{identifier(name)})), false))"
            for name in self._others
        }

    def expect_stable(self, again: pa.Table) -> None:
        for leak in self.differences(self.whole, again, _END):
            raise LeakCheckError(
                f"asked twice, the query answers twice: {told(leak)}; give its windows, limits and samples a full order"
            )

    def first_time(self) -> dt.datetime | None:
        """The first time at which a row of the answer was to be had."""
        if self._query.time is None:
            return None
        self._connection.register("answer_rows", self.whole)
        row = self._connection.execute(f"select min({self._query.time})::timestamp from answer_rows").fetchone()
        return row[0] if row else None

    def things(self) -> dict[str, list[str]]:
        """What the query is about: the values of the answer's columns that say so, and the texts ``said`` in it."""
        found = {"said": [text.replace("''", "'") for text in re.findall(r"'((?:[^']|'')*)'", self._query.sql)]}
        self._connection.register("answer_rows", self.whole)
        for column in {name.lower() for name in self.whole.column_names} & {*_NAMES_OF_THINGS}:
            rows = self._connection.execute(f"select distinct {column}::varchar from answer_rows").fetchall()
            found[column] = [value for (value,) in rows if value is not None]
        return found

    def count(self, answer: pa.Table, known_at: dt.datetime) -> int:
        self._connection.register("answer_rows", answer)
        asked = f"select count(*) from {self._rows('answer_rows', known_at)}"
        (rows,) = self._connection.execute(asked).fetchone() or (0,)
        return int(rows)

    def _rows(self, rows: str, known_at: dt.datetime) -> str:
        """Those up to ``known_at``. An answer of versions, which are had when they become known, is cut as its inputs
        are: nobody knows yet which will end."""
        time = self._query.time
        if time is None:
            return rows
        is_versions = time.lower() == "known_from" and "known_to" in self.whole.column_names
        ends = f"replace (case when known_to <= timestamp_ns '{known_at}' then known_to end as known_to)"
        return (
            f"(select * {ends if is_versions else ''} from {rows} where ({time})::timestamp <= timestamp '{known_at}')"
        )

    def differences(self, whole: pa.Table, cut: pa.Table, known_at: dt.datetime) -> Iterator[Leak]:
        """The rows up to ``known_at`` in which two answers differ, equal keys compared in the order of their values."""
        key = [identifier(name) for name in self._key]
        partition = f"partition by {', '.join(key)}" if key else ""
        order = f"order by {', '.join(identifier(name) for name in self._others)}" if self._others else ""
        copies = f"row_number() over ({partition} {order}) as copy"
        on = " and ".join([*(f"a.{name} is not distinct from b.{name}" for name in key), "a.copy = b.copy"])
        changed = " or ".join(["a.copy is null", "b.copy is null", *self._differs.values()])
        self._connection.register("whole_rows", whole)
        self._connection.register("cut_rows", cut)
        columns = [
            *(f"if(a.copy is null, b.{name}, a.{name})" for name in key),
            "case when a.copy is null then 'whole' when b.copy is null then 'cut' else '' end",
            *(f"{rule}, a.{identifier(name)}, b.{identifier(name)}" for name, rule in self._differs.items()),
        ]
        rows = self._connection.execute(
            f"""
            with a as (select *, {copies} from {self._rows("whole_rows", known_at)}),
            b as (select *, {copies} from {self._rows("cut_rows", known_at)})
            select {", ".join(columns)} from a full join b on {on} where {changed} order by all
            """
        ).fetchall()
        for row in rows:
            values, missing, rest = row[: len(key)], row[len(key)], row[len(key) + 1 :]
            differs = {
                name: (rest[3 * n + 1], rest[3 * n + 2])
                for n, name in enumerate(self._others)
                if rest[3 * n] and not missing
            }
            yield Leak(dict(zip(self._key, values, strict=True)), known_at, differs, missing, ())


def find(settings: Settings, name: str) -> str:
    """The query of a file, of a model of this project, or of another project's, as the last build compiled it.

    Models of this project are compiled anew, as for a full refresh: the query of an incremental build is about the rows
    that were new then. That waits for the writers' lock, and writes no table. Raises ``LeakCheckError``, and
    ``LakeBusyError`` where the lock is not to be had.
    """
    if Path(name).is_file():
        return Path(name).read_text(encoding="utf-8")
    compiled = settings.state_dir / "target" / "compiled"
    project = Project(settings)
    files = {file.stem: file for file in compiled.rglob("*.sql") if "/models/" in file.as_posix()}
    try:
        models = {
            Path(node.original_file_path).stem: node
            for node in project.manifest.nodes.values()
            if node.resource_type == "model"
        }
        if model := models.get(name):
            with writers_lock(settings):
                project.run(["compile", "--full-refresh", "--select", model.search_name])
            files[name] = compiled / model.package_name / model.original_file_path
    except BuildFailedError as error:
        raise LeakCheckError(f"{name} cannot be compiled: {error}") from error
    if name not in files:
        raise LeakCheckError(
            f"{name} is no file, and {unknown('model', name, sorted({*files, *models}), str(compiled))}"
        )
    return files[name].read_text(encoding="utf-8")


def told(leak: Leak) -> str:
    """A leak in one line."""
    row = ", ".join(f"{name} {value}" for name, value in leak.row.items()) or "the row"
    if leak.missing == "cut":
        what = "is there only with what became known later"
    elif leak.missing == "whole":
        what = "is missing for what became known later"
    else:
        what = ", ".join(f"{name} is {said}, and could be {cut}" for name, (said, cut) in leak.differs.items())
    inputs = ", ".join(leak.inputs) or NO_ONE_INPUT
    return f"{row}: {what}, as known at {leak.known_at} ({inputs})"
