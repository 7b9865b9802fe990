"""Formats that change: each version is read, canonical keeps its shape, and what is new or broken is told.

tickers without and with sizes ─┐
times in ms and in µs           ├─ one build ── canonical, schema_drift, quarantine ── a fix ── mdp quarantine retry
a column more, fields retyped  ─┘
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from worlds.adversarial import COLUMNS, table
from worlds.code import Edits, other_code
from worlds.warehouse import Warehouse, differences, told_wrongly

from market_data import cli

EVENT = 1_709_596_800_000  # 2024-03-05 00:00:00 UTC, ms
SECOND = 1_000

FIX: Edits = {
    "models/staging/stg_binance_spot.sql": [
        ("try_cast(price_text as double) as price", "try_cast(replace(price_text, ',', '.') as double) as price")
    ]
}
"""A staging that learns to read a decimal comma."""


def trade(trade_id: int, **changed: object) -> dict[str, object]:
    return {"e": "trade", "s": "AUSDT", "t": trade_id, "p": "100.5", "q": "1", "T": EVENT, "m": True} | changed


def ticker(sequence: int, **more: object) -> dict[str, object]:
    message = {"type": "ticker", "product_id": "A-USD", "sequence": sequence, "best_bid": "1.5", "best_ask": "1.6"}
    return message | {"time": "2024-03-05T00:00:00Z"} | more


BINANCE = [
    trade(1),
    trade(2, T=EVENT * 1_000 + 7),
    trade(3, s={"name": "AUSDT"}),
    trade(4, p={"amount": "100.5"}),
    {name: value for name, value in trade(5).items() if name != "q"},
    trade(6, isRetail=True),
    trade(7, p="100,5"),
    trade(7, p="101"),
    trade(8, p="abc"),
    {"e": "depthUpdate", "E": EVENT, "s": {"name": "A"}, "U": 1, "u": 2, "b": [["1", "1"]], "a": []},
]
CHANGES = {"type": "l2update", "product_id": ["A-USD"], "time": "2024-03-05T00:00:00Z", "changes": [["buy", "1", "1"]]}
COINBASE = [ticker(1), ticker(2, best_bid_size="3", best_ask_size="4"), ticker(3, rfq=1), ticker(4, rfq=2), CHANGES]
RENAMED = {"type": "ticker_change", "date": "2020-01-01", "ticker_change": {"ticker": "A"}}
EVENTS = {"results": {"name": "A", "composite_figi": {"id": "B"}, "cik": "1", "events": [RENAMED]}}
MAPPING = [{"data": [{"figi": {"id": "B"}, "ticker": "A", "exchCode": "US"}]}]


def capture(directory: Path, name: str, messages: list[dict[str, object]], *, is_wrapped: bool) -> Path:
    """Messages, received one a second."""
    bodies = [{"stream": "x@trade", "data": message} if is_wrapped else message for message in messages]
    lines = [f"{EVENT + number * SECOND}000000 {json.dumps(body)}" for number, body in enumerate(bodies, start=1)]
    path = directory / name
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    warehouse = Warehouse(tmp_path_factory.mktemp("drifted"))
    root = warehouse.root
    row = dict.fromkeys(COLUMNS, "") | {"ticker": "A", "exchange": "11", "id": "1", "price": "12.5", "size": "100"}
    row |= {"participant_timestamp": f"{EVENT + 57_600 * SECOND}000000", "sequence_number": "1", "tape": "1"}
    wider = root / "massive_trades_2024-03-05.csv"
    wider.write_bytes(table([[*row, "dark_pool"], [*row.values(), "true"]]))
    stream = capture(root, "binance_spot_a", BINANCE, is_wrapped=True)
    stream.write_text(stream.read_text().replace('"isRetail": true', '"isRetail": true, "isRetail": true'))
    events, mapping = root / "massive_ticker_events_A.json", root / "openfigi_mapping_A.json"
    events.write_text(json.dumps(EVENTS))
    mapping.write_text(json.dumps(MAPPING))
    for path, feed, delivered_at in (
        (stream, "binance_spot", None),
        (capture(root, "coinbase_exchange_ws_a.txt", COINBASE, is_wrapped=False), "coinbase_exchange", None),
        (wider, "massive_trades", "2024-03-06T16:00:00Z"),
        (events, "massive_ticker_events", "2024-03-06T16:00:00Z"),
        (mapping, "openfigi_mapping", "2024-03-06T16:00:00Z"),
    ):
        attributes = {"ticker": "A"} if feed == "openfigi_mapping" else None
        outcome = warehouse.load(path, feed, delivered_at, attributes)
        assert outcome.status == "loaded", outcome.message
    warehouse.build()
    return warehouse


def mdp(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    for name, value in warehouse.environment.items():
        if name.startswith("MDP_"):
            monkeypatch.setenv(name, value)
    return CliRunner().invoke(cli.main, list(arguments))


def test_each_version_of_a_format_is_read_into_one_shape(drifted: Warehouse) -> None:
    assert drifted.ask(
        "select sequence, schema_version, bid_price, bid_size, ask_size from canonical.quotes order by sequence"
    ) == [(1, "1", 1.5, None, None), (2, "2", 1.5, 3.0, 4.0), (3, "1", 1.5, None, None), (4, "1", 1.5, None, None)]
    assert drifted.ask(
        "select trade_id, schema_version, epoch_ns(event_time) from canonical.trades"
        " where venue = 'binance' and trade_id in ('1', '2') order by trade_id"
    ) == [("1", "1", EVENT * 1_000_000), ("2", "2", EVENT * 1_000_000 + 7_000)]
    assert drifted.ask("select trade_id, price from canonical.trades where venue = 'us_equities'") == [("1", 12.5)]


def test_every_version_that_is_told_is_in_the_registry(drifted: Warehouse) -> None:
    assert (
        drifted.ask(
            "from (select distinct feed, schema_version as format_version from canonical.quotes"
            " union select distinct feed, schema_version from canonical.trades)"
            " anti join reference.feed_formats using (feed, format_version)"
        )
        == []
    )


def test_unknown_fields_are_listed_with_their_first_sight_and_counts(drifted: Warehouse) -> None:
    assert drifted.ask(
        "select feed, field, epoch_ms(first_seen_at), epoch_ms(last_seen_at), loads, records"
        " from observability.schema_drift order by feed"
    ) == [
        ("binance_spot", "data.isRetail", EVENT + 6 * SECOND, EVENT + 6 * SECOND, 1, 1),
        ("coinbase_exchange", "rfq", EVENT + 3 * SECOND, EVENT + 4 * SECOND, 1, 2),
        ("massive_trades", "dark_pool", EVENT + 144_000 * SECOND, EVENT + 144_000 * SECOND, 1, 1),
    ]


def test_missing_and_retyped_fields_set_just_those_records_aside(drifted: Warehouse) -> None:
    assert drifted.ask("select feed, source_position, reason, detail from canonical.quarantine order by all") == [
        ("binance_spot", 3, "invalid_value", 'symbol is {"name":"AUSDT"}'),
        ("binance_spot", 4, "invalid_value", 'price is {"amount":"100.5"}'),
        ("binance_spot", 5, "missing_field", "size"),
        ("binance_spot", 7, "invalid_value", "price is 100,5"),
        ("binance_spot", 9, "invalid_value", "price is abc"),
        ("binance_spot", 10, "invalid_value", 'symbol is {"name":"A"}'),
        ("coinbase_exchange", 5, "invalid_value", 'symbol is ["A-USD"]'),
        ("massive_ticker_events", 1, "invalid_value", 'composite_figi is {"id":"B"}'),
        ("openfigi_mapping", 1, "invalid_value", 'figi is {"id":"B"}'),
    ]
    assert drifted.ask("select bool_and(is_conserved), sum(quarantined) from observability.conservation") == [(True, 9)]


def test_who_reads_the_earlier_version_of_a_table_still_can(drifted: Warehouse) -> None:
    asked = "select load_id, source_position, {} from canonical.{} order by all"
    assert drifted.ask(asked.format("source_time", "quarantine_v1")) == drifted.ask(
        asked.format("arrived_at", "quarantine")
    )
    with drifted.reader() as connection:
        columns = [name for name, *_ in connection.execute("describe canonical.quarantine_v1").fetchall()]
    assert "arrived_at" not in columns


def test_quarantine_is_listed_and_shown(drifted: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = mdp(drifted, monkeypatch, "quarantine", "list", "--feed", "binance_spot", "--json")
    groups: list[dict[str, Any]] = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [(one["reason"], one["kind"], one["records"], one["may_be_read"]) for one in groups] == [
        ("invalid_value", "trade", 4, False),
        ("invalid_value", "depthUpdate", 1, False),
        ("missing_field", "trade", 1, False),
    ]
    shown = mdp(drifted, monkeypatch, "quarantine", "show", "--feed", "binance_spot", "--reason", "missing_field")
    assert "binance_spot_a:5" in shown.output
    assert "missing_field: size" in shown.output
    assert '"t": 5' in shown.output
    wrong = mdp(drifted, monkeypatch, "quarantine", "list", "--feed", "binance")
    assert wrong.exit_code == 2
    assert "feed 'binance' is not in dbt_project/seeds/feeds.csv" in wrong.output
    nothing = mdp(drifted, monkeypatch, "quarantine", "retry", "--feed", "binance_spot")
    assert "has judged all of these already" in nothing.output
    mistyped = mdp(drifted, monkeypatch, "quarantine", "list", "--reason", "invalid_valu")
    assert mistyped.exit_code == 1
    assert "no reason invalid_valu in the quarantine; did you mean invalid_value?" in mistyped.stderr
    no_load = mdp(drifted, monkeypatch, "quarantine", "retry", "--load", "d7b4")
    assert no_load.exit_code == 1
    assert "there is no load d7b4 in the quarantine; there are: " in no_load.stderr
    none = mdp(drifted, monkeypatch, "quarantine", "retry", "--feed", "binance_spot", "--reason", "not_utf8")
    assert none.exit_code == 0
    assert "no record in quarantine is of feed binance_spot, reason not_utf8; there are of binance" in none.output
    of_all = mdp(drifted, monkeypatch, "quarantine", "show", "--rows", "2")
    assert "\n2 of 9 records; --rows 9 shows all\n" in of_all.output
    as_json = mdp(drifted, monkeypatch, "quarantine", "show", "--rows", "2", "--json")
    assert [list(json.loads(line))[-1] for line in as_json.stdout.splitlines()] == ["record", "record"]


def test_after_a_fix_retry_makes_them_canonical_as_known_from_the_beginning(
    drifted: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_code(tmp_path, monkeypatch, FIX)
    done = mdp(drifted, monkeypatch, "quarantine", "retry", "--feed", "binance_spot", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["loads"], told["quarantined_before"], told["quarantined"]) == (1, 6, 5)
    assert told_wrongly(drifted) == []
    # Known from its receipt, and closed by the trade's next version, which had been its first.
    assert drifted.ask(
        "select price, epoch_ms(known_from), epoch_ms(known_to), revision from canonical.trades"
        " where venue = 'binance' and trade_id = '7' order by known_from"
    ) == [
        (100.5, EVENT + 7 * SECOND, EVENT + 8 * SECOND, 0),
        (101.0, EVENT + 8 * SECOND, None, 1),
    ]
    assert drifted.ask("select source_position from canonical.quarantine where feed = 'binance_spot' order by all") == [
        (3,),
        (4,),
        (5,),
        (9,),
        (10,),
    ]
    assert drifted.ask(
        "select raw_records, canonical_records, quarantined, is_conserved from observability.conservation"
        " where feed = 'binance_spot'"
    ) == [(10, 5, 5, True)]
    assert drifted.ask(
        "select count(distinct fingerprint), count(*) from observability.readings where feed = 'binance_spot'"
    ) == [(2, 2)]
    read_again = drifted.tables()
    drifted.build(full_refresh=True)
    assert differences(drifted.tables(), read_again) == []
