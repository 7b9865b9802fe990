"""`mdp demo`: a small world of vendor files, loaded, built, and shown.

    DIR/world ── load, in the order of arrival ──> DIR/raw ── build, load, build ──> DIR/lake.sqlite, DIR/lake_data
        └─ truth.json ── compared ──> what was planted was found                          │
                                      one question, asked as of two times <──────────────┤
                                      DIR/revision.png <──────────────────────────────────┘

Everything is below one directory, which a marker file says to be the demo's own. Run again, the demo finds
everything loaded and built already, says so, and shows it; `fresh` makes it anew.
"""

from __future__ import annotations

import datetime as dt
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import duckdb
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loaders.files import load
from loaders.ledger import Ledger
from loaders.settings import Settings
from loaders.store import open_store
from market_data import build as building
from market_data import lake
from market_data.client import Client, connect
from market_data.demo import check
from market_data.demo.truth import Delivery, Question, Truth
from market_data.demo.world import TRUTH, generate

MARKER = ".mdp-demo"
OWN = (
    "world",
    "raw",
    "lake.sqlite",
    "lake.sqlite-wal",
    "lake.sqlite-shm",
    "lake_data",
    "lake.state",
    "revision.png",
)
"""All that the demo makes in its directory; nothing else in it is ever removed."""
FAILED = "[bold red]"


def run(directory: Path, screen: Console, *, fresh: bool = False) -> None:
    """Make, load, build and show the demo in `directory`; with `fresh`, after removing an earlier one.

    Raises click.ClickException if the directory holds something that is not the demo's, and if anything
    planted was not found or any count does not add up (then after showing all of it).
    """
    began = time.monotonic()
    place = directory.expanduser()
    again = _claim(place, fresh)
    settings = replace(
        Settings.from_env(),
        raw=str((place / "raw").absolute()),
        lake=str((place / "lake.sqlite").absolute()),
        lake_data=str((place / "lake_data").absolute()),
    )
    Demo(place, settings, screen, again).run(began)


def _claim(place: Path, fresh: bool) -> bool:
    """Make the directory the demo's own; answer whether an earlier demo is in it."""
    marker = place / MARKER
    if place.exists() and not place.is_dir():
        raise click.ClickException(f"{place} is not a directory; name another one with --directory")
    if not marker.is_file():
        if place.is_dir() and any(place.iterdir()):
            raise click.ClickException(
                f"{place} holds files and was not made by the demo, so nothing was touched;"
                " name an empty or a new directory with --directory"
            )
        place.mkdir(parents=True, exist_ok=True)
        marker.write_text("This directory was made by `mdp demo`, which may remove what it made here.\n")
        return False
    if fresh:
        for name in OWN:
            own = place / name
            if own.is_dir() and not own.is_symlink():
                shutil.rmtree(own)
            else:
                own.unlink(missing_ok=True)
        return False
    return (place / "lake.sqlite").exists()


@dataclass
class Demo:
    """One run of the demo: where it is, and what became of each delivery."""

    place: Path
    settings: Settings
    screen: Console
    again: bool
    load_ids: dict[int, str] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)

    def run(self, began: float) -> None:
        """All of it, in order."""
        self.screen.rule("[bold]mdp demo", style="dim")
        if self.again:
            self._say("This demo stands already: its files are loaded again to show that nothing changes.")
            self._say("[dim]To make it anew: mdp demo --fresh[/dim]")
        truth = self._world()
        self._load_and_build(truth)
        with (
            connect(self.settings) as client,
            closing(lake.open_version(self.settings, client.version)) as connection,
        ):
            self._layers(connection)
            self._quarantine(connection, truth)
            findings = self._found(connection, truth)
            question = next(one for one in truth.questions if one.name == "second_estimate")
            self._question(client, question)
            self._bar(client, truth)
            picture = self._picture(client, truth)
        self._next(question)
        wrong = [finding.what for finding in findings if not finding.agrees] + self.surprises
        if wrong:
            raise click.ClickException(
                "the warehouse differs from what is known of its world: " + "; ".join(wrong)
            )
        seconds = time.monotonic() - began
        self._say(
            f"\n[dim]All counts agree with the world's truth. {seconds:.0f} s; the picture is {escape(str(picture))}[/dim]"
        )

    # --- making it ----------------------------------------------------------------------------------------

    def _world(self) -> Truth:
        world = self.place / "world"
        started = time.monotonic()
        written = world / TRUTH
        if written.is_file():
            truth = Truth.read(written)
        else:
            with self._bar_of("making a world of vendor files", None):
                truth = generate(world)
        feeds = len({delivery.feed for delivery in truth.deliveries})
        records = sum(delivery.records for delivery in truth.deliveries)
        self._step(
            "world",
            f"{len(truth.deliveries)} vendor files of {feeds} feeds with {records:,} records, {len(truth.planted)} oddities"
            f" planted among them: {escape(str(world))}",
            started,
        )
        return truth

    def _load_and_build(self, truth: Truth) -> None:
        """Load in the order of arrival, and build twice: before the corrections and late files, and after."""
        corrected = {plant.path for plant in truth.planted if plant.kind == "redelivery"}
        cut = next(delivery.order for delivery in truth.deliveries if delivery.path in corrected)
        parts = (
            ("until the first correction", [one for one in truth.deliveries if one.order < cut]),
            ("corrected, late and all others", [one for one in truth.deliveries if one.order >= cut]),
        )
        for words, deliveries in parts:
            self._load(words, deliveries)
            self._build()

    def _load(self, words: str, deliveries: Sequence[Delivery]) -> None:
        started = time.monotonic()
        refused = self._refused_before()
        told: list[str] = []
        landed = records = unchanged = 0
        with self._bar_of("loading", len(deliveries)) as advance:
            for done, delivery in enumerate(deliveries, start=1):
                advance(delivery.path.rpartition("/")[2], done, len(deliveries))
                name = delivery.path.rpartition("/")[2]
                if self.again and (delivery.feed, name) in refused and delivery.outcome == "refused":
                    self.load_ids[delivery.order] = refused[delivery.feed, name]
                    continue
                outcome = load(
                    [self.place / "world" / delivery.path],
                    delivery.feed,
                    settings=self.settings,
                    delivered_at=delivery.delivered_at,
                    attributes=delivery.attributes,
                )[0]
                if outcome.status != "unchanged" or delivery.outcome != "unchanged":
                    self.load_ids[delivery.order] = outcome.entry.load_id
                if outcome.status in ("loaded", "redelivered"):
                    landed, records = landed + 1, records + outcome.entry.records
                unchanged += outcome.status == "unchanged"
                if outcome.status != delivery.outcome and not (self.again and outcome.status == "unchanged"):
                    self.surprises.append(f"{delivery.path} was {outcome.status}, not {delivery.outcome}")
                if outcome.status not in ("loaded", "unchanged") or (
                    outcome.status == delivery.outcome == "unchanged" and not self.again
                ):
                    told.append(f"{name}: {outcome.message}")
        if self.again:
            text = f"{unchanged} files, {words}: loaded before, nothing changes"
        else:
            text = f"{landed} files, {words}: {records:,} records into the raw zone"
        self._step("load", text, started)
        for line in told:
            self._say(f"         [dim]{escape(line)}[/dim]")

    def _refused_before(self) -> dict[tuple[str, str], str]:
        ledger = Ledger(open_store(self.settings.raw, self.settings.s3))
        return {(entry.feed, entry.source): entry.load_id for entry in ledger.entries("refused/")}

    def _build(self) -> None:
        started = time.monotonic()
        with self._bar_of("building", None) as advance:
            outcome = building.build(self.settings, progress=advance)
        text = (
            f"version {outcome.version} published, {outcome.new_loads} new ledger entries taken in, every test passed"
            if outcome.built
            else f"nothing new: version {outcome.version} stands"
        )
        self._step("build", text, started)

    # --- showing it ---------------------------------------------------------------------------------------

    def _layers(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._heading("Every raw record is in one place", "observability.conservation, summed by feed")
        table = _table("feed", "raw", "canonical", "repeats", "broken", "control", "unread", "adds up")
        rows = connection.execute(
            "select feed, sum(raw_records), sum(canonical_records), sum(duplicates), sum(quarantined), sum(control),"
            " sum(unread), bool_and(is_conserved) from observability.conservation"
            " group by rollup (feed) order by feed nulls last"
        ).fetchall()
        for feed, *numbers, adds_up in rows:
            verdict = "[green]yes[/green]" if adds_up else f"{FAILED}no[/]"
            style = None if feed else "bold"
            table.add_row(
                feed or "all", *(f"{number:,}" if number else "·" for number in numbers), verdict, style=style
            )
            if not adds_up and feed:
                self.surprises.append(f"the records of {feed} do not add up")
        self.screen.print(table)
        self._heading("The tables", "a row for each version of each key")
        table = _table("table", "keys", "versions", "times known", left=("table", "times known"))
        for name in _tables(connection):
            keys, versions, first, last = connection.execute(
                f"select count(*) filter (known_to is null), count(*), min(known_from)::date::varchar,"
                f" max(known_from)::date::varchar from {name}"
            ).fetchall()[0]
            table.add_row(name, f"{keys:,}", f"{versions:,}", f"{first} to {last}")
        self.screen.print(table)

    def _quarantine(self, connection: duckdb.DuckDBPyConnection, truth: Truth) -> None:
        self._heading("Set aside, and why", "canonical.quarantine; the bytes stay in it and in the raw zone")
        table = _table("reason", "n", "for instance", "detail", left=("reason", "for instance", "detail"))
        table.columns[2].overflow = table.columns[3].overflow = "fold"
        rows = connection.execute(
            "select reason, count(*), min_by((source || ':' || source_position, detail), (length(source), source, source_position))"
            " from canonical.quarantine group by reason order by count(*) desc, reason"
        ).fetchall()
        for reason, count, (place, detail) in rows:
            table.add_row(reason, str(count), escape(place), escape(detail or ""))
        self.screen.print(table)

    def _found(self, connection: duckdb.DuckDBPyConnection, truth: Truth) -> list[check.Finding]:
        findings = check.plantings(connection, truth, self.load_ids)
        totals = check.counts(connection, truth, self.load_ids)
        self._heading(
            "What was planted was found", f"{escape(str(self.place / 'world' / TRUTH))}, place by place"
        )
        half = (len(findings) + 1) // 2
        self.screen.print(_side_by_side(_finding_rows(findings[:half]), _finding_rows(findings[half:])))
        half = (len(totals) + 1) // 2
        self.screen.print(_side_by_side(_finding_rows(totals[:half]), _finding_rows(totals[half:])))
        return findings + totals

    def _question(self, client: Client, question: Question) -> None:
        before, after = _minute(question.ask_before), _minute(question.ask_after)
        self._heading(
            "One question, two dates",
            f"the last quarters of {question.series_id}; a revision was published on {question.revision_published_on}",
        )
        earlier = _values(client, question.series_id, question.ask_before)
        later = _values(client, question.series_id, question.ask_after)
        table = _table("quarter from", f"known at {before} UTC", f"known at {after} UTC", "")
        for day in sorted(later)[-4:]:
            one, other = earlier.get(day), later[day]
            changed = one != other
            cells = [
                f"{day:%Y-%m-%d}",
                _number(one),
                _number(other),
                f"{other - one:+,.3f}" if changed and one is not None and other is not None else "same",
            ]
            table.add_row(*cells, style="bold yellow" if changed else None)
        self.screen.print(table)
        for known_at in (before, after):
            self._paste("SQL", _macro_sql(question.series_id, known_at))
        for known_at in (question.ask_before, question.ask_after):
            self._paste(
                "Python", f"market_data.connect().macro('{question.series_id}', known_at='{known_at}').pl()"
            )

    def _bar(self, client: Client, truth: Truth) -> None:
        """A day's bar before and after its trades were delivered again."""
        symbol, session, delivered_at = _corrected_bar(client, truth)
        redelivered = dt.datetime.fromisoformat(delivered_at)
        before, after = redelivered - dt.timedelta(hours=1), redelivered + dt.timedelta(hours=1)
        self._heading(
            "A day delivered again",
            f"{symbol} on {session}: its trades came again, corrected, at {_minute(delivered_at)} UTC",
        )
        table = _table("known at (UTC)", "open", "high", "low", "close", "volume", "vwap", "trades")
        for known_at in (before, after):
            bar = client.bars(
                symbol, known_at=known_at, start=session, end=_day_after(session)
            ).arrow.to_pylist()[0]
            table.add_row(
                f"{known_at:%Y-%m-%d %H:%M}",
                *(f"{bar[name]:,.2f}" for name in ("open", "high", "low", "close")),
                f"{bar['volume']:,.3f}", f"{bar['vwap']:,.4f}", f"{bar['trade_count']}",
            )  # fmt: skip
        self.screen.print(table)
        self._paste("SQL", _bar_sql(symbol, session, f"{after:%Y-%m-%d %H:%M}"))
        self._paste(
            "Python",
            f"market_data.connect().bars('{symbol}', known_at='{after:%Y-%m-%dT%H:%MZ}', start='{session}', end='{_day_after(session)}').pl()",
        )

    def _picture(self, client: Client, truth: Truth) -> Path:
        from market_data.demo import picture

        file = self.place / "revision.png"
        question = next(one for one in truth.questions if one.name == "benchmark")
        earlier, later = (
            picture.Known(
                f"{_minute(known_at)} UTC",
                {
                    day: value
                    for day, value in _values(client, question.series_id, known_at).items()
                    if value is not None
                },
            )
            for known_at in (question.ask_before, question.ask_after)
        )
        with self._bar_of("drawing", None):
            picture.draw(
                file,
                title=f"{question.series_id}: the past as it was known, before and after {question.revision_published_on}",
                unit="billions, made up",
                earlier=earlier,
                later=later,
                caption=f"Source: research.macro_series_as_of, lake version {client.version};"
                " series made by mdp demo in ALFRED's format",
            )
        self._heading("One picture", "all of the history before a benchmark revision, and after it")
        self._say(f"  {escape(str(file))}", soft_wrap=True)
        return file

    def _next(self, question: Question) -> None:
        self._heading("What to try next", "paste into this shell")
        mdp = _program("mdp")
        paths = (("MDP_RAW", "raw"), ("MDP_LAKE", "lake.sqlite"), ("MDP_LAKE_DATA", "lake_data"))
        export = "export " + " ".join(f"{name}={shlex.quote(str(self.place / own))}" for name, own in paths)
        python = f"import market_data as md; print(md.connect().macro('{question.series_id}', known_at=md.LATEST).pl())"
        for command in (
            export,
            f"{mdp} status",
            f'{mdp} sql "{_macro_sql(question.series_id, _minute(question.ask_after))}"',
            f'{mdp} sql "from canonical.quarantine select reason, source, source_position, detail" --csv',
            f'{_program("python")} -c "{python}"',
            f"{mdp} connect",
        ):
            self._say(f"  {escape(command)}", soft_wrap=True)

    # --- writing ------------------------------------------------------------------------------------------

    def _say(self, text: str, *, soft_wrap: bool = False) -> None:
        self.screen.print(text, highlight=False, soft_wrap=soft_wrap)

    def _heading(self, title: str, note: str) -> None:
        self._say(f"\n[bold]{title}[/bold] [dim]({note})[/dim]")

    def _step(self, what: str, text: str, started: float) -> None:
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(width=5)
        grid.add_column(ratio=1)
        grid.add_column(justify="right")
        grid.add_row(f"[bold cyan]{what}[/bold cyan]", text, f"[dim]{time.monotonic() - started:.1f} s[/dim]")
        self.screen.print(grid, highlight=False)

    def _paste(self, language: str, text: str) -> None:
        self._say(f"  [dim]{language:<7}[/dim]{escape(text)}", soft_wrap=True)

    @contextmanager
    def _bar_of(self, what: str, total: int | None) -> Iterator[Callable[[str, int, int], None]]:
        """A progress bar that leaves no trace; nothing at all where the output is no terminal."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(
            *columns, console=self.screen, transient=True, disable=not self.screen.is_terminal
        ) as bar:
            task = bar.add_task(what, total=total)

            def advance(name: str, done: int, of: int) -> None:
                bar.update(task, completed=done, total=of, description=f"{what}: {name[:40]}")

            yield advance


def _tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Canonical and research tables that keep versions, in the order of the flow."""
    return [
        f"{schema}.{name}"
        for schema, name in connection.execute(
            "select table_schema, table_name from information_schema.columns"
            " where table_catalog = 'lake' and table_schema in ('canonical', 'research') and column_name = 'known_to'"
            " order by all"
        ).fetchall()
    ]


def _corrected_bar(client: Client, truth: Truth) -> tuple[str, str, str]:
    """Ticker, session and delivery time (UTC) of the trade that a day's second delivery corrects."""
    again = next(
        one
        for one in truth.deliveries
        if one.feed == "massive_trades"
        and any(p.kind == "redelivery" and p.path == one.path for p in truth.planted)
    )
    source = again.path.rpartition("/")[2]
    rows = client.sql(
        "select symbol, strftime(event_time, '%Y-%m-%d') as session from canonical.trades"
        " where source = ? and revision > 0 and not is_cancelled and known_to is null",
        [source],
    ).arrow.to_pylist()
    assert again.delivered_at is not None  # noqa: S101
    return rows[0]["symbol"], rows[0]["session"], again.delivered_at


def _bar_cells(bar: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """A bar's numbers as text, those that are not as before in colour."""
    places = {"open": 2, "high": 4, "low": 2, "close": 2, "volume": 3, "vwap": 4, "trade_count": 0}
    cells = {name: f"{bar[name]:,.{digits}f}" for name, digits in places.items()}
    return [text if bar[name] == before[name] else f"[bold yellow]{text}[/]" for name, text in cells.items()]


def _values(client: Client, series_id: str, known_at: str) -> dict[dt.date, float | None]:
    rows = client.macro(series_id, known_at=known_at).arrow.to_pylist()
    return {row["observation_date"]: row["value"] for row in rows}


def _macro_sql(series_id: str, known_at: str) -> str:
    return f"from research.macro_series_as_of('{known_at}') where series_id = '{series_id}'"


def _bar_sql(symbol: str, session: str, known_at: str) -> str:
    return (
        f"from research.bars_1d_as_of('{known_at}') where symbol = '{symbol}' and session_date = '{session}'"
    )


def _minute(instant: str) -> str:
    return f"{dt.datetime.fromisoformat(instant):%Y-%m-%d %H:%M}"


def _day_after(day: str) -> str:
    return str(dt.date.fromisoformat(day) + dt.timedelta(days=1))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.3f}"


def _program(name: str) -> str:
    """How to call a program of this Python's environment from the current directory."""
    path = Path(sys.prefix) / "bin" / name
    if not path.exists():
        return name
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _table(*names: str, left: Sequence[str] = ()) -> Table:
    """A light table: the first column to the left, numbers to the right."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1), show_edge=False)
    for number, name in enumerate(names):
        is_text = number == 0 or name in left
        table.add_column(name, justify="left" if is_text else "right", no_wrap=number == 0 or not is_text)
    return table


def _finding_rows(findings: Sequence[check.Finding]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(min_width=24)
    grid.add_column(justify="right", no_wrap=True)
    for finding in findings:
        count = f"{finding.found} of {finding.planted}"
        grid.add_row(finding.what, f"[green]{count}[/green]" if finding.agrees else f"{FAILED}{count}[/]")
    return grid


def _side_by_side(left: Table, right: Table) -> Table:
    grid = Table.grid(padding=(0, 4))
    grid.add_row(left, right)
    return grid
