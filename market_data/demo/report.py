"""What the demo shows of its lake: counts, what was planted and found, one question on two dates, a picture.

segments of the raw zone ── what went through Kafka, if anything did
published version ── conservation, tables, quarantine ── counts
                 ├── plantings, counts of truth.json ── agreement, or what is wrong
                 ├── the same question, two values of known_at ── answers side by side
                 └── the revised series ── revision.png
"""

from __future__ import annotations

import datetime as dt
import math
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path

import duckdb
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loaders.settings import Settings
from market_data import lake
from market_data.client import Client, connect
from market_data.demo import broker, check, picture
from market_data.demo.stream import PARTITIONS, Stream
from market_data.demo.truth import Question, Truth
from market_data.demo.world import TRUTH

PICTURE = "revision.png"
CHANGED = "bold yellow"


@dataclass(frozen=True)
class Report:
    """Shows the published version of the demo's lake.

    `landings` are by the order of the deliveries; `stream` is the way through Kafka, None if all came as files.
    """

    place: Path
    settings: Settings
    screen: Console
    truth: Truth
    landings: Mapping[int, check.Landing]
    stream: Stream | None = None

    def show(self) -> list[str]:
        """Show all of it; answer what is wrong, nothing if the warehouse is what the truth says."""
        with (
            connect(self.settings) as client,
            closing(lake.open_version(self.settings, client.version)) as connection,
        ):
            self._kafka()
            wrong = self._conservation(connection)
            self._tables(connection)
            self._quarantine(connection)
            wrong += self._findings(connection)
            question = self._question_of("second_estimate")
            self._revision(client, question)
            wrong += self._redelivered_bar(client)
            self._picture(client)
        self._next(question)
        return wrong

    def _kafka(self) -> None:
        if self.stream is None:
            return
        self._heading("By way of Kafka", "each capture was sent to its feed's topic, and loaded from there")
        table = self._table("topic", "partitions", "captures", "records", "segments")
        for topic, partitions, *numbers in map(astuple, self.stream.passed()):
            table.add_row(topic, f"{partitions} of {PARTITIONS}", *(f"{number:,}" for number in numbers))
        self.screen.print(table)
        self._paste("broker", f"stopped at the end, its topics kept; again: {broker.start_command(self.place)}")

    # --- counts -------------------------------------------------------------------------------------------

    def _conservation(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        self._heading("Each raw record, in one place", "observability.conservation, by feed")
        table = self._table("feed", "raw", "canonical", "repeats", "broken", "control", "unread", "adds up")
        rows = connection.execute(
            "select feed, sum(raw_records), sum(canonical_records), sum(duplicates), sum(quarantined),"
            " sum(control), sum(unread), bool_and(is_conserved)"
            " from observability.conservation group by rollup (feed) order by feed nulls last"
        ).fetchall()
        for feed, *numbers, adds_up in rows:
            cells = [f"{number:,}" if number else "-" for number in numbers]
            table.add_row(
                feed or "all",
                *cells,
                _verdict("yes" if adds_up else "no", adds_up),
                style=None if feed else "bold",
            )
        self.screen.print(table)
        return [f"the records of {feed} do not add up" for feed, *_, adds_up in rows if feed and not adds_up]

    def _tables(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._heading("The tables", "versions: what a key was known to be, from when to when")
        table = self._table("table", "keys", "versions", "first known", "last known")
        names = connection.execute(
            "select table_schema || '.' || table_name from information_schema.columns"
            " where table_catalog = 'lake' and table_schema in ('canonical', 'research')"
            " and column_name = 'known_to' order by all"
        ).fetchall()
        for (name,) in names:
            keys, versions, first, last = connection.execute(
                "select count(*) filter (known_to is null), count(*), min(known_from)::date::varchar,"
                f" max(known_from)::date::varchar from {name}"
            ).fetchall()[0]
            table.add_row(name, f"{keys:,}", f"{versions:,}", first, last)
        self.screen.print(table)

    def _quarantine(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._heading("Broken records, and why", "canonical.quarantine keeps their bytes")
        planted = Counter(plant.reason for plant in self.truth.planted if plant.kind == "defect")
        table = self._table("reason", "found", "for instance", text=("for instance",))
        rows = connection.execute(
            "select reason, count(*), min_by(source || ':' || source_position, place), min_by(detail, place)"
            " from (select *, row(length(source), source, source_position) as place from canonical.quarantine)"
            " group by reason order by count(*) desc, reason"
        ).fetchall()
        for reason, count, place, detail in rows:
            found = _verdict(f"{count} of {planted[reason]}", count == planted[reason])
            table.add_row(reason, found, f"{escape(detail or '')}  [dim]{escape(place)}[/dim]")
        self.screen.print(table)

    def _findings(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        self._heading("Planted, and found", f"place by place, with {self.place / 'world' / TRUTH}")
        kinds = check.plantings(connection, self.truth, self.landings)
        totals = check.counts(connection, self.truth, self.landings)
        for findings in (kinds, totals):
            half = (len(findings) + 1) // 2
            grid = Table.grid(padding=(0, 4))
            grid.add_row(_found(findings[:half]), _found(findings[half:]))
            self.screen.print(grid)
        return [
            f"{finding.what}: {finding.found} of {finding.planted}" for finding in kinds + totals if not finding.agrees
        ]

    # --- as it was known ----------------------------------------------------------------------------------

    def _revision(self, client: Client, question: Question) -> None:
        series, times = question.series_id, (question.ask_before, question.ask_after)
        self._heading("One question, as of two dates", f"{series} was revised on {question.revision_published_on}")
        table = self._table("quarter from", *(f"as known at\n{_minute(known_at)} UTC" for known_at in times), "change")
        before, after = (_values(client, series, known_at) for known_at in times)
        for day in sorted(after)[-4:]:
            change = after[day] - before[day] if day in before else None
            cells = [f"{values[day]:,.3f}" if day in values else "" for values in (before, after)]
            table.add_row(str(day), *cells, f"{change:+,.3f}" if change else "", style=CHANGED if change else None)
        self.screen.print(table)
        for known_at in times:
            self._paste("SQL", _series_sql(series, known_at))
        for known_at in times:
            self._paste("Python", f"market_data.connect().macro('{series}', known_at='{known_at}').pl()")

    def _redelivered_bar(self, client: Client) -> list[str]:
        """A day's bar before and after its trades came again, corrected; and as an earlier version tells it."""
        symbol, session, delivered_at = self._corrected_trade(client)
        times = [delivered_at - dt.timedelta(hours=1), delivered_at + dt.timedelta(hours=1)]
        self._heading(
            "A day delivered again",
            f"trades of {session} came again, corrected, at {delivered_at:%Y-%m-%d %H:%M} UTC",
        )
        table = self._table(f"{symbol} as known at", "open", "high", "low", "close", "volume", "vwap", "trades")
        bars = [_bar(client, symbol, session, known_at) for known_at in times]
        for known_at, bar in zip(times, bars, strict=True):
            table.add_row(f"{known_at:%Y-%m-%d %H:%M} UTC", *_bar_cells(bar, bars[0]))
        self.screen.print(table)
        days = f"start='{session}', end='{session + dt.timedelta(days=1)}'"
        self._paste("SQL", _bar_sql(symbol, session, times[1]))
        self._paste(
            "Python",
            f"market_data.connect().bars('{symbol}', known_at='{times[1]:%Y-%m-%dT%H:%MZ}', {days}).pl()",
        )
        first = client.sql("select min(version) as version from observability.releases").arrow["version"][0].as_py()
        with Client(lake.open_version(self.settings, first), first) as earlier:
            before = _bar(earlier, symbol, session, times[0])
        # Sums of floating-point numbers differ in their last digits from build to build.
        same = all(math.isclose(before[name], bars[0][name], rel_tol=1e-12) for name in _PLACES)
        said = "the same" if same else "[red]another[/red]"
        self.screen.print(
            f"  [dim]Version {first}, built before the correction came, answers the first with {said} bar.[/dim]",
            highlight=False,
        )
        return [] if same else [f"versions {first} and {client.version} differ on {symbol} as known at {times[0]}"]

    def _corrected_trade(self, client: Client) -> tuple[str, dt.date, dt.datetime]:
        """Ticker, session and delivery time of the trade that the second delivery of a day corrects."""
        again = {plant.path for plant in self.truth.planted if plant.kind == "redelivery"}
        delivery = next(d for d in self.truth.deliveries if d.feed == "massive_trades" and d.path in again)
        (trade,) = client.sql(
            "select symbol, event_time::date as session from canonical.trades"
            " where load_id = ? and revision > 0 and known_to is null and not is_cancelled",
            [self.landings[delivery.order].loads[0]],
        ).arrow.to_pylist()
        return trade["symbol"], trade["session"], dt.datetime.fromisoformat(str(delivery.delivered_at))

    def _picture(self, client: Client) -> None:
        question = self._question_of("benchmark")
        file = self.place / PICTURE
        earlier, later = (
            picture.Known(f"{_minute(known_at)} UTC", _values(client, question.series_id, known_at))
            for known_at in (question.ask_before, question.ask_after)
        )
        picture.draw(
            file,
            title=f"{question.series_id} as it was known before and after {question.revision_published_on}",
            unit="made-up billions",
            earlier=earlier,
            later=later,
            caption="Source: research.macro_series_as_of(known_at), "
            f"lake version {client.version}; a series made by mdp demo in ALFRED's format",
        )
        self._heading("One picture", "all of a series' past, before a benchmark revision and after it")
        self.screen.print(f"  {escape(str(file))}", highlight=False, soft_wrap=True)

    def _question_of(self, name: str) -> Question:
        return next(question for question in self.truth.questions if question.name == name)

    # --- and then -----------------------------------------------------------------------------------------

    def _next(self, question: Question) -> None:
        self._heading("What to try next", "paste it here")
        mdp, python, series = _program("mdp"), _program("python"), question.series_id
        names = (("MDP_RAW", "raw"), ("MDP_LAKE", "lake.sqlite"), ("MDP_LAKE_DATA", "lake_data"))
        settings = " ".join(f"{name}={shlex.quote(str(self.place / own))}" for name, own in names)
        if self.stream is not None:
            settings += f" MDP_KAFKA={self.stream.settings.kafka}"
        code = f"import market_data as md; print(md.connect().macro('{series}', known_at=md.LATEST).pl())"
        for command in (
            f"export {settings}",
            f"{mdp} status",
            f'{mdp} sql "{_series_sql(series, question.ask_before)}"',
            f'{mdp} sql "select reason, source, source_position, detail from canonical.quarantine" --csv',
            f'{python} -c "{code}"',
            f"{mdp} connect",
        ):
            self.screen.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)

    # --- how it looks -------------------------------------------------------------------------------------

    def _heading(self, title: str, note: str) -> None:
        self.screen.print(f"\n[bold cyan]{title}[/bold cyan]  [dim]{escape(note)}[/dim]", highlight=False)

    def _paste(self, language: str, text: str) -> None:
        self.screen.print(f"  [dim]{language:<7}[/dim] {escape(text)}", highlight=False, soft_wrap=True)

    def _table(self, *names: str, text: Sequence[str] = ()) -> Table:
        """A light table: the first column and those named as text to the left, numbers to the right."""
        gap = 1 if self.screen.width >= 90 else 0
        table = Table(box=SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
        for number, name in enumerate(names):
            if name in text:
                table.add_column(name)
            else:
                table.add_column(name, justify="right" if number else "left", no_wrap=True)
        return table


def _verdict(text: str, is_good: bool) -> str:
    return f"[green]{text}[/green]" if is_good else f"[bold red]{text}[/bold red]"


def _found(findings: Sequence[check.Finding]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=26)
    grid.add_column(width=10, justify="right")
    for finding in findings:
        grid.add_row(finding.what, _verdict(f"{finding.found} of {finding.planted}", finding.agrees))
    return grid


def _values(client: Client, series_id: str, known_at: str) -> dict[dt.date, float]:
    """Values by the first day of their period; missing ones left out."""
    rows = client.macro(series_id, known_at=known_at).arrow.to_pylist()
    return {row["observation_date"]: row["value"] for row in rows if row["value"] is not None}


def _bar(client: Client, symbol: str, session: dt.date, known_at: dt.datetime) -> dict[str, float]:
    end = session + dt.timedelta(days=1)
    (bar,) = client.bars(symbol, known_at=known_at, start=session, end=end).arrow.to_pylist()
    return {name: bar[name] for name in _PLACES}


_PLACES = {"open": 2, "high": 2, "low": 2, "close": 2, "volume": 3, "vwap": 4, "trade_count": 0}


def _bar_cells(bar: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """A bar's numbers as text, those that are not as before in colour."""
    cells = {name: f"{bar[name]:,.{places}f}" for name, places in _PLACES.items()}
    return [text if bar[name] == before[name] else f"[{CHANGED}]{text}[/]" for name, text in cells.items()]


def _series_sql(series_id: str, known_at: str) -> str:
    return f"from research.macro_series_as_of('{_minute(known_at)}') where series_id = '{series_id}'"


def _bar_sql(symbol: str, session: dt.date, known_at: dt.datetime) -> str:
    macro = f"research.bars_1d_as_of('{known_at:%Y-%m-%d %H:%M}')"
    return f"from {macro} where symbol = '{symbol}' and session_date = '{session}'"


def _minute(instant: str) -> str:
    return f"{dt.datetime.fromisoformat(instant):%Y-%m-%d %H:%M}"


def _program(name: str) -> str:
    """How to call a program of this environment from the current directory."""
    program, here = Path(sys.prefix) / "bin" / name, Path.cwd()
    return shlex.quote(str(program.relative_to(here) if program.is_relative_to(here) else program))
