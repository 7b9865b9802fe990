"""`mdp verify`: a raw zone that is whole gives nothing to say, and each kind of damage is named.

a zone with files, a redelivery, a refusal, a stream with a replayed hole ── damaged ──▶ findings, exit code
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from loaders import verify as verification
from loaders.chain import HEADS, Chain, Source
from loaders.files import load
from loaders.ledger import ENTRIES, LOG, POINTER_LIFE, Entry, Ledger, load_id
from loaders.registry import find_feed, load_registry
from loaders.seal import seal
from loaders.segments import Load, SegmentWriter
from loaders.settings import Settings
from loaders.store import LocalStore, Store, open_store
from loaders.times import iso
from loaders.verify import Finding, Summary, verify
from market_data.cli import main

Write = Callable[[str, bytes], Path]
FEED = "massive_day_aggs"
HEADER = b"ticker,volume,open,close,high,low,window_start,transactions\n"
ROW = b"%s,1,2,3,4,5,1717387200000000000,7\n"
STREAM = Source("binance_spot", "a cluster", "binance_spot", "an id")


def link(store: Store, chain: Chain, first: int, next_: int) -> Entry:
    """Land records and extend the chain by them, as the loader does."""
    key = chain.key(first)
    shared = Load(
        feed="binance_spot",
        source="binance_spot",
        load_id=load_id(key),
        loaded_at=time.time_ns(),
        source_time=None,
        schema_version="1",
        attributes={},
    )
    writer = SegmentWriter(store, shared)
    offsets = pa.array(range(first, next_), pa.int64())
    rows = len(offsets)
    payload = pa.array([b"{}"] * rows, pa.binary())
    table = {"payload": payload, "source_position": offsets, "instrument": pa.array(["X"] * rows)}
    writer.add(pa.table(table))
    writer.close()
    entry = Entry(
        key=key,
        load_id=shared.load_id,
        feed="binance_spot",
        kind="stream",
        source="binance_spot",
        records=rows,
        files=tuple(writer.files),
        stream=chain.stream(first, next_),
        started_at=iso(shared.loaded_at),
        loaded_at=iso(shared.loaded_at),
    )
    assert chain.extend(entry)
    return entry


@pytest.fixture
def store(settings: Settings, write: Write) -> Store:
    """A zone with everything that a ledger can hold, and nothing wrong with it."""
    store = open_store(settings.raw)
    days = [write(f"{FEED}_2024-06-0{day}.csv", HEADER + ROW % ticker) for day, ticker in ((3, b"A"), (4, b"B"))]
    assert [outcome.status for outcome in load(days, FEED, settings=settings)] == ["loaded"] * 2
    (again,) = load(days[:1], FEED, settings=settings, delivered_at="2024-06-05")
    (refused,) = load([write(f"{FEED}_2024-06-05.csv", b"")], FEED, settings=settings)
    assert (again.status, refused.status) == ("redelivered", "refused")
    chain = Chain(store, STREAM, 0)
    chain.begin(5)
    link(store, chain, 5, 10)
    chain.skip(20, "deleted")
    link(store, chain, 20, 25)
    link(store, chain, 25, 30)
    chain.remember(now=True)
    hole = Chain(store, STREAM, 0, hole=10)
    hole.begin(10)
    link(store, hole, 10, 20)
    other = Chain(store, STREAM, 1)
    other.begin(0)
    return store


def walk(settings: Settings, **given: Any) -> tuple[Summary, list[Finding]]:
    findings: list[Finding] = []
    summary = verify(settings, tell=findings.append, **given)
    return summary, findings


def the_fault(settings: Settings, **given: Any) -> Finding:
    """The one fault there is; its line says where, what and the way out."""
    summary, findings = walk(settings, **given)
    (fault,) = [finding for finding in findings if finding.kind == "fault"]
    assert not summary.ok and summary.found["fault"] == 1
    assert fault.way_out and fault.way_out in str(fault)
    return fault


def first_entry(store: Store, prefix: str = f"file/{FEED}/") -> Entry:
    return next(entry for entry in Ledger(store).entries(prefix) if entry.delivered_at is None and entry.records)


def rewrite(raw: Path, entry: Entry, **changes: object) -> None:
    """Let an entry say something else."""
    said = msgspec.to_builtins(entry) | changes
    (raw / f"{ENTRIES}{entry.key}.json").write_bytes(json.dumps(said).encode())


def rewritten_file(entry: Entry, **changes: object) -> list[dict[str, object]]:
    return [msgspec.to_builtins(file) | changes for file in entry.files]


def corrupt(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("hashes", [False, True])
def test_a_whole_zone_gives_nothing_to_say(settings: Settings, store: Store, hashes: bool) -> None:
    steps: list[str] = []
    summary, findings = walk(settings, hashes=hashes, progress=lambda what, done, total: steps.append(what))
    assert findings == []
    assert summary.ok and summary.lines()[-1] == "nothing is missing and nothing is wrong"
    assert (summary.entries, summary.refused, summary.pointers) == (12, 1, 12)
    assert (summary.files, summary.rows, summary.originals) == (7, 1 + 1 + 1 + 5 + 10 + 5 + 5, 3)
    assert (summary.chains, summary.links, summary.orphans) == (2, 5, 0)
    assert len(steps) == summary.entries + summary.pointers


def test_an_empty_place_is_whole(settings: Settings) -> None:
    summary, findings = walk(settings)
    assert (summary.entries, findings) == (0, [])


def test_a_file_that_is_gone(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store, "kafka/")
    (raw / entry.files[0].path).unlink()
    fault = the_fault(settings)
    assert fault.key == entry.key
    assert fault.what == f"file {entry.files[0].path} is not there"


def test_a_byte_of_a_record_is_found_by_its_hash_only(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store, "kafka/")
    corrupt(raw / entry.files[0].path, 20)
    assert walk(settings)[1] == []
    fault = the_fault(settings, hashes=True)
    assert fault.key == entry.key and "its sha256 is" in fault.what


def test_a_byte_of_the_footer_is_found_without_hashes(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store, "kafka/")
    corrupt(raw / entry.files[0].path, -1)
    assert "is no whole Parquet file" in the_fault(settings).what


def test_a_file_of_another_size(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store, "kafka/")
    path = raw / entry.files[0].path
    path.write_bytes(path.read_bytes()[:-100])
    assert f"holds {entry.files[0].bytes - 100:,} bytes; the entry says" in the_fault(settings).what


def test_wrong_row_counts(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store, "kafka/")
    rewrite(raw, entry, records=6, files=rewritten_file(entry, rows=6))
    assert the_fault(settings).what.endswith("holds 5 rows; the entry says 6")
    rewrite(raw, entry, records=6)
    assert the_fault(settings).what == "the entry counts 6 records, its files 5"


def test_a_long_footer_is_read_whole(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store, "kafka/")
    path = raw / entry.files[0].path
    table = pa.table({f"a column with a long name, {number}": [1, 2] for number in range(2000)})
    pq.write_table(table, path)
    rewrite(raw, entry, records=3, files=rewritten_file(entry, rows=3, bytes=path.stat().st_size))
    assert path.stat().st_size > verification.FOOTER_BYTES
    assert the_fault(settings).what.endswith("holds 2 rows; the entry says 3")


def test_a_path_that_leads_out_of_the_zone(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store, "kafka/")
    rewrite(raw, entry, files=rewritten_file(entry, path="../../secret"))
    assert "leads out of the raw zone" in the_fault(settings).what


def test_originals_gone_or_changed(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store)
    assert entry.original is not None
    path = raw / entry.original
    before = path.read_bytes()
    path.write_bytes(before.replace(b"1717387200", b"1717387201"))
    assert walk(settings)[1] == []
    faults = walk(settings, hashes=True)[1]
    assert {fault.key.partition("@")[0] for fault in faults} == {entry.key}
    assert all("original" in fault.what and "its sha256 is" in fault.what for fault in faults)
    path.unlink()
    assert all(f"original {entry.original} is not there" == fault.what for fault in walk(settings)[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load_id": "0" * 20}, "load_id is 00000000000000000000; its key gives"),
        ({"key": "file/x/y"}, "the entry says that its key is file/x/y"),
        ({"feed": "x"}, "is of feed x"),
        ({"sha256": "x"}, "sha256 is x, not that of its key"),
        ({"original": None}, "original is None, not _originals/"),
    ],
)
def test_an_entry_that_contradicts_its_key(
    settings: Settings, store: Store, raw: Path, changes: dict[str, object], words: str
) -> None:
    entry = first_entry(store)
    rewrite(raw, entry, **changes)
    findings = walk(settings)[1]
    assert any(words in finding.what for finding in findings), findings
    assert {finding.key for finding in findings} == {entry.key}


def test_an_entry_that_cannot_be_read(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store)
    (raw / f"{ENTRIES}{entry.key}.json").write_bytes(b"{}")
    assert "the entry cannot be read" in the_fault(settings).what


def test_a_link_that_cannot_be_read_is_told_once(settings: Settings, store: Store, raw: Path) -> None:
    key = Chain(store, STREAM, 0).key(20)
    (raw / f"{ENTRIES}{key}.json").write_bytes(b"[")
    fault = the_fault(settings)
    assert fault.key == key and "the entry cannot be read" in fault.what


def test_a_load_that_ends_during_the_walk_is_no_fault(settings: Settings, store: Store, raw: Path) -> None:
    chain, late = Chain(store, STREAM, 0), []

    def meanwhile(what: str, done: int, total: int) -> None:
        if not late:
            late.append(link(store, chain, 30, 31))

    summary, findings = walk(settings, progress=meanwhile)
    assert findings == [] and summary.orphans == 0 and late


def test_a_listing_may_miss_what_is_just_written(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, listed = Chain(store, STREAM, 0), LocalStore.list
    missed = {chain.key(20), chain.key(5).replace(f"{5:020d}", "origin")}

    def list_others(self: LocalStore, prefix: str, start_after: str | None = None) -> Iterator[str]:
        return (name for name in listed(self, prefix, start_after) if name[len(ENTRIES) : -len(".json")] not in missed)

    monkeypatch.setattr(LocalStore, "list", list_others)
    summary, findings = walk(settings)
    assert findings == [] and summary.entries == 10


def test_a_dropped_pointer_is_written_again_as_told(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store)
    (pointer,) = (raw / LOG).rglob(f"*-{entry.load_id}.json")
    pointer.unlink()
    fault = the_fault(settings)
    assert fault.key == entry.key and "no pointer leads to the entry" in fault.what
    told = re.fullmatch(r"write (\S+)<date>/<HHMMSS.ffffff>(\S+) at the present time: (.*)", fault.way_out)
    assert told is not None
    moment = iso(time.time_ns())
    path = raw / told[1] / moment[:10] / f"{moment[11:26].replace(':', '')}{told[2]}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(told[3])
    assert walk(settings)[1] == []
    assert entry in [entry for _, entry in Ledger(store).since(None)]


def test_a_pointer_whose_entry_is_missing(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store, f"file/{FEED}/")
    (raw / f"{ENTRIES}{entry.key}.json").unlink()
    summary, findings = walk(settings)
    assert (findings, summary.loading) == ([], 1), "it may still be on its way"
    age(raw, entry.load_id)
    fault = the_fault(settings)
    assert fault.key == entry.key and "leads to no entry" in fault.what


def age(raw: Path, load: str) -> None:
    """Let a pointer be older than an entry may be younger."""
    (pointer,) = (raw / LOG).rglob(f"*-{load}.json")
    moment = iso(time.time_ns() - (POINTER_LIFE + 1) * 1_000_000_000)
    old = raw / LOG / moment[:10] / f"{moment[11:26].replace(':', '')}-{load}.json"
    old.parent.mkdir(exist_ok=True)
    pointer.rename(old)


def test_a_refusal_that_was_not_written_down_is_no_fault(settings: Settings, store: Store, raw: Path) -> None:
    (entry,) = Ledger(store).entries("refused/")
    (raw / f"{ENTRIES}{entry.key}.json").unlink()
    age(raw, entry.load_id)
    summary, findings = walk(settings)
    assert summary.ok and [(finding.kind, finding.key) for finding in findings] == [("unfinished", entry.key)]


def test_a_pointer_that_cannot_be_read(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store)
    (pointer,) = (raw / LOG).rglob(f"*-{entry.load_id}.json")
    pointer.write_text('{"key": "file/x/y"}')
    faults = walk(settings)[1]
    assert [fault.key for fault in faults] == [str(pointer.relative_to(raw)), entry.key]


def test_a_cut_chain_names_the_hole(settings: Settings, store: Store, raw: Path) -> None:
    key = Chain(store, STREAM, 0).key(20)
    (raw / f"{ENTRIES}{key}.json").unlink()
    age(raw, load_id(key))
    faults = walk(settings)[1]
    assert {fault.key for fault in faults} == {key}
    assert "the chain is broken: no link for [20, 25)" in [fault.what for fault in faults]


def test_a_chain_without_its_origin(settings: Settings, store: Store, raw: Path) -> None:
    origin = Chain(store, STREAM, 0).key(5).replace(f"{5:020d}", "origin")
    (raw / f"{ENTRIES}{origin}.json").unlink()
    fault = the_fault(settings)
    assert (fault.key, fault.what) == (origin, "the chain has no origin, it starts at 5")


def test_links_that_overlap(settings: Settings, store: Store, raw: Path) -> None:
    entry = Ledger(store).get(Chain(store, STREAM, 0).key(20))
    assert entry is not None
    rewrite(raw, entry, stream=msgspec.to_builtins(entry.stream) | {"next": 27})
    faults = walk(settings)[1]
    assert "the link [25, 30) overlaps the one before it, which ends at 27" in [fault.what for fault in faults]


def test_a_link_that_stands_elsewhere(settings: Settings, store: Store, raw: Path) -> None:
    entry = Ledger(store).get(Chain(store, STREAM, 0).key(25))
    assert entry is not None
    for changes in ({"partition": 7}, {"topic_id": "x"}, {"first": 26}, {"next": 25}):
        rewrite(raw, entry, stream=msgspec.to_builtins(entry.stream) | changes)
        assert (entry.key, "the entry is no link of the chain in which it stands") in [
            (fault.key, fault.what) for fault in walk(settings)[1]
        ]


def test_a_noted_hole_is_named_as_far_as_nothing_filled_it(settings: Settings, store: Store, raw: Path) -> None:
    hole = Chain(store, STREAM, 0).key(10)
    chain = Chain(store, STREAM, 1)
    chain.skip(100, "deleted")
    replay = Chain(store, STREAM, 1, hole=0)
    replay.begin(40)
    link(store, replay, 40, 60)
    summary, findings = walk(settings)
    assert summary.ok, "it was accepted"
    assert [(found.kind, found.key, found.what) for found in findings] == [
        ("hole", chain.key(0), "[0, 40) was never loaded, as accepted"),
        ("hole", chain.key(0), "[60, 100) was never loaded, as accepted"),
    ]
    replay.skip(80, "deleted")
    assert [(found.key, found.what, found.way_out[:17]) for found in walk(settings)[1]] == [
        (chain.key(0), "[0, 40) was never loaded, as accepted", "mdp replay fills "),
        (chain.key(0), "[80, 100) was never loaded, as accepted", "mdp replay fills "),
        (replay.key(60), "[60, 80) was never loaded, as accepted", "Kafka had deleted"),
    ]
    assert hole not in [found.key for found in findings]


def test_a_head_that_is_ahead_of_its_chain(settings: Settings, store: Store, raw: Path) -> None:
    (head,) = (raw / HEADS).rglob("*.json")
    head.write_text('{"next": 1000}')
    fault = the_fault(settings)
    assert fault.what == "the remembered head 1000 is the end of no link"
    assert (raw / fault.key) == head
    head.unlink()
    assert Chain(store, STREAM, 0).end() == 30 and walk(settings)[1] == []


def test_orphans_are_counted_with_their_age(settings: Settings, store: Store, raw: Path) -> None:
    for name, day in ((f"{FEED}/ingest_date=2024-01-01/x.parquet", 1), (f"_originals/{FEED}/{'0' * 64}", 3)):
        (raw / name).parent.mkdir(exist_ok=True)
        (raw / name).write_bytes(b"1234567")
        os.utime(raw / name, (86400 * day, 86400 * day))
    summary, findings = walk(settings)
    assert summary.ok and findings == []
    assert (summary.orphans, summary.orphan_bytes) == (2, 14)
    (line,) = [line for line in summary.lines() if "no entry names" in line]
    assert "the oldest of 1970-01-02T00:00Z, the newest of 1970-01-04T00:00Z" in line


def test_one_feed_only(settings: Settings, store: Store, raw: Path) -> None:
    entry = first_entry(store, "kafka/")
    (raw / entry.files[0].path).unlink()
    summary, findings = walk(settings, feed=FEED)
    assert (findings, summary.entries, summary.pointers, summary.chains) == ([], 4, 4, 0)
    assert summary.orphans == 0
    summary, findings = walk(settings, feed="binance_spot")
    assert (len(findings), summary.entries, summary.pointers, summary.chains) == (1, 8, 8, 2)


def test_an_empty_zone_is_not_called_whole(settings: Settings, raw: Path) -> None:
    summary, findings = walk(settings)
    assert (findings, summary.ok) == ([], True)
    assert summary.lines()[-1] == "nothing was loaded here: see MDP_RAW, or begin with mdp load file"
    assert not raw.exists()


def test_the_command_line(settings: Settings, store: Store, raw: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["verify", *arguments], env={"MDP_RAW": settings.raw})

    assert run().exit_code == 0
    whole = run("--hashes", "--feed", FEED)
    assert whole.exit_code == 0 and "nothing is missing and nothing is wrong" in whole.output
    entry = first_entry(store)
    (raw / entry.files[0].path).unlink()
    damaged = run()
    assert damaged.exit_code == 1
    assert f"fault: {entry.key}: file {entry.files[0].path} is not there; restore it" in damaged.output
    assert run("--feed", "binance_spot").exit_code == 0
    assert run("--tables", "--hashes").exit_code == 2


def test_the_way_out_for_a_file_that_is_lost(settings: Settings, store: Store, raw: Path, write: Write) -> None:
    """As the runbook says: take back each entry of the bytes, load the original again under its name."""
    lost = first_entry(store)
    (raw / lost.files[0].path).unlink()
    taken = [entry for entry in Ledger(store).entries(f"file/{FEED}/") if lost.files[0] in entry.files]
    assert len(taken) in (1, 2)
    for entry in taken:
        (raw / f"{ENTRIES}{entry.key}.json").unlink()
    original = write(lost.source, (raw / str(lost.original)).read_bytes())
    for entry in taken:
        (outcome,) = load([original], FEED, settings=settings, delivered_at=entry.delivered_at)
        assert outcome.entry.key == entry.key and outcome.entry.attributes == entry.attributes
    assert walk(settings)[1] == []


def test_the_way_out_for_a_part_of_a_stream_that_is_lost(settings: Settings, store: Store, raw: Path) -> None:
    """As the runbook says: the entry becomes a hole, which a replay may fill."""
    chain = Chain(store, STREAM, 0)
    lost = Ledger(store).get(chain.key(20))
    assert lost is not None
    (raw / lost.files[0].path).unlink()
    assert the_fault(settings).key == lost.key
    rewrite(raw, lost, kind="hole", outcome="skipped", records=0, files=[])
    assert [(found.kind, found.what) for found in walk(settings)[1]] == [
        ("hole", "[20, 25) was never loaded, as accepted")
    ]
    replay = Chain(store, STREAM, 0, hole=20)
    replay.begin(20)
    link(store, replay, 20, 25)
    assert walk(settings)[1] == []
    assert Chain(store, STREAM, 0).end() == 30


# Sealed days.


@pytest.fixture
def seals(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store, a day later, sealed."""
    tomorrow = time.time_ns() + 86_400 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: tomorrow)
    for feed in (FEED, "binance_spot"):
        outcomes = list(seal(find_feed(feed, load_registry()), settings))
        assert [outcome.status for outcome in outcomes] == ["sealed"]
    return Path(settings.raw)


def remove_open(settings: Settings, feed: str = FEED) -> None:
    (outcome,) = seal(find_feed(feed, load_registry()), settings, grace_days=0)
    assert outcome.status == "removed"


def test_a_sealed_zone_is_whole_before_and_after_the_removal(settings: Settings, seals: Path) -> None:
    assert walk(settings, hashes=True)[1] == []
    remove_open(settings)
    summary, findings = walk(settings, hashes=True)
    assert findings == [] and summary.orphans == 0


def test_an_open_file_may_only_be_gone_when_the_ledger_says_so(settings: Settings, seals: Path) -> None:
    remove_open(settings)
    for removal in (seals / f"{ENTRIES}removed/{FEED}").glob("*/*.json"):
        removal.unlink()
    _, findings = walk(settings)
    assert {finding.what.rpartition(" ")[2] for finding in findings if "file " in finding.what} == {"there"}
    assert len([finding for finding in findings if finding.what.endswith("is not there")]) == 3


def test_a_sealed_file_that_is_lost_or_changed_is_named(settings: Settings, seals: Path) -> None:
    remove_open(settings)
    (file,) = (seals / FEED).glob("*/instrument*/*.parquet")
    whole = file.read_bytes()
    corrupt(file, at=len(whole) // 2)
    assert the_fault(settings, hashes=True).key.startswith(f"seal/{FEED}/")
    file.unlink()
    assert the_fault(settings).what.endswith("is not there")


def test_a_seal_and_its_loads_must_agree(settings: Settings, store: Store, seals: Path) -> None:
    (entry,) = Ledger(store).entries(f"seal/{FEED}/")
    sealed = [msgspec.to_builtins(load) for load in entry.sealed]
    rewrite(seals, entry, sealed=[sealed[0] | {"rows": 7}, *sealed[1:]])
    assert {finding.key for finding in walk(settings)[1]} == {entry.key}
    rewrite(seals, entry, sealed=[sealed[0] | {"load_id": "0" * 20}, *sealed[1:]])
    assert "has no entry" in the_fault(settings).what
    rewrite(seals, entry)
    again = entry.key[:-1] + "1"
    copy = msgspec.to_builtins(entry) | {"key": again, "load_id": load_id(again)}
    Ledger(store).commit(msgspec.convert(copy, Entry))
    assert {finding.what.partition(" was ")[2] for finding in walk(settings)[1]} == {"sealed before, by another seal"}


def test_a_removal_needs_its_seal(settings: Settings, store: Store, seals: Path) -> None:
    remove_open(settings)
    (entry,) = Ledger(store).entries(f"seal/{FEED}/")
    (seals / f"{ENTRIES}{entry.key}.json").unlink()
    said = [finding.what for finding in walk(settings)[1]]
    assert "the files of a seal were removed that has no entry" in said
