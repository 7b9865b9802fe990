"""`mdp demo`: a small world of vendor files, loaded, built, and shown.

    DIR/world ── load, in the order of arrival ──> DIR/raw ── build, twice ──> DIR/lake.sqlite, DIR/lake_data
        └─ truth.json ──────────────────────────────────┬───────────────────────────┘
                                                        └──> report ──> the screen, DIR/revision.png

Everything is below one directory, which a marker file says to be the demo's own. Run again, the demo finds
everything loaded and built already, says so, and shows it; `fresh` makes it anew. What another demo has left
unfinished is made anew too.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loaders.files import Outcome, load
from loaders.ledger import Ledger, load_id
from loaders.settings import Settings
from loaders.store import open_store
from loaders.times import compact, parse_time
from market_data import build as building
from market_data.demo.report import PICTURE, Report
from market_data.demo.truth import Delivery, Truth
from market_data.demo.world import TRUTH, generate

MARKER = ".mdp-demo"
OWN = ("world", "raw", "lake.sqlite", "lake.sqlite-wal", "lake.sqlite-shm", "lake_data", "lake.state")
"""What the demo makes in its directory, beside the marker and the picture; nothing else is ever removed."""


class DemoError(RuntimeError):
    """The directory is not the demo's to use, or the warehouse is not what is known of its world."""


def run(directory: Path, screen: Console, *, fresh: bool = False) -> None:
    """Make, load, build and show the demo in `directory`; with `fresh`, after removing an earlier one.

    Raises DemoError if the directory holds something that is not the demo's, if a build fails, and (after all
    was shown) if anything planted was not found or any count does not agree.
    """
    began = time.monotonic()
    place = directory.expanduser()
    settings = replace(
        Settings.from_env(),
        raw=str((place / "raw").absolute()),
        lake=str((place / "lake.sqlite").absolute()),
        lake_data=str((place / "lake_data").absolute()),
    )
    with _claimed(place):
        again = (place / PICTURE).exists() and not fresh
        if not again:
            _clear(place)
        making = Making(place, settings, screen, again)
        truth = making.everything()
        report = Report(place, settings, screen, truth, making.load_ids)
        wrong = making.surprises + report.show()
    if wrong:
        raise DemoError("the warehouse is not what is known of its world: " + "; ".join(wrong))
    screen.print(f"\n[dim]Everything agrees with the world's truth; {time.monotonic() - began:.0f} seconds.[/dim]")


@contextmanager
def _claimed(place: Path) -> Iterator[None]:
    """Hold the directory, made or marked as the demo's own. Raises DemoError where it may not be used."""
    marker = place / MARKER
    if not marker.is_file():
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise DemoError(
                f"{place} was there before and is not the demo's, so nothing was touched;"
                " name a new or an empty directory with --directory"
            )
        place.mkdir(parents=True, exist_ok=True)
        marker.write_text("Of `mdp demo`, which may remove what it made in this directory.\n", encoding="utf-8")
    with marker.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo is running in {place}; wait for it, or name another directory") from None
        yield


def _clear(place: Path) -> None:
    """Remove what an earlier demo made; first the picture, which says that it came to its end."""
    for name in (PICTURE, *OWN):
        own = place / name
        if own.is_dir() and not own.is_symlink():
            shutil.rmtree(own)
        else:
            own.unlink(missing_ok=True)


def _load_of(delivery: Delivery, outcome: Outcome) -> str:
    """The load of a delivery. The same bytes delivered at another time are another load."""
    if delivery.delivered_at is None or outcome.status == "refused":
        return outcome.entry.load_id
    return load_id(f"file/{delivery.feed}/{outcome.entry.sha256}@{compact(parse_time(delivery.delivered_at))}")


@dataclass
class Making:
    """From nothing to a published lake; what was made before is made again, to no effect."""

    place: Path
    settings: Settings
    screen: Console
    again: bool
    load_ids: dict[int, str] = field(default_factory=dict)
    """Of each delivery, by its order: its load, or its refusal."""
    surprises: list[str] = field(default_factory=list)
    """Files of which something else came than the world's maker knows."""

    def everything(self) -> Truth:
        """Make the world, load it in the order of arrival, and build twice; answer the truth about it.

        The second part begins with the first correction, so that it corrects what the first has built.
        """
        self.screen.rule("[bold]mdp demo[/bold]", style="dim")
        if self.again:
            self.screen.print(
                "This demo stands already. Its files are loaded and built once more, which must change"
                " nothing; [bold]--fresh[/bold] makes it anew.\n",
                highlight=False,
            )
        truth = self._world()
        corrected = {plant.path for plant in truth.planted if plant.kind == "redelivery"}
        cut = next(delivery.order for delivery in truth.deliveries if delivery.path in corrected)
        self._load("up to the first correction", [one for one in truth.deliveries if one.order < cut])
        self._build()
        self._load("corrections, late files and the rest", [one for one in truth.deliveries if one.order >= cut])
        self._build()
        return truth

    def _world(self) -> Truth:
        started = time.monotonic()
        world = self.place / "world"
        if self.again:
            truth = Truth.read(world / TRUTH)
        else:
            with self._bar("making a world of vendor files"):
                truth = generate(world)
        records = sum(delivery.records for delivery in truth.deliveries)
        feeds = len({delivery.feed for delivery in truth.deliveries})
        self._step(
            "world",
            f"{len(truth.deliveries)} vendor files of {feeds} feeds, {records:,} records",
            started,
            [f"{len(truth.planted)} oddities planted, each of them written down in {world / TRUTH}"],
        )
        return truth

    def _load(self, words: str, deliveries: Sequence[Delivery]) -> None:
        started = time.monotonic()
        refused = self._refused_before() if self.again else {}
        outcomes: list[Outcome] = []
        notes: list[str] = []
        with self._bar("loading", len(deliveries)) as advance:
            for done, delivery in enumerate(deliveries, start=1):
                name = delivery.path.rpartition("/")[2]
                advance(name, done, len(deliveries))
                if delivery.outcome == "refused" and (delivery.feed, name) in refused:
                    self.load_ids[delivery.order] = refused[delivery.feed, name]
                    continue
                outcome = load(
                    [self.place / "world" / delivery.path],
                    delivery.feed,
                    settings=self.settings,
                    delivered_at=delivery.delivered_at,
                    attributes=delivery.attributes,
                )[0]
                outcomes.append(outcome)
                self.load_ids[delivery.order] = _load_of(delivery, outcome)
                expected = "unchanged" if self.again else delivery.outcome
                if outcome.status != expected:
                    self.surprises.append(f"{delivery.path} was {outcome.status}, not {expected}")
                if outcome.status == "refused" or (outcome.status == "unchanged" and not self.again):
                    notes.append(f"{name}: {outcome.message}")
        landed = [outcome for outcome in outcomes if outcome.status in ("loaded", "redelivered")]
        records = sum(outcome.entry.records for outcome in landed)
        text = f"{len(landed)} files, {words}: {records:,} records into the raw zone"
        if self.again:
            text = f"{len(outcomes)} files, {words}: all loaded already, nothing changes"
        self._step("load", text, started, notes)

    def _refused_before(self) -> dict[tuple[str, str], str]:
        """Refusals in the ledger, by feed and file name: loading such a file again would only add another."""
        ledger = Ledger(open_store(self.settings.raw, self.settings.s3))
        return {(entry.feed, entry.source): entry.load_id for entry in ledger.entries("refused/")}

    def _build(self) -> None:
        started = time.monotonic()
        try:
            with self._bar("building") as advance:
                outcome = building.build(self.settings, progress=advance)
        except building.BuildFailedError as error:
            log = self.settings.state_dir / "logs" / "dbt.log"
            raise DemoError(f"the build failed: {error} (log: {log})") from error
        text = (
            f"{outcome.new_loads} new ledger entries, all tests passed: version {outcome.version} published"
            if outcome.built
            else f"nothing new: version {outcome.version} stands"
        )
        self._step("build", text, started)

    def _step(self, what: str, text: str, started: float, notes: Sequence[str] = ()) -> None:
        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(width=5)
        line.add_column(ratio=1)
        line.add_column(justify="right")
        line.add_row(f"[bold cyan]{what}[/bold cyan]", text, f"[dim]{time.monotonic() - started:.1f} s[/dim]")
        self.screen.print(line, highlight=False)
        for note in notes:
            self.screen.print(Padding(f"[dim]{escape(note)}[/dim]", (0, 0, 0, 7)), highlight=False)

    @contextmanager
    def _bar(self, what: str, total: int | None = None) -> Iterator[Callable[[str, int, int], None]]:
        """A progress bar that leaves no trace; nothing at all where the output is no terminal."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        disable = not self.screen.is_terminal
        with Progress(*columns, console=self.screen, transient=True, disable=disable) as bar:
            task = bar.add_task(what, total=total)

            def advance(name: str, done: int, of: int) -> None:
                bar.update(task, completed=done, total=of, description=f"{what}: {name[:40]}")

            yield advance
