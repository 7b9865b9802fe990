"""The ledger: one small object per committed load, which makes it seen by readers.

    commit(entry):  _ledger/log/<day>/<time>-<load_id>.json   pointer, in time order, written first
                    _ledger/entries/<key>.json                the entry, only if absent, written last

A reader asks `since(cursor)` for what is new: it lists pointers after the one it remembers, so that the
cost follows the news, not the history, and reads several at a time. A pointer whose entry is missing belongs to a
load that has not finished, or never will: an entry follows its pointer within POINTER_LIFE, or gets a fresh one.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import msgspec

from loaders import failpoints
from loaders.reading import THREADS, in_threads
from loaders.store import Store
from loaders.times import iso

ENTRIES, LOG, ZONE = "_ledger/entries/", "_ledger/log/", "_ledger/zone"
POINTER_LIFE = 15 * 60
"""Seconds within which an entry follows its pointer; after them a reader may stop waiting for it."""
MOST_DAYS = 40
"""Days of the log that are listed one by one."""


class DataFile(msgspec.Struct, frozen=True, kw_only=True):
    """One Parquet file of a load; `path` is its key in the raw zone."""

    path: str
    rows: int
    bytes: int
    sha256: str


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """How a file's fields differ from those that the registry lists."""

    added: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @classmethod
    def between(cls, met: Collection[str], fields: Collection[str]) -> Drift:
        """Return how the fields met in a file differ from those that the registry lists, in the order of each."""
        return cls(
            added=tuple(name for name in met if name not in fields),
            missing=tuple(name for name in fields if name not in met),
        )


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """The place of a stream's load: positions `first` up to, not including, `next` of one partition."""

    cluster: str
    topic: str
    topic_id: str
    partition: int
    first: int
    next: int


class SealedLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A load whose rows now stand in the files of a seal, and the open files that held them (loaders/seal.py)."""

    load_id: str
    rows: int
    checksum: str
    files: tuple[str, ...]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One load, refusal or seal. Times are ISO text in UTC with nine digits; unknown JSON fields are ignored."""

    key: str
    load_id: str
    feed: str
    kind: str = "file"
    outcome: str = "loaded"
    source: str
    path_given: str = ""
    sha256: str | None = None
    bytes: int | None = None
    delivered_at: str | None = None
    source_time: str | None = None
    attributes: dict[str, str] = {}
    schema_version: str | None = None
    records: int = 0
    files: tuple[DataFile, ...] = ()
    original: str | None = None
    stream: Stream | None = None
    started_at: str
    loaded_at: str
    loader_version: str = ""
    drift: Drift = Drift()
    error: str | None = None
    sealed: tuple[SealedLoad, ...] = ()


def load_id(key: str) -> str:
    """Return the short name of a load: the first 20 hexadecimal digits of the SHA-256 of its ledger key."""
    return hashlib.sha256(key.encode()).hexdigest()[:20]


def zone_id(store: Store) -> str:
    """Return the name that a raw zone has for life: 12 hexadecimal digits, drawn when it is first asked for."""
    store.put_if_absent(ZONE, secrets.token_hex(6).encode())
    return store.get(ZONE).decode()


def cursor_before(ns: int) -> str:
    """Return a cursor after which `since` gives the pointers from a moment on (ns since 1970-01-01 UTC)."""
    moment = iso(ns)
    return f"{moment[:10]}/{moment[11:26].replace(':', '')}"


def load_id_at(cursor: str) -> str:
    """Return the load_id of the entry to which a pointer leads."""
    return cursor.rpartition("-")[2]


def _days_since(cursor: str) -> list[str]:
    """Return the prefixes of the days from a cursor's on, up to tomorrow (clocks differ); all at once if many."""
    first = date.fromisoformat(cursor[:10])
    last = max(first, datetime.fromtimestamp(time.time_ns() // 1_000_000_000, UTC).date() + timedelta(days=1))
    days = (last - first).days + 1
    return [""] if days > MOST_DAYS else [f"{first + timedelta(days=number)}/" for number in range(days)]


class Pointer(msgspec.Struct):
    """What the log says of an entry."""

    key: str


# Made here, before there are threads: msgspec's first look at a Struct in two of them at once ends the process.
ENTRY = msgspec.json.Decoder(Entry)
POINTER = msgspec.json.Decoder(Pointer)


class Ledger:
    """The loads of one raw zone."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, key: str) -> Entry | None:
        """Return an entry by its key, None if there is none."""
        try:
            return ENTRY.decode(self._store.get(f"{ENTRIES}{key}.json"))
        except KeyError:
            return None

    def commit(self, entry: Entry) -> bool:
        """Make a load seen, or a refusal known; False if its key was committed already, by whomever."""
        data = msgspec.json.encode(entry)
        pointed_at = self._point(entry)
        failpoints.reach("after-pointer")
        created = self._store.put_if_absent(f"{ENTRIES}{entry.key}.json", data)
        if created and time.time_ns() - pointed_at > POINTER_LIFE * 1_000_000_000:
            self._point(entry)
        return created

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every entry whose key begins with the prefix, sorted by key."""
        for name in self._store.list(ENTRIES + prefix):
            entry = self.get(name[len(ENTRIES) :].removesuffix(".json"))
            if entry is not None:
                yield entry

    def since(self, cursor: str | None = None, known: Container[str] = ()) -> Iterator[tuple[str, Entry | None]]:
        """Yield (cursor, entry) in the order of commit, after a cursor that an earlier call gave.

        The entry is None where it is not there (yet). An entry may come twice, under two cursors. Loads whose
        load_id is `known` are left out, and cost no more than their names.
        """
        cursors = (name for name in self.pointers(cursor) if load_id_at(name) not in known)
        with ThreadPoolExecutor(THREADS) as pool:
            yield from in_threads(pool, lambda name: (name, self.at(name)), cursors)

    def pointers(self, cursor: str | None = None) -> Iterator[str]:
        """Yield the cursors after a given one; nothing but names is read.

        Days are listed one by one: some servers look at all that has the prefix, whatever they are to start after.
        """
        after = f"{LOG}{cursor}.json" if cursor else None
        for prefix in _days_since(cursor) if cursor else [""]:
            for name in self._store.list(LOG + prefix, after):
                yield name[len(LOG) :].removesuffix(".json")

    def at(self, cursor: str) -> Entry | None:
        """Return the entry to which a pointer leads, None if it is not there (yet)."""
        pointer = POINTER.decode(self._store.get(f"{LOG}{cursor}.json"))
        return self.get(pointer.key)

    def _point(self, entry: Entry) -> int:
        now = time.time_ns()
        name = f"{LOG}{cursor_before(now)}-{entry.load_id}.json"
        self._store.put_if_absent(name, msgspec.json.encode(Pointer(entry.key)))
        return now
