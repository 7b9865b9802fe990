"""Sealing: few files instead of many, and nothing else changes, whatever happens beside it or in the middle of it.

files and a stream, loaded on days that are over ── built ── sealed ── open files removed ──▶ the same tables, always
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from worlds.streams import WAIT, Loader, Zone, numbered, produce, wait_for
from worlds.warehouse import Warehouse, differences

import loaders.failpoints
import loaders.seal
from loaders import verify
from loaders.chain import Chain, Source
from loaders.failpoints import SEAL_POINTS
from loaders.ledger import Entry, Ledger, load_id
from loaders.registry import find_feed, load_registry
from loaders.seal import Outcome, SealError, folder_of, seal
from loaders.segments import Load, SegmentWriter
from loaders.store import Store, open_store
from loaders.times import day, iso, parse_time
from market_data import bookkeeping, connect, lake, publishing, trace

if TYPE_CHECKING:
    from conftest import KafkaServer

MDP = (sys.executable, "-c", "from market_data.cli import main; main()")
DAY = "2024-06-04"
AT = parse_time(f"{DAY}T10:00:00Z")
FEEDS = load_registry()
HOSTILE = ["BTCUSDT", "NULL", "", "..", "a/b", "../../x", "%2F", "a b?*[x]", "naïve", 'a"; drop table x; --', "x" * 900]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The loaders' clock: `clock[0]` is now. It goes on by a millisecond at each look."""
    now = [AT]

    def tick() -> int:
        now[0] += 1_000_000
        return now[0]

    with monkeypatch.context() as patched:
        patched.setattr(time, "time_ns", tick)
        yield now


def stream(store: Store, number: int, instruments: list[str | None], partition: int = 0) -> Entry:
    """Land the next link of a chain: a trade for each instrument, with a payload of any bytes."""
    chain = Chain(store, Source("binance_spot", "c", "binance_spot", "t"), partition)
    first = chain.begin(0)
    key, now = chain.key(first), time.time_ns()
    shared = Load("binance_spot", "binance_spot", load_id(key), now, None, "1", {})
    rows = len(instruments)
    payloads = [
        json.dumps(
            {"stream": "btcusdt@trade", "data": {"e": "trade", "E": 1717495200000 + row, "s": "BTCUSDT"}
             | {"t": number * 1000 + row, "p": "1.5", "q": "2", "T": 1717495200000 + row, "m": False, "M": True}}
        ).encode()
        for row in range(rows)
    ]  # fmt: skip
    payloads[0] = b"\xff\x00{"
    writer = SegmentWriter(store, shared)
    writer.add(
        pa.table(
            {
                "key": pa.array([None, *[b"k"] * (rows - 1)], pa.binary()),
                "payload": pa.array(payloads, pa.binary()),
                "source_partition": pa.array([partition] * rows, pa.int32()),
                "source_position": pa.array(range(first, first + rows), pa.int64()),
                "source_time": pa.array(range(AT, AT + rows), pa.timestamp("ns")),
                "instrument": pa.array(instruments, pa.string()),
            }
        )
    )
    writer.close()
    entry = Entry(
        key=key,
        load_id=shared.load_id,
        feed="binance_spot",
        kind="stream",
        source="binance_spot",
        schema_version="1",
        records=rows,
        files=tuple(writer.files),
        stream=chain.stream(first, first + rows),
        started_at=iso(now),
        loaded_at=iso(now),
    )
    assert chain.extend(entry)
    return entry


def sealed(
    warehouse: Warehouse, feed: str = "binance_spot", date: str | None = None, grace: float = 7
) -> list[Outcome]:
    return list(seal(find_feed(feed, FEEDS), warehouse.settings, date, grace_days=grace))


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


def raw_rows(warehouse: Warehouse, feed: str = "binance_spot") -> Counter[str]:
    """Every row that readers of the ledger find, of seals where there are any, with all its columns."""
    store = open_store(warehouse.settings.raw)
    entries = [entry for entry in Ledger(store).entries() if entry.feed == feed]
    replaced = {path: entry for entry in entries for load in entry.sealed for path in load.files}
    found: Counter[str] = Counter()
    sealed_files = {file.path for entry in replaced.values() for file in entry.files}
    open_files = {file.path for entry in entries if not entry.sealed for file in entry.files} - replaced.keys()
    for path in sorted(sealed_files | open_files):
        table = pq.read_table(store.uri(path), partitioning=None)
        found.update(repr(sorted(row.items())) for row in table.to_pylist())
    return found


def open_files(warehouse: Warehouse, feed: str = "binance_spot") -> list[str]:
    return sorted(path.name for path in Path(warehouse.settings.raw, feed).glob("ingest_date=*/*.parquet"))


def verified(warehouse: Warehouse) -> list[str]:
    findings: list[Any] = []
    verify.verify(warehouse.settings, hashes=True, tell=findings.append)
    return [str(finding) for finding in findings]


def traced_trades(warehouse: Warehouse) -> list[str]:
    """The records of all trades, each that of its trade."""
    trades = "from canonical.trades order by listing_id, trade_id"
    with connect(warehouse.settings) as client:
        asked, traced = client.sql(trades).arrow, trace.records(client, warehouse.settings, trades, 10_000).arrow
    records = traced["record"].to_pylist()
    said = [json.loads(record) for record in records]  # of a combined stream, or of one of its own
    assert [str(each.get("data", each)["t"]) for each in said] == asked["trade_id"].to_pylist()
    assert traced["original_file"].null_count == len(asked), "a stream has no file"
    return records


def equal_after(warehouse: Warehouse, before: dict[str, pa.Table]) -> None:
    """A full refresh gives the same tables, and the raw zone is whole."""
    warehouse.build(full_refresh=True)
    assert differences(before, warehouse.tables()) == []
    assert verified(warehouse) == []


@pytest.fixture
def warehouse(tmp_path: Path, clock: list[int]) -> Warehouse:
    """Loads of a day that is over: two partitions, hostile instruments, trades that repeat."""
    warehouse = Warehouse(tmp_path)
    store = open_store(warehouse.settings.raw)
    for number in range(4):
        stream(store, number, [None, *HOSTILE, *["BTCUSDT", "ETHUSDT"] * 10], partition=number % 2)
    stream(store, 1, [None, "BTCUSDT"], partition=1)
    clock[0] = parse_time("2024-06-05T02:00:00Z")
    return warehouse


def test_a_day_becomes_a_file_an_instrument(warehouse: Warehouse) -> None:
    before, files = raw_rows(warehouse), open_files(warehouse)
    (outcome,) = sealed(warehouse)
    assert (outcome.status, outcome.loads, outcome.records) == ("sealed", 5, before.total())
    assert raw_rows(warehouse) == before and open_files(warehouse) == files
    (entry,) = Ledger(open_store(warehouse.settings.raw)).entries("seal/")
    folders = [file.path.split("/")[2] for file in entry.files]
    assert sorted(folders) == sorted(folder_of(name, None) for name in [None, "ETHUSDT", *HOSTILE])
    for file in entry.files:
        table = pq.read_table(Path(warehouse.settings.raw, file.path), partitioning=None)
        assert len(pc.unique(table["instrument"])) == 1
    assert statuses(sealed(warehouse)) == []
    assert statuses(sealed(warehouse, date=DAY)) == ["nothing"]
    assert verified(warehouse) == []


@pytest.mark.long
def test_a_full_refresh_is_equal_after_the_seal_and_after_the_removal(warehouse: Warehouse, clock: list[int]) -> None:
    warehouse.build()
    before, records = warehouse.tables(), traced_trades(warehouse)
    assert records and before["canonical.quarantine"].num_rows
    sealed(warehouse)
    assert not warehouse.build().built, "a seal alone is nothing new"
    equal_after(warehouse, before)
    clock[0] += 8 * 86_400 * 10**9
    assert statuses(sealed(warehouse)) == ["removed"]
    assert open_files(warehouse) == []
    assert traced_trades(warehouse) == records
    equal_after(warehouse, before)
    assert traced_trades(warehouse) == records
    assert statuses(sealed(warehouse)) == []


@pytest.mark.long
def test_what_the_lake_has_not_entered_yet_may_be_sealed_and_gone(warehouse: Warehouse, tmp_path: Path) -> None:
    twin = warehouse.copy(tmp_path / "twin")
    twin.build()
    sealed(warehouse)
    sealed(warehouse, grace=0)
    assert open_files(warehouse) == []
    warehouse.build()
    assert differences(twin.tables(), warehouse.tables()) == []


@pytest.mark.long
def test_a_restore_enters_seals_again(warehouse: Warehouse) -> None:
    warehouse.build()
    before = warehouse.tables()
    sealed(warehouse)
    sealed(warehouse, grace=0)
    with lake.open_for_writing(warehouse.settings) as connection:
        bookkeeping.enter_loads(connection, warehouse.settings)
        count = "select count(*) from lake.observability.sealed"
        assert bookkeeping.scalar(connection, count) == 5
        publishing.note(connection, "", "failed", "as if a build had failed")
        publishing.restore(connection, warehouse.settings)
        assert bookkeeping.scalar(connection, count) == 0
        bookkeeping.enter_loads(connection, warehouse.settings)
        assert bookkeeping.scalar(connection, count) == 5
    equal_after(warehouse, before)


@pytest.mark.long
def test_a_late_load_stays_open_for_the_next_seal(warehouse: Warehouse, clock: list[int], tmp_path: Path) -> None:
    sealed(warehouse)
    night, clock[0] = clock[0], AT
    stream(open_store(warehouse.settings.raw), 9, ["ETHUSDT", "BTCUSDT"])
    clock[0] = night
    before = raw_rows(warehouse)
    warehouse.build()
    tables = warehouse.tables()
    assert statuses(sealed(warehouse, date="2024-06-01", grace=0)) == ["nothing", "removed"]
    assert raw_rows(warehouse) == before and len(open_files(warehouse)) == 1, "the late load's file stays"
    (outcome,) = sealed(warehouse)
    assert (outcome.status, outcome.loads, outcome.records) == ("sealed", 1, 2)
    assert [entry.key[-4:] for entry in Ledger(open_store(warehouse.settings.raw)).entries("seal/")] == ["0000", "0001"]
    assert statuses(sealed(warehouse, grace=0)) == ["removed"]
    assert raw_rows(warehouse) == before
    equal_after(warehouse, tables)


HEADER = b"ticker,volume,open,close,high,low,window_start,transactions\n"


@pytest.mark.long
def test_a_delivery_again_works_before_during_and_after(
    tmp_path: Path, clock: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes at other stated times point to files that a seal replaces, and that are removed."""
    warehouse, twin = Warehouse(tmp_path / "a"), Warehouse(tmp_path / "b")
    name = "massive_day_aggs_2024-06-03.csv"
    (tmp_path / name).write_bytes(
        HEADER + b"".join(b"%s,1,2,3,4,1,1717387200000000000,7\n" % ticker for ticker in (b"A", b"NULL", b"C", b"D,x"))
    )
    added = tmp_path / "massive_day_aggs_2024-05-31.csv"
    added.write_bytes(HEADER.replace(b"transactions", b"transactions,more") + b"A,1,2,3,4,1,1717128000000000000,7,z\n")

    def deliver(at: str) -> None:
        for zone in (warehouse, twin):
            zone.load(tmp_path / name, "massive_day_aggs", at)

    for zone in (warehouse, twin):
        zone.load(added, "massive_day_aggs", "2024-06-01")
    deliver("2024-06-04")
    deliver("2024-06-03T23:00:00")
    clock[0] = parse_time("2024-06-10")
    prove = loaders.seal._Attempt._prove

    def meanwhile(attempt: Any) -> None:
        deliver("2024-06-05")
        prove(attempt)

    monkeypatch.setattr(loaders.seal._Attempt, "_prove", meanwhile)
    assert statuses(sealed(warehouse, "massive_day_aggs")) == ["sealed"]
    warehouse.build()
    twin.build()
    assert differences(twin.tables(), warehouse.tables()) == []
    deliver("2024-06-06")
    assert statuses(sealed(warehouse, "massive_day_aggs", grace=0)) == ["removed"]
    deliver("2024-06-07")
    warehouse.build(full_refresh=True)
    twin.build()
    assert differences(twin.tables(), warehouse.tables()) == []
    assert verified(warehouse) == []


def test_a_seal_may_be_killed_at_any_step(warehouse: Warehouse, clock: list[int], tmp_path: Path) -> None:
    """In processes of their own, by the real clock."""
    before = raw_rows(warehouse)
    done = warehouse.copy(tmp_path / "done")
    assert _mdp_seal(done).returncode == 0
    removal = SEAL_POINTS.index("before-removal")
    starts = [(point, done if number >= removal else warehouse) for number, point in enumerate(SEAL_POINTS)]
    for point, start in [*starts, ("after-pointer", done)]:
        zone = start.copy(tmp_path / f"{point}-{start is done}")
        killed = _mdp_seal(zone, point)
        assert killed.returncode == -signal.SIGKILL, (point, killed.stdout, killed.stderr)
        assert raw_rows(zone) == before, point
        assert verified(zone) == [], point
        again = _mdp_seal(zone)
        assert again.returncode == 0, (point, again.stderr)
        assert raw_rows(zone) == before, point
        assert _mdp_seal(zone).returncode == 0 and open_files(zone) == []
        (entry,) = Ledger(open_store(zone.settings.raw)).entries("seal/")
        there = set(open_store(zone.settings.raw).list("binance_spot/"))
        assert there == {file.path for file in entry.files}, f"{point}: attempts that died left files"


def _mdp_seal(zone: Warehouse, failpoint: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = zone.environment | ({"MDP_FAILPOINT": failpoint} if failpoint else {})
    arguments = ["seal", "--feed", "binance_spot", "--grace-days", "0"]
    return subprocess.run(
        [*MDP, *arguments], env=environment, capture_output=True, text=True, timeout=WAIT, check=False
    )


def test_of_two_seals_at_once_one_wins_and_the_other_says_so(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = raw_rows(warehouse)
    barrier, prove = threading.Barrier(2), loaders.seal._Attempt._prove

    def both(attempt: Any) -> None:
        prove(attempt)
        barrier.wait(WAIT)

    monkeypatch.setattr(loaders.seal._Attempt, "_prove", both)
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.extend(sealed(warehouse))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses(outcomes)) == ["outrun", "sealed"]
    assert any("another seal of this day was faster" in outcome.message for outcome in outcomes)
    (entry,) = Ledger(open_store(warehouse.settings.raw)).entries("seal/")
    there = list(open_store(warehouse.settings.raw).list("binance_spot/ingest_date=2024-06-04/instrument"))
    assert there == sorted(file.path for file in entry.files), "the loser has removed its files"
    assert raw_rows(warehouse) == before


@pytest.mark.parametrize("damage", ["lost", "doubled", "changed"])
def test_what_is_not_equal_is_not_sealed(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    put = loaders.seal._Writer._put

    def damaged(writer: Any, folder: str, table: pa.Table) -> None:
        if folder == "instrument=ETHUSDT":
            if damage == "lost":
                table = table.slice(1)
            elif damage == "doubled":
                table = pa.concat_tables([table.slice(1), table.slice(1, 1)])
            else:
                payload = pa.array([b"other", *table["payload"].to_pylist()[1:]], pa.binary())
                table = table.set_column(table.column_names.index("payload"), "payload", payload)
        put(writer, folder, table)

    monkeypatch.setattr(loaders.seal._Writer, "_put", damaged)
    before = raw_rows(warehouse)
    with pytest.raises(SealError, match="do not hold the records of"):
        sealed(warehouse)
    assert raw_rows(warehouse) == before
    assert list(open_store(warehouse.settings.raw).list("seal/")) == []
    assert not list(Path(warehouse.settings.raw).glob("**/instrument*/*.parquet"))


def test_a_damaged_open_file_is_not_sealed_and_a_damaged_sealed_file_keeps_the_open_ones(warehouse: Warehouse) -> None:
    (first, *_) = sorted(Path(warehouse.settings.raw).glob("binance_spot/*/*.parquet"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + b"x")
    with pytest.raises(SealError, match="does not hold the bytes"):
        sealed(warehouse)
    first.write_bytes(whole)
    sealed(warehouse)
    (copy, *_) = sorted(Path(warehouse.settings.raw).glob("binance_spot/*/instrument*/*.parquet"))
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    files = open_files(warehouse)
    with pytest.raises(SealError, match="stay until it is restored"):
        sealed(warehouse, grace=0)
    assert open_files(warehouse) == files


def test_a_day_that_is_not_over_is_refused(warehouse: Warehouse, clock: list[int]) -> None:
    today = day(clock[0])
    with pytest.raises(ValueError, match="is not over"):
        sealed(warehouse, date=today)
    with pytest.raises(ValueError, match="not a date such as"):
        sealed(warehouse, date="2024-6-4")
    stream(open_store(warehouse.settings.raw), 9, ["ETHUSDT"])
    assert [outcome.day for outcome in sealed(warehouse)] == [DAY]
    assert statuses(sealed(warehouse, date="2024-06-01")) == ["nothing"]


@dataclasses.dataclass
class Midnight:
    """The clock of processes that are given `environment`: a minute before midnight, and then, when told, after it."""

    root: Path
    day: str = "2024-08-09"

    def __post_init__(self) -> None:
        (self.root / "sitecustomize.py").write_text(
            "import pathlib, time\n"
            "real, place = time.time_ns, pathlib.Path(__file__).with_name('offset')\n"
            "time.time_ns = lambda: real() + int(place.read_text())\n"
        )
        self._set(f"{self.day}T23:59:00Z")

    def passes(self) -> None:
        self._set("2024-08-10T00:00:01Z")

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.root), "MDP_LOG": "json"}

    def _set(self, now: str) -> None:
        draft = self.root / "draft"
        draft.write_text(str(parse_time(now) - time.time_ns()))
        draft.replace(self.root / "offset")


def is_stopped(running: Loader) -> bool:
    return Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_a_seal_beside_loaders_and_a_build(tmp_path: Path, kafka_server: KafkaServer) -> None:
    """One loader is caught by midnight in the middle of a flush, and commits to the day that is over while that is
    sealed; another goes on into the new day; and a build reads all of them meanwhile."""
    warehouse, clock = Warehouse(tmp_path), Midnight(tmp_path)
    places = {"MDP_LAKE": warehouse.settings.lake, "MDP_LAKE_DATA": warehouse.settings.lake_data}
    zone = Zone(tmp_path, kafka_server.bootstrap, kafka=clock.environment | places)
    late, steady = kafka_server.new_topic(retention_ms="-1"), kafka_server.new_topic(2, retention_ms="-1")
    sent: Counter[str] = Counter()

    def send(topic: str, count: int) -> None:
        first = sent.total()
        messages = numbered(first, count, partitions=2 if topic == steady else 1)
        produce(zone.bootstrap, topic, [dataclasses.replace(each, timestamp_ms=1_723_161_256_000) for each in messages])
        sent[topic] += count

    def landed(topic: str) -> int:
        return sum(entry.records for entry in zone.entries() if entry.source == topic)

    def run(*arguments: str) -> list[str]:
        with zone.working([*MDP, *arguments]) as running:
            assert running.wait() == 0, running.said
        return running.said

    send(late, 300)
    send(steady, 600)
    limits = ("--segment-rows", "100", "--segment-seconds", "0.5")
    with (
        zone.started(late, *limits, failpoint="after-files:stop") as caught,
        zone.started(steady, *limits) as going_on,
    ):
        wait_for(lambda: is_stopped(caught), "a flush")
        wait_for(lambda: landed(steady) == 600, "what is there before midnight")
        clock.passes()
        with zone.working([*MDP, "seal", "--feed", "binance_spot"], "after-sealed-files:stop") as sealing:
            wait_for(lambda: is_stopped(sealing), "the sealed files")
            with zone.working([*MDP, "build"]) as building:
                building.until_says("build-started")
                for topic in (late, steady):
                    send(topic, 300)
                caught.process.send_signal(signal.SIGCONT)
                wait_for(lambda: landed(late) > 0, "the flush that midnight has caught")
                sealing.process.send_signal(signal.SIGCONT)
                assert sealing.wait() == 0, sealing.said
                assert building.process.poll() is None, "the build was to run for as long as the seal"
                assert building.wait() == 0, building.said
        (first,) = Ledger(open_store(warehouse.settings.raw)).entries("seal/")
        of_the_day = [entry for entry in zone.entries() if f"={clock.day}/" in entry.files[0].path]
        assert {entry.source for entry in of_the_day} == {late, steady}
        after_the_seal = [entry for entry in of_the_day if entry.source == late]
        assert (first.records, len(after_the_seal), len(first.sealed)) == (600, 1, len(of_the_day) - 1)
        # Both are at work still: the late load is sealed, and what was sealed before is removed. No build is running.
        said = run("seal", "--feed", "binance_spot", "--grace-days", "0")
        assert [json.loads(line)["event"] for line in said] == ["day-sealed", "day-removed"]
        there = Path(warehouse.settings.raw, "binance_spot", f"ingest_date={clock.day}").glob("*.parquet")
        assert {path.name for path in there} == {file.path.rpartition("/")[2] for file in after_the_seal[0].files}
        for topic in (late, steady):
            send(topic, 100)
        wait_for(lambda: (landed(late), landed(steady)) == (700, 1_000), "the rest")
        for loader in (caught, going_on):
            loader.process.send_signal(signal.SIGTERM)
            assert loader.wait() == 0, loader.said
    run("build")
    counted = Counter(warehouse.ask("select source, source_partition, source_position from canonical.trades"))
    assert counted == Counter(
        [*((late, 0, n) for n in range(700)), *((steady, part, n) for part in range(2) for n in range(500))]
    )
    assert warehouse.ask("select bool_and(is_conserved) from observability.conservation") == [(True,)]
    assert verified(warehouse) == []
    # A row leads to its record, whether that is in a loader's file, a sealed one, or one that was sealed and removed.
    assert len(traced_trades(warehouse)) == 1_700


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleaned up after it."""


def rows_by_load(warehouse: Warehouse) -> dict[str, Counter[str]]:
    """Each load's rows as a build finds them: in its files, or where a seal says that they are."""
    store = open_store(warehouse.settings.raw)
    entries = list(Ledger(store).entries())
    moved = {path: (load.load_id, seal.files) for seal in entries for load in seal.sealed for path in load.files}
    tables: dict[str, pa.Table] = {}

    def read(path: str) -> pa.Table:
        if path not in tables:
            tables[path] = pq.read_table(store.uri(path), partitioning=None)
        return tables[path]

    found: dict[str, Counter[str]] = {}
    for entry in entries:
        if entry.outcome == "loaded":
            rows = found.setdefault(entry.load_id, Counter())
            places = {moved[file.path] for file in entry.files if file.path in moved}
            for file in entry.files:
                if file.path not in moved:
                    rows.update(map(repr, read(file.path).to_pylist()))
            for stored_as, files in places:
                for file in files:
                    table = read(file.path)
                    rows.update(map(repr, table.filter(pc.equal(table["load_id"], stored_as)).to_pylist()))
    return found


STEPS = st.one_of(
    st.tuples(st.just("late"), st.lists(st.sampled_from([None, "A", "B/C"]), min_size=1, max_size=3)),
    st.tuples(st.just("stream"), st.lists(st.sampled_from([None, "", "NULL", "A", "B/C"]), min_size=1, max_size=5)),
    st.tuples(st.just("deliver"), st.sampled_from(["one", "two"])),
    st.tuples(st.just("days"), st.sampled_from([1, 8])),
    st.tuples(st.just("seal"), st.sampled_from([None, None, *SEAL_POINTS])),
)


@hypothesis.settings(max_examples=25, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(steps=st.lists(STEPS, min_size=4, max_size=14))
def test_whatever_is_loaded_sealed_and_killed_each_load_keeps_its_rows(
    steps: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    warehouse = Warehouse(tmp_path_factory.mktemp("world"))
    store, now, expected = open_store(warehouse.settings.raw), [AT], {}
    point: list[str | None] = [None]

    def tick() -> int:
        now[0] += 1_000_000
        return now[0]

    def reach(name: str) -> None:
        if name == point[0]:
            raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "time_ns", tick)
        patched.setattr(loaders.failpoints, "reach", reach)
        for number, (step, given) in enumerate(steps):
            if step == "stream":
                stream(store, number, given)
            elif step == "late":
                now[0] -= 86_400 * 10**9
                stream(store, number, given)
                now[0] += 86_400 * 10**9
            elif step == "deliver":
                path = warehouse.root / f"massive_day_aggs_2024-06-0{len(given)}.csv"
                path.write_bytes(HEADER + b"%s,1,2,3,4,1,1717387200000000000,7\n" % given.encode() * 3)
                warehouse.load(path, "massive_day_aggs", iso(now[0]))
            elif step == "days":
                now[0] += given * 86_400 * 10**9
            else:
                with patched.context() as kill:
                    point[0] = given
                    kill.setattr(loaders.seal._Writer, "discard", lambda _: None)
                    for feed in ("binance_spot", "massive_day_aggs"):
                        with contextlib.suppress(Killed):
                            sealed(warehouse, feed)
                point[0] = None
            after = rows_by_load(warehouse)
            assert {name: after[name] for name in expected} == expected
            expected = after
        now[0] += 30 * 86_400 * 10**9
        for feed in ("binance_spot", "massive_day_aggs"):
            sealed(warehouse, feed)
            sealed(warehouse, feed, grace=0)
            assert open_files(warehouse, feed) == []
        assert rows_by_load(warehouse) == expected
        assert [line for line in verified(warehouse) if "leads to no entry" not in line] == []


@pytest.mark.long
def test_a_real_capture_is_sealed(captures: Path, tmp_path: Path, clock: list[int]) -> None:
    warehouse = Warehouse(tmp_path / "sealed")
    loaded = warehouse.load(captures / "binance_spot_btcusdt_20240808.gz", "binance_spot")
    twin = warehouse.copy(tmp_path / "twin")
    clock[0] += 86_400 * 10**9
    (outcome,) = sealed(warehouse)
    assert (outcome.records, outcome.files) == (loaded.entry.records, 2)  # one record names no instrument
    assert statuses(sealed(warehouse, grace=0)) == ["removed"]
    twin.build()
    warehouse.build()
    assert differences(twin.tables(), warehouse.tables()) == []


@pytest.mark.long
def test_it_works_on_s3(tmp_path: Path, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hostile names in keys; the tables are those of the same loads that were never sealed."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.new_bucket()

    class OnS3(Warehouse):
        @property
        def settings(self) -> Any:
            from loaders.settings import Settings

            places = {"MDP_RAW": f"s3://{bucket}/raw", "MDP_LAKE": str(self.root / "lake.sqlite")}
            return Settings.from_env({**s3_server.env, **places})

    warehouse, twin = OnS3(tmp_path / "s3"), Warehouse(tmp_path / "local")
    with monkeypatch.context() as patched:
        now = [AT]
        patched.setattr(time, "time_ns", lambda: now.__setitem__(0, now[0] + 10**6) or now[0])
        for zone in (warehouse, twin):
            now[0] = AT
            for number in range(3):
                stream(open_store(zone.settings.raw, zone.settings.s3), number, [None, *HOSTILE, "ETHUSDT"])
    assert statuses(sealed(warehouse)) == ["sealed"]
    assert statuses(sealed(warehouse, grace=0)) == ["removed"]
    twin.build()
    warehouse.build()
    assert differences(twin.tables(), warehouse.tables()) == []
    assert verified(warehouse) == []
