"""Is everything there that the ledger says? A walk over all of it, which changes nothing.

    heads ─▶ seals ─▶ entries ── each with its files and its original ─▶ pointers ─▶ chains ─▶ files that no entry names
                │                                                  │          │                 │
                └────────── names and positions, in a temporary SQLite file ──┴─────────────────┘

Sizes and row counts come from the files' ends (the Parquet footers), or, with hashes, from every byte. The walk may
go on beside loaders: what was not there when it began is not counted against anyone. Its memory does not grow with the
ledger (the names of one local directory apart); its cost does, linearly. Open files that a seal has replaced may be
gone once the ledger says that they may.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from loaders.chain import HEAD, HEADS, Source
from loaders.ledger import ENTRIES, LOG, POINTER, POINTER_LIFE, DataFile, Entry, Ledger, load_id
from loaders.reading import THREADS, digest, file_system, in_threads, place
from loaders.settings import Settings
from loaders.store import open_store
from loaders.times import iso, parse_time

ORIGINALS = "_originals/"
FOOTER_BYTES = 64 * 1024
"""The end of a Parquet file that is read at once; most footers fit."""

ABSENT = "is not there"
RESTORE = "restore it from a copy; without one, land the load again, as docs/runbook.md says (The raw zone is damaged)"
REPLACE = "put the entry back from a copy; without one, land the load again, as docs/runbook.md says"

_TABLES = """
create table named (path text primary key) without rowid;
create table loads (load_id text primary key, key text, pointed integer, records integer) without rowid;
create table seals (key text primary key, is_removed integer) without rowid;
create table sealed (path text primary key, seal text) without rowid;
create table sealed_loads (load_id text, rows integer, seal text);
create table links (chain text, first integer, next integer, kind text, key text);
create index links_by_chain on links (chain, next);
create table heads (chain text primary key, next integer) without rowid;
"""

Kind = Literal["fault", "hole", "unfinished"]
Progress = Callable[[str, int, int], None]
"""Called with what is looked at, how many of how many are done."""


@dataclass(frozen=True)
class Finding:
    """Something to be told: a fault; a hole that the ledger itself notes; a load that never came to its end."""

    kind: Kind
    key: str
    what: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.key}: {self.what}; {self.way_out}"


@dataclass
class Summary:
    """What was looked at and what was found. Ages are in nanoseconds since 1970-01-01 UTC."""

    entries: int = 0
    refused: int = 0
    files: int = 0
    rows: int = 0
    bytes: int = 0
    originals: int = 0
    pointers: int = 0
    chains: int = 0
    links: int = 0
    loading: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    orphans_oldest: int | None = None
    orphans_newest: int | None = None
    hashed: bool = False
    found: dict[str, int] = field(default_factory=lambda: {"fault": 0, "hole": 0, "unfinished": 0})

    @property
    def ok(self) -> bool:
        """Whether there is no fault; noted holes and unfinished loads are none."""
        return not self.found["fault"]

    def lines(self) -> list[str]:
        """The summary for a person."""
        how = "every byte read" if self.hashed else "sizes and row counts; --hashes reads every byte"
        told = [
            f"{self.entries:,} ledger entries ({self.refused:,} refusals), {self.pointers:,} pointers",
            f"{self.files:,} files of {self.rows:,} rows and {self.bytes:,} bytes, {self.originals:,} originals: {how}",
            f"{self.chains:,} chains of {self.links:,} links",
        ]
        if self.loading:
            told.append(f"{self.loading:,} loads were under way")
        if self.orphans and self.orphans_oldest is not None and self.orphans_newest is not None:
            told.append(
                f"{self.orphans:,} files that no entry names ({self.orphan_bytes:,} bytes; the oldest of "
                f"{iso(self.orphans_oldest)[:16]}Z, the newest of {iso(self.orphans_newest)[:16]}Z): left by loads "
                f"that died or are under way, no reader sees them"
            )
        counts = self.found
        told.append(
            f"{counts['fault']:,} faults, {counts['hole']:,} noted holes, {counts['unfinished']:,} unfinished loads"
            if any(counts.values())
            else "nothing is missing and nothing is wrong"
            if self.entries
            else "nothing was loaded here: see MDP_RAW, or begin with mdp load file"
        )
        return told


def verify(
    settings: Settings,
    *,
    feed: str | None = None,
    hashes: bool = False,
    tell: Callable[[Finding], None] = lambda _: None,
    progress: Progress = lambda *_: None,
    threads: int = THREADS,
) -> Summary:
    """Walk the ledger, of one feed or of all; `tell` is given each finding at once.

    Raises StoreError when the raw zone does not answer.
    """
    with ThreadPoolExecutor(threads) as pool, _Notes() as notes:
        return _Walk(settings, feed, hashes, tell, progress, pool, notes).run()


class _Notes:
    """A temporary SQLite database, of which only a cache is in memory."""

    def __enter__(self) -> sqlite3.Connection:
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.executescript("pragma journal_mode = off; pragma synchronous = off;" + _TABLES)
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@dataclass(frozen=True)
class _Checked:
    """One entry, None if it cannot be read, and what is wrong with it."""

    key: str
    entry: Entry | None
    findings: list[Finding]
    lost: list[tuple[str, Finding]] = field(default_factory=list)
    """Files that are not there, which is as it should be if a seal has replaced them."""


class _Walk:
    def __init__(
        self,
        settings: Settings,
        feed: str | None,
        hashes: bool,
        tell: Callable[[Finding], None],
        progress: Progress,
        pool: Executor,
        notes: sqlite3.Connection,
    ) -> None:
        self._raw, self._feed, self._hashes = settings.raw, feed, hashes
        self._tell, self._progress, self._pool, self._notes = tell, progress, pool, notes
        self._store = open_store(settings.raw, settings.s3)
        self._ledger = Ledger(self._store)
        self._files = file_system(settings.raw, settings.s3)
        self._started = time.time_ns()
        self._sum = Summary(hashed=hashes)

    def run(self) -> Summary:
        # Heads come first: a head read later may well be ahead of the entries that were listed.
        self._walk_heads()
        # So do seals: what one names was committed before it.
        self._walk_seals()
        self._walk_entries()
        self._compare_seals()
        # Pointers come after the entries: each entry's was written before it.
        self._walk_pointers()
        self._follow_chains()
        self._count_orphans()
        return self._sum

    def _find(self, finding: Finding) -> None:
        self._sum.found[finding.kind] += 1
        self._tell(finding)

    def _is_asked_for(self, key: str) -> bool:
        return self._feed is None or key.split("/")[1:2] == [self._feed]

    def _is_there(self, key: str) -> bool:
        """Whether an entry is there now, one that came after the listing or cannot be read included."""
        return self._store.exists(f"{ENTRIES}{key}.json")

    # Entries.

    def _walk_heads(self) -> None:
        for name in self._store.list(HEADS):
            chain = name[len(HEADS) :].removesuffix(".json")
            if not self._is_asked_for(chain):
                continue
            try:
                head = HEAD.decode(self._store.get(name))
            except msgspec.MsgspecError as error:
                self._find(Finding("fault", name, f"cannot be read ({error})", "remove it, it is found again"))
            else:
                self._notes.execute("insert into heads values (?, ?)", (chain, head.next))

    def _walk_seals(self) -> None:
        """Note which files seals have replaced, and which of these may be gone; again, what came since."""
        known = {key for (key,) in self._notes.execute("select key from seals")}
        for name in self._store.list(f"{ENTRIES}seal/"):
            key = name[len(ENTRIES) :].removesuffix(".json")
            if key in known or not self._is_asked_for(key):
                continue
            try:
                entry = self._ledger.get(key)
            except msgspec.MsgspecError:
                continue  # told where all entries are read
            self._notes.execute("insert into seals values (?, 0)", (key,))
            for load in entry.sealed if entry else ():
                self._notes.execute("insert into sealed_loads values (?, ?, ?)", (load.load_id, load.rows, key))
                for path in load.files:
                    new = self._notes.execute("insert or ignore into sealed values (?, ?)", (path, key))
                    if not new.rowcount:
                        what = f"the file {path} was sealed before, by another seal"
                        self._find(Finding("fault", key, what, "keep one of the two seals, then build in a new lake"))
        for name in self._store.list(f"{ENTRIES}removed/"):
            key = f"seal/{name[len(ENTRIES) :].removesuffix('.json').partition('/')[2]}"
            self._notes.execute("update seals set is_removed = 1 where key = ?", (key,))

    def _may_be_gone(self, path: str) -> bool:
        query = "select 1 from sealed inner join seals on seals.key = seal where path = ? and is_removed"
        if self._notes.execute(query, (path,)).fetchone():
            return True
        self._walk_seals()  # perhaps it was removed during the walk
        return self._notes.execute(query, (path,)).fetchone() is not None

    def _compare_seals(self) -> None:
        """Each sealed load must be there, with as many records as the seal says."""
        wrong = """
            select seal, sealed_loads.load_id, rows, records
            from sealed_loads left join loads using (load_id)
            where records is not rows
        """
        for seal, name, rows, records in self._notes.execute(wrong):
            says = "has no entry" if records is None else f"has {records:,} records by its entry"
            self._find(Finding("fault", seal, f"load {name} was sealed with {rows:,} records and {says}", REPLACE))

    def _keys(self) -> Iterator[str]:
        """Yield the keys of all entries that are asked for."""
        for name in self._store.list(ENTRIES):
            key = name[len(ENTRIES) :].removesuffix(".json")
            if self._is_asked_for(key):
                yield key

    def _walk_entries(self) -> None:
        total = sum(1 for _ in self._keys())
        for done, checked in enumerate(in_threads(self._pool, self._check, self._keys()), 1):
            self._progress(f"entries, {checked.key}", done, total)
            for finding in checked.findings:
                self._find(finding)
            for path, finding in checked.lost:
                if not self._may_be_gone(path):
                    self._find(finding)
            self._note(checked.key, checked.entry)

    def _note(self, key: str, entry: Entry | None) -> None:
        """Keep what the later steps ask for."""
        self._sum.entries += 1
        load = (load_id(key), key, entry.records if entry else None)
        self._notes.execute("insert or ignore into loads values (?, ?, 0, ?)", load)
        if entry is None:
            return
        self._sum.refused += entry.outcome == "refused"
        self._sum.originals += entry.original is not None
        names = [file.path for file in entry.files] + ([entry.original] if entry.original else [])
        self._notes.executemany("insert or ignore into named values (?)", [(name,) for name in names])
        self._sum.files += len(entry.files)
        self._sum.rows += sum(file.rows for file in entry.files)
        self._sum.bytes += sum(file.bytes for file in entry.files)
        if entry.stream is not None:
            link = (key.rpartition("/")[0], entry.stream.first, entry.stream.next, entry.kind, key)
            self._notes.execute("insert into links values (?, ?, ?, ?, ?)", link)

    def _check(self, key: str) -> _Checked:
        """Look at one entry and at what it names. In a thread."""
        try:
            entry = self._ledger.get(key)
        except msgspec.MsgspecError as error:
            return _Checked(key, None, [Finding("fault", key, f"the entry cannot be read ({error})", REPLACE)])
        if entry is None:
            return _Checked(key, None, [Finding("fault", key, "the entry went away during the walk", REPLACE)])
        findings = [Finding("fault", key, what, REPLACE) for what in self._contradictions(key, entry)]
        lost = []
        for file in entry.files:
            if problem := self._problem(file.path, file.bytes, file.sha256, file):
                finding = Finding("fault", key, f"file {file.path} {problem}", RESTORE)
                if problem == ABSENT:
                    lost.append((file.path, finding))
                else:
                    findings.append(finding)
        if entry.original is not None:
            named = entry.original.rpartition("/")[2]
            if problem := self._problem(entry.original, entry.bytes, named):
                findings.append(Finding("fault", key, f"original {entry.original} {problem}", RESTORE))
        return _Checked(key, entry, findings, lost)

    def _contradictions(self, key: str, entry: Entry) -> Iterator[str]:
        """Yield what in an entry contradicts its key, or itself."""
        if entry.key != key:
            yield f"the entry says that its key is {entry.key}"
        if entry.load_id != load_id(key):
            yield f"the entry's load_id is {entry.load_id}; its key gives {load_id(key)}"
        if key.split("/")[1:2] != [entry.feed]:
            yield f"the entry is of feed {entry.feed}"
        if (rows := sum(file.rows for file in entry.files)) != entry.records:
            yield f"the entry counts {entry.records:,} records, its files {rows:,}"
        if entry.sealed and (rows := sum(load.rows for load in entry.sealed)) != entry.records:
            yield f"the entry counts {entry.records:,} records, the loads that it names {rows:,}"
        if key.startswith("removed/") and not self._is_there(f"seal/{key.partition('/')[2]}"):
            yield "the files of a seal were removed that has no entry"
        if key.startswith("file/"):
            sha256 = key.split("/")[2].partition("@")[0]
            if entry.sha256 != sha256:
                yield f"the entry's sha256 is {entry.sha256}, not that of its key"
            if entry.original != f"{ORIGINALS}{entry.feed}/{sha256}":
                yield f"the entry's original is {entry.original}, not {ORIGINALS}{entry.feed}/{sha256}"
        if key.startswith(("kafka/", "replay/")) and not self._is_link(key, entry):
            yield "the entry is no link of the chain in which it stands"

    def _is_link(self, key: str, entry: Entry) -> bool:
        at = entry.stream
        if at is None:
            return False
        source = Source(entry.feed, at.cluster, at.topic, at.topic_id)
        family, _, chain = key.rpartition("/")[0].partition("/")
        whole = f"{source.prefix.partition('/')[2]}/{at.partition}"
        place = "origin" if entry.kind == "origin" else f"{at.first:020d}"
        in_chain = chain == whole if family == "kafka" else chain.rpartition("/")[0] == whole
        forward = at.next == at.first if entry.kind == "origin" else at.next > at.first
        return in_chain and forward and key.endswith(f"/{place}")

    def _problem(self, path: str, size: int | None, sha256: str, parquet: DataFile | None = None) -> str | None:
        """Say what is wrong with a file, None if it is as it should be."""
        try:
            uri = self._store.uri(path)
        except ValueError:
            return "has a name that leads out of the raw zone"
        try:
            with self._files.open_input_file(place(uri)) as file:
                there = file.size()
                if there != size:
                    return f"holds {there:,} bytes; the entry says {size if size is None else format(size, ',')}"
                if self._hashes and (found := digest(file)) != sha256:
                    return f"holds other bytes: its sha256 is {found}, not {sha256}"
                return None if parquet is None else _rows_problem(_footer(file, there), parquet.rows)
        except FileNotFoundError:
            return ABSENT
        except OSError as error:
            return f"cannot be read ({error})"

    # Pointers.

    def _walk_pointers(self) -> None:
        total = sum(1 for _ in self._store.list(LOG))
        for done, (name, key) in enumerate(in_threads(self._pool, self._read_pointer, self._store.list(LOG)), 1):
            self._progress("pointers", done, total)
            if key is None or load_id(key) != name.removesuffix(".json").rpartition("-")[2]:
                what = "the pointer cannot be read, or names another load than it should"
                self._find(Finding("fault", name, what, "remove it; a pointer that is missed then is named"))
            elif self._is_asked_for(key):
                self._sum.pointers += 1
                seen = self._notes.execute("update loads set pointed = 1 where load_id = ?", (load_id(key),))
                if seen.rowcount == 0 and not self._is_there(key):
                    self._without_entry(name, key)
        for (key,) in self._notes.execute("select key from loads where pointed = 0 order by key"):
            pointer = f"{LOG}<date>/<HHMMSS.ffffff>-{load_id(key)}.json"
            what = "no pointer leads to the entry, so that builds do not see it"
            self._find(Finding("fault", key, what, f'write {pointer} at the present time: {{"key":"{key}"}}'))

    def _read_pointer(self, name: str) -> tuple[str, str | None]:
        try:
            return name, POINTER.decode(self._store.get(name)).key
        except (KeyError, msgspec.MsgspecError):
            return name, None

    def _without_entry(self, name: str, key: str) -> None:
        moment = name[len(LOG) :].rpartition("-")[0].replace("/", "T")
        if time.time_ns() - parse_time(moment) < POINTER_LIFE * 1_000_000_000:
            self._sum.loading += 1
        elif key.startswith("refused/"):
            what = f"{name}: a refusal was not written down, its loader died"
            self._find(Finding("unfinished", key, what, "nothing is lost; the pointer may be removed"))
        else:
            what = f"{name} leads to no entry: the load died before its end, or its entry is lost"
            self._find(Finding("fault", key, what, "load it again, or put the entry back; else remove the pointer"))

    # Chains.

    def _follow_chains(self) -> None:
        count = "select count(distinct chain), count(*) from links where kind <> 'origin'"
        self._sum.chains, self._sum.links = self._notes.execute(count).fetchone()
        links = """
            select chain, first, next, kind, key, lag(next) over (partition by chain order by first, next) as before
            from links order by chain, first, next
        """
        for chain, first, next_, kind, key, before in self._notes.execute(links):
            if before is None and kind != "origin" and not self._is_there(f"{chain}/origin"):
                way_out = "put the entry back from a copy of the ledger"
                self._find(
                    Finding("fault", f"{chain}/origin", f"the chain has no origin, it starts at {first}", way_out)
                )
            if before is not None and first > before and not self._is_there(f"{chain}/{before:020d}"):
                what = f"the chain is broken: no link for [{before}, {first})"
                self._find(
                    Finding("fault", f"{chain}/{before:020d}", what, "put the entry back from a copy of the ledger")
                )
            if before is not None and first < before:
                what = f"the link [{first}, {next_}) overlaps the one before it, which ends at {before}"
                self._find(Finding("fault", key, what, "keep one of the two entries"))
            if kind == "hole":
                self._look_into_hole(chain, first, next_, key)
        self._compare_heads()

    def _look_into_hole(self, chain: str, first: int, next_: int, key: str) -> None:
        """Name what a noted hole still lacks, beside what replays have landed of it."""
        replays = f"replay/{chain.partition('/')[2]}/{first:020d}"
        query = "select min(first), max(next) from links where chain = ?"
        start, end = self._notes.execute(query, (replays,)).fetchone()
        lacking = [(first, next_)] if start is None else [(first, start), (end, next_)]
        for begin, stop in lacking:
            if begin < stop:
                what = f"[{begin}, {stop}) was never loaded, as accepted"
                deleted = "Kafka had deleted it when the rest of its hole was replayed"
                way_out = deleted if chain.startswith("replay/") else "mdp replay fills it if Kafka still has it"
                self._find(Finding("hole", key, what, way_out))

    def _compare_heads(self) -> None:
        """A head that is no link's end would let a loader start in the wrong place."""
        wrong = """
            select chain, next from heads
            where not exists (select 1 from links where links.chain = heads.chain and links.next = heads.next)
        """
        for chain, next_ in self._notes.execute(wrong):
            what = f"the remembered head {next_} is the end of no link"
            self._find(Finding("fault", f"{HEADS}{chain}.json", what, "remove it, it is found again by listing"))

    # Files that no entry names.

    def _count_orphans(self) -> None:
        for prefix in self._data_prefixes():
            for name in self._store.list(prefix):
                if not self._notes.execute("select 1 from named where path = ?", (name,)).fetchone():
                    self._count_orphan(name)

    def _data_prefixes(self) -> Iterator[str]:
        if self._feed is not None:
            yield from (f"{self._feed}/", f"{ORIGINALS}{self._feed}/")
            return
        selector = pafs.FileSelector(place(self._raw), allow_not_found=True)
        folders = [info.base_name for info in self._files.get_file_info(selector) if not info.is_file]
        yield from (f"{name}/" for name in sorted(folders) if not name.startswith(("_", ".")))
        yield ORIGINALS

    def _count_orphan(self, name: str) -> None:
        (info,) = self._files.get_file_info([place(self._store.uri(name))])
        at = info.mtime_ns or self._started
        if not info.is_file or at > self._started:
            return
        summary = self._sum
        summary.orphans += 1
        summary.orphan_bytes += info.size or 0
        summary.orphans_oldest = min(at, summary.orphans_oldest or at)
        summary.orphans_newest = max(at, summary.orphans_newest or at)


def _footer(file: Any, size: int) -> bytes:
    """Return the end of a Parquet file, with its whole footer."""
    tail: bytes = file.read_at(min(size, FOOTER_BYTES), max(0, size - FOOTER_BYTES))
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < needed <= size:
        tail = file.read_at(needed, size - needed)
    return tail


def _rows_problem(footer: bytes, rows: int) -> str | None:
    try:
        found = pq.read_metadata(pa.BufferReader(footer)).num_rows
    except (pa.ArrowException, OSError) as error:
        return f"is no whole Parquet file ({error})"
    return None if found == rows else f"holds {found:,} rows; the entry says {rows:,}"
