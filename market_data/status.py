"""`mdp status`: what came when, feed by feed, and how far streams are behind, partition by partition.

raw zone's ledger, as the lake entered it ──┐
conservation of the published version ──────┼──> one line a feed
registry's freshness objective ─────────────┘
raw zone's chains, brokers ────────────────────> one line a partition
live.json of a running `mdp live` ─────────────> one line, and one for each process that has ended
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loaders.lag import Lag, Lags, lags
from loaders.registry import load_registry
from loaders.settings import Settings
from loaders.times import parse_time
from market_data import bookkeeping, lake, live, lock, publishing
from market_data.client import NotPublishedError, published_version
from market_data.output import told_read_otherwise

NUMBERS = {"loads", "refused", "records", "quarantined", "partition", "loaded up to", "starts at", "ends at", "behind"}

PER_FEED = """
with loaded as (
    select feed, count(*) as loads, sum(records) as records, max(loaded_at) as last_loaded_at
    from lake.observability.loads
    where outcome = 'loaded' and load_seq <= (select max(load_seq) from lake.observability.progress)
    group by feed
),

refused as (
    select feed, count(*) as refused from lake.observability.loads where outcome = 'refused' group by feed
),

counted as (
    select
        feed,
        sum(quarantined) as quarantined,
        bool_and(is_conserved) as is_conserved
    from lake.observability.conservation
    group by feed
)

select
    feed,
    coalesce(loads, 0),
    coalesce(refused, 0),
    coalesce(records, 0),
    coalesce(quarantined, 0),
    coalesce(is_conserved, true),
    strftime(last_loaded_at::timestamp, '%m-%d %H:%M'),
    date_diff('second', last_loaded_at::timestamp, now()::timestamp)
from loaded
full join refused using (feed)
left join counted using (feed)
order by feed
"""


@dataclass(frozen=True)
class FeedStatus:
    """One feed, as the published version has it. `age` is seconds since its last load."""

    feed: str
    loads: int
    refused: int
    """Files that were refused, also since that version."""
    records: int
    quarantined: int
    is_conserved: bool
    last_loaded_at: str | None
    age: int | None
    is_late: bool


@dataclass(frozen=True)
class Overview:
    """What `mdp status` shows; without a published version only what is in the raw zone."""

    version: int | None
    feeds: list[FeedStatus]
    waiting: int
    """Loads that the version has not read."""
    is_unfinished: bool
    """Whether the last run failed or is under way."""
    kafka: Lags
    note: str | None = None
    read_otherwise: tuple[tuple[str, int], ...] = ()
    """Feeds with loads that their code of today has not read, and how many."""
    writer: dict[str, Any] | None = None
    """Who of this machine writes to the lake, where the last run is unfinished: pid, command, since."""
    live: dict[str, Any] | None = None
    """What a running `mdp live` of this machine tells of itself (market_data/live.py)."""


def overview(settings: Settings) -> Overview:
    """Gather it. Brokers are asked only where a stream was loaded, and not for long."""
    behind, alive = lags(settings), live.read_state(settings)
    try:
        version = published_version(settings)
    except NotPublishedError as error:
        waiting = bookkeeping.waiting_loads(settings)
        return Overview(None, [], waiting, is_unfinished=False, kafka=behind, note=str(error), live=alive)
    with lake.open_version(settings, version) as connection:
        rows = connection.execute(PER_FEED).fetchall()
        read_otherwise = bookkeeping.read_otherwise(connection)
        unseen = Counter((entry.feed, entry.outcome) for _, entry in bookkeeping.unseen_entries(connection, settings))
        waiting = publishing.loaded_since(connection, publishing.last_processed(connection))
    waiting += sum(count for (_, outcome), count in unseen.items() if outcome == "loaded")
    # A refusal alone makes no new version (market_data/build.py).
    refused_since = {feed: count for (feed, outcome), count in unseen.items() if outcome == "refused"}
    known = {feed for feed, *_ in rows}
    rows += [(feed, 0, 0, 0, 0, True, None, None) for feed in sorted(refused_since) if feed not in known]
    objectives = {name: feed.row["freshness_minutes"] for name, feed in load_registry().items()}
    feeds = []
    for feed, loads, refused, records, quarantined, conserved, last, age in rows:
        objective = objectives.get(feed)
        is_late = bool(age and objective and age > 60 * int(objective))
        all_refused = refused + refused_since.get(feed, 0)
        feeds.append(FeedStatus(feed, loads, all_refused, records, quarantined, conserved, last, age, is_late))
    writer = lock.holder(settings)
    with lake.open_version(settings, None) as head:
        is_unfinished = publishing.last_event(head) in publishing.UNFINISHED
    writer = (writer or lock.holder(settings)) if is_unfinished else None
    return Overview(
        version, feeds, waiting, is_unfinished, behind, read_otherwise=read_otherwise, writer=writer, live=alive
    )


def as_json(found: Overview) -> str:
    """Return it as one JSON object."""
    told = asdict(found)
    for line, lag in zip(told["kafka"]["partitions"], found.kafka.partitions, strict=True):
        line["behind"] = lag.behind
    return json.dumps(told)


def show(found: Overview, screen: Console) -> None:
    """Print one line a feed, then one a partition. Times are UTC."""
    if found.version is None:
        screen.print(escape(found.note or ""), soft_wrap=True, highlight=False)
    else:
        _show_feeds(found, screen)
    if found.kafka.partitions:
        _show_lags(found.kafka.partitions, screen)
    if found.live is not None:
        _show_live(found.live, screen)
    for note in found.kafka.notes:
        screen.print(f"[yellow]{escape(note)}[/yellow]", soft_wrap=True, highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        title=title,
        title_justify="left",
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    for name in columns:
        table.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=True)
    return table


def _show_feeds(found: Overview, screen: Console) -> None:
    any_refused = any(feed.refused for feed in found.feeds)
    names = ("feed", "loads", "refused", "records", "quarantined", "adds up", "age", "last load")
    columns = [name for name in names if any_refused or name != "refused"]
    table = _table(f"version {found.version}, times in UTC", *columns)
    for feed in found.feeds:
        table.add_row(
            escape(feed.feed),
            f"{feed.loads:,}",
            *([f"{feed.refused:,}" if feed.refused else ""] if any_refused else []),
            f"{feed.records:,}",
            f"{feed.quarantined:,}" if feed.quarantined else "",
            "[green]yes[/green]" if feed.is_conserved else "[red]NO[/red]",
            f"[yellow]{_age(feed.age)}, late[/yellow]" if feed.is_late else _age(feed.age),
            feed.last_loaded_at or "",
        )
    screen.print(table)
    if found.waiting:
        wait = "load waits" if found.waiting == 1 else "loads wait"
        screen.print(f"{found.waiting:,} {wait} for `mdp build`: not in this version yet")
    if found.read_otherwise:
        screen.print(told_read_otherwise(found.read_otherwise), soft_wrap=True)
    if found.is_unfinished:
        run = "the last run has not ended" if found.writer else "the last run failed, or works on another machine"
        who = f"; {found.writer['command']} (process {found.writer['pid']}) writes to the lake" if found.writer else ""
        screen.print(f"[yellow]{run}[/yellow]{escape(who)}; readers have the version above", soft_wrap=True)


def _show_lags(lags: list[Lag], screen: Console) -> None:
    """Offsets, not records: Kafka may leave some out. What is not known is left blank."""
    table = _table(
        "Kafka, by offsets", "feed", "topic", "partition", "loaded up to", "starts at", "ends at", "behind", "age"
    )
    now = time.time_ns()
    for lag in lags:
        numbers = (lag.loaded, lag.start, lag.end, lag.behind)
        loaded, start, end, behind = ("" if number is None else f"{number:,}" for number in numbers)
        age = "" if lag.loaded_at is None else _age((now - parse_time(lag.loaded_at)) // 10**9)
        behind = f"[yellow]{behind}[/yellow]" if lag.behind else behind
        table.add_row(escape(lag.feed), escape(lag.topic), str(lag.partition), loaded, start, end, behind, age)
    screen.print(table)


def _show_live(live: dict[str, Any], screen: Console) -> None:
    """One line for the whole, and one for each process that does not do its work."""
    if not live["is_running"]:
        screen.print(f"[red]mdp live (process {live['pid']}) has crashed[/red]; start it again")
        return
    now, builder = time.time(), live["builder"]
    last, failure = builder["build"].get("last"), builder["build"].get("failure")
    told = f"live since {_age(round(now - live['started']))}: {', '.join(live['feeds'])}"
    if builder["build"]["state"] == "building":
        told += "; a build is under way"
    if last:
        told += f"; version {last['version']} was published {_age(round(now - last['at']))} ago, in {last['seconds']} s"
    screen.print(escape(told), soft_wrap=True, highlight=False)
    if failure:
        wait = _age(max(0, round(failure["next_try"] - now)))
        reasons = escape("; ".join(failure["failures"]))
        screen.print(
            f"[red]the build has failed {failure['attempts']} times[/red]; next try in {wait}: {reasons}",
            soft_wrap=True,
            highlight=False,
        )
    for process in (*live["loaders"], builder):
        is_ended = process["state"] in ("waiting", "failed")
        if is_ended or (process["last_error"] and process["state"] == "running"):
            wait = process["next_start"] and _age(max(0, round(process["next_start"] - now)))
            then = f"is started again in {wait}" if wait else "is not started again" if is_ended else "runs again"
            times = f" {process['ended']} times" if process["ended"] > 1 else ""
            screen.print(
                f"[red]{process['name']} has ended{times}[/red], {then}: {escape(str(process['last_error']))}",
                soft_wrap=True,
                highlight=False,
            )


def _age(seconds: int | None) -> str:
    if seconds is None:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
