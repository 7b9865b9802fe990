"""Loads read again: after a change of code, tables become what a lake has that was built anew with it.

(test_schema_evolution holds the same of one small load, in the default run.)

worlds ── read by old, wrong code, in two builds ── build by today's: says so, publishes ── reprocess ── equal to
       └─ read by today's code, once ─────────────────────────────────────────────────────────────────── this
"""

from __future__ import annotations

import datetime as dt
import random
import signal
import sys
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from worlds.adversarial import draw, draw_world, files_of
from worlds.books import Message, binance_line, messages_of
from worlds.code import Edits, other_code
from worlds.reference import File
from worlds.renames import day_files, rename_world
from worlds.warehouse import Warehouse, differences, told_wrongly

from market_data import build, cli, client, lake, releases, reprocessing
from market_data.dbt_runs import Project

pytestmark = pytest.mark.long

SEED = 1
COUNTS = {"binance": 6, "massive": 4, "alfred": 3, "membership": 3}
SLICE = 160
RENAMES = 3
BOOKS = 3
FEEDS = (
    "alfred_observations",
    "binance_spot",
    "index_membership",
    "massive_ticker_events",
    "massive_trades",
    "openfigi_mapping",
)

OLD_CODE: Edits = {
    # Good records are refused, bad ones taken; values, times and keys are read otherwise.
    "models/staging/stg_binance_spot.sql": [
        ("'price <= 0 or size <= 0'", "'price = 101 or size < 0'"),
        (
            "case buyer_is_maker when 'true' then 'sell' when 'false' then 'buy' end",
            "case buyer_is_maker when 'true' then 'buy' when 'false' then 'sell' end",
        ),
        (
            "{{ epoch_text_to_time('event_time_text') }} as trade_time",
            "{{ epoch_text_to_time('event_time_text') }} - (trade_id = '3')::integer * interval '2 days' as trade_time",
        ),
        (
            "                else symbol\n",
            "                else symbol || case trade_id when '10' then 'X' else '' end\n",
        ),
        ("when 'depthSnapshot' then 'full'", "when 'depthSnapshot' then 'depth5'"),
    ],
    "models/staging/stg_massive_trades.sql": [
        ("'price <= 0 or size <= 0'", "'size = 0.5'"),
        (
            "{{ given('id') }} as trade_id",
            "case {{ given('id') }} when '2' then '22' else {{ given('id') }} end as trade_id",
        ),
    ],
    "models/staging/stg_alfred_observations.sql": [
        ("nullif(value_text, '.') as value_text", "nullif(value_text, '3.0') as value_text"),
    ],
    "models/staging/stg_index_membership.sql": [("'9999-12-31'", "'2015-05-05'")],
    "models/staging/stg_massive_ticker_events.sql": [
        ("try_cast(event_date_text as date) as event_date", "try_cast(event_date_text as date) + 1 as event_date")
    ],
    "models/staging/stg_openfigi_mapping.sql": [
        ("refuse_missing(['figi'])", "refuse_missing(['figi', 'share_class_figi'])")
    ],
}


@dataclass
class Lakes:
    """One lake that old code has read, and what a lake of today's code holds."""

    old: Warehouse
    told: build.Outcome
    fresh: dict[str, pa.Table]
    before: dict[str, pa.Table]


def all_files() -> list[File]:
    """Trades, quotes, books, vintages, memberships and renames, with what vendors do to them."""
    renames = [draw_world(rename_world, number, SEED) for number in range(RENAMES)]
    return [
        *files_of([world for kind, count in COUNTS.items() for world in draw(kind, count, SEED)]),
        *(file for world in renames for file in world.files),
        *day_files(renames),
        *(file for number in range(BOOKS) for file in captures_of_books(number)),
    ]


def captures_of_books(number: int) -> list[File]:
    """A listing's book, of which each third message is in a capture of its own."""
    messages: list[Message] = draw_world(lambda _, draw_one: messages_of(draw_one, numbered=True), number, SEED)
    symbol = f"BOOK{number}"
    return [
        File(
            "binance_spot", f"binance_spot_{symbol}_{part}", b"".join(binance_line(one, symbol) + b"\n" for one in said)
        )
        for part, said in enumerate(messages[start::3] for start in range(3))
        if said
    ]


def load(warehouse: Warehouse, files: list[File], numbers: list[int]) -> None:
    for number in numbers:
        file = files[number]
        path = warehouse.root / "files" / str(number) / file.name
        path.parent.mkdir(parents=True)
        path.write_bytes(file.body)
        outcome = warehouse.load(path, file.feed, iso(file.delivered_at))
        assert outcome.status in ("loaded", "redelivered"), outcome.message


def iso(time: int | None) -> str | None:
    return None if time is None else f"{dt.datetime.fromtimestamp(time / 10**9, dt.UTC):%Y-%m-%dT%H:%M:%S}Z"


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> Lakes:
    files = all_files()
    numbers = list(range(len(files)))
    random.Random(SEED).shuffle(numbers)
    old = Warehouse(tmp_path_factory.mktemp("old"))
    half = len(numbers) // 2
    with pytest.MonkeyPatch.context() as patch:
        other_code(tmp_path_factory.mktemp("checkout"), patch, OLD_CODE)
        for part in (numbers[:half], numbers[half:]):
            load(old, files, part)
            old.build()
    fresh = old.copy(tmp_path_factory.mktemp("fresh"))
    fresh.build()
    told = old.build()
    return Lakes(old, told, fresh.tables(), old.tables())


def test_a_build_says_that_loads_were_read_by_other_code(lakes: Lakes) -> None:
    assert {feed for feed, _ in lakes.told.read_otherwise} == set(FEEDS)
    assert lakes.told.other_code
    wrong = {name.partition(":")[0] for name in differences(lakes.before, lakes.fresh)}
    assert {"canonical.trades", "canonical.macro_observations", "canonical.universe_membership"} <= wrong
    assert {"canonical.quarantine", "research.bars_1m", "research.bars_1d", "research.macro_series"} <= wrong
    assert {"canonical.book_updates", "canonical.book_snapshots", "versioned.int_listings"} <= wrong
    assert {"snapshots.ticker_changes", "snapshots.figi_listings", "canonical.instruments"} <= wrong


class StoppedError(Exception):
    """Something that nobody expects."""


def test_stopped_between_slices_readers_see_nothing_and_it_begins_anew(
    lakes: Lakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = client.published_version(lakes.old.settings)

    def stop(*_: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(reprocessing, "forget", stop)  # after a slice was read
        reprocessing.reprocess(lakes.old.settings, FEEDS, slice_records=SLICE)
    assert client.published_version(lakes.old.settings) == version
    assert differences(lakes.before, lakes.old.tables()) == []

    done = reprocessing.reprocess(lakes.old.settings, FEEDS, slice_records=SLICE)
    assert done.loads == sum(count for _, count in lakes.told.read_otherwise)
    assert done.slices > 1
    assert differences(lakes.fresh, lakes.old.tables()) == []
    assert told_wrongly(lakes.old) == []


def newest(warehouse: Warehouse) -> releases.Published:
    with lake.open_version(warehouse.settings, None) as connection:
        return releases.published(connection, 1)[0]


def test_what_this_code_has_read_is_not_read_again(lakes: Lakes) -> None:
    version = client.published_version(lakes.old.settings)
    again = reprocessing.reprocess(lakes.old.settings, FEEDS)
    assert (again.loads, again.version) == (0, version)
    assert (again.asked_for > 0, again.last_delivered) == (True, None)


def test_what_was_asked_for_and_is_not_there_is_told(lakes: Lakes) -> None:
    def said(*arguments: str) -> str:
        done = CliRunner().invoke(cli.main, ["reprocess", *arguments], env=lakes.old.environment)
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    ((last,),) = lakes.old.ask(
        "select max(delivered_at)::date::varchar from observability.loads where feed = 'massive_trades'"
    )
    told = f"no load of massive_trades was delivered since 2200-01-01, the last was on {last}: nothing to do; version "
    assert told in said("--feed", "massive_trades", "--from", "2200-01-01")
    assert "nothing was ever loaded of massive_quotes: nothing to do" in said("--feed", "massive_quotes")
    assert "every load was read by the code of today" in said("--feed", "massive_trades")


def test_unchanged_code_reads_the_same(lakes: Lakes) -> None:
    done = reprocessing.reprocess(lakes.old.settings, FEEDS, everything=True)
    assert (done.slices, done.quarantined) == (1, done.quarantined_before)
    assert differences(lakes.fresh, lakes.old.tables()) == []
    told = newest(lakes.old)
    assert (told.version, told.loads, told.read_again, told.refused) == (done.version, 0, done.loads, 0)
    assert told.changes == {}


KILLED = """
import os, signal, sys
from loaders.settings import Settings
from market_data import reprocessing

runs = []
def die(what, done, total):
    runs.append(what)
    if len(runs) >= int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

reprocessing.reprocess(Settings.from_env(), ["massive_trades"], slice_records=40, everything=True, progress=die)
"""


@pytest.mark.parametrize("after", [5, 20, 40])
def test_killed_at_any_point_readers_see_nothing_and_the_next_build_takes_it_back(lakes: Lakes, after: int) -> None:
    before, version = lakes.old.tables(), client.published_version(lakes.old.settings)
    killed = lakes.old.run([sys.executable, "-c", KILLED, str(after)])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert client.published_version(lakes.old.settings) == version
    assert lakes.old.build().restored
    assert differences(before, lakes.old.tables()) == []


@pytest.mark.parametrize(
    ("target", "name", "nth"),
    [(reprocessing, "withdraw", 1), (reprocessing, "withdraw", 2), (reprocessing, "forget", 1), (Project, "run", -1)],
)
def test_stopped_at_each_step_readers_see_nothing_and_the_next_build_takes_it_back(
    lakes: Lakes, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, nth: int
) -> None:
    """After the nth withdrawal, after what was withdrawn is forgotten, and with all tested and nothing published."""
    before, version = lakes.old.tables(), client.published_version(lakes.old.settings)
    step, calls = getattr(target, name), 0

    def stop(*arguments: Any) -> None:
        nonlocal calls
        step(*arguments)
        calls += 1
        if calls == nth or (nth == -1 and arguments[1][0] == "test"):
            raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(target, name, stop)
        reprocessing.reprocess(lakes.old.settings, ["massive_trades"], everything=True, slice_records=40)
    assert client.published_version(lakes.old.settings) == version
    with pytest.raises(build.BuildFailedError, match="takes back"):
        build.publish(lakes.old.settings)
    assert lakes.old.build().restored
    assert differences(before, lakes.old.tables()) == []


def test_unchanged_code_reads_the_same_in_slices(lakes: Lakes) -> None:
    before = lakes.old.tables()
    reprocessing.reprocess(lakes.old.settings, FEEDS, everything=True, slice_records=100)
    assert differences(before, lakes.old.tables()) == []
