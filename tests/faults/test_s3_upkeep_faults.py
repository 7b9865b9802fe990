"""S3 fails under a replay, a seal and a backfill: bounded retries, each record once, and who was given up goes on.

a topic with a hole ── replay ───┐
a day that is over ── seal ──────┼─▶ FaultProxy ──▶ S3 ── counted by the ledger, byte for byte, and verified
a vendor's archive ── backfill ──┘
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import io
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from faults.proxy import Fault, FaultProxy
from worlds.streams import FEED, Message, Zone, numbered, produce

import loaders.store
from loaders import backfill
from loaders.chain import Chain, Source
from loaders.kafka import KafkaLoader
from loaders.ledger import Ledger
from loaders.registry import Feed, find_feed, load_registry
from loaders.replay import Bound, replay
from loaders.seal import seal
from loaders.settings import Settings
from loaders.store import StoreError
from loaders.times import parse_time
from loaders.until import parse_until
from loaders.verify import verify

if TYPE_CHECKING:
    from conftest import KafkaServer, S3Server

LATER = pytest.mark.long
FAULTS = (
    "503",
    "lost answer",
    pytest.param("500", marks=LATER),
    pytest.param("reset after", marks=LATER),
    pytest.param("half an answer", marks=LATER),
)
LASTING = (
    ("put new entry", "lost answer"),
    ("put new entry", "503"),
    pytest.param("put new pointer", "lost answer", marks=LATER),
    pytest.param("put new pointer", "500", marks=LATER),
    pytest.param("complete upload", "lost answer", marks=LATER),
    pytest.param("put part", "503", marks=LATER),
)
DAY = parse_time("2024-06-04T10:00:00Z")
FIRST, STOP, LARGE = 20, 60, 9
"""The hole is [FIRST, STOP) of partition 0; so many of its records have 900 kB each."""
SESSIONS = [dt.date(2024, 6, day) for day in (3, 4, 5)]
ARCHIVED = find_feed("massive_day_aggs", load_registry())

Record = tuple[int, int, bytes | None]
"""Partition, offset, payload."""


@pytest.fixture(scope="module", autouse=True)
def small_and_quick() -> Iterator[None]:
    """Uploads are in parts from the smallest size on that S3 allows, and waits are short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaders.store, "PART_BYTES", 5 << 20)
        patch.setattr(loaders.store, "FIRST_WAIT", 0.02)
        yield


@dataclass
class Place:
    """A raw zone in a bucket of its own, straight or through the proxy; its clock is on a day of 2024."""

    root: Path
    s3: S3Server
    kafka: KafkaServer
    proxy: FaultProxy
    now: list[int]
    bucket: str = ""
    sent: Counter[Record] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.bucket = self.s3.new_bucket()

    def settings(self, endpoint: str | None = None) -> Settings:
        env = {name: value for name, value in self.s3.env.items() if name.startswith("AWS_")}
        env |= {"AWS_ENDPOINT_URL_S3": endpoint or self.s3.endpoint, "MDP_S3_TIMEOUT": "30"}
        return Zone(self.root, self.kafka.bootstrap, f"s3://{self.bucket}/raw", env).settings

    @property
    def failing(self) -> Settings:
        return self.settings(self.proxy.endpoint)

    def loaded(self, *, with_hole: bool) -> Feed:
        """Send records to a topic of two partitions, and load them; but for a hole, if there is to be one."""
        topic, settings = self.kafka.new_topic(2), self.settings()
        messages = numbered(0, 120, partitions=2)
        for number in range(LARGE):
            place = 2 * (FIRST + 1 + number)
            noise = b',"note":"' + base64.b64encode(os.urandom(675_000)) + b'"}'
            messages[place] = Message((messages[place].value or b"")[:-1] + noise, b"BTCUSDT", partition=0)
        produce(self.kafka.bootstrap, topic, messages)
        for number, message in enumerate(messages):
            self.sent[number % 2, number // 2, message.value] += 1
        feed = dataclasses.replace(find_feed(FEED, load_registry()), topic=topic)
        if with_hole:
            KafkaLoader([feed], settings, until=parse_until(f"0:{FIRST}")).run()
            store = loaders.store.open_store(settings.raw, settings.s3)
            entry = next(entry for entry in Ledger(store).entries("kafka/") if entry.kind == "stream")
            assert entry.stream is not None
            source = Source(feed.name, entry.stream.cluster, topic, entry.stream.topic_id)
            assert Chain(store, source, 0).skip(STOP, "given up")
        KafkaLoader([feed], settings, until=parse_until("caught-up")).run()
        return feed

    def found(self) -> Counter[Record]:
        """How often each record is there, by the ledger, in open files and in those of seals."""
        settings = self.settings()
        store = loaders.store.open_store(settings.raw, settings.s3)
        entries = list(Ledger(store).entries())
        replaced = {path for entry in entries for load in entry.sealed for path in load.files}
        rows: Counter[Record] = Counter()
        for path in [file.path for entry in entries for file in entry.files if file.path not in replaced]:
            table = pq.read_table(io.BytesIO(store.get(path)), partitioning=None)
            columns = [table[name].to_pylist() for name in ("source_partition", "source_position", "payload")]
            rows.update(zip(*columns, strict=True))
        return rows

    def faults(self) -> list[str]:
        """What `mdp verify --hashes` finds; and files that no entry names, which by this clock are too young for it."""
        faults: list[str] = []
        verify(self.settings(), hashes=True, tell=lambda finding: faults.append(finding.what))
        settings = self.settings()
        store = loaders.store.open_store(settings.raw, settings.s3)
        named = {file.path for entry in Ledger(store).entries() for file in entry.files}
        there = {key for key in store.list("") if key.endswith(".parquet")}
        return faults + sorted(there - named)


@pytest.fixture
def place(
    tmp_path: Path, s3_server: S3Server, kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    now, proxy = [DAY], FaultProxy(s3_server.endpoint)

    def tick() -> int:
        now[0] += 1_000_000
        return now[0]

    with monkeypatch.context() as patched:
        patched.setattr(time, "time_ns", tick)
        yield Place(tmp_path, s3_server, kafka_server, proxy, now)
    proxy.close()


def replayed(feed: Feed, settings: Settings) -> tuple[int, int, int, int]:
    """Offsets of partition 0 that were there, were filled, are missing; and records landed."""
    done, _ = replay(feed, settings, Bound(offset=0), Bound(offset=60))
    return done.there, done.filled, done.missing, done.records


def sealed(feed: Feed, settings: Settings, grace: float = 7) -> list[str]:
    return [outcome.status for outcome in seal(feed, settings, grace_days=grace)]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_kind_of_request_of_a_replay_may_fail(place: Place, fault: Fault) -> None:
    feed = place.loaded(with_hole=True)
    missed = place.sent - place.found()
    assert missed.total() == STOP - FIRST
    place.proxy.fail_each_kind(fault)
    assert replayed(feed, place.failing) == (20, 40, 0, 40)
    assert set(place.proxy.met) >= {
        "list",
        "get entry",
        "put new origin",
        "put part",
        "complete upload",
        "put new pointer",
        "put new entry",
        "put note",
    }
    assert place.found() == place.sent
    assert replayed(feed, place.settings()) == (60, 0, 0, 0)
    assert place.found() == place.sent
    assert place.faults() == []


@pytest.mark.parametrize(("kind", "fault"), LASTING)
def test_a_replay_that_is_given_up_goes_on(place: Place, kind: str, fault: Fault) -> None:
    feed = place.loaded(with_hole=True)
    place.proxy.fail(fault, kind, times=loaders.store.ATTEMPTS)
    with pytest.raises(StoreError, match="did not take or give s3://"):
        replayed(feed, place.failing)
    assert place.proxy.met[kind] == loaders.store.ATTEMPTS, "a bounded number of attempts"
    is_there = (kind, fault) == ("put new entry", "lost answer")
    assert (place.found() == place.sent) == is_there
    assert replayed(feed, place.failing) == ((60, 0, 0, 0) if is_there else (20, 40, 0, 40))
    assert place.found() == place.sent


@pytest.mark.parametrize("fault", FAULTS)
def test_each_kind_of_request_of_a_seal_may_fail(place: Place, fault: Fault) -> None:
    feed = place.loaded(with_hole=False)
    assert place.found() == place.sent
    place.now[0] += 86_400 * 10**9
    place.proxy.fail_each_kind(fault)
    assert sealed(feed, place.failing) == ["sealed"]
    made = {"list", "get file", "begin upload", "put part", "complete upload", "put new pointer", "put new entry"}
    assert set(place.proxy.met) >= made
    assert place.found() == place.sent
    assert place.faults() == []
    place.proxy.heal()
    place.proxy.met.clear()
    place.proxy.fail_each_kind(fault)
    assert sealed(feed, place.failing, grace=0) == ["removed"]
    assert set(place.proxy.met) >= {"list", "get file", "put new pointer", "put new entry", "delete file"}
    assert place.found() == place.sent
    assert place.faults() == []


@pytest.mark.parametrize(("kind", "fault"), LASTING)
def test_a_seal_that_is_given_up_goes_on(place: Place, kind: str, fault: Fault) -> None:
    feed = place.loaded(with_hole=False)
    place.now[0] += 86_400 * 10**9
    place.proxy.fail(fault, kind, times=loaders.store.ATTEMPTS)
    with pytest.raises(StoreError, match="did not take or give s3://"):
        sealed(feed, place.failing)
    assert place.proxy.met[kind] == loaders.store.ATTEMPTS, "a bounded number of attempts"
    assert place.found() == place.sent
    is_there = (kind, fault) == ("put new entry", "lost answer")
    assert sealed(feed, place.failing) == ([] if is_there else ["sealed"])
    assert place.found() == place.sent
    place.proxy.fail(fault, kind, times=loaders.store.ATTEMPTS)  # the removal makes entries, too
    if "upload" in kind or "part" in kind:
        place.proxy.heal()
    else:
        with pytest.raises(StoreError, match="did not take or give s3://"):
            sealed(feed, place.failing, grace=0)
        assert place.found() == place.sent
    assert sealed(feed, place.failing, grace=0) == ["removed"]
    assert place.found() == place.sent
    assert place.faults() == [], "nothing of the attempts that were given up stays"


def archive(place: Place) -> str:
    """Put an archive of three days onto S3; the second is so large that its original is uploaded in parts."""
    header = b"ticker,volume,open,close,high,low,window_start,transactions,note\n"
    for day in SESSIONS:
        notes = [base64.b64encode(os.urandom(4_500_000)) if day == SESSIONS[1] else b"", b"", b""]
        start = 86_400 * (day - dt.date(1970, 1, 1)).days * 10**9
        rows = b"".join(b"T%d,1,2,3,4,5,%d,7,%s\n" % (row, start, note) for row, note in enumerate(notes))
        key = f"archive/massive_day_aggs_{day}.csv"
        place.s3.client().put_object(Bucket=place.bucket, Key=key, Body=header + rows)
    return f"s3://{place.bucket}/archive"


def backfilled(source: str, settings: Settings, workers: int = 2) -> dict[str, int]:
    """How many days came to be what."""
    todo = backfill.plan(ARCHIVED, SESSIONS[0], SESSIONS[-1] + dt.timedelta(1), source, settings)
    report = backfill.run(todo, ARCHIVED, settings, workers=workers)
    assert report.complete
    return dict(Counter(report.days.values()))


def days(place: Place) -> list[tuple[str, int]]:
    """The days that the ledger has, each with its records, in order."""
    settings = place.settings()
    store = loaders.store.open_store(settings.raw, settings.s3)
    found = Ledger(store).entries("file/")
    for entry in (entries := list(found)):
        assert sum(pq.read_metadata(io.BytesIO(store.get(file.path))).num_rows for file in entry.files) == 3
        assert entry.original is not None and store.exists(entry.original)
    return sorted((entry.attributes["session_date"], entry.records) for entry in entries)


WHOLE = [(str(day), 3) for day in SESSIONS]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_kind_of_request_of_a_backfill_may_fail(place: Place, fault: Fault) -> None:
    """Those to the archive, too, which another client makes."""
    source = archive(place)
    place.proxy.fail_each_kind(fault)
    assert backfilled(source, place.failing) == {"landed": 3}
    made = {"list", "get file", "head file", "put file", "put part", "complete upload"}
    assert set(place.proxy.met) >= made | {"put new pointer", "put new entry"}
    assert days(place) == WHOLE
    assert place.faults() == []
    assert backfilled(source, place.settings()) == {"present": 3}
    assert days(place) == WHOLE


@pytest.mark.parametrize(("kind", "fault"), LASTING)
def test_a_backfill_that_is_given_up_goes_on(place: Place, kind: str, fault: Fault) -> None:
    source = archive(place)
    place.proxy.fail(fault, kind, times=loaders.store.ATTEMPTS)
    with pytest.raises(StoreError, match="did not take or give s3://"):
        backfilled(source, place.failing, workers=1)
    assert place.proxy.met[kind] == loaders.store.ATTEMPTS, "a bounded number of attempts"
    is_there = (kind, fault) == ("put new entry", "lost answer")
    before = days(place)
    assert before == WHOLE[: len(before)] and len(before) < 3 + is_there
    assert sum(backfilled(source, place.failing).values()) == 3
    assert days(place) == WHOLE
    assert set(backfilled(source, place.settings())) == {"present"}
