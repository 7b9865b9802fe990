"""Each property is seen to fail when its rule is broken: small edits of the code, and the check that must find each.

a small world ──┬─ the code as it is ──────── every check passes
                └─ the code, one rule broken ── the rule's own check fails, or already the build's own tests
"""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import test_days as daily
import test_properties as properties
from worlds.adversarial import World, draw, files_of
from worlds.code import Edits, other_code
from worlds.days import draw_days
from worlds.reference import expect
from worlds.warehouse import Warehouse, differences, needless_versions

from market_data import bookkeeping
from market_data.build import BuildFailedError

pytestmark = pytest.mark.long

COUNTS = {"binance": 5, "massive": 4, "alfred": 2, "membership": 2}
VERSIONS = "macros/canonical/versions.sql"
LOADS = "macros/building/loads.sql"


def worlds() -> list[World]:
    return [world for kind, count in COUNTS.items() for world in draw(kind, count, 7)]


@dataclass
class Build:
    """A batch that grows load by load, as the checks of test_properties want it; keys are said by files next to one
    another, which two builds therefore tell apart."""

    root: Path
    batch: properties.Batch = field(init=False)

    def __post_init__(self) -> None:
        files = files_of(worlds())
        self.batch = properties.Batch(worlds(), files, expect(files), Warehouse(self.root), random.Random(7))

    @property
    def numbers(self) -> list[int]:
        return list(range(len(self.batch.files)))

    def load(self, numbers: list[int]) -> None:
        self.batch.loads |= properties.load(self.batch.warehouse, self.batch.files, numbers)

    def build(self) -> None:
        self.batch.warehouse.build()


def in_one(root: Path) -> properties.Batch:
    made = Build(root)
    made.load(made.numbers)
    made.build()
    return made.batch


def in_two(root: Path) -> properties.Batch:
    made = Build(root)
    for part in (made.numbers[::2], made.numbers[1::2]):
        made.load(part)
        made.build()
    return made.batch


def killed_in_between(root: Path) -> properties.Batch:
    """The second of two builds is killed near its end, and done again."""
    made = Build(root)
    made.load(made.numbers[::2])
    made.build()
    made.load(made.numbers[1::2])
    killed = made.batch.warehouse.run([sys.executable, "-c", properties.KILLED, "0.9"], timeout=1_200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    made.build()
    return made.batch


# The checks


def canonical(root: Path, way: Callable[[Path], properties.Batch] = in_one) -> None:
    """Versions, duplicates, deletions and lineage are those of the reference."""
    check_canonical(way(root))


def check_canonical(batch: properties.Batch) -> None:
    for table in properties.COLUMNS:
        properties.check_canonical(batch, table)


def canonical_after_two_builds(root: Path) -> None:
    canonical(root, in_two)


def conservation(root: Path) -> None:
    properties.check_conservation(in_two(root))


def order(root: Path) -> None:
    """The same deliveries loaded in the other order give equal tables."""
    forward, backward = Build(root / "forward"), Build(root / "backward")
    forward.load(forward.numbers)
    backward.load(backward.numbers[::-1])
    forward.build()
    backward.build()
    assert differences(forward.batch.warehouse.tables(), backward.batch.warehouse.tables()) == []


def bars(root: Path) -> None:
    """Bars of minutes and sessions, and since when each was known, are those of the reference."""
    check_bars(in_one(root))


def check_bars(batch: properties.Batch) -> None:
    properties.test_bars_of_minutes(batch)
    properties.test_bars_of_sessions(batch)


def in_days(root: Path) -> daily.Days:
    days = daily.Days(draw_days(daily.SEED, 215), Warehouse(root))
    daily.load(days.warehouse, days.world.files)
    days.warehouse.build()
    return days


def adjustment(root: Path) -> None:
    """Adjusted bars and returns are what the formulas say, before and after splits and dividends."""
    check_days(in_days(root), "bars_1d_adjusted", "returns_1d")


def ranks(root: Path) -> None:
    """Ranks are of the last decision, also while more is known."""
    check_days(in_days(root), "momentum_1d")


def check_days(days: daily.Days, *tables: str) -> None:
    times = [daily.time_of(days.world, "a day's bars"), *daily.some_times(days.world)]
    for table in tables:
        daily.check_table(days, table, times, every=5)


def versions(root: Path) -> None:
    """A version says something else than the one before."""
    assert needless_versions(in_days(root).warehouse) == []


def test_the_checks_pass_while_no_rule_is_broken(tmp_path: Path) -> None:
    batch = killed_in_between(tmp_path / "killed")
    check_canonical(batch)
    properties.check_conservation(batch)
    check_bars(batch)
    order(tmp_path)
    days = in_days(tmp_path / "days")
    check_days(days, "bars_1d_adjusted", "returns_1d", "momentum_1d")
    assert needless_versions(days.warehouse) == []


# The rules


@dataclass(frozen=True)
class Broken:
    rule: str
    check: Callable[[Path], None]
    edits: Edits
    found_by: type[Exception] = AssertionError
    says: str = "found:"
    """What the one that finds it says; of a build, which of its guards or tests."""


REPEATS = "else row_number() over (partition by {{ keys }}, content_hash order by {{ in_order }}) > 1"
IN_ORDER = "set in_order = 'known_from, delivered_at nulls first, "
EARLIER = "semi join touched_keys using ({{ keys }})\n    where "
READ_MARK = "progress(at_start=true).get(this.identifier, 0) if is_incremental() else 0"
NOTED_MARK = "'{{ this.identifier }}', {{ marks | min }}, "
POSITION = "{{ prefix }}{{ column }}"
BARS = "macros/research/bars.sql"
FIRST_CELL = "greatest(known_from, bar_end + knowledge_lag)"
CELL = "+ ((-epoch_ns({{ time }})) % {{ grid }} + {{ grid }}) % {{ grid }})"

RULES = [
    Broken("a repeat of a stream is no version", canonical, {VERSIONS: [(REPEATS, "else false")]}),
    Broken(
        "versions have an order of their own, whatever was loaded first",
        order,
        {VERSIONS: [(IN_ORDER, "set in_order = 'known_from, load_seq, ")]},
        says="canonical.trades",
    ),
    Broken(
        "a key that a later delivery lacks was deleted",
        canonical,
        {VERSIONS: [("where is_complete and deliveries.delivered_at > present.first_delivered_at", "where false")]},
    ),
    Broken(
        "a new record is compared with those before it",
        canonical_after_two_builds,
        {VERSIONS: [(EARLIER, EARLIER + "false and ")]},
        BuildFailedError,
        "one_version_at_a_time",
    ),
    Broken(
        "a model reads what is beyond its mark",
        conservation,
        {LOADS: [(READ_MARK, "0")]},
        BuildFailedError,
        "needs loads",
    ),
    Broken(
        "a model notes its mark",
        conservation,
        {LOADS: [(NOTED_MARK, "'{{ this.identifier }}', 0, ")]},
        BuildFailedError,
        "one_version_at_a_time",
    ),
    Broken(
        "a row has its record's place",
        canonical,
        {
            "macros/canonical/contracts.sql": [
                (POSITION, POSITION + "{{ ' + 1 as source_position' if column == 'source_position' }}")
            ]
        },
    ),
    Broken(
        "a version begins where its cell of the grid ends",
        bars,
        {"macros/engine/time.sql": [(CELL, "- epoch_ns({{ time }}) % {{ grid }})")]},
        says="expected",
    ),
    Broken("a bar is not known before it ends", bars, {BARS: [(FIRST_CELL, "known_from")]}, says="expected"),
    Broken(
        "a feed's lag is counted once",
        bars,
        {BARS: [(FIRST_CELL, "greatest(known_from, bar_end) + knowledge_lag")]},
        says="expected",
    ),
    Broken(
        "a version says something new",
        versions,
        {"macros/research/grid.sql": [("where is_change\n", "where true\n")]},
        says="says what the one before said",
    ),
    Broken(
        "a rank is of its session's decision",
        ranks,
        {
            "models/research/daily/momentum_1d.sql": [
                ("begins.decision_time as known_from", "member_values.known_from as known_from")
            ]
        },
        says="momentum_1d as of",
    ),
    Broken(
        "a dividend of a split's day is per share after it",
        adjustment,
        {"macros/research/actions.sql": [("split.ex_date <= actions_of_days", "split.ex_date < actions_of_days")]},
        says="bars_1d_adjusted as of",
    ),
    Broken(
        "a split takes the place of an equal one just before",
        adjustment,
        {"macros/research/actions.sql": [("when actions.is_superseded", "when false")]},
        says="bars_1d_adjusted as of",
    ),
]


@pytest.mark.parametrize("broken", RULES, ids=lambda broken: broken.rule)
def test_a_broken_rule_is_found(broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_code(tmp_path, monkeypatch, broken.edits)
    with pytest.raises(broken.found_by, match=broken.says):
        broken.check(tmp_path)


def test_a_restore_that_keeps_the_marks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed build wrote is taken back, and its loads are not read again."""
    monkeypatch.setattr(bookkeeping, "KEPT_BY_RESTORE", (*bookkeeping.KEPT_BY_RESTORE, "progress"))
    with pytest.raises((AssertionError, BuildFailedError)):
        properties.check_conservation(killed_in_between(tmp_path))
