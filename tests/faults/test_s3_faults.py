"""S3 fails under the loaders, request by request: bounded retries, nothing lost, nothing twice, nothing misjudged.

    Kafka ──▶ KafkaLoader ──┐                        ┌── counted by the ledger, offset by offset
    files ──▶ FileLoader  ──┴─▶ FaultProxy ──▶ S3 ───┴── built once, and counted in canonical

Every fault has a proxy, a topic with two partitions (one with large segments, so that uploads have parts) and a file;
all land in one raw zone, at the same time.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
from faults.proxy import Fault, FaultProxy
from worlds.streams import FEED, Message, Zone, numbered, produce, wait_for
from worlds.warehouse import Warehouse

import loaders.store
from loaders.consumers import StreamError
from loaders.files import Outcome, load
from loaders.kafka import KafkaLoader, Totals
from loaders.ledger import Ledger
from loaders.registry import find_feed, load_registry
from loaders.store import StoreError
from loaders.until import parse_until
from market_data.build import build
from market_data.client import published_version
from market_data.lake import open_version

if TYPE_CHECKING:
    from conftest import KafkaServer, S3Server

FAULTS: tuple[Fault, ...] = get_args(Fault)
PART_BYTES = 5 << 20
SMALL, LARGE = 200, 9
"""Records of a topic: in partition 1, and in partition 0, where they have 900 kB each."""
MADE = {
    "list",
    "get note",
    "get origin",
    "put new origin",
    "get entry",
    "put new note",
    "put new pointer",
    "put new entry",
    "put note",
    "put file",
    "begin upload",
    "put part",
    "complete upload",
}
"""The kinds of request that a load from Kafka makes when nothing fails."""


@pytest.fixture(scope="module", autouse=True)
def small_and_quick() -> Iterator[None]:
    """Uploads are in parts from the smallest size on that S3 allows, and waits are short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaders.store, "PART_BYTES", PART_BYTES)
        patch.setattr(loaders.store, "FIRST_WAIT", 0.02)
        yield


@dataclass(frozen=True)
class Lake:
    """The raw zone of all tests here, which make it in turn, and the warehouse over it."""

    root: Path
    s3: S3Server
    kafka: KafkaServer
    bucket: str

    def zone(self, endpoint: str | None = None, fault: Fault | None = None) -> Zone:
        """The raw zone, straight or through a proxy; the client is patient unless silence is what it meets."""
        env = {name: value for name, value in self.s3.env.items() if name.startswith("AWS_")}
        env |= {
            "AWS_ENDPOINT_URL_S3": endpoint or self.s3.endpoint,
            "MDP_S3_TIMEOUT": "1.5" if fault == "silence" else "30",
        }
        return Zone(self.root, self.kafka.bootstrap, f"s3://{self.bucket}/raw", env)

    def positions(self, topic: str) -> Counter[tuple[int, int]]:
        """How often each (partition, offset) of a topic is there, by the ledger."""
        found = self.zone().positions()
        return Counter({at[1:]: count for at, count in found.items() if at[0] == topic})

    def keys(self) -> set[str]:
        return set(self.zone().store.list(""))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server, kafka_server: KafkaServer) -> Lake:
    return Lake(tmp_path_factory.mktemp("s3-faults"), s3_server, kafka_server, s3_server.new_bucket())


@pytest.fixture
def proxy(lake: Lake) -> Iterator[FaultProxy]:
    proxy = FaultProxy(lake.s3.endpoint)
    yield proxy
    proxy.close()


SENT: dict[str, Counter[tuple[int, int]]] = {}
"""What has been sent: each offset of each topic once."""
FIRST = iter(range(0, 10**9, 10_000))
"""Where the trade numbers of a topic start."""


def new_topic(lake: Lake, small: int = SMALL, large: int = LARGE) -> str:
    topic = lake.kafka.new_topic(2)
    first = next(FIRST)
    messages = [Message(each.value, each.key, partition=1) for each in numbered(first, small)]
    for trade in numbered(first + small, large):
        noise = base64.b64encode(os.urandom(675_000))
        assert trade.value is not None
        messages.append(Message(trade.value[:-1] + b',"note":"' + noise + b'"}', trade.key, partition=0))
    produce(lake.kafka.bootstrap, topic, messages)
    SENT[topic] = Counter([*((1, offset) for offset in range(small)), *((0, offset) for offset in range(large))])
    return topic


def load_stream(zone: Zone, topic: str, give_up_after: float = 60.0) -> Totals:
    feed = dataclasses.replace(find_feed(FEED, load_registry()), topic=topic)
    loader = KafkaLoader(
        [feed],
        zone.settings,
        group=f"{topic}-{os.urandom(3).hex()}",
        until=parse_until("caught-up"),
        give_up_after=give_up_after,
    )
    return loader.run()


def vendor_file(directory: Path, series: str) -> Path:
    """Two vintages of one observation, large enough to be uploaded in parts."""
    vintages = [
        {"realtime_start": "2024-04-25", "realtime_end": "2024-05-29", "date": "2024-01-01", "value": "100.5"},
        {"realtime_start": "2024-05-30", "realtime_end": "9999-12-31", "date": "2024-01-01", "value": "101.5"},
    ]
    path = directory / f"alfred_{series}_fetched_2024-06-01.json"
    noise = base64.b64encode(os.urandom(4_500_000)).decode()
    path.write_text(json.dumps({"note": noise, "observations": vintages}))
    return path


@dataclass(frozen=True)
class Met:
    """What came of a load under a fault, and the kinds of request that met it."""

    kinds: set[str]
    topic: str = ""
    totals: Totals | None = None
    outcomes: Sequence[Outcome] = ()


@pytest.fixture(scope="module")
def met(lake: Lake) -> dict[tuple[str, Fault], Met]:
    """Under each fault: a topic and a file loaded, while the first request of each kind meets it."""
    load_stream(lake.zone(), new_topic(lake, 1, 0))  # the name of the raw zone is drawn once

    def under(case: tuple[str, Fault]) -> Met:
        what, fault = case
        proxy = FaultProxy(lake.s3.endpoint)
        zone = lake.zone(proxy.endpoint, fault)
        try:
            if what == "stream":
                topic = new_topic(lake)
                proxy.fail_each_kind(fault)
                totals = load_stream(zone, topic)
                return Met(set(proxy.met), topic, totals)
            file = vendor_file(lake.root, f"S{FAULTS.index(fault)}")
            proxy.fail_each_kind(fault)
            outcomes = load([file], "alfred_observations", settings=zone.settings)
            return Met(set(proxy.met), outcomes=outcomes)
        finally:
            proxy.close()

    # Silence takes longest, and goes first.
    cases = [(what, fault) for fault in sorted(FAULTS, key="silence".__ne__) for what in ("stream", "file")]
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(cases, pool.map(under, cases), strict=True))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_kind_of_request_of_a_stream_may_fail(lake: Lake, met: dict[tuple[str, Fault], Met], fault: Fault) -> None:
    found = met["stream", fault]
    assert found.kinds >= MADE
    assert found.totals is not None
    assert found.totals == Totals(SMALL + LARGE, found.totals.bytes, found.totals.segments, refused=0)
    assert lake.positions(found.topic) == SENT[found.topic]
    lake.zone().check_chains()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_kind_of_request_of_a_file_may_fail(lake: Lake, met: dict[tuple[str, Fault], Met], fault: Fault) -> None:
    found = met["file", fault]
    assert found.kinds >= {"list", "head file", "put part", "complete upload", "put new pointer", "put new entry"}
    (outcome,) = found.outcomes
    assert (outcome.status, outcome.entry.records) == ("loaded", 2)
    assert lake.zone().store.exists(outcome.entry.files[0].path)
    assert lake.zone().store.exists(outcome.entry.original or "")


LASTING: tuple[tuple[str, Fault], ...] = (
    ("put new entry", "503"),
    ("put new pointer", "500"),
    ("put file", "silence"),
    ("put part", "reset"),
    ("list", "503"),
)


def test_what_lasts_is_given_up_and_nothing_is_lost(lake: Lake) -> None:
    """Each kind of request fails for ever: the loader ends with an error, and the next one loads everything."""

    def under(case: tuple[str, Fault]) -> tuple[str, str]:
        topic, proxy = new_topic(lake), FaultProxy(lake.s3.endpoint)
        try:
            proxy.fail(case[1], case[0], times=10**6)
            with pytest.raises(StreamError) as caught:
                load_stream(lake.zone(proxy.endpoint, case[1]), topic, give_up_after=0)
            assert proxy.met[case[0]] == loaders.store.ATTEMPTS, "a bounded number of attempts"
            return topic, str(caught.value)
        finally:
            proxy.close()

    with ThreadPoolExecutor(len(LASTING)) as pool:
        ended = list(pool.map(under, LASTING))
    for topic, error in ended:
        assert f"writing to s3://{lake.bucket}/raw has failed for" in error
        assert "Nothing is lost" in error
        assert lake.positions(topic).keys() <= SENT[topic].keys()
    with ThreadPoolExecutor(len(LASTING)) as pool:
        list(pool.map(lambda case: load_stream(lake.zone(), case[0]), ended))
    found = lake.zone().positions()
    for topic, _ in ended:
        assert Counter({at[1:]: count for at, count in found.items() if at[0] == topic}) == SENT[topic]
    lake.zone().check_chains()


def test_a_file_that_cannot_be_loaded_now_is_loaded_later(lake: Lake, proxy: FaultProxy) -> None:
    zone, file = lake.zone(proxy.endpoint), vendor_file(lake.root, "LATER")
    proxy.fail("503", "put new entry", times=loaders.store.ATTEMPTS)
    with pytest.raises(StoreError, match="did not take or give s3://"):
        load([file], "alfred_observations", settings=zone.settings)
    assert [entry for entry in Ledger(zone.store).entries("file/") if entry.source == file.name] == []
    (outcome,) = load([file], "alfred_observations", settings=zone.settings)
    assert (outcome.status, outcome.entry.records) == ("loaded", 2)


def test_an_entry_of_which_every_answer_is_lost_is_ours(lake: Lake, proxy: FaultProxy) -> None:
    """The store gives up, the entry is there: the loader finds it in the chain, and goes on behind it."""
    topic = new_topic(lake)
    proxy.fail("lost answer", "put new entry", times=loaders.store.ATTEMPTS)
    totals = load_stream(lake.zone(proxy.endpoint), topic)
    assert totals.refused == 0, "our own entry was taken for another loader's"
    assert lake.positions(topic) == SENT[topic]
    lake.zone().check_chains()


def test_a_file_whose_answers_are_lost_is_there_once(lake: Lake, proxy: FaultProxy) -> None:
    zone, file = lake.zone(proxy.endpoint), vendor_file(lake.root, "LOST")
    proxy.fail("lost answer", "put new entry", times=loaders.store.ATTEMPTS)
    with pytest.raises(StoreError):
        load([file], "alfred_observations", settings=zone.settings)
    (outcome,) = load([file], "alfred_observations", settings=zone.settings)
    assert outcome.status == "unchanged"
    assert zone.store.exists(outcome.entry.files[0].path)


def test_killed_between_the_parts_of_an_upload_nothing_of_it_is_seen(lake: Lake, proxy: FaultProxy) -> None:
    """In a process of its own, whose parts are as large as they really are."""
    topic = new_topic(lake, small=0, large=28)
    proxy.fail("silence", "put part", times=1, after=1)
    zone, before = lake.zone(proxy.endpoint), lake.keys()
    with zone.started(topic, "--until", "caught-up", "--segment-bytes", str(64 << 20)) as loader:
        wait_for(lambda: proxy.met["put part"] == 1, "the second part")
        loader.process.send_signal(signal.SIGKILL)
        assert loader.wait() == -signal.SIGKILL
    pending = lake.s3.client().list_multipart_uploads(Bucket=lake.bucket).get("Uploads", [])
    assert pending, "an upload was begun"
    assert not [key for key in lake.keys() - before if key.endswith(".parquet")]
    assert lake.positions(topic) == Counter()
    load_stream(lake.zone(), topic)
    assert lake.positions(topic) == SENT[topic]


def test_everything_sent_is_canonical_once(
    lake: Lake, met: dict[tuple[str, Fault], Met], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One build over all that was loaded under the faults above."""
    zone, warehouse = lake.zone(), Warehouse(lake.root)
    for name, value in zone.s3.items():
        monkeypatch.setenv(name, value)
    settings = dataclasses.replace(warehouse.settings, raw=zone.settings.raw, s3=zone.settings.s3)
    caplog.set_level("INFO", "market_data.build")
    build(settings)
    told = [vars(record) for record in caplog.records if record.name == "market_data.build"]
    assert [event["event"] for event in told] == ["build-started", "version-published"]
    assert told[1]["fields"]["version"] == published_version(settings)
    with open_version(settings, published_version(settings)) as reader:
        counted = reader.execute("select source, source_partition, source_position from canonical.trades").fetchall()
        conserved = reader.execute("select bool_and(is_conserved) from observability.conservation").fetchone()
        vintages = reader.execute("select count(*) from canonical.macro_observations").fetchone()
    assert Counter(counted) == Counter({(topic, *at): 1 for topic, sent in SENT.items() for at in sent})
    assert conserved == (True,)
    files = [entry for entry in Ledger(zone.store).entries("file/") if entry.outcome == "loaded"]
    assert vintages == (2 * len(files),)
