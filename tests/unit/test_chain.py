"""The chain of a partition: one link a position, found again at a cost that goes by what is new."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.chain import HEAD_EVERY, HEADS, SOURCES, Chain, Source, Sources
from loaders.consumers import StreamError
from loaders.ledger import ENTRIES, Entry, Ledger, load_id
from loaders.store import LocalStore

SOURCE = Source("f", "cluster", "topic", "id")


class CountingStore(LocalStore):
    """Counts what it is asked."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: Counter[str] = Counter()

    def get(self, key: str) -> bytes:
        self.asked["get"] += 1
        return super().get(key)

    def list(self, prefix: str, start_after: str | None = None) -> Iterator[str]:
        self.asked["list"] += 1
        return super().list(prefix, start_after)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path)


def link(chain: Chain, first: int, next_: int) -> Entry:
    key = chain.key(first)
    return Entry(
        key=key,
        load_id=load_id(key),
        feed="f",
        kind="stream",
        source="topic",
        stream=chain.stream(first, next_),
        started_at="2024-01-01T00:00:00.000000000Z",
        loaded_at="2024-01-01T00:00:00.000000000Z",
    )


def test_a_chain_starts_with_an_origin_and_each_link_starts_where_another_ends(store: LocalStore) -> None:
    chain = Chain(store, SOURCE, 0)
    assert chain.end() is None
    assert chain.begin(7) == 7
    assert chain.extend(link(chain, 7, 10))
    assert chain.extend(link(chain, 10, 12))
    assert chain.end() == 12
    assert Chain(store, SOURCE, 0).end() == 12
    assert Chain(store, SOURCE, 1).end() is None


def test_a_later_origin_is_none(store: LocalStore) -> None:
    assert Chain(store, SOURCE, 0).begin(7) == 7
    assert Chain(store, SOURCE, 0).begin(9) == 7


def test_of_overlapping_writers_one_commits(store: LocalStore) -> None:
    Chain(store, SOURCE, 0).begin(0)
    writers = [Chain(store, SOURCE, 0) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda pair: pair[1].extend(link(pair[1], 0, 5 + pair[0])), enumerate(writers)))
    assert sum(won) == 1
    assert {writer.end() for writer in writers} == {5 + won.index(True)}


def test_a_stale_writer_is_refused_and_goes_on_behind_the_others(store: LocalStore) -> None:
    stale, other = Chain(store, SOURCE, 0), Chain(store, SOURCE, 0)
    stale.begin(0)
    other.begin(0)
    for first in range(0, 50, 10):
        assert other.extend(link(other, first, first + 10))
    assert not stale.extend(link(stale, 0, 3))
    assert stale.end() == 50
    assert stale.extend(link(stale, 50, 51))
    assert other.end() == 51


def test_a_hole_is_a_link_that_names_no_files(store: LocalStore) -> None:
    chain = Chain(store, SOURCE, 0)
    chain.begin(0)
    assert chain.skip(30, "retention")
    assert chain.end() == 30
    hole = Ledger(store).get(chain.key(0))
    assert hole is not None
    assert (hole.kind, hole.outcome, hole.files, hole.error) == ("hole", "skipped", (), "retention")


def test_a_hole_that_another_has_noted_is_noted_once(store: LocalStore) -> None:
    chain, other = Chain(store, SOURCE, 0), Chain(store, SOURCE, 0)
    assert chain.begin(0) == other.begin(0)
    assert other.skip(30, "retention")
    assert not chain.skip(30, "retention")
    assert chain.end() == 30


def test_the_end_is_found_by_what_is_new(store: CountingStore) -> None:
    chain = Chain(store, SOURCE, 0)
    chain.begin(0)
    for first in range(300):
        chain.extend(link(chain, first, first + 1))
        chain.remember()
    store.asked.clear()
    assert Chain(store, SOURCE, 0).end() == 300
    assert store.asked["list"] == 0
    assert store.asked["get"] <= HEAD_EVERY + 2


def test_a_lost_head_is_found_by_listing_and_kept_again(store: CountingStore) -> None:
    chain = Chain(store, SOURCE, 0)
    chain.begin(0)
    for first in range(100):
        chain.extend(link(chain, first, first + 1))
    found = Chain(store, SOURCE, 0)
    store.asked.clear()
    assert found.end() == 100
    assert (store.asked["list"], store.asked["get"]) == (1, 3)
    found.remember()
    store.asked.clear()
    assert Chain(store, SOURCE, 0).end() == 100
    assert store.asked["list"] == 0


def test_an_old_head_only_costs_steps(store: LocalStore) -> None:
    slow, fast = Chain(store, SOURCE, 0), Chain(store, SOURCE, 0)
    slow.begin(0)
    slow.extend(link(slow, 0, 1))
    fast.end()
    for first in range(1, 60):
        fast.extend(link(fast, first, first + 1))
        fast.remember()
    slow.remember(now=True)
    assert Chain(store, SOURCE, 0).end() == 60


def test_a_damaged_link_is_told(store: LocalStore) -> None:
    chain = Chain(store, SOURCE, 0)
    chain.begin(5)
    Ledger(store).commit(link(chain, 5, 5))
    with pytest.raises(StreamError, match=r"/0+5\.json is damaged: it is no link of a chain\. Run mdp verify"):
        chain.end()


@pytest.mark.parametrize("what", [f"{HEADS}*.json", f"{ENTRIES}*/{5:020d}.json", f"{ENTRIES}*/origin.json"])
def test_an_object_that_cannot_be_read_is_told(store: LocalStore, what: str) -> None:
    chain = Chain(store, SOURCE, 0)
    chain.begin(5)
    chain.extend(link(chain, 5, 6))
    if what.startswith(HEADS):
        chain.remember(now=True)
    (file,) = (path for path in store.root.rglob("*.json") if fnmatch(str(path.relative_to(store.root)), what))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(StreamError, match=rf"{re.escape(str(file))} is damaged: .*truncated.* Run mdp verify"):
        Chain(store, SOURCE, 0).origin() if "origin" in what else Chain(store, SOURCE, 0).end()


def test_what_a_topic_is_known_as_that_cannot_be_read_is_told(store: LocalStore) -> None:
    Sources(store).note(SOURCE)
    (file,) = (store.root / SOURCES).rglob("*.json")
    file.write_bytes(b"")
    with pytest.raises(StreamError, match=rf"{re.escape(str(file))} is damaged: .* Put it back from a copy"):
        Sources(store).last("f", "topic")


@given(st.lists(st.text(min_size=1, max_size=60), min_size=3, max_size=3, unique=True))
def test_whatever_a_topic_is_called_its_keys_stay_inside_and_apart(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    sources = [Source("f", "c", name, "i") for name in names]
    assert len({source.prefix for source in sources}) == 3
    for source in sources:
        assert source.prefix.count("/") == 4
        assert not any(part in ("", ".", "..") or part.startswith(".") for part in source.prefix.split("/"))


@pytest.mark.parametrize("topic", ["a" * 249, ".hidden", "..", "a.b_c-d", "_schemas"])
def test_names_of_topics_make_keys(store: LocalStore, topic: str) -> None:
    chain = Chain(store, Source("f", "c", topic, "i"), 0)
    assert chain.begin(3) == 3
    assert [name for name in store.list(ENTRIES) if name.endswith("/origin.json")]


def test_what_a_topic_is_known_as_changes_only_when_noted(store: LocalStore) -> None:
    sources, other = Sources(store), Source("f", "cluster", "topic", "another id")
    assert sources.last("f", "topic") is None
    sources.note(SOURCE)
    sources.note(SOURCE)
    assert sources.last("f", "topic") == SOURCE
    sources.note(other)
    assert sources.last("f", "topic") == other
    sources.note(SOURCE)
    assert sources.last("f", "topic") == SOURCE
    assert sources.last("f", "topic2") is None
