"""A vendor's archive into the raw zone: the days that are missing, several at a time.

    source ── names that follow the feed's pattern ── of days in [from, to) ──┐
    ledger ── days that are there ────────────────────────────────────────────┼──▶ threads ── loaders/files.py
    calendar ── days that should be there ────────────────────────────────────┘         └──▶ a summary by day

A file on S3 is first copied to a temporary file, then loaded like any other. The ledger alone says what is done: an
interrupted run leaves nothing half, and the next one goes on. Threads do: hashing, gunzipping, parsing and writing all
happen outside Python's lock, and a new process would take longer to start than a day's file to load.
"""

from __future__ import annotations

import csv
import datetime as dt
import logging
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import click
import pyarrow.fs as pafs
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from loaders import logs
from loaders.cli import ACCEPT
from loaders.files import Accept, FileLoader, Outcome
from loaders.ledger import ENTRIES, Ledger
from loaders.paths import Found, expand
from loaders.reading import THREADS, blocks, file_system, in_threads, place
from loaders.registry import REGISTRY, Feed, RegistryError, find_feed, load_registry
from loaders.screens import screen
from loaders.settings import Settings, SettingsError
from loaders.store import StoreError, open_store
from loaders.times import parse_time

log = logging.getLogger(__name__)

SESSIONS = REGISTRY.parent / "sessions.csv"
DAY_FIELDS = ("session_date", "date")
"""What a file pattern may call the day of which a file is."""

Status = Literal["present", "landed", "refused", "missing", "left"]
Identity = frozenset[tuple[str, str]]
"""What a file's name says, the day included, without its time of delivery."""


class BackfillError(ValueError):
    """The backfill cannot be begun; the message says why."""


class _Interrupted(Exception):
    """The run is to stop; what a file has had written is removed."""


@dataclass(frozen=True)
class Archived:
    """A file of the archive: `given` is its path or s3:// URL, `found` is set where it is local."""

    given: str
    name: str
    size: int
    day: dt.date
    identity: Identity
    found: Found | None


@dataclass
class Report:
    """What became of each day. `left` days were not come to; `refusals` are lines for a person."""

    days: dict[dt.date, Status] = field(default_factory=dict)
    records: int = 0
    bytes: int = 0
    files: int = 0
    unstated: int = 0
    closed: int = 0
    others: int = 0
    refusals: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        """Whether every day that should be there is."""
        return not self.interrupted and set(self.days.values()) <= {"present", "landed"}


@dataclass
class Plan:
    """What there is to do, before anything is done."""

    todo: list[Archived]
    report: Report


def parse_day(text: str) -> dt.date:
    """Read 2024-06-03 or 20240603. Raises ValueError for anything else."""
    if len(text) not in (8, 10) or not text.isascii():
        raise ValueError(f"{text!r} is no date such as 2024-06-03")
    return dt.date.fromisoformat(text)


def expected_days(feed: Feed, first: dt.date, stop: dt.date) -> list[dt.date]:
    """Return the days of [first, stop) of which the feed should have data, by the registry's calendar.

    Today (UTC) and later days are left out. Raises BackfillError where the calendar does not reach.
    """
    calendar = feed.row["calendar"]
    days = [first + dt.timedelta(number) for number in range((stop - first).days)]
    today = dt.datetime.now(dt.UTC).date()
    days = [day for day in days if day < today]
    if calendar == "utc" or not days:
        return days
    with SESSIONS.open(encoding="utf-8", newline="") as file:
        sessions = {parse_day(row["session_date"]) for row in csv.DictReader(file) if row["calendar"] == calendar}
    if not sessions:
        raise BackfillError(f"the calendar {calendar} of feed {feed.name} is not in {SESSIONS.name}")
    if days[0].year < min(sessions).year or days[-1].year > max(sessions).year:
        raise BackfillError(
            f"the sessions of {calendar} are known for the years {min(sessions).year} to {max(sessions).year} only; "
            f"choose --from and --to within them"
        )
    return [day for day in days if day in sessions]


def plan(feed: Feed, first: dt.date, stop: dt.date, source: str, settings: Settings) -> Plan:
    """Compare archive, ledger and calendar. Raises BackfillError, or StoreError when a place does not answer."""
    _day_field(feed)
    if stop <= first:
        raise BackfillError(f"--to {stop} is not after --from {first}; the range is [from, to)")
    expected = expected_days(feed, first, stop)
    report = Report(days=dict.fromkeys(expected, "missing"))
    there, known = _there(feed, settings)
    for identity in there:
        if (day := _day(feed, dict(identity))) is not None and first <= day < stop:
            report.days[day] = "present"
    todo = []
    for files in _by_identity(_archived(feed, source, settings, report, first, stop)):
        day = files[0].day
        if files[0].identity in there or any((file.name, file.size) in known for file in files):
            report.days[day] = "present"
        elif len({file.given.removesuffix(".gz") for file in files}) > 1:
            names = ", ".join(file.given for file in files)
            report.refusals.append(
                f"{day}: {len(files)} files claim it: {names}; load the right one with mdp load file"
            )
            report.days[day] = "refused"
        else:
            todo.append(files[-1])  # of a file and the same name with .gz, the latter: it is what vendors send
    for file in todo:
        if report.days.get(file.day) != "refused":
            report.days[file.day] = "left"
    report.closed = len({file.day for file in todo} - set(expected))
    return Plan(sorted(todo, key=lambda file: (file.day, file.given)), report)


def run(
    plan: Plan,
    feed: Feed,
    settings: Settings,
    *,
    workers: int,
    delivered_at: str | None = None,
    accept: Collection[Accept] = (),
    stop: threading.Event | None = None,
    progress: Callable[[str, float], None] = lambda *_: None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Load what the plan says, with so many threads; `stop` may be set at any time.

    `accept` is that of `loaders.files.load`. `progress` is called, from any thread, with a file and how much of it is
    done, from 0 to 1. Raises StoreError when the raw zone or the source fails; what was landed until then stays.
    """
    report, stop = plan.report, stop or threading.Event()
    stated = None if delivered_at is None else parse_time(delivered_at)
    load = _Worker(feed, settings, stated, accept, stop, progress)
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(load, file): file for file in plan.todo}
        try:
            for future in as_completed(futures):
                file = futures.pop(future)
                try:
                    outcome = future.result()
                except _Interrupted:
                    report.interrupted = True
                    continue
                tell(_enter(report, file, outcome))
        finally:
            stop.set()  # of no effect unless something failed: what is under way then is not finished
    return report


def _enter(report: Report, file: Archived, outcome: Outcome) -> str:
    """Note what became of a file; return a line for a person. A day is refused if any file of it is."""
    if outcome.status == "refused":
        report.days[file.day] = "refused"
        report.refusals.append(f"{file.day}: {file.given}: {outcome.message}")
    else:
        landed = outcome.status != "unchanged"
        if report.days[file.day] != "refused":
            report.days[file.day] = "landed" if landed else "present"
        report.files += landed
        report.records += outcome.entry.records if landed else 0
        report.bytes += (outcome.entry.bytes or 0) if landed else 0
        report.unstated += landed and outcome.entry.delivered_at is None
    return f"{file.day}: {file.given}: {outcome.message}"


class _Worker:
    """Loads one file, wherever it is."""

    def __init__(
        self,
        feed: Feed,
        settings: Settings,
        delivered_at: int | None,
        accept: Collection[Accept],
        stop: threading.Event,
        progress: Callable[[str, float], None],
    ) -> None:
        self._feed, self._settings, self._delivered_at, self._accept = feed, settings, delivered_at, accept
        self._stop, self._progress = stop, progress

    def __call__(self, file: Archived) -> Outcome:
        self._check()
        if file.found is not None:
            return self._load(file, file.found)
        with tempfile.TemporaryDirectory(prefix="mdp-backfill-") as directory:
            path = Path(os.path.realpath(directory)) / "file"
            self._download(file, path)
            return self._load(file, Found(file.given, path, file.name))

    def _load(self, file: Archived, found: Found) -> Outcome:
        def progress(_: Path, done: int, total: int) -> None:
            self._check()
            self._progress(file.given, done / max(total, 1))

        return FileLoader(self._feed, self._settings, self._delivered_at, {}, progress, self._accept).load(found)

    def _download(self, file: Archived, path: Path) -> None:
        try:
            files = file_system(file.given, self._settings.s3)
            with files.open_input_stream(place(file.given), compression=None) as source, path.open("xb") as copy:
                for block in blocks(source):
                    self._check()
                    copy.write(block)
        except OSError as error:
            raise StoreError(f"cannot copy {file.given} to {path.parent}: {error}") from error
        if path.stat().st_size != file.size:
            raise StoreError(f"{file.given} gave {path.stat().st_size:,} bytes of {file.size:,}")

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Interrupted


# What is there, and what could be.


def _day_field(feed: Feed) -> str:
    for name in DAY_FIELDS:
        if f"<{name}>" in feed.file_pattern:
            return name
    raise BackfillError(
        f"the files of feed {feed.name} are not of a day each: its file_pattern {feed.file_pattern!r} has no "
        f"<session_date>; load them with mdp load file"
    )


def _day(feed: Feed, attributes: Mapping[str, str]) -> dt.date | None:
    try:
        return parse_day(attributes[_day_field(feed)])
    except (KeyError, ValueError):
        return None


def _identity(feed: Feed, attributes: Mapping[str, str]) -> Identity:
    """Return what tells a file from the feed's others: the values of its name, its day written in one way."""
    named = {name: value for name, value in attributes.items() if f"<{name}>" in feed.file_pattern}
    named.pop("delivered_at", None)
    if (day := _day(feed, named)) is not None:
        named[_day_field(feed)] = day.isoformat()
    return frozenset(named.items())


def _there(feed: Feed, settings: Settings) -> tuple[set[Identity], set[tuple[str, int | None]]]:
    """Return what the ledger has of a feed: identities, and names with sizes."""
    store = open_store(settings.raw, settings.s3)
    ledger = Ledger(store)
    keys = (name[len(ENTRIES) :].removesuffix(".json") for name in store.list(f"{ENTRIES}file/{feed.name}/"))
    identities, names = set(), set()
    with ThreadPoolExecutor(THREADS) as pool:
        for entry in in_threads(pool, ledger.get, keys):
            if entry is not None and entry.outcome == "loaded":
                identities.add(_identity(feed, entry.attributes))
                names.add((entry.source, entry.bytes))
    return identities, names


def _archived(
    feed: Feed, source: str, settings: Settings, report: Report, first: dt.date, stop: dt.date
) -> Iterator[Archived]:
    """Yield the source's files of the feed's days in [first, stop); count in the report what is left out."""
    for given, name, size, found in _listed(source, settings):
        attributes = feed.attributes_of(name)
        day = _day(feed, attributes)
        if day is None:
            report.others += 1
        elif first <= day < stop:
            yield Archived(given, name, size, day, _identity(feed, attributes), found)


def _listed(source: str, settings: Settings) -> Iterator[tuple[str, str, int, Found | None]]:
    """Yield path, base name and size of each file of a directory or a prefix."""
    if not source.startswith("s3://"):
        if not Path(source).is_dir():
            raise BackfillError(f"--source {source} is no directory; give a directory or s3://bucket/prefix")
        for found in expand([source], avoid=settings.raw):
            yield found.given, found.name, 0 if found.problem else found.path.stat().st_size, found
        return
    if not source.removeprefix("s3://").strip("/"):
        raise BackfillError(f"--source {source} names no bucket; write s3://bucket/prefix")
    selector = pafs.FileSelector(place(source.rstrip("/")), recursive=True)
    try:
        infos = file_system(source, settings.s3).get_file_info(selector)
    except FileNotFoundError:
        raise BackfillError(f"--source {source} holds nothing; give a directory or s3://bucket/prefix") from None
    except OSError as error:
        raise StoreError(f"cannot list {source}: {error}") from error
    for info in infos:
        if info.is_file and not info.base_name.startswith("."):
            yield f"s3://{info.path}", info.base_name, info.size, None


def _by_identity(files: Iterable[Archived]) -> list[list[Archived]]:
    groups: dict[Identity, list[Archived]] = {}
    for file in files:
        groups.setdefault(file.identity, []).append(file)
    return [sorted(group, key=lambda file: file.given) for group in groups.values()]


# The command.


@click.command("backfill")
@click.option("--feed", "name", required=True, metavar="FEED", help="The feed that the archive is of.")
@click.option("--from", "first", required=True, metavar="DATE", help="The first day.")
@click.option(
    "--to", "stop", required=True, metavar="DATE", help="The day after the last one: the range is [from, to)."
)
@click.option("--source", required=True, metavar="DIR|s3://BUCKET/PREFIX", help="Where the archive is.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=min(4, os.cpu_count() or 1),
    show_default=True,
    help="Files loaded at a time.",
)
@click.option("--delivered-at", metavar="TIME", help="When all of them were delivered; else it is the time of loading.")
@ACCEPT
def backfill(
    name: str, first: str, stop: str, source: str, workers: int, delivered_at: str | None, accept: tuple[Accept, ...]
) -> None:
    """Land the missing days of a vendor's archive.

    \b
    June 2024, from a directory with all that is below it, and from S3:
        mdp backfill --feed massive_trades --from 2024-06-01 --to 2024-07-01 --source /archive/trades
        mdp backfill --feed massive_trades --from 2024-06-01 --to 2024-07-01 --source s3://archive/trades --workers 8

    Files are known by their names, which must follow the feed's pattern in the registry, plain or .gz. A day is
    present if the ledger has a file of it, whatever its bytes: a correction is loaded with mdp load file. It is missing
    if the feed's calendar (sessions of XNYS; every day for utc) has it and neither ledger nor archive does. If two
    files claim a day, neither is loaded; of a file and its .gz the latter is. A file that has too few of the feed's
    fields is refused; if the vendor's early days had fewer than today's, --accept other-feed lands them.

    Ctrl-C stops it and leaves nothing half; run it again to go on. The exit code is 0 if every day is there now, 1
    if one was refused or is missing, 130 after Ctrl-C.
    """
    shown, notes = screen(), Console(stderr=True)
    try:
        settings = Settings.from_env()
        feed = find_feed(name, load_registry())
        if delivered_at is not None:
            parse_time(delivered_at)
        begin, end = parse_day(first), parse_day(stop)
        with notes.status("comparing archive, ledger and calendar"):
            todo = plan(feed, begin, end, source, settings)
    except (RegistryError, SettingsError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    except StoreError as error:
        raise click.ClickException(f"{error}; nothing was loaded") from error
    try:
        with _interruptible() as stopped, _bar(notes, len(todo.todo)) as (progress, tell):
            report = run(
                todo,
                feed,
                settings,
                workers=workers,
                delivered_at=delivered_at,
                accept=accept,
                stop=stopped,
                progress=progress,
                tell=tell,
            )
    except StoreError as error:
        raise click.ClickException(f"{error}; what was landed stays, run it again to go on") from error
    show(report, feed, shown)
    sys.exit(130 if report.interrupted else 0 if report.complete else 1)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Give an event that SIGINT and SIGTERM set."""
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(console: Console, files: int) -> Iterator[tuple[Callable[[str, float], None], Callable[[str], None]]]:
    """A bar in files, with fractions of those at hand; on no terminal, a line a file instead."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    parts: dict[str, float] = {}
    lock = threading.Lock()
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar:
        task: Any = bar.add_task(f"landing {files} files", total=files)

        def advance(given: str, part: float) -> None:
            with lock:
                parts[given] = part
                bar.update(task, completed=sum(parts.values()))

        yield advance, lambda line: bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


def show(report: Report, feed: Feed, screen: Console) -> None:
    """Print the summary."""
    counts = Counter(report.days.values())
    table = Table(title=f"{feed.name}: {len(report.days):,} days", header_style="bold", title_justify="left")
    table.add_column("days")
    table.add_column("count", justify="right")
    table.add_column("which", overflow="fold")
    for status in ("present", "landed", "missing", "refused", "left"):
        which = sorted(day for day, found in report.days.items() if found == status)
        if which or status != "left":
            table.add_row(status, f"{counts[status]:,}", escape(_shown(which)))
    screen.print(table)
    lines = [f"landed {report.files:,} files, {report.records:,} records, {report.bytes:,} bytes"]
    if report.unstated:
        lines.append(
            f"delivery time not stated for {report.unstated:,} files: using the time of loading; "
            f"--delivered-at TIME states another"
        )
    if report.closed:
        lines.append(f"{report.closed:,} days with a file are none of the calendar {feed.row['calendar']}")
    if report.others:
        lines.append(f"{report.others:,} files left out: their names do not follow {feed.file_pattern}, plain or .gz")
    lines += [f"refused: {line}" for line in report.refusals]
    if report.interrupted:
        lines.append("interrupted: nothing is half loaded; run it again to go on")
    for line in lines:
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    logs.event(
        log,
        "backfill-interrupted" if report.interrupted else "backfill-ended",
        f"{feed.name}: {lines[0]}",
        on_screen=True,
        feed=feed.name,
        files=report.files,
        records=report.records,
        bytes=report.bytes,
        days=dict(counts),
    )


def _shown(days: list[dt.date], longest: int = 12) -> str:
    """Return days in short: their first and last, and all of them if they are few."""
    if len(days) <= longest:
        return ", ".join(map(str, days))
    return f"{', '.join(map(str, days[: longest - 1]))}, … {days[-1]}"
