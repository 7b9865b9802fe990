"""Vendor files into the raw zone: each whole, or not at all.

    paths ── expanded ── one file at a time:
        hash ── known already? ── reader ── segments ── the original bytes ── ledger entry  "loaded"
          │            └── same bytes: nothing to do, or a new delivery of them    "unchanged", "redelivered"
          ├── broken, hostile, or of another feed: what was written is removed     "refused", an entry too
          └── in a directory, and named as another feed's: left to that feed       "skipped", no entry

Up to the entry nothing is seen by readers; a load that dies leaves files that no entry names, and may be
repeated. A refusal stops neither the other files nor a later load of the same bytes.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from loaders import VERSION, failpoints, logs
from loaders.captures import read_lines
from loaders.documents import read_document
from loaders.instruments import Instruments
from loaders.ledger import DataFile, Drift, Entry, Ledger, load_id
from loaders.paths import Found, expand
from loaders.registry import Feed, find_feed, load_registry
from loaders.segments import Load, SegmentWriter
from loaders.settings import Settings
from loaders.sources import Progress, Refusal, Source
from loaders.store import Store, open_store
from loaders.tables import read_table
from loaders.texts import few
from loaders.times import compact, iso, parse_time

log = logging.getLogger(__name__)

Status = Literal["loaded", "unchanged", "redelivered", "refused", "skipped"]
Accept = Literal["other-feed"]
HALF = 0.5
LEAST_SHARE = {"csv": HALF, "json": 0.25}
"""Part of the fields that the registry lists of a feed which a file must have: vendors add and drop fields, and a file
with fewer is likelier to be of something else. A CSV file names all its columns; JSON leaves out what is null. Fields
of lines are not looked at."""
LONGEST_ATTRIBUTE = 200
A_DAY = 86_400 * 10**9


@dataclass(frozen=True)
class Outcome:
    """What became of one file. `message` is one line for a person; `entry` is what the ledger holds now, and has no key
    where the file was skipped, since the ledger holds nothing then."""

    path: str
    status: Status
    entry: Entry
    message: str


@dataclass(frozen=True)
class _Delivery:
    """What is known of a file before its records are read. Times are nanoseconds since 1970-01-01 UTC."""

    feed: Feed
    found: Found
    started_at: int
    sha256: str
    size: int
    delivered_at: int | None
    attributes: Mapping[str, str]

    @property
    def key(self) -> str:
        key = _key_of_bytes(self.feed, self.sha256)
        return key if self.delivered_at is None else f"{key}@{compact(self.delivered_at)}"

    @property
    def original(self) -> str:
        return f"_originals/{self.feed.name}/{self.sha256}"


def load(
    paths: Iterable[str | Path],
    feed: str,
    *,
    settings: Settings,
    delivered_at: str | None = None,
    attributes: Mapping[str, str] | None = None,
    accept: Collection[Accept] = (),
    progress: Progress | None = None,
) -> list[Outcome]:
    """Load files, directories and globs as one feed's, one by one; return an outcome for each file.

    `delivered_at` is an ISO date or time (UTC unless it says otherwise) at which all of them were delivered;
    `attributes` are values that the files' names do not say, and go before those that they do. A file that
    looks like another feed's is refused, or skipped where a directory or a glob led to it and its name says so,
    unless `accept` holds "other-feed". Raises RegistryError for an unknown feed and ValueError for a time that
    cannot be read, before touching anything; StoreError when the raw zone itself fails.
    """
    return list(
        load_each(
            paths,
            feed,
            settings=settings,
            delivered_at=delivered_at,
            attributes=attributes,
            accept=accept,
            progress=progress,
        )
    )


def load_each(
    paths: Iterable[str | Path],
    feed: str,
    *,
    settings: Settings,
    delivered_at: str | None = None,
    attributes: Mapping[str, str] | None = None,
    accept: Collection[Accept] = (),
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """As `load`, but give each outcome as soon as it is known. The arguments are checked at once."""
    known = find_feed(feed, load_registry())
    stated = None if delivered_at is None else parse_time(delivered_at)
    loader = FileLoader(known, settings, stated, attributes or {}, progress, accept)
    return (loader.load(found) for found in expand(paths, avoid=settings.raw))


class FileLoader:
    """Loads files of one feed into one raw zone."""

    def __init__(
        self,
        feed: Feed,
        settings: Settings,
        delivered_at: int | None,
        attributes: Mapping[str, str],
        progress: Progress | None,
        accept: Collection[Accept] = (),
    ) -> None:
        self._feed, self._delivered_at, self._attributes = feed, delivered_at, attributes
        self._others = [other for other in load_registry().values() if other.name != feed.name]
        self._accept = accept
        self._limits, self._progress = settings.limits, progress
        self._store: Store = open_store(settings.raw, settings.s3)
        self._ledger = Ledger(self._store)

    def load(self, found: Found) -> Outcome:
        """Load one file; whatever is wrong with it becomes a refusal in the ledger.

        A file that was not named itself, and is by its name another feed's, is left alone: it would be refused again
        each time that the directory is loaded.
        """
        started_at = time.time_ns()
        source: Source | None = None
        try:
            if found.problem:
                raise Refusal(found.problem)
            if found.by_search and (like := self._named_by(found.name)):
                return self._skip(found, started_at, like)
            with Source(found.path, self._limits, self._progress, self._passes) as source:
                return self._load(source, found, started_at)
        except Refusal as refusal:
            return self._refuse(found, started_at, source, str(refusal))

    @property
    def _passes(self) -> int:
        """How often a file is read: for its hash, its records (JSON: twice), and the copy of it."""
        return 4 if self._feed.format == "json" else 3

    def _load(self, source: Source, found: Found, started_at: int) -> Outcome:
        sha256 = source.digest()
        earlier = [
            entry for entry in self._ledger.entries(_key_of_bytes(self._feed, sha256)) if entry.outcome == "loaded"
        ]
        if not earlier:
            self._look_at_name(found.name)
        delivered_at, attributes = self._said_of(found.name)
        delivery = _Delivery(
            feed=self._feed,
            found=found,
            started_at=started_at,
            sha256=sha256,
            size=source.size,
            delivered_at=delivered_at,
            attributes=attributes,
        )
        same = [entry for entry in earlier if self._required(entry.attributes) == self._required(attributes)]
        if delivered_at is None and earlier:
            return self._unchanged(delivery, earlier, same)
        if stood := next((entry for entry in earlier if entry.key == delivery.key), None):
            return self._unchanged(delivery, [stood], [stood] if stood in same else [])
        if same:
            return self._redeliver(delivery, same[0])
        return self._load_records(source, delivery)

    def _look_at_name(self, name: str) -> None:
        """Raise Refusal for a file that is named as another feed's files are, and not as this one's."""
        if like := self._named_by(name):
            raise Refusal(f"{self._names(like)}; {self._ways_out(like)}")

    def _named_by(self, name: str) -> list[Feed]:
        """Return the other feeds whose files are named so, none where this one's are too, or any file is accepted."""
        if "other-feed" in self._accept or self._feed.names(name):
            return []
        return [other for other in self._others if other.names(name)]

    def _names(self, like: Sequence[Feed]) -> str:
        patterns = " or ".join(f"{other.name} ({other.file_pattern})" for other in like)
        return f"has the name of a file of feed {patterns}, not of {self._feed.name}"

    def _look_at_fields(self, drift: Drift) -> None:
        """Raise Refusal for a file with too few of this feed's fields, or one that another feed fits better.

        The other fits better that has fields there which this one has not: all of its own where some of this feed's are
        missing, or half of them where most of this feed's are. A file with no field at all, and of no feed, is left to
        its reader.
        """
        met = {*drift.added, *self._feed.fields} - {*drift.missing}
        own = _share(met, self._feed)
        shares = [
            (other, _share(met, other))
            for other in self._others
            if other.format == self._feed.format and {*drift.added} & {*other.fields}
        ]
        most = max((share for _, share in shares), default=0.0)
        fitting = 1.0 if own >= HALF else HALF
        like = [other for other, share in shares if share == most >= fitting and share > own]
        is_ours = own >= LEAST_SHARE[self._feed.format] and not like
        if is_ours or not (own or like) or "other-feed" in self._accept:
            return
        parts = " and ".join(_part(met, feed) for feed in (self._feed, *like))
        raise Refusal(f"has {parts}; it lacks {few(drift.missing)}; {self._ways_out(like, may_land=own > 0)}")

    def _ways_out(self, like: Sequence[Feed], may_land: bool = True) -> str:
        """Return what to do with a file that looks like one of other feeds, or like none."""
        ways = [f"`mdp load file --feed {other.name}` loads it" for other in like]
        if may_land:
            ways.append(f"`--feed {self._feed.name} --accept other-feed` lands it as it is")
        return ", or ".join(ways)

    def _required(self, attributes: Mapping[str, str]) -> dict[str, str | None]:
        return {name: attributes.get(name) for name in self._feed.file_fields}

    def _said_of(self, name: str) -> tuple[int | None, dict[str, str]]:
        """Return the delivery time and the attributes of a file, as stated or as its name says."""
        said = self._feed.attributes_of(name)
        when = said.pop("delivered_at", None)
        attributes = {**said, **self._attributes}
        for attribute, value in attributes.items():
            if problem := _attribute_problem(value):
                raise Refusal(f"has the attribute {attribute}={_shown(value)}, which {problem}")
        lacking = [field for field in self._feed.file_fields if field not in attributes]
        if lacking:
            raise Refusal(
                f"does not say its {' and '.join(lacking)}: its name is not of the form "
                f"{self._feed.file_pattern}; give --set {lacking[0]}=VALUE"
            )
        delivered_at = self._delivered_at
        if delivered_at is None and when is not None:
            try:
                delivered_at = parse_time(when)
            except ValueError as error:
                raise Refusal(f"has no delivery time in its name: {error}; give --delivered-at TIME") from error
        if delivered_at is not None and delivered_at > time.time_ns() + A_DAY:
            raise Refusal(f"is said to be delivered at {iso(delivered_at)}, which is still to come")
        return delivered_at, attributes

    def _load_records(self, source: Source, delivery: _Delivery) -> Outcome:
        loaded_at = time.time_ns()
        source_time = None
        if self._feed.format != "lines":
            source_time = loaded_at if delivery.delivered_at is None else delivery.delivered_at
        shared = Load(
            feed=self._feed.name,
            source=delivery.found.name,
            load_id=load_id(delivery.key),
            loaded_at=loaded_at,
            source_time=source_time,
            schema_version=self._feed.schema_version,
            attributes=delivery.attributes,
        )
        writer = SegmentWriter(self._store, shared)
        drift: list[Drift] = []

        def compared(found: Drift) -> None:
            self._look_at_fields(found)
            drift.append(found)

        try:
            failpoints.reach("before-files")
            for table in self._tables(source, delivery.attributes, compared):
                writer.add(table)
            writer.close()
            self._keep_original(source, delivery.original)
            failpoints.reach("after-files")
        except BaseException:
            writer.discard()
            raise
        entry = self._entry(
            delivery, loaded_at, source_time, writer.records, writer.files, drift[0] if drift else Drift()
        )
        if not self._ledger.commit(entry):
            # Another loader was faster with the same file.
            writer.discard()
            entry = self._ledger.get(delivery.key) or entry
            return self._unchanged(delivery, [entry], [entry])
        failpoints.reach("after-entry")
        return self._outcome(delivery.found, "loaded", entry, f"loaded {entry.records:,} records{_drifted(entry)}")

    def _tables(
        self, source: Source, attributes: Mapping[str, str], on_drift: Callable[[Drift], None]
    ) -> Iterator[pa.Table]:
        feed, longest = self._feed, self._limits.record_bytes
        instruments = Instruments(feed.instrument_path, attributes)
        if feed.format == "lines":
            return read_lines(source.chunks(), instruments, attributes, longest)
        if feed.format == "csv":
            return read_table(source.chunks(), feed.fields, instruments, longest, on_drift)
        return read_document(source.chunks, feed.record_path, feed.fields, instruments, longest, on_drift)

    def _keep_original(self, source: Source, key: str) -> None:
        if not self._store.exists(key):
            with self._store.open_write(key) as sink:
                for block in source.blocks():
                    sink.write(block)

    def _redeliver(self, delivery: _Delivery, earlier: Entry) -> Outcome:
        """Let the bytes that are there be a delivery of another time."""
        source_time = None if self._feed.format == "lines" else delivery.delivered_at
        entry = self._entry(delivery, time.time_ns(), source_time, earlier.records, earlier.files, earlier.drift)
        if not self._ledger.commit(entry):
            return self._unchanged(delivery, [entry], [entry])
        message = (
            f"the same bytes, loaded {_as_before(earlier)}, delivered again at {entry.delivered_at}: "
            f"{entry.records:,} records"
        )
        return self._outcome(delivery.found, "redelivered", entry, message)

    def _unchanged(self, delivery: _Delivery, earlier: list[Entry], same: list[Entry]) -> Outcome:
        """Say that there is nothing to do. Raises Refusal if the bytes stand there as something else."""
        if not same:
            was = ", ".join(f"{name}={value}" for name, value in self._required(earlier[0].attributes).items())
            raise Refusal(
                f"holds the bytes that were already loaded {_as_before(earlier[0])}, as {was}; if they "
                f"are another's too, state a delivery time for them with --delivered-at"
            )
        message = f"the same bytes were already loaded {_as_before(same[0])}"
        return self._outcome(delivery.found, "unchanged", same[0], message)

    def _entry(
        self,
        delivery: _Delivery,
        loaded_at: int,
        source_time: int | None,
        records: int,
        files: Iterable[DataFile],
        drift: Drift,
    ) -> Entry:
        return Entry(
            key=delivery.key,
            load_id=load_id(delivery.key),
            feed=self._feed.name,
            source=delivery.found.name,
            path_given=_printable(delivery.found.given),
            sha256=delivery.sha256,
            bytes=delivery.size,
            delivered_at=None if delivery.delivered_at is None else iso(delivery.delivered_at),
            source_time=None if source_time is None else iso(source_time),
            attributes=dict(delivery.attributes),
            schema_version=self._feed.schema_version,
            records=records,
            files=tuple(files),
            original=delivery.original,
            started_at=iso(delivery.started_at),
            loaded_at=iso(loaded_at),
            loader_version=VERSION,
            drift=drift,
        )

    def _refuse(self, found: Found, started_at: int, source: Source | None, why: str) -> Outcome:
        moment = compact(time.time_ns())[:-4] + "Z"
        key = f"refused/{self._feed.name}/{moment}-{secrets.token_hex(4)}"
        error = _printable(why)
        entry = Entry(
            key=key,
            load_id=load_id(key),
            feed=self._feed.name,
            outcome="refused",
            source=_printable(found.name),
            path_given=_printable(found.given),
            sha256=source.sha256 if source else None,
            bytes=source.size if source else None,
            attributes={name: _printable(value) for name, value in self._attributes.items()},
            schema_version=self._feed.schema_version,
            started_at=iso(started_at),
            loaded_at=iso(time.time_ns()),
            loader_version=VERSION,
            error=error,
        )
        self._ledger.commit(entry)
        return self._outcome(found, "refused", entry, f"refused: {error}")

    def _skip(self, found: Found, started_at: int, like: Sequence[Feed]) -> Outcome:
        entry = Entry(
            key="",
            load_id="",
            feed=self._feed.name,
            outcome="skipped",
            source=_printable(found.name),
            path_given=_printable(found.given),
            started_at=iso(started_at),
            loaded_at=iso(time.time_ns()),
        )
        return self._outcome(found, "skipped", entry, f"skipped: {self._names(like)}")

    def _outcome(self, found: Found, status: Status, entry: Entry, message: str) -> Outcome:
        outcome = Outcome(path=_printable(found.given), status=status, entry=entry, message=message)
        logs.event(
            log,
            f"file-{status}",
            f"{outcome.path}: {message}",
            logging.WARNING if status == "refused" else logging.INFO,
            on_screen=True,
            feed=entry.feed,
            file=outcome.path,
            records=entry.records,
            bytes=entry.bytes,
            load_id=entry.load_id,
        )
        return outcome


def _key_of_bytes(feed: Feed, sha256: str) -> str:
    return f"file/{feed.name}/{sha256}"


def _attribute_problem(value: str) -> str | None:
    """Say what is wrong with a value that is to be kept beside records, None if it may be."""
    if not value.strip():
        return "is empty"
    if len(value) > LONGEST_ATTRIBUTE:
        return f"is longer than {LONGEST_ATTRIBUTE} characters"
    if value != _printable(value):
        return "holds characters that cannot be shown"
    if value.startswith("/") or any(part in (".", "..") for part in value.replace("\\", "/").split("/")):
        return "is a path"
    return None


def _printable(text: str) -> str:
    """Return text safe for a terminal and for JSON: control characters and broken UTF-8 as escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


def _share(met: Collection[str], feed: Feed) -> float:
    """Return which part of a feed's fields were met; all of them where the registry lists none."""
    return sum(name in met for name in feed.fields) / len(feed.fields) if feed.fields else 1.0


def _part(met: Collection[str], feed: Feed) -> str:
    return f"{sum(name in met for name in feed.fields)} of the {len(feed.fields)} fields of feed {feed.name}"


def _shown(value: str) -> str:
    return repr(_printable(value)[:LONGEST_ATTRIBUTE])


def _as_before(entry: Entry) -> str:
    return f"on {entry.loaded_at[:10]} from {entry.source} (load {entry.load_id})"


def _drifted(entry: Entry) -> str:
    notes = [
        f"{what} {', '.join(names)}"
        for what, names in (("added", entry.drift.added), ("missing", entry.drift.missing))
        if names
    ]
    return f" (fields {'; '.join(notes)})" if notes else ""
