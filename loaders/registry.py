"""The feed registry: one row a feed, in dbt_project/seeds/feeds.csv, read by loaders and dbt alike.

feeds.csv ── load_registry ──▶ {"massive_trades": Feed(...), ...}
file name ── Feed.attributes_of ──▶ {"session_date": "2024-06-03"}
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

REGISTRY = Path(__file__).parent.parent / "dbt_project" / "seeds" / "feeds.csv"
SHOWN_AS = "dbt_project/seeds/feeds.csv"
FORMATS = ("lines", "csv", "json")
_SEAL_LAYOUT = re.compile(r"instrument|buckets:([1-9]\d{0,3})")
_PLACEHOLDER = re.compile(r"<([a-z_][a-z0-9_]*)>")


class RegistryError(ValueError):
    """The registry is broken, or does not hold the feed asked for."""


@dataclass(frozen=True)
class Feed:
    """One row of the registry, as far as loaders need it; `row` is all of it, as text."""

    name: str
    topic: str
    file_pattern: str
    file_fields: tuple[str, ...]
    format: str
    record_path: str
    instrument_path: str
    fields: tuple[str, ...]
    format_versions: tuple[str, ...]
    seal_buckets: int | None
    """Into how many buckets of instruments a closed day is sealed; None for a file an instrument."""
    row: Mapping[str, str]

    @property
    def schema_version(self) -> str:
        """The newest version of the format, with which new loads are marked."""
        return self.format_versions[-1]

    @cached_property
    def _name_pattern(self) -> re.Pattern[str]:
        parts = _PLACEHOLDER.split(self.file_pattern.removesuffix(".gz"))
        text = "".join(f"(?P<{part}>[^/]+?)" if index % 2 else re.escape(part) for index, part in enumerate(parts))
        return re.compile(text + r"(?:\.gz)?", re.DOTALL)

    def attributes_of(self, file_name: str) -> dict[str, str]:
        """Return what a file's base name says, {} where it does not follow the feed's pattern."""
        match = self._name_pattern.fullmatch(file_name) if self.file_pattern else None
        return match.groupdict() if match else {}

    def names(self, file_name: str) -> bool:
        """Say whether a file's base name follows the feed's pattern."""
        return bool(self.file_pattern and self._name_pattern.fullmatch(file_name))

    @property
    def attribute_names(self) -> list[str]:
        """What can be stated of a file beside its delivery time: what its name may say, and what the feed requires."""
        named = _PLACEHOLDER.findall(self.file_pattern)
        return [name for name in dict.fromkeys([*named, *self.file_fields]) if name != "delivered_at"]


def load_registry(path: Path = REGISTRY) -> dict[str, Feed]:
    """Read the registry. Raises RegistryError, naming the row, where it cannot be right."""
    with path.open(encoding="utf-8", newline="") as file:
        feeds = [_feed(row) for row in csv.DictReader(file)]
    registry = {feed.name: feed for feed in feeds}
    if len(registry) < len(feeds):
        raise RegistryError(f"{SHOWN_AS} names a feed twice")
    of_topic: dict[str, str] = {}
    for feed in feeds:
        other = of_topic.setdefault(feed.topic, feed.name)
        if other != feed.name:
            raise RegistryError(
                f"{SHOWN_AS}: feeds {other!r} and {feed.name!r} have the same topic {feed.topic!r}; give one of them "
                f"another"
            )
    return registry


def find_feed(name: str, registry: Mapping[str, Feed]) -> Feed:
    """Return a feed by its name. Raises RegistryError, listing the feeds there are."""
    if name not in registry:
        raise RegistryError(f"feed {name!r} is not in {SHOWN_AS}; known feeds: {', '.join(sorted(registry))}")
    return registry[name]


def _feed(row: dict[str, str]) -> Feed:
    try:
        layout = _SEAL_LAYOUT.fullmatch(row["seal_layout"])
        feed = Feed(
            name=row["feed"],
            topic=row["topic"] or row["feed"],
            file_pattern=row["file_pattern"],
            file_fields=tuple(row["file_fields"].split()),
            format=row["format"],
            record_path=row["record_path"],
            instrument_path=row["instrument_path"],
            fields=tuple(row["fields"].split()),
            format_versions=tuple(row["format_versions"].split()),
            seal_buckets=int(layout[1]) if layout and layout[1] else None,
            row=MappingProxyType(dict(row)),
        )
    except (KeyError, AttributeError, TypeError) as error:
        raise RegistryError(f"{SHOWN_AS}: row of {row.get('feed')!r} lacks a column ({error})") from error
    where = f"{SHOWN_AS}: feed {feed.name!r}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", feed.name):
        raise RegistryError(f"{where} must be named in lower-case letters, digits and underscores")
    if feed.format not in FORMATS:
        raise RegistryError(f"{where} has the format {feed.format!r}; it must be one of {', '.join(FORMATS)}")
    if feed.format == "json" and "[]" not in feed.record_path:
        raise RegistryError(f"{where} is JSON: its record_path must name a list, such as results[]")
    if layout is None:
        raise RegistryError(f"{where} has the seal_layout {row['seal_layout']!r}; it must be instrument or buckets:N")
    if not feed.format_versions:
        raise RegistryError(f"{where} states no format_versions")
    try:
        feed.attributes_of("")
    except re.error as error:
        raise RegistryError(f"{where} has a file_pattern that cannot be read: {error}") from error
    return feed
