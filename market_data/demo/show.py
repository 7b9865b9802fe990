"""`mdp demo`: a small world of vendor files, loaded, built, and shown.

    DIR/world ── load, in the order of arrival ──> DIR/raw ── build, twice ──> DIR/lake.sqlite, DIR/lake_data
        └─ truth.json ──────────────────────────────────┬───────────────────────────┘
                                                        └──> report ──> the screen, DIR/revision.png

Asked to, it loads the captures of the two crypto venues from Kafka instead (stream.py), and all else from the files.

Everything is below one directory, which a marker file says to be the demo's own. Run again, the demo finds
everything loaded and built already, says so, and shows it; `fresh` makes it anew. What another demo has left
unfinished is made anew too.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loaders.consumers import StreamError
from loaders.files import Outcome, load
from loaders.ledger import Ledger, load_id
from loaders.settings import Settings
from loaders.store import open_store
from loaders.times import compact, parse_time
from market_data import build as building
from market_data.demo import broker
from market_data.demo.check import Landing
from market_data.demo.report import PICTURE, Report
from market_data.demo.stream import PUBLISHED, Stream, opened
from market_data.demo.truth import LANDED, Delivery, Truth
from market_data.demo.world import TRUTH, generate

MARKER = ".mdp-demo"
OWN = (
    *("world", "raw", "lake.sqlite", "lake.sqlite-wal", "lake.sqlite-shm", "lake_data", "lake.state"),
    *(PUBLISHED, broker.FOLDER),
)
"""What the demo makes in its directory, beside the marker and the picture; nothing else is ever removed."""


class DemoError(RuntimeError):
    """The directory is not the demo's to use, or the warehouse is not what is known of its world."""


def run(directory: Path, screen: Console, *, fresh: bool = False, kafka: bool = False) -> None:
    """Make, load, build and show the demo in `directory`; with `fresh`, after removing an earlier one.

    With `kafka` the crypto captures come by a broker, which runs as long as the demo.

    Raises DemoError if the directory holds something that is not the demo's, if the broker does not start, if loading
    or a build fails, and (after all was shown) if anything planted was not found or any count does not agree.
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
        try:
            if again:
                _check_way(place, kafka)
            else:
                _clear(place)
            wrong = _made_and_shown(place, settings, screen, again, kafka)
        except (broker.NoBrokerError, StreamError) as error:
            raise DemoError(str(error)) from error
    if wrong:
        raise DemoError("the warehouse is not what is known of its world: " + "; ".join(wrong))
    screen.print(f"\n[dim]Everything agrees with the world's truth; {time.monotonic() - began:.0f} seconds.[/dim]")


def _made_and_shown(place: Path, settings: Settings, screen: Console, again: bool, kafka: bool) -> list[str]:
    """Do all of it; answer what is wrong."""
    with ExitStack() as stack:
        making = Making(place, settings, screen, again)
        making.greet()
        if kafka:
            making.by_kafka(stack)
        truth = making.everything()
        report = Report(place, settings, screen, truth, making.landings, making.stream)
        return making.surprises + report.show()


def _check_way(place: Path, kafka: bool) -> None:
    """Raise DemoError if the demo that stands there was loaded the other way."""
    truth = Truth.read(place / "world" / TRUTH)
    if kafka != any(delivery.outcome == "published" for delivery in truth.deliveries):
        raise DemoError(
            f"the demo in {place} was made {'without' if kafka else 'with'} --kafka: run it that way again, make it"
            " anew with --fresh, or name another directory with --directory"
        )


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
    (place / PICTURE).unlink(missing_ok=True)
    broker.remove(place)
    for name in OWN:
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
    landings: dict[int, Landing] = field(default_factory=dict)
    """Of each delivery, by its order."""
    stream: Stream | None = None
    """The way through Kafka, if the captures go it."""
    surprises: list[str] = field(default_factory=list)
    """Files of which something else came than the world's maker knows."""

    def greet(self) -> None:
        """Say what this is."""
        self.screen.rule("[bold]mdp demo[/bold]", style="dim")
        if self.again:
            self.screen.print(
                "This demo stands already. Its files are loaded and built once more, which must change"
                " nothing; [bold]--fresh[/bold] makes it anew.\n",
                highlight=False,
            )

    def by_kafka(self, stack: ExitStack) -> None:
        """Let captures go through a broker, which is started now and stopped with the stack."""
        started = time.monotonic()
        with self._bar("starting Kafka"):
            self.stream = stack.enter_context(opened(self.place, self.settings))
        where = self.place / broker.FOLDER
        self._step("kafka", f"a broker of the demo's own at {self.stream.settings.kafka}, its data in {where}", started)

    def everything(self) -> Truth:
        """Make the world, load it in the order of arrival, and build twice; answer the truth about it.

        The second part begins with the first correction, so that it corrects what the first has built.
        """
        truth = self._world()
        corrected = {plant.path for plant in truth.planted if plant.kind == "redelivery"}
        cut = next(delivery.order for delivery in truth.deliveries if delivery.path in corrected)
        self._load("up to the first correction", [one for one in truth.deliveries if one.order < cut])
        self._build()
        self._load("corrections, late files and the rest", [one for one in truth.deliveries if one.order >= cut])
        self._build()
        if self.stream is not None:
            self._land(self.stream, truth)
        return truth

    def _world(self) -> Truth:
        started = time.monotonic()
        world = self.place / "world"
        if self.again:
            truth = Truth.read(world / TRUTH)
        else:
            with self._bar("making a world of vendor files"):
                truth = generate(world, kafka=self.stream is not None)
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
        streamed: list[int] = []
        notes: list[str] = []
        with self._bar("loading", len(deliveries)) as advance:
            for done, delivery in enumerate(deliveries, start=1):
                name = delivery.path.rpartition("/")[2]
                advance(name, done, len(deliveries))
                if delivery.outcome == "refused" and (delivery.feed, name) in refused:
                    self.landings[delivery.order] = Landing((refused[delivery.feed, name],))
                    continue
                if self.stream is not None and delivery.outcome == "published":
                    streamed.append(self._deliver(self.stream, delivery))
                    continue
                outcome = self._load_file(delivery)
                outcomes.append(outcome)
                if outcome.status == "refused" or (outcome.status == "unchanged" and not self.again):
                    notes.append(f"{name}: {outcome.message}")
        landed = [outcome for outcome in outcomes if outcome.status in LANDED]
        records = sum(outcome.entry.records for outcome in landed) + sum(streamed)
        files = f"{len(outcomes if self.again else landed)} files"
        if streamed:
            files += f", and {len(streamed)} captures by Kafka"
        text = f"{files}, {words}: {records:,} records into the raw zone"
        if self.again:
            text = f"{files}, {words}: all loaded already, nothing changes"
        self._step("load", text, started, notes)

    def _load_file(self, delivery: Delivery) -> Outcome:
        outcome = load(
            [self.place / "world" / delivery.path],
            delivery.feed,
            settings=self.settings,
            delivered_at=delivery.delivered_at,
            attributes=delivery.attributes,
        )[0]
        self.landings[delivery.order] = Landing((_load_of(delivery, outcome),))
        expected = "unchanged" if self.again else delivery.outcome
        if outcome.status != expected:
            self.surprises.append(f"{delivery.path} was {outcome.status}, not {expected}")
        return outcome

    def _deliver(self, through: Stream, delivery: Delivery) -> int:
        """Let a capture go through Kafka, once: what was sent before is not sent again."""
        expected = 0 if self.again else delivery.records
        records = through.catch_up(delivery.feed) if self.again else through.deliver(delivery)
        if records != expected:
            self.surprises.append(f"{delivery.path}: {records:,} records came by Kafka, not {expected:,}")
        return records

    def _land(self, through: Stream, truth: Truth) -> None:
        """Find in the raw zone all that was published."""
        if self.again:
            through.recall()
        else:
            through.remember()
        self.landings |= through.landings()
        for delivery in truth.deliveries:
            landing = self.landings.get(delivery.order)
            if delivery.outcome == "published" and (
                landing is None or landing.places is None or landing.places.num_rows != delivery.records
            ):
                self.surprises.append(f"{delivery.path}: not all of its records are in segments of its topic")

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
            f"{outcome.new_loads} new loads, all tests passed: version {outcome.version} published"
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
