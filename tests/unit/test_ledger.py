"""The ledger: an entry once, pointers in time order, cost by what is new."""

from __future__ import annotations

import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import loaders.ledger
from loaders.ledger import DataFile, Entry, Ledger, load_id
from loaders.store import LocalStore, open_store


def entry(key: str, **changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "key": key,
        "load_id": load_id(key),
        "feed": "f",
        "source": "s",
        "started_at": "2024-01-01T00:00:00.000000000Z",
        "loaded_at": "2024-01-01T00:00:00.000000000Z",
    }
    return Entry(**{**fields, **changes})


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = open_store(str(tmp_path))
    assert isinstance(store, LocalStore)
    return store


def test_an_entry_is_committed_once_and_comes_back(store: LocalStore) -> None:
    ledger = Ledger(store)
    first = entry("file/f/1", files=(DataFile(path="p", rows=1, bytes=2, sha256="x"),), attributes={"a": "b"})
    assert ledger.get("file/f/1") is None
    assert ledger.commit(first)
    assert not ledger.commit(entry("file/f/1", records=5))
    assert ledger.get("file/f/1") == first


def test_of_several_commits_of_a_key_one_wins(store: LocalStore) -> None:
    ledger = Ledger(store)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: ledger.commit(entry("file/f/1", records=n)), range(8)))
    assert sum(won) == 1
    kept = ledger.get("file/f/1")
    assert kept is not None
    assert won[kept.records]


def test_no_structs_decoder_is_made_while_there_may_be_threads() -> None:
    """msgspec's first look at a Struct from two threads at once ends the process, now and then.

    So each module makes its decoders when it is imported.
    """
    package = Path(loaders.ledger.__file__).parents[1]
    for path in (*package.glob("loaders/**/*.py"), *package.glob("market_data/**/*.py")):
        assert not re.search(r"msgspec\.(json\.decode|convert)\(.*type=_?[A-Z]", path.read_text()), path.name


def test_the_load_id_follows_from_the_key() -> None:
    assert load_id("file/f/1") == "20178d2cc34a92ac9b56"
    assert load_id("file/f/1") != load_id("file/f/2")


def test_since_gives_what_is_new_in_order(store: LocalStore) -> None:
    ledger = Ledger(store)
    for key in ("file/f/3", "file/f/1", "file/f/2"):
        ledger.commit(entry(key))
    seen = list(ledger.since())
    assert [found.key for _, found in seen if found] == ["file/f/3", "file/f/1", "file/f/2"]
    assert list(ledger.since(seen[0][0])) == seen[1:]
    assert list(ledger.since(seen[-1][0])) == []
    ledger.commit(entry("file/f/0"))
    assert [found.key for _, found in ledger.since(seen[-1][0]) if found] == ["file/f/0"]
    assert [found.key for found in ledger.entries()] == ["file/f/0", "file/f/1", "file/f/2", "file/f/3"]


def test_a_pointer_without_its_entry_is_given_as_none(store: LocalStore) -> None:
    ledger = Ledger(store)
    store.put_if_absent("_ledger/log/2024-01-01/000000.000000-aa.json", b'{"key":"file/f/9"}')
    assert list(ledger.since()) == [("2024-01-01/000000.000000-aa", None)]
    ledger.commit(entry("file/f/9"))
    assert [found is not None for _, found in ledger.since()] == [True, True]


def test_the_entry_is_the_last_thing_written(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    put = store.put_if_absent
    monkeypatch.setattr(store, "put_if_absent", lambda key, data: (written.append(key), put(key, data))[1])
    Ledger(store).commit(entry("file/f/1"))
    assert [key.split("/")[1] for key in written] == ["log", "entries"]


def test_an_entry_that_came_late_gets_a_fresh_pointer(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_700_000_000_000_000_000]
    monkeypatch.setattr(loaders.ledger.time, "time_ns", lambda: now[0])
    put = store.put_if_absent

    def slow(key: str, data: bytes) -> bool:
        if "/entries/" in key:
            now[0] += 16 * 60 * 1_000_000_000
        return put(key, data)

    monkeypatch.setattr(store, "put_if_absent", slow)
    Ledger(store).commit(entry("file/f/1"))
    assert [cursor[:17] for cursor, _ in Ledger(store).since()] == ["2023-11-14/221320", "2023-11-14/222920"]


def test_fields_of_a_newer_writer_are_ignored(store: LocalStore) -> None:
    ledger = Ledger(store)
    ledger.commit(entry("file/f/1"))
    path = store.root / "_ledger/entries/file/f/1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_tomorrow": [1]}))
    assert ledger.get("file/f/1") == entry("file/f/1")


def test_the_cost_of_news_does_not_grow_with_history(store: LocalStore) -> None:
    """100,000 loads over 50 days: finding one more opens the last day alone, in milliseconds."""
    template = b'{"key":"file/f/x"}'
    for day in range(50):
        folder = store.root / "_ledger/log" / f"2024-{1 + day // 28:02d}-{1 + day % 28:02d}"
        folder.mkdir(parents=True)
        (folder / "000000.000000-aa.json").write_bytes(template)
        for number in range(1, 2_000):
            os.link(folder / "000000.000000-aa.json", folder / f"{number:06d}.000000-aa.json")
    ledger = Ledger(store)
    ledger.commit(entry("file/f/new"))
    started = time.perf_counter()
    found = list(ledger.since("2024-02-22/001999.000000-aa"))
    spent = time.perf_counter() - started
    assert [item.key for _, item in found if item] == ["file/f/new"]
    assert spent < 0.2, f"finding one new entry among 100,000 took {spent:.3f} s"
