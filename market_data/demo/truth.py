"""What the demo's world is made of, and the one place where its truth is added up.

    a module of the world ── Record ──┐
                                      ├─ Parcel (a file) ── Tally ── Truth ── truth.json
    a planting ── Record, marked ─────┘

A `Record` knows from its making what the warehouse must do with it (`Fate`): no number of the truth
comes from reading the files back, let alone from the warehouse. A module yields its parcels in the
order of knowledge, so that for one key the first version comes before its revisions and repeats; the
order in which a demo loads them is another one, by arrival.

Quotes are counted by (symbol, u) for Binance, (symbol, sequence) for Coinbase's tickers, and (session,
symbol, sequence_number) in files; everything else by the feed registry's identity key.

Reasons: malformed_json, not_utf8, malformed_row (a wrong number of fields), unknown_kind, missing_field
(absent, or empty in a CSV row), invalid_value (no number, no time), impossible_value (a trade's price or
size not above 0), impossible_time (year 1, or more than a day after receipt or delivery).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from market_data.demo.ticks import SIZE_PLACES, trimmed

VENUES: Mapping[str, str] = {
    "binance_spot": "binance",
    "coinbase_exchange": "coinbase",
    "alfred_observations": "alfred",
}
"""The venue of each feed; every other feed is of `us_equities`."""


LANDED = ("loaded", "redelivered", "published")
"""Outcomes of deliveries that bring records."""


class Fate(StrEnum):
    """Where a raw record ends: exactly one of these."""

    CANONICAL = "canonical"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"
    CONTROL = "control"
    UNREAD = "unread"


class Record(NamedTuple):
    """One line, CSV row or list element, and what is known of it by construction."""

    text: bytes
    fate: Fate
    table: str = ""
    symbol: str = ""
    key: tuple[str | int, ...] = ()
    size: int = 0
    """Of a trade, in units of 10^-8."""
    cancelled: bool = False
    versions: int = 1
    """How many canonical versions the record makes: a membership with an end makes two."""
    levels: int = 0
    """Of an order book's message: how many levels it changes, each of which is a key of its own."""
    received: int = 0
    """Captures: receive time, ns since the epoch."""
    reason: str = ""
    """Of a quarantined record: its code."""
    planted: str = ""
    """What kind of planting it is; empty for an ordinary record."""
    why: str = ""


def repeated(record: Record, text: bytes | None = None) -> Record:
    """The record again, as a duplicate; bad, control and unread records stay what they are."""
    fate = Fate.DUPLICATE if record.fate is Fate.CANONICAL else record.fate
    return record._replace(text=record.text if text is None else text, fate=fate, planted="", why="")


@dataclass(frozen=True)
class Plant:
    """Something put into the world on purpose. `position` is 1-based, null where it is the whole file."""

    kind: str
    path: str
    position: int | None
    why: str
    reason: str = ""
    count: int = 1


@dataclass(frozen=True)
class Parcel:
    """A vendor's file: its bytes, its records, and how it reaches the warehouse."""

    path: str
    feed: str
    body: bytes
    records: tuple[Record, ...]
    arrives: int
    """ns since the epoch; the demo loads in this order."""
    delivered_at: str | None = None
    """UTC, to be stated on loading; null where the name says it or where records carry their own clock."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    outcome: str = "loaded"
    late: bool = False
    retracted: tuple[Record, ...] = ()
    """Records of the delivery before that are missing from this one."""
    notes: tuple[Plant, ...] = ()


def published(parcel: Parcel) -> Parcel:
    """The capture as it comes by Kafka, which knows records and no files.

    A file whose bytes are known is nothing new; a capture sent again has all its records again, the good ones as
    duplicates, the others as what they were.
    """
    again = parcel.outcome == "unchanged"
    records = tuple(
        repeated(record) if again and record.fate is Fate.CANONICAL else record for record in parcel.records
    )
    return replace(parcel, outcome="published", records=records)


@dataclass(frozen=True)
class Delivery:
    """One file of the demo and what must come of it, once all loads are in.

    `path` is relative to the world's directory; `delivered_at` (UTC) and `attributes` are to be stated on
    loading, null and empty where the file's name or the records say it themselves.
    `outcome` is loaded, redelivered (the bytes are known, the stated time is new), unchanged (nothing
    new: a no-op), refused or published (sent to the feed's topic in Kafka, and loaded from there). `records` is the
    raw count of what was landed; canonical (by table) + duplicates + quarantined (by reason) + control +
    unread. `deletions` counts versions that no record makes: keys that the delivery leaves out.
    """

    order: int
    path: str
    feed: str
    delivered_at: str | None
    attributes: dict[str, str]
    outcome: str
    late: bool
    records: int
    canonical: dict[str, int]
    duplicates: int
    quarantined: dict[str, int]
    control: int
    unread: int
    deletions: int


@dataclass(frozen=True)
class TableTruth:
    """A canonical table after all loads: keys, versions of them, keys whose newest version is cancelled."""

    keys: int
    versions: int
    cancelled: int


@dataclass(frozen=True)
class Answer:
    """A series' value for one period as known before and after a revision; null is a missing value."""

    observation_date: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Question:
    """One series, asked as known at two times (UTC) on either side of a revision.

    `answers` holds every period that is known at `ask_after`; `revised` those whose value was known
    before and is another one after. The revision is known from `known_from`.
    """

    name: str
    series_id: str
    revision_published_on: str
    known_from: str
    ask_before: str
    ask_after: str
    answers: tuple[Answer, ...]
    revised: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True)
class Truth:
    """All that the generator knows of its world.

    `live_sizes` maps `venue/symbol` to the exact sum (a decimal text) of the sizes of trades whose newest
    version is not cancelled.
    """

    seed: int
    deliveries: tuple[Delivery, ...]
    tables: dict[str, TableTruth]
    live_sizes: dict[str, str]
    questions: tuple[Question, ...]
    planted: tuple[Plant, ...]
    sessions: tuple[str, ...]
    tickers: tuple[str, ...]

    def text(self) -> str:
        """The truth as JSON text, equal for equal worlds."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def records_of(self, feed: str) -> int:
        """Raw records of a feed over all loads."""
        return sum(delivery.records for delivery in self.deliveries if delivery.feed == feed)

    @classmethod
    def read(cls, path: Path) -> Truth:
        """Read `truth.json`."""
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            seed=found["seed"],
            deliveries=tuple(Delivery(**row) for row in found["deliveries"]),
            tables={name: TableTruth(**row) for name, row in found["tables"].items()},
            live_sizes=found["live_sizes"],
            questions=tuple(_question(row) for row in found["questions"]),
            planted=tuple(Plant(**row) for row in found["planted"]),
            sessions=tuple(found["sessions"]),
            tickers=tuple(found["tickers"]),
        )


def _question(row: dict[str, Any]) -> Question:
    answers = tuple(Answer(**answer) for answer in row["answers"])
    return Question(**{**row, "answers": answers, "revised": tuple(row["revised"]), "new": tuple(row["new"])})


class _Newest(NamedTuple):
    venue: str
    symbol: str
    size: int
    cancelled: bool


class Tally:
    """Adds up parcels, taken in the order of knowledge."""

    def __init__(self) -> None:
        self._newest: dict[str, dict[tuple[str | int, ...], _Newest]] = {}
        self._versions: Counter[str] = Counter()
        self._taken: list[tuple[Parcel, Delivery]] = []
        self._planted: list[Plant] = []

    def take(self, parcel: Parcel) -> None:
        """Count a parcel; one that is refused, or unchanged, brings no records."""
        landed = parcel.records if parcel.outcome in LANDED else ()
        venue = VENUES.get(parcel.feed, "us_equities")
        fates: Counter[Fate] = Counter()
        made: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        self._planted += parcel.notes
        for position, record in enumerate(landed, start=1):
            fates[record.fate] += 1
            if record.fate is Fate.CANONICAL:
                made[record.table] += 1
                for key in _keys(record):
                    self._note(parcel.feed, venue, record._replace(key=key), record.versions, record.cancelled)
            elif record.fate is Fate.DUPLICATE:
                self._check_known(parcel, record)
            elif record.fate is Fate.QUARANTINED:
                reasons[record.reason] += 1
            if record.planted:
                self._planted.append(Plant(record.planted, parcel.path, position, record.why, reason=record.reason))
        for record in parcel.retracted:
            self._check_known(parcel, record)
            self._note(parcel.feed, venue, record, 1, cancelled=True)
        delivery = Delivery(
            order=0,
            path=parcel.path,
            feed=parcel.feed,
            delivered_at=parcel.delivered_at,
            attributes=dict(parcel.attributes),
            outcome=parcel.outcome,
            late=parcel.late,
            records=len(landed),
            canonical=dict(sorted(made.items())),
            duplicates=fates[Fate.DUPLICATE],
            quarantined=dict(sorted(reasons.items())),
            control=fates[Fate.CONTROL],
            unread=fates[Fate.UNREAD],
            deletions=len(parcel.retracted),
        )
        self._taken.append((parcel, delivery))

    def truth(self, seed: int, questions: Iterable[Question], sessions: Iterable[str], tickers: Iterable[str]) -> Truth:
        """The sum; deliveries in the order in which they arrive."""
        arrived = sorted(self._taken, key=lambda taken: (taken[0].arrives, taken[0].path))
        deliveries = tuple(
            Delivery(**{**asdict(delivery), "order": order}) for order, (_, delivery) in enumerate(arrived, start=1)
        )
        sums: Counter[str] = Counter()
        for newest in self._newest["trades"].values():
            sums[f"{newest.venue}/{newest.symbol}"] += 0 if newest.cancelled else newest.size
        tables = {
            name: TableTruth(
                keys=len(newest),
                versions=self._versions[name],
                cancelled=sum(one.cancelled for one in newest.values()),
            )
            for name, newest in sorted(self._newest.items())
        }
        return Truth(
            seed=seed,
            deliveries=deliveries,
            tables=tables,
            live_sizes={name: trimmed(total, SIZE_PLACES) for name, total in sorted(sums.items())},
            questions=tuple(questions),
            planted=tuple(self._planted),
            sessions=tuple(sessions),
            tickers=tuple(sorted(tickers)),
        )

    def _note(self, feed: str, venue: str, record: Record, versions: int, cancelled: bool) -> None:
        newest = self._newest.setdefault(record.table, {})
        newest[(feed, *record.key)] = _Newest(venue, record.symbol, record.size, cancelled)
        self._versions[record.table] += versions

    def _check_known(self, parcel: Parcel, record: Record) -> None:
        for key in _keys(record):
            if (parcel.feed, *key) not in self._newest.get(record.table, {}):
                raise AssertionError(f"{parcel.path}: {record.key} is repeated before it was first seen")


def _keys(record: Record) -> list[tuple[str | int, ...]]:
    """The keys of a record's facts: its own, or one for each level."""
    return [(*record.key, level) for level in range(record.levels)] if record.levels else [record.key]
