"""The demo's world in a warehouse: every number that its generator knows of by construction, met exactly.

generate ── truth.json ────────────────────────────────────────────┐
    └────── files, by arrival ── three builds in all ── tables ── equal

`mdp demo` compares its own warehouse with the same truth (test_demo.py): this longer run does it build by build.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest
from worlds.warehouse import CANONICAL, Warehouse

import market_data
from market_data.demo import Delivery, Truth, generate

pytestmark = pytest.mark.long
BUILDS = 3


@dataclass
class Demo:
    """The world, loaded and built; of each load, its delivery."""

    warehouse: Warehouse
    truth: Truth
    loads: dict[str, Delivery] = field(default_factory=dict)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    world = tmp_path_factory.mktemp("world")
    demo = Demo(Warehouse(tmp_path_factory.mktemp("demo")), generate(world))
    deliveries = demo.truth.deliveries
    assert [delivery.order for delivery in deliveries] == list(range(1, len(deliveries) + 1))
    for number, delivery in enumerate(deliveries, start=1):
        outcome = demo.warehouse.load(world / delivery.path, delivery.feed, delivery.delivered_at, delivery.attributes)
        assert outcome.status == delivery.outcome, f"{delivery.path}: {outcome.message}"
        if outcome.status in ("loaded", "redelivered"):
            demo.loads[outcome.entry.load_id] = delivery
        if number * BUILDS // len(deliveries) > (number - 1) * BUILDS // len(deliveries):
            demo.warehouse.build()
    return demo


def test_every_load_comes_out_as_planned(demo: Demo) -> None:
    rows = demo.warehouse.ask(
        "select load_id, raw_records, canonical_records, duplicates, quarantined, control, unread, is_conserved"
        " from observability.conservation"
    )
    found = {demo.loads[load_id].path: terms for load_id, *terms in rows}
    expected = {
        delivery.path: [
            *(delivery.records, sum(delivery.canonical.values()), delivery.duplicates),
            *(sum(delivery.quarantined.values()), delivery.control, delivery.unread, True),
        ]
        for delivery in demo.loads.values()
    }
    wrong = [f"{path}: {found.get(path)}, not {terms}" for path, terms in expected.items() if found.get(path) != terms]
    assert not wrong, "\n".join(wrong[:10])
    assert len(rows) == len(expected)


def test_every_planted_defect_is_found_where_it_was_planted(demo: Demo) -> None:
    rows = demo.warehouse.ask("select load_id, reason, count(*) from canonical.quarantine group by all")
    found = {(demo.loads[load_id].path, reason): count for load_id, reason, count in rows}
    expected = {
        (delivery.path, reason): count
        for delivery in demo.loads.values()
        for reason, count in delivery.quarantined.items()
    }
    assert found == expected
    positions = {
        (demo.loads[load_id].path, position): reason
        for load_id, position, reason in demo.warehouse.ask(
            "select load_id, source_position, reason from canonical.quarantine"
        )
    }
    planted = {
        (plant.path, plant.position): plant.reason
        for plant in demo.truth.planted
        if plant.reason and plant.position is not None
    }
    assert {place: positions.get(place) for place in planted} == planted


def test_keys_versions_and_cancels_of_every_table(demo: Demo) -> None:
    keys = {
        "trades": "listing_id, identity_scope, trade_id",
        "quotes": "listing_id, identity_scope, quote_number",
        "bars": "listing_id, bar_interval, bar_start",
        "macro_observations": "series_id, observation_date",
        "corporate_actions": "listing_id, action_type, ex_date",
        "universe_membership": "index_name, listing_id, valid_from",
    }
    for table in CANONICAL:
        if table not in demo.truth.tables:
            continue
        truth = demo.truth.tables[table]
        ((found_keys, versions),) = demo.warehouse.ask(
            f"select count(distinct ({keys[table]})), count(*) filter (not is_deletion or '{table}' = 'trades')"
            f" from versioned.int_{table}__versioned where not is_duplicate"
        )
        assert (table, found_keys, versions) == (table, truth.keys, truth.versions)
        assert demo.warehouse.ask(f"select count(*) from canonical.{table}") == [(truth.versions,)]
    assert demo.warehouse.ask("select count(*) from canonical.trades where known_to is null and is_cancelled") == [
        (demo.truth.tables["trades"].cancelled,)
    ]


def test_live_sizes_sum_to_the_digit(demo: Demo) -> None:
    rows = demo.warehouse.ask(
        "select venue || '/' || symbol, sum(size::decimal(18, 8)) from canonical.trades"
        " where known_to is null and not is_cancelled group by all"
    )
    expected = {name: Decimal(total) for name, total in demo.truth.live_sizes.items() if Decimal(total)}
    assert dict(rows) == expected


def test_the_same_question_before_and_after_a_revision(demo: Demo) -> None:
    with market_data.connect(demo.warehouse.settings) as connection:
        for question in demo.truth.questions:
            answers: Counter[str] = Counter()
            for asked, side in ((question.ask_before, "before"), (question.ask_after, "after")):
                rows = connection.macro(question.series_id, known_at=asked).arrow.to_pylist()
                found = {str(row["observation_date"]): row["value"] for row in rows}
                known = [
                    answer
                    for answer in question.answers
                    if side == "after" or answer.observation_date not in question.new
                ]
                for answer in known:
                    value = getattr(answer, side)
                    expected = None if value is None else float(value)
                    assert found.pop(answer.observation_date) == expected, f"{question.name}, {side}"
                    answers[side] += 1
                assert not found, f"{question.name}, {side}: nobody knew of {sorted(found)}"
            assert question.revised
            assert answers["before"] + len(question.new) == answers["after"]


def test_a_second_run_of_everything_changes_nothing(demo: Demo, tmp_path: Path) -> None:
    before = demo.warehouse.build()
    assert not before.built
    generate(tmp_path)
    for delivery in demo.truth.deliveries:
        outcome = demo.warehouse.load(
            tmp_path / delivery.path, delivery.feed, delivery.delivered_at, delivery.attributes
        )
        assert outcome.status == ("refused" if delivery.outcome == "refused" else "unchanged")
    after = demo.warehouse.build()
    assert after.version == before.version or after.new_loads > 0  # a refusal is an entry of its own
    rows = demo.warehouse.ask("select count(*) from observability.conservation")
    assert rows == [(len(demo.loads),)]
