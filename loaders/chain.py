"""What has been loaded of a stream: each partition's entries form one chain of positions `[first, next)`.

    kafka/<feed>/<cluster>/<topic>/<topic id>/<partition>/origin                 where the chain starts
    kafka/<feed>/<cluster>/<topic>/<topic id>/<partition>/00000000000000000000   [0, 5120)
    kafka/<feed>/<cluster>/<topic>/<topic id>/<partition>/00000000000000005120   [5120, 9000)
                                                                                 ▲ the next link's only key

An entry is written only where the chain ends, and its key is that position: of several loaders that read the
same records one commits, and the others are refused. A hole (records that Kafka no longer had) is a link too.

What a hole skipped may be landed later, by a replay: such a hole has a chain of its own, kept apart so that the
partition's chain stays as it is.

    replay/<feed>/<cluster>/<topic>/<topic id>/<partition>/<first of the hole>/<first>

The end is found from a remembered head, a small object beside the ledger that may lag behind: from there the
chain is followed key by key, so that the cost goes by what is new. A lost head is found again by listing.
Whatever reads a chain raises StreamError where its objects are damaged.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote

import msgspec

from loaders import VERSION, failpoints
from loaders.consumers import StreamError
from loaders.ledger import ENTRIES, Entry, Ledger, Stream, load_id
from loaders.store import Store
from loaders.times import iso

HEADS, SOURCES = "_ledger/heads/", "_ledger/sources/"
HEAD_EVERY = 20
"""Links after which the head is remembered anew: as many keys are followed at most after a crash."""


@dataclass(frozen=True)
class Source:
    """One topic of one cluster. A topic that was deleted and made again has another id."""

    feed: str
    cluster: str
    topic: str
    topic_id: str

    @property
    def prefix(self) -> str:
        """How the ledger keys of its partitions begin."""
        return f"kafka/{self.path}"

    @property
    def path(self) -> str:
        """Its name as parts of a key."""
        return "/".join(map(_part, (self.feed, self.cluster, self.topic, self.topic_id)))


class _Head(msgspec.Struct):
    next: int
    loaded_at: str | None = None


class _Known(msgspec.Struct):
    cluster: str
    topic_id: str
    noted_at: str


HEAD = msgspec.json.Decoder(_Head)
_KNOWN = msgspec.json.Decoder(_Known)


class Chain:
    """The chain of one partition, or of one hole in it. Not for use by several threads."""

    def __init__(self, store: Store, source: Source, partition: int, hole: int | None = None) -> None:
        self.source, self.partition = source, partition
        self._store, self._ledger = store, Ledger(store)
        whole = f"{source.prefix}/{partition}"
        self._prefix = whole if hole is None else f"replay/{source.path}/{partition}/{hole:020d}"
        self._head = f"{HEADS}{self._prefix}.json"
        self._end: int | None = None
        self._unremembered = 0
        self.loaded_at: str | None = None
        """When the last link that `end` found was committed: ISO text in UTC; None if there is none."""

    def key(self, first: int) -> str:
        """Return the ledger key of the link that starts at a position."""
        return f"{self._prefix}/{first:020d}"

    def end(self) -> int | None:
        """Return the position up to which everything is accounted for, by whomever; None before the origin."""
        if self._end is None:
            self._end = self._remembered()
        while self._end is not None and (entry := self._get(self.key(self._end))) is not None:
            self._follow(entry)
        return self._end

    def begin(self, first: int) -> int:
        """Let the chain start at a position, if it has not started yet; return where it ends now."""
        key = f"{self._prefix}/origin"
        if self.end() is None:
            failpoints.reach("before-origin")
            self._ledger.commit(self._entry(key, "origin", "noted", first, first))
            failpoints.reach("after-origin")
            self._end = self.origin()
        end = self.end()
        assert end is not None  # noqa: S101 (an origin is there, ours or another's)
        return end

    def extend(self, entry: Entry) -> bool:
        """Commit a link at the end of the chain; False if another was there first. `entry.key` says where."""
        assert entry.stream is not None  # noqa: S101
        if not self._ledger.commit(entry):
            return False
        failpoints.reach("after-entry")
        if entry.stream.first == self._end:
            self._follow(entry)
        return True

    def skip(self, next_: int, why: str) -> bool:
        """Commit a hole from the end of the chain to a position; False if another link was there first."""
        first = self.end()
        assert first is not None  # noqa: S101
        return first < next_ and self.extend(self._entry(self.key(first), "hole", "skipped", first, next_, why))

    def links(self, first: int, stop: int) -> Iterator[Entry]:
        """Yield the links that touch positions from `first` up to, not including, `stop`, in their order.

        Costs one listing of the whole chain.
        """
        names = (name.removesuffix(".json") for name in self._store.list(f"{ENTRIES}{self._prefix}/"))
        starts = [int(name[-20:]) for name in names if name[-20:].isdigit()]
        for start in starts[max(0, bisect_right(starts, first) - 1) : bisect_left(starts, stop)]:
            entry = self._get(self.key(start))
            if entry is not None and entry.stream is not None and entry.stream.next > first:
                yield entry

    def remember(self, *, now: bool = False) -> None:
        """Keep the head, if enough links were added or followed since it was last kept, or `now` if any were."""
        if self._end is not None and self._unremembered >= (1 if now else HEAD_EVERY):
            with self._store.open_write(self._head) as sink:
                sink.write(msgspec.json.encode(_Head(self._end, self.loaded_at)))
            self._unremembered = 0
            failpoints.reach("after-head")

    def stream(self, first: int, next_: int) -> Stream:
        """Return what an entry says of its place in the chain."""
        source = self.source
        return Stream(
            cluster=source.cluster,
            topic=source.topic,
            topic_id=source.topic_id,
            partition=self.partition,
            first=first,
            next=next_,
        )

    def _follow(self, entry: Entry) -> None:
        if entry.stream is None or self._end is None or entry.stream.next <= self._end:
            raise _damaged(self._store, f"{ENTRIES}{entry.key}.json", "it is no link of a chain")
        self._end, self.loaded_at = entry.stream.next, entry.loaded_at
        self._unremembered += 1

    def _get(self, key: str) -> Entry | None:
        try:
            return self._ledger.get(key)
        except msgspec.MsgspecError as error:
            raise _damaged(self._store, f"{ENTRIES}{key}.json", error) from error

    def _remembered(self) -> int | None:
        try:
            head = HEAD.decode(self._store.get(self._head))
            self.loaded_at = head.loaded_at
            return head.next
        except KeyError:
            pass
        except msgspec.MsgspecError as error:
            raise _damaged(self._store, self._head, error) from error
        last = None
        for name in self._store.list(f"{ENTRIES}{self._prefix}/"):
            key = name.removesuffix(".json").rpartition("/")[2]
            last = key if key.isdigit() else last
        if last is None:
            return self.origin()
        self._unremembered = HEAD_EVERY
        return int(last)

    def origin(self) -> int | None:
        """Return where the chain starts; None if it has not."""
        entry = self._get(f"{self._prefix}/origin")
        return entry.stream.next if entry is not None and entry.stream is not None else None

    def _entry(self, key: str, kind: str, outcome: str, first: int, next_: int, why: str | None = None) -> Entry:
        now = iso(time.time_ns())
        return Entry(
            key=key,
            load_id=load_id(key),
            feed=self.source.feed,
            kind=kind,
            outcome=outcome,
            source=self.source.topic,
            stream=self.stream(first, next_),
            started_at=now,
            loaded_at=now,
            loader_version=VERSION,
            error=why,
        )


def partitions(store: Store, source: Source) -> list[int]:
    """Return the partitions of a topic that have a chain, at the cost of their number."""
    names = (name.rpartition("/")[2].removesuffix(".json") for name in store.list(f"{HEADS}{source.prefix}/"))
    found = {int(name) for name in names if name.isdigit()}
    number = 0  # a chain whose head was never kept, since its loader was killed, has an origin
    while number in found or store.exists(f"{ENTRIES}{source.prefix}/{number}/origin.json"):
        found.add(number)
        number += 1
    return sorted(found)


class Sources:
    """Which cluster and topic id a feed's topic has had: numbered objects, of which the last one holds."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def last(self, feed: str, topic: str) -> Source | None:
        """Return what the topic was last known as, None if it was never loaded."""
        names = list(self._store.list(self._folder(feed, topic)))
        if not names:
            return None
        try:
            known = _KNOWN.decode(self._store.get(names[-1]))
        except msgspec.MsgspecError as error:
            raise StreamError(
                f"{self._store.uri(names[-1])} is damaged: {error}. Put it back from a copy of the ledger; if the "
                f"topic was never made anew, it may be removed instead"
            ) from error
        return Source(feed, known.cluster, topic, known.topic_id)

    def topics(self) -> list[tuple[str, str]]:
        """Return each feed and topic of which something is known."""
        folders = {tuple(name.removeprefix(SOURCES).split("/")[:2]) for name in self._store.list(SOURCES)}
        return [(unquote(feed), unquote(topic)) for feed, topic in sorted(folders)]

    def note(self, source: Source) -> None:
        """Let this be what the topic is known as from now on."""
        if self.last(source.feed, source.topic) == source:
            return
        folder = self._folder(source.feed, source.topic)
        number = sum(1 for _ in self._store.list(folder))
        known = _Known(source.cluster, source.topic_id, iso(time.time_ns()))
        self._store.put_if_absent(f"{folder}{number:05d}.json", msgspec.json.encode(known))

    def _folder(self, feed: str, topic: str) -> str:
        return f"{SOURCES}{_part(feed)}/{_part(topic)}/"


def other_topic(store: Store, known: Source, found: Source, partitions: Iterable[int]) -> str:
    """Say that a topic is not the one that was loaded, and how far that one was."""
    what = "another cluster" if known.cluster != found.cluster else "another topic of the same name"
    ends = {number: Chain(store, known, number).end() for number in partitions}
    loaded = ", ".join(f"{number} up to {end}" for number, end in ends.items() if end is not None)
    return (
        f"topic {found.topic} of feed {found.feed} is on {what} than before: cluster {found.cluster}, topic id "
        f"{found.topic_id}; loaded was cluster {known.cluster}, topic id {known.topic_id}, of its partitions "
        f"{loaded or 'nothing'}"
    )


def _damaged(store: Store, key: str, why: object) -> StreamError:
    return StreamError(f"{store.uri(key)} is damaged: {why}. Run mdp verify, which names all damage and the way out")


def _part(text: str) -> str:
    """Return text as one part of a key, whatever is in it."""
    safe = quote(text, safe="")
    return safe if safe and not safe.startswith(".") else "%2E" + safe[1:]
