"""`mdp load`: the command line of the loaders.

mdp load file --feed massive_trades inbox/   ── one line a file ──▶   exit code 0, 1 (refused) or 2 (usage)
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from loaders import failpoints
from loaders.files import Accept, Outcome, load_each
from loaders.registry import Feed, RegistryError, find_feed, load_registry
from loaders.settings import Settings, SettingsError
from loaders.store import StoreError
from loaders.times import parse_time

ACCEPT = click.option(
    "--accept",
    multiple=True,
    type=click.Choice(["other-feed"]),
    help="Land files too that look like another feed's.",
)


@click.group()
def load() -> None:
    """Land data in the raw zone, as it came."""


@load.command("file")
@click.option("--feed", required=True, metavar="FEED", help="The feed that the files are of.")
@click.option(
    "--delivered-at",
    metavar="TIME",
    help="When the files were delivered: an ISO date (00:00 UTC) or date and time (UTC without a zone). "
    "Without it a file's name may say so; else it is the time of loading.",
)
@click.option(
    "--set",
    "settings_given",
    multiple=True,
    metavar="NAME=VALUE",
    help="What a file's name does not say, such as series_id=GDP; may be repeated.",
)
@ACCEPT
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
def load_file(
    feed: str,
    delivered_at: str | None,
    settings_given: tuple[str, ...],
    accept: tuple[Accept, ...],
    paths: tuple[str, ...],
) -> None:
    """Load vendor files: files, directories (all that is in them) or quoted globs; plain or gzip.

    \b
    A day of trades as the vendor names it:
        mdp load file --feed massive_trades massive_trades_2024-06-03.csv.gz
    A file that does not say when it was delivered:
        mdp load file --feed massive_splits --delivered-at 2024-06-04T11:00:00-04:00 splits.json
    One whose name says nothing:
        mdp load file --feed alfred_observations --set series_id=GDP observations.json

    Hidden files are left out, and links that lead out of a directory are refused. Loading the same bytes
    again changes nothing. A file that is broken, or looks like another feed's, is refused whole and the
    others are loaded; the exit code is 1 then. It looks so if it is named as that feed's files are, if it has not
    even half of the columns (of the fields of JSON, a quarter) that the registry lists for this one, or lacks
    some and has all of the other's. Of a directory or a quoted glob, files with another feed's names are skipped and
    told, which is no failure.
    `mdp build` turns what was loaded into tables.
    """
    attributes = _attributes(settings_given)
    try:
        settings = Settings.from_env()
        failpoints.arm(settings.failpoint)
        _check_attributes(attributes, find_feed(feed, load_registry()))
        if delivered_at is not None:
            parse_time(delivered_at)
    except (RegistryError, SettingsError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    refused = 0
    try:
        with _bar() as bar:
            outcomes = load_each(
                paths,
                feed,
                settings=settings,
                delivered_at=delivered_at,
                attributes=attributes,
                accept=accept,
                progress=_Shown(bar),
            )
            for outcome in outcomes:
                bar.console.print(_line(outcome), markup=False, highlight=False, soft_wrap=True)
                refused += outcome.status == "refused"
    except StoreError as error:
        raise click.ClickException(f"{error}; nothing of the file at hand was loaded, run it again") from error
    sys.exit(1 if refused else 0)


def _attributes(given: tuple[str, ...]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise click.UsageError(f"--set {text!r} is not of the form NAME=VALUE")
        if name == "delivered_at":
            raise click.UsageError("a delivery time is stated with --delivered-at TIME")
        attributes[name] = value
    return attributes


def _check_attributes(attributes: dict[str, str], feed: Feed) -> None:
    """Raise ValueError for a name that files of the feed do not have."""
    known = feed.attribute_names
    for name in attributes:
        if name not in known:
            names = f"it knows {', '.join(known)}" if known else "its files need none"
            raise ValueError(f"--set {name}=… is nothing that feed {feed.name} knows; {names}")


def _line(outcome: Outcome) -> str:
    unstated = outcome.status == "loaded" and outcome.entry.delivered_at is None and outcome.entry.source_time
    note = "; delivery time not stated: using the time of loading" if unstated else ""
    return f"{outcome.path}: {outcome.message}{note}"


def _bar() -> Progress:
    """Return a progress bar, of which nothing is seen where the output is not a terminal."""
    console = Console()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class _Shown:
    """Shows one file's progress at a time."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._path = bar, Path()
        self._task = bar.add_task("", total=None, visible=False)

    def __call__(self, path: Path, done: int, total: int) -> None:
        if path != self._path:
            self._path = path
            self._bar.reset(self._task, total=total, visible=True, description=path.name)
        self._bar.update(self._task, completed=done)
