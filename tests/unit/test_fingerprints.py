"""A feed's fingerprint changes with what reads its records, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from worlds.code import Edits, changed_copy

from loaders.registry import load_registry
from market_data import fingerprints

ALL = set(load_registry())
STREAMS = {"binance_spot", "coinbase_exchange"}


def test_where_the_checkout_lies_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for place in ("checkout", "target/building"):
        monkeypatch.setattr(fingerprints, "PROJECT", changed_copy(tmp_path / place, {}))
        found.append((fingerprints.code_fingerprint(), fingerprints.by_feed()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("edits", "changed"),
    [
        ({"models/staging/stg_binance_spot.sql": [("price <= 0", "price < 0")]}, {"binance_spot"}),
        ({"models/staging/stg_binance_spot.sql": [("-- The buyer being the maker", "-- The maker being")]}, set()),
        ({"macros/staging/massive_aggregates.sql": [("volume < 0", "volume <= 0")]},
         {"massive_day_aggs", "massive_minute_aggs"}),
        ({"macros/engine/time.sql": [("<= 14", "<= 13")]},
         {"binance_spot"} | {name for name in ALL if name.endswith(("trades", "quotes", "aggs"))}),
        ({"models/canonical/versioned/int_trades__versioned.sql": [("'sequence', 'is_c", "'is_c")]},
         STREAMS | {"massive_trades"}),
        ({"seeds/feeds.csv": [("lines,,data.s|s|stream@,stream data e ", "lines,,data.s|s|stream@,stream data ")]},
         {"binance_spot"}),
        ({"seeds/feeds.csv": [(",buckets:64,1440,", ",buckets:64,2880,")]}, set()),
        ({"seeds/exchanges.csv": [("massive_trades,1,", "massive_trades,111,")]}, {"massive_trades"}),
        ({"models/canonical/versioned/_versioned.yml": [("data_type: bigint", "data_type: hugeint")]}, None),
        ({"models/research/bars_1m.sql": [("1 minute", "2 minutes")]}, set()),
        ({"macros/building/loads.sql": [("order by file", "order by file desc")]}, set()),
        ({"macros/staging/staging_models.sql": [("'stg_massive_quotes'", "'stg_massive_quotes', 'stg_new'")]}, set()),
    ],
)  # fmt: skip
def test_only_what_reads_a_feed_changes_its_fingerprint(
    edits: Edits, changed: set[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprints.by_feed()
    monkeypatch.setattr(fingerprints, "PROJECT", changed_copy(tmp_path, edits))
    after = fingerprints.by_feed()
    found = {feed for feed in before if before[feed] != after[feed]}
    assert found == changed if changed is not None else found
