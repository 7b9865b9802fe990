"""What must come of a world, by the contract alone: plain Python, record by record, shared with no model.

    files (bytes) ── read ──> facts ── per key ──> versions, duplicates ──> bars_1m, bars_1d, macro_series
                        └──> quarantine, control, unread ──> conservation

Times are nanoseconds since 1970, UTC. A record is (file, position); a file is its place in the list of files.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

NEW_YORK = ZoneInfo("America/New_York")
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
DAY = 24 * 60 * MINUTE
MICS = {"1": "XASE", "10": "XNYS", "11": "ARCX", "12": "XNAS", "202": "FINN"}
CANCELS = {"7", "8", "10", "11", "12"}
# What a sale condition forbids: open and close, high and low, volume. 12 and 13 only within the session.
CONDITIONS = {
    "2": "oh",
    "7": "oh",
    "12": "oh",
    "10": "o",
    "15": "ohv",
    "16": "ohv",
    "33": "o",
    "37": "oh",
    "38": "v",
}


@dataclass(frozen=True)
class File:
    """A vendor's file or a capture, and how it is delivered."""

    feed: str
    name: str
    body: bytes
    delivered_at: int | None = None


class Record(NamedTuple):
    """Where a record stands."""

    file: int
    position: int


@dataclass(frozen=True)
class Fact:
    """One fact of a record, before anything is known of others."""

    record: Record
    key: tuple[Any, ...]
    content: tuple[Any, ...]
    row: dict[str, Any]
    rule: int
    delivered: int | None
    sequence: Any
    source: str
    scope: Any = None
    slot: str = ""
    self_dated: bool = False
    is_deletion: bool = False

    def in_delivery(self) -> tuple[Any, ...]:
        sequence = (self.sequence is not None, self.sequence if self.sequence is not None else 0)
        position = -1 if self.is_deletion else self.record.position
        return (self.delivered or 0, sequence, self.source, position)


@dataclass(frozen=True)
class Version:
    fact: Fact
    known_from: int
    known_to: int | None
    revision: int


@dataclass
class Expected:
    """All that the warehouse must hold."""

    versions: dict[str, list[Version]] = field(default_factory=lambda: defaultdict(list))
    duplicates: set[Record] = field(default_factory=set)
    quarantine: dict[Record, str] = field(default_factory=dict)
    control: set[Record] = field(default_factory=set)
    unread: set[Record] = field(default_factory=set)
    records: dict[int, int] = field(default_factory=dict)
    known: dict[tuple[Record, str], int] = field(default_factory=dict)
    """Of each record's facts, by slot: since when it could have been known, whether or not it said anything new."""
    bars_1m: list[tuple[Any, ...]] = field(default_factory=list)
    bars_1d: list[tuple[Any, ...]] = field(default_factory=list)
    macro_series: list[tuple[Any, ...]] = field(default_factory=list)

    def conservation(self) -> dict[int, tuple[int, ...]]:
        """Of each file: raw, canonical, duplicates, quarantined, control, unread."""
        made = {
            version.fact.record
            for versions in self.versions.values()
            for version in versions
            if not version.fact.is_deletion
        }
        terms = (made, self.duplicates - made, set(self.quarantine), self.control, self.unread)
        return {
            file: (count, *(sum(record.file == file for record in term) for term in terms))
            for file, count in self.records.items()
        }


def expect(files: Sequence[File]) -> Expected:
    """Read all files and say what must come of them."""
    expected = Expected()
    facts: dict[str, list[Fact]] = defaultdict(list)
    deliveries: dict[Any, set[int]] = defaultdict(set)
    for number, file in enumerate(files):
        found, scope = READERS[file.feed](number, file, expected)
        for table, fact in found:
            facts[table].append(fact)
        if scope is not None and not any(record.file == number for record in expected.quarantine):
            deliveries[scope].add(number)
    for table, all_facts in facts.items():
        by_key: dict[tuple[Any, ...], list[Fact]] = defaultdict(list)
        for fact in all_facts:
            by_key[fact.key].append(fact)
        for of_key in by_key.values():
            resolve(table, of_key, files, deliveries, expected)
    trades = expected.versions["trades"]
    expected.bars_1m = list(bars(trades, lambda fact: fact.row["event_time"] // MINUTE * MINUTE, of_minute))
    expected.bars_1d = list(bars(trades, lambda fact: fact.row["session"], of_session))
    expected.macro_series = list(macro_series(expected.versions["macro_observations"]))
    return expected


# Time


def utc(time: dt.datetime) -> int:
    """Nanoseconds of a time with a zone."""
    return round((time - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) / dt.timedelta(microseconds=1)) * 1000


def new_york(date: dt.date, days: int = 0, hour: int = 0, minute: int = 0) -> int:
    """A wall-clock time in New York, so many days after a date."""
    return utc(dt.datetime.combine(date + dt.timedelta(days), dt.time(hour, minute), NEW_YORK))


def date_in_new_york(time: int) -> dt.date:
    return dt.datetime.fromtimestamp(time // SECOND, dt.UTC).astimezone(NEW_YORK).date()


def date_in_utc(time: int) -> dt.date:
    return dt.datetime.fromtimestamp(time // SECOND, dt.UTC).date()


def cell_end(time: int) -> int:
    return -(-time // MINUTE) * MINUTE


def epoch(text: str) -> int:
    return int(text) * {13: 10**6, 16: 10**3, 19: 1}[len(text)]


# Reading


Reading = tuple[list[tuple[str, Fact]], Any]


def read_binance(number: int, file: File, expected: Expected) -> Reading:
    found: list[tuple[str, Fact]] = []
    lines = file.body.split(b"\n")[:-1]
    expected.records[number] = len(lines)
    for position, line in enumerate(lines, start=1):
        record = Record(number, position)
        prefix, _, payload = line.partition(b" ")
        received = int(prefix)
        reason, kind, data = "", "", {}
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            expected.quarantine[record] = "not_utf8"
            continue
        try:
            message = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            expected.quarantine[record] = "malformed_json"
            continue
        data = message.get("data", message)
        kind = data.get("e") or ("bookTicker" if "u" in data and "a" in data else "")
        if kind == "depthUpdate":
            reason = "missing_field"  # the worlds have no whole one: worlds.books has its own
        if kind == "serverShutdown":
            expected.control.add(record)
            continue
        if kind == "trade":
            reason = judge_trade(data, received)
        elif kind not in ("bookTicker", "depthUpdate"):
            reason = "unknown_kind"
        if reason:
            expected.quarantine[record] = reason
            continue
        listing = f"binance:{data['s']}"
        shared = {"listing_id": listing, "venue": "binance", "symbol": data["s"], "received_time": received}
        if kind == "trade":
            event = epoch(str(data["T"]))
            side = "sell" if data["m"] else "buy"
            facts = (event, float(data["p"]), float(data["q"]), side)
            row = shared | {
                **{
                    "exchange": None,
                    "trade_id": str(data["t"]),
                    "event_time": event,
                    "price": facts[1],
                    "size": facts[2],
                },
                **{
                    "side": side,
                    "conditions": None,
                    "sequence": None,
                    "is_cancelled": False,
                    "session": date_in_utc(event),
                },
            }
            key: tuple[Any, ...] = (listing, str(data["t"]))
            known = max(received, event)
        else:
            facts = tuple(float(data[name]) for name in "bBaA")
            names = ("bid_price", "bid_size", "ask_price", "ask_size")
            row = shared | dict(zip(names, facts, strict=True))
            row |= {
                "event_time": received,
                "bid_exchange": None,
                "ask_exchange": None,
                "update_id": data["u"],
            }
            row |= {"conditions": None, "sequence": None}
            key = (listing, data["u"])
            known = received
        row["knowledge_basis"] = "received"
        table = "trades" if kind == "trade" else "quotes"
        found.append((table, Fact(record, key, facts, row, known, None, None, file.name)))
    return found, None


def judge_trade(data: dict[str, Any], received: int) -> str:
    """Why a Binance trade cannot be used; nothing where it can."""
    if any(data.get(name) is None for name in "stpqTm"):
        return "missing_field"
    if number(data["p"]) is None or number(data["q"]) is None or data["m"] not in (True, False):
        return "invalid_value"
    event = epoch(str(data["T"])) if len(str(data["T"])) in (13, 16) else 0
    if event < DAY or event > received + DAY:
        return "impossible_time"
    return "impossible_value" if float(data["p"]) <= 0 or float(data["q"]) <= 0 else ""


def number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def read_massive_trades(file_number: int, file: File, expected: Expected) -> Reading:
    found: list[tuple[str, Fact]] = []
    header, *rows = list(csv.reader(io.StringIO(file.body.decode())))
    expected.records[file_number] = len(rows)
    session_of_file = dt.date.fromisoformat(file.name.removesuffix(".csv").rpartition("_")[2])
    assert file.delivered_at is not None
    for position, fields in enumerate(rows, start=1):
        record = Record(file_number, position)
        if len(fields) != len(header):
            expected.quarantine[record] = "malformed_row"
            continue
        row = dict(zip(header, fields, strict=True))
        if reason := judge_row(row, file.delivered_at):
            expected.quarantine[record] = reason
            continue
        event = epoch(row["participant_timestamp"] or row["sip_timestamp"])
        session = date_in_new_york(event)
        listing = f"us_equities:{row['ticker']}"
        is_cancelled = row["correction"] in CANCELS
        conditions = row["conditions"].split(",") if row["conditions"] else None
        mic = MICS.get(row["trf_id"] if row["exchange"] == "4" else row["exchange"])
        sequence = int(row["sequence_number"]) if row["sequence_number"] else None
        price, size = float(row["price"]), float(row["size"])
        content = (event, price, size, mic, tuple(conditions or ()), sequence, is_cancelled)
        columns = {
            **{
                "listing_id": listing,
                "venue": "us_equities",
                "symbol": row["ticker"],
                "exchange": mic,
                "trade_id": row["id"],
            },
            **{"event_time": event, "received_time": None, "price": price, "size": size, "side": None},
            **{
                "conditions": conditions,
                "sequence": sequence,
                "is_cancelled": is_cancelled,
                "session": session,
            },
            "knowledge_basis": "assumed",
        }
        key = (listing, session, row["exchange"], row["trf_id"], row["id"])
        rule = new_york(session, days=1, hour=11)
        fact = Fact(record, key, content, columns, rule, file.delivered_at, sequence, file.name, ("day", session))
        found.append(("trades", fact))
    return found, ("day", session_of_file)


def judge_row(row: dict[str, str], delivered_at: int) -> str:
    time = row["participant_timestamp"] or row["sip_timestamp"]
    if not all((row["ticker"], row["id"], row["price"], row["size"], time)):
        return "missing_field"
    if number(row["price"]) is None or number(row["size"]) is None or row["correction"] not in CANCELS | {"0", "1"}:
        return "invalid_value"
    if epoch(time) > delivered_at + DAY:
        return "impossible_time"
    return "impossible_value" if float(row["price"]) <= 0 or float(row["size"]) <= 0 else ""


def read_alfred(file_number: int, file: File, expected: Expected) -> Reading:
    found: list[tuple[str, Fact]] = []
    elements = json.loads(file.body)["observations"]
    series = file.name.removeprefix("alfred_").partition("_fetched_")[0]
    expected.records[file_number] = len(elements)
    for position, element in enumerate(elements, start=1):
        record = Record(file_number, position)
        if any(element.get(name) is None for name in ("realtime_start", "date", "value")):
            expected.quarantine[record] = "missing_field"
            continue
        try:
            published = dt.date.fromisoformat(element["realtime_start"])
            period = dt.date.fromisoformat(element["date"])
            value = None if element["value"] == "." else float(element["value"])
        except ValueError:
            expected.quarantine[record] = "invalid_value"
            continue
        row = {"series_id": series, "observation_date": period, "value": value, "published_on": published}
        row["knowledge_basis"] = "published"
        rule = new_york(published, days=1)
        fact = Fact(record, (series, period), (value,), row, rule, file.delivered_at, published, file.name)
        found.append(("macro_observations", replace(fact, slot=str(published), self_dated=True)))
    return found, None


def read_memberships(file_number: int, file: File, expected: Expected) -> Reading:
    found: list[tuple[str, Fact]] = []
    header, *rows = list(csv.reader(io.StringIO(file.body.decode())))
    index = file.name.removesuffix("_ticker_start_end.csv")
    expected.records[file_number] = len(rows)
    for position, fields in enumerate(rows, start=1):
        record = Record(file_number, position)
        if len(fields) != len(header):
            expected.quarantine[record] = "malformed_row"
            continue
        ticker, start, end = fields
        if not ticker or not start:
            expected.quarantine[record] = "missing_field"
            continue
        try:
            begins, ends = dt.date.fromisoformat(start), dt.date.fromisoformat(end) if end else None
        except ValueError:
            expected.quarantine[record] = "invalid_value"
            continue
        if ends and ends < begins:
            expected.quarantine[record] = "impossible_value"
            continue
        listing = f"us_equities:{ticker}"
        row = {"index_name": index, "listing_id": listing, "symbol": ticker, "valid_from": begins}
        row["knowledge_basis"] = "assumed"
        for slot, until in (("", None), ("end", ends)):
            rule = new_york(until or begins)
            fact = Fact(
                record,
                (index, listing, begins),
                (until,),
                row | {"valid_to": until},
                rule,
                file.delivered_at,
                slot,
                file.name,
            )
            dated = replace(fact, scope=("index", index), slot=slot, self_dated=until is not None)
            found.append(("universe_membership", dated))
    return found, ("index", index)


READERS: dict[str, Callable[[int, File, Expected], Reading]] = {
    "binance_spot": read_binance,
    "massive_trades": read_massive_trades,
    "alfred_observations": read_alfred,
    "index_membership": read_memberships,
}

# Versions


def resolve(
    table: str, facts: list[Fact], files: Sequence[File], deliveries: dict[Any, set[int]], expected: Expected
) -> None:
    """The versions of one key, and which of its records are duplicates."""
    if facts[0].delivered is None:
        known = [(fact.rule, fact) for fact in facts]
        restated: set[int] = set()
    else:
        facts = facts + list(missing(table, facts, files, deliveries))
        facts.sort(key=Fact.in_delivery)
        slotted = table in ("macro_observations", "universe_membership")
        known, restated = (dated if slotted else delivered)(facts)
    expected.known.update({(fact.record, fact.slot): known_from for known_from, fact in known})
    known.sort(key=lambda pair: (pair[0], *pair[1].in_delivery()))
    kept: list[tuple[int, Fact]] = []
    said: set[tuple[Any, ...]] = set()
    for known_from, fact in known:
        if fact.delivered is None:
            repeats = fact.content in said
        else:
            repeats = id(fact) in restated or (bool(kept) and kept[-1][1].content == fact.content)
        said.add(fact.content)
        if repeats:
            if not fact.is_deletion:
                expected.duplicates.add(fact.record)
        else:
            kept.append((known_from, fact))
    for revision, (known_from, fact) in enumerate(kept):
        known_to = kept[revision + 1][0] if revision + 1 < len(kept) else None
        expected.versions[table].append(Version(fact, known_from, known_to, revision))


def missing(table: str, facts: list[Fact], files: Sequence[File], deliveries: dict[Any, set[int]]) -> Iterator[Fact]:
    """The deletions of a key: deliveries of its scope, after its first, that lack it. Of a trade it is a cancel."""
    scope = facts[0].scope
    has = {fact.record.file for fact in facts}
    for file in deliveries.get(scope, set()) - has:
        delivered_at = files[file].delivered_at
        assert delivered_at is not None
        before = [fact for fact in facts if (fact.delivered or 0) < delivered_at]
        if before:
            last = max(before, key=Fact.in_delivery)
            here = replace(last, record=Record(file, -1), delivered=delivered_at, source=files[file].name)
            content = (*last.content[:-1], True) if table == "trades" else ("deleted",)
            yield replace(here, content=content, is_deletion=True, slot="deleted")


Known = tuple[list[tuple[int, Fact]], set[int]]


def delivered(facts: list[Fact]) -> Known:
    """Known by the rule, then by delivery; what a delivery says again in the same words is restated."""
    restated: set[int] = set()
    says: dict[tuple[Any, int], list[Fact]] = defaultdict(list)
    for fact in facts:
        says[fact.delivered, fact.record.file].append(fact)
    before: list[Any] | None = None
    for group in says.values():
        words = [fact.content for fact in group]
        if words == before:
            restated |= {id(fact) for fact in group}
        before = words
    first = next(fact for fact in facts if not fact.is_deletion)
    return [(fact.rule if fact is first else max(fact.rule, fact.delivered or 0), fact) for fact in facts], restated


def dated(facts: list[Fact]) -> Known:
    """Facts that date themselves are known by the rule on their first delivery; after a deletion, by delivery."""
    restated: set[int] = set()
    known = []
    last: dict[str, tuple[Any, ...]] = {}
    stated: set[str] = set()
    begun = deleted = False
    for fact in facts:
        first = False
        if fact.is_deletion:
            deleted, last, stated = True, {}, set()
        else:
            unsaid = fact.slot == "end" and not fact.self_dated and "end" not in stated
            if last.get(fact.slot) == fact.content or unsaid:
                restated.add(id(fact))
            first = not deleted and ((fact.self_dated and fact.slot not in stated) or (fact.slot == "" and not begun))
            begun = begun or fact.slot == ""
            stated |= {fact.slot} if fact.self_dated else set()
            last[fact.slot] = fact.content
        known.append((fact.rule if first else max(fact.rule, fact.delivered or 0), fact))
    return known, restated


# Bars


@dataclass(frozen=True)
class Span:
    """A bar's period: when it ends, how late its feed is, and which of its trades belong to it."""

    ends: int
    lag: int
    takes: Callable[[Fact], bool]


def of_minute(fact: Fact, period: int) -> Span:
    return Span(period + MINUTE, lag_of(fact), lambda _: True)


def of_session(fact: Fact, period: dt.date) -> Span:
    if fact.row["venue"] == "binance":
        midnight = dt.datetime.combine(period + dt.timedelta(1), dt.time(), dt.UTC)
        return Span(utc(midnight), 0, lambda _: True)
    return Span(
        new_york(period, hour=16),
        lag_of(fact),
        lambda trade: (
            in_session(trade)
            or ("8" in (trade.row["conditions"] or []) and trade.row["event_time"] >= new_york(period, hour=16))
        ),
    )


def lag_of(fact: Fact) -> int:
    return 11 * 60 * MINUTE if fact.row["venue"] == "us_equities" else 0


def in_session(fact: Fact) -> bool:
    if fact.row["venue"] == "binance":
        return True
    session = fact.row["session"]
    return new_york(session, hour=9, minute=30) <= fact.row["event_time"] < new_york(session, hour=16)


def allows(fact: Fact, what: str) -> bool:
    """Whether every condition of a trade lets it set `what`: o(pen and close), h(igh and low), v(olume)."""
    for code in fact.row["conditions"] or []:
        if what in CONDITIONS.get(code, "") and not (code in ("12", "13") and what in "oh" and not in_session(fact)):
            return False
    return True


def bars(
    trades: Iterable[Version], period_of: Callable[[Fact], Any], span_of: Callable[[Fact, Any], Span]
) -> Iterator[tuple[Any, ...]]:
    """listing, period, open to close, volume, vwap, dollars, trades, first, last, known_from, known_to."""
    groups: dict[tuple[str, Any], list[Version]] = defaultdict(list)
    for version in trades:
        fact = version.fact
        if not fact.is_deletion and not fact.row["is_cancelled"]:
            groups[fact.row["listing_id"], period_of(fact)].append(version)
    for (listing, period), candidates in groups.items():
        span = span_of(candidates[0].fact, period)
        members = [version for version in candidates if span.takes(version.fact)]
        if not members:
            continue
        first_cell = cell_end(max(span.ends + span.lag, min(version.known_from for version in members)))
        times = {version.known_from for version in members} | {version.known_to for version in members} - {None}
        cells = sorted({max(first_cell, cell_end(time)) for time in times if time is not None})
        for row, known_from, known_to in on_grid((cell, bar_of(members, cell)) for cell in cells):
            yield (listing, period, *row, known_from, known_to)


def bar_of(members: list[Version], cell: int) -> tuple[Any, ...] | None:
    alive = [v.fact for v in members if v.known_from <= cell and (v.known_to is None or v.known_to > cell)]

    def order(fact: Fact) -> tuple[int, int, int]:
        row = fact.row
        return (row["event_time"], -1 if row["sequence"] is None else row["sequence"], int(row["trade_id"]))

    prices = sorted((fact for fact in alive if allows(fact, "o")), key=order)
    extremes = [fact.row["price"] for fact in alive if allows(fact, "h")]
    sized = [(fact.row["price"], fact.row["size"]) for fact in alive if allows(fact, "v")]
    if not prices:
        return None
    volume, dollars = math.fsum(size for _, size in sized), math.fsum(price * size for price, size in sized)
    return (
        *(
            prices[0].row["price"],
            max(extremes, default=None),
            min(extremes, default=None),
            prices[-1].row["price"],
        ),
        *(volume, dollars / volume if sized else None, dollars, len(sized)),
        *(prices[0].row["event_time"], prices[-1].row["event_time"]),
    )


def on_grid(
    states: Iterable[tuple[int, tuple[Any, ...] | None]],
) -> Iterator[tuple[tuple[Any, ...], int, int | None]]:
    """The states that differ from the one before, each until the next."""
    changes: list[tuple[int, tuple[Any, ...] | None]] = []
    for cell, row in states:
        if not changes or not alike(changes[-1][1], row):
            changes.append((cell, row))
    for number, (cell, row) in enumerate(changes):
        if row is not None:
            yield row, cell, changes[number + 1][0] if number + 1 < len(changes) else None


def alike(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> bool:
    if a is None or b is None:
        return a is b
    return all(
        math.isclose(x, y, rel_tol=1e-12, abs_tol=0) if isinstance(x, float) and isinstance(y, float) else x == y
        for x, y in zip(a, b, strict=True)
    )


# Macro


def macro_series(versions: Iterable[Version]) -> Iterator[tuple[Any, ...]]:
    """(series, period, value, first print, revision, surprise, published on, known_from, known_to)."""
    by_series: dict[str, list[Version]] = defaultdict(list)
    for version in versions:
        on_cells = replace(
            version,
            known_from=cell_end(version.known_from),
            known_to=None if version.known_to is None else cell_end(version.known_to),
        )
        if on_cells.known_to is None or on_cells.known_to > on_cells.known_from:
            by_series[version.fact.row["series_id"]].append(on_cells)
    for series, seen in by_series.items():
        cells = sorted({version.known_from for version in seen})
        for period in sorted({version.fact.row["observation_date"] for version in seen}):
            states = ((cell, macro_row(seen, period, cell)) for cell in cells)
            for row, known_from, known_to in on_grid(states):
                yield (series, period, *row, known_from, known_to)


def macro_row(seen: list[Version], period: dt.date, cell: int) -> tuple[Any, ...] | None:
    known = [version for version in seen if version.known_from <= cell]
    of_period = sorted(
        (version for version in known if version.fact.row["observation_date"] == period),
        key=lambda v: v.known_from,
    )
    if not of_period:
        return None
    current = of_period[-1].fact.row
    previous = of_period[-2].fact.row["value"] if len(of_period) > 1 else None
    first = min(of_period, key=lambda v: (v.fact.row["published_on"], v.revision)).fact.row
    earlier = [v.fact.row for v in known if v.fact.row["published_on"] < first["published_on"]]
    is_print = bool(earlier) and all(row["observation_date"] < period for row in earlier)
    first_print = first["value"] if is_print else None
    value = current["value"]
    return (value, first_print, less(value, first_print), less(value, previous), current["published_on"])


def less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
