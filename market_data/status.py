"""`mdp status`: what came when, feed by feed.

raw zone's ledger, as the lake entered it ──┐
conservation of the published version ──────┼──> one line a feed
registry's freshness objective ─────────────┘
"""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loaders.ledger import Ledger
from loaders.registry import load_registry
from loaders.settings import Settings
from loaders.store import open_store
from market_data import bookkeeping, lake, publishing
from market_data.client import NotPublishedError, published_version

PER_FEED = """
with loaded as (
    select feed, count(*) as loads, sum(records) as records, max(loaded_at) as last_loaded_at
    from lake.observability.loads
    where outcome = 'loaded'
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


def show(settings: Settings, screen: Console) -> None:
    """Print one line a feed. Times are UTC."""
    try:
        version = published_version(settings)
    except NotPublishedError as error:
        waiting = sum(entry is not None for _, entry in Ledger(open_store(settings.raw, settings.s3)).since(None))
        screen.print(f"{waiting} loads are in the raw zone {settings.raw}; {error}", soft_wrap=True)
        return
    with lake.open_version(settings, version) as connection:
        rows = connection.execute(PER_FEED).fetchall()
        # A refusal alone makes no new version (market_data/build.py).
        unseen = sum(entry.outcome == "loaded" for _, entry in bookkeeping.unseen_entries(connection, settings))
    objectives = {name: feed.row["freshness_minutes"] for name, feed in load_registry().items()}
    table = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        title=f"version {version}, times in UTC",
        title_justify="left",
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    any_refused = any(row[2] for row in rows)
    for name in ("feed", "loads", "refused", "records", "quarantined", "adds up", "age", "last load"):
        if name == "refused" and not any_refused:
            continue
        is_number = name in ("loads", "refused", "records", "quarantined")
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for feed, loads, refused, records, quarantined, conserved, last, age in rows:
        objective = objectives.get(feed)
        is_late = age is not None and objective and age > 60 * int(objective)
        table.add_row(
            escape(feed),
            f"{loads:,}",
            *([f"{refused:,}" if refused else ""] if any_refused else []),
            f"{records:,}",
            f"{quarantined:,}" if quarantined else "",
            "[green]yes[/green]" if conserved else "[red]NO[/red]",
            f"[yellow]{_age(age)}, late[/yellow]" if is_late else _age(age),
            last or "",
        )
    screen.print(table)
    if unseen:
        screen.print(f"{unseen} ledger entries are not in this version yet: `mdp build` takes them in")
    with lake.open_version(settings, None) as head:
        if publishing.last_event(head) in publishing.UNFINISHED:
            screen.print("[yellow]the last run failed or is under way[/yellow]; readers have the version above")


def _age(seconds: int | None) -> str:
    if seconds is None:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
