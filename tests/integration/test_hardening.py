"""What one record, one run cut short or one setting must not do: stop the lake, lose rows, or tell a secret.

poison of every kind ──> one build ──> quarantine, each for its reason; the good neighbours are canonical
plain dbt, failed runs, dropped tables ──> mdp build ──> equal to a warehouse made anew
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from click.testing import CliRunner
from worlds.adversarial import COLUMNS, table
from worlds.warehouse import Warehouse, differences

import market_data
from loaders.settings import Settings, SettingsError
from market_data import build, cli, client, dbt_runs, lake, lock, publishing, status

EVENT = 1_709_596_800_000  # 2024-03-05 00:00:00 UTC, ms
DAY = 86_400_000
FAR = ("9999-12-31", "0001-01-01", "2300-01-01")


@dataclass(frozen=True)
class Poison:
    """A record that cannot be used: its bytes, and what quarantine must say of it."""

    record: bytes
    reason: str
    detail: str = ""


# --- Records -------------------------------------------------------------------------------------------------


def binance(kind: str = "trade", **changed: object) -> bytes:
    """A Binance message: a trade, or a best bid and offer."""
    trade = {"e": "trade", "s": "GOODUSDT", "t": 1, "p": "100.5", "q": "1", "T": EVENT, "m": True}
    quote = {"u": 1, "s": "GOODUSDT", "b": "1", "B": "1", "a": "2", "A": "1"}
    data = (trade if kind == "trade" else quote) | changed
    return json.dumps({"stream": f"goodusdt@{kind}", "data": data}).encode()


def coinbase(**changed: object) -> bytes:
    match = {"type": "match", "product_id": "GOOD-USD", "trade_id": 1, "sequence": 1, "price": "1", "size": "1"}
    return json.dumps(match | {"time": "2024-03-05T00:00:00Z", "side": "buy"} | changed).encode()


def split(**changed: object) -> bytes:
    return json.dumps(
        {"ticker": "GOOD", "execution_date": "2024-03-05", "split_from": 1, "split_to": 2} | changed
    ).encode()


def dividend(**changed: object) -> bytes:
    given = {"ticker": "GOOD", "ex_dividend_date": "2024-03-05", "cash_amount": 0.5, "currency": "USD"}
    return json.dumps(given | {"declaration_date": "2024-02-01"} | changed).encode()


def observation(**changed: object) -> bytes:
    return json.dumps({"realtime_start": "2024-03-05", "date": "2024-01-01", "value": "1.5"} | changed).encode()


def trade_row(**changed: str) -> list[str]:
    """A row of massive_trades."""
    row = dict.fromkeys(COLUMNS, "") | {"ticker": "GOOD", "exchange": "11", "id": "1", "price": "12.5", "size": "100"}
    row |= {"participant_timestamp": f"{EVENT + DAY * 2 // 3}000000", "sequence_number": "1", "tape": "1"}
    return list((row | changed).values())


BINANCE = [
    *(Poison(binance(**{field: ""}), "missing_field", name) for field, name in (
        ("s", "symbol"), ("t", "trade_id"), ("p", "price"), ("q", "size"), ("T", "event_time"),
    )),
    *(Poison(binance("bookTicker", **{field: ""}), "missing_field", name) for field, name in (
        ("s", "symbol"), ("u", "update_id"), ("b", "bid_price"), ("B", "bid_size"), ("A", "ask_size"),
    )),
    Poison(binance(s="A\0B"), "invalid_value", "the payload holds a NUL character"),
    Poison(binance(e="tra\0de"), "invalid_value", "the payload holds a NUL character"),
    Poison(binance(p="1\0"), "invalid_value", "the payload holds a NUL character"),
    Poison(binance(T="1709596800000.5"), "invalid_value", "time is 1709596800000.5"),
    Poison(binance(T=10_413_792_000_000), "impossible_time"),
    Poison(binance(T=-62_135_596_800_000), "impossible_time"),
    # The infinities of TIMESTAMP_NS, and the ends of what it holds and cannot write.
    *(Poison(binance(T=edge), "impossible_time") for end in (2**63 - 1, 2**63 - 2) for edge in (end, -end, -end - 1)),
    Poison(binance("bookTicker", u="1_000"), "invalid_value", "update_id is 1_000"),
    Poison(b"[" * 10_000 + b"]" * 10_000, "unknown_kind"),
    Poison(binance(s="LONE").replace(b'"LONE"', b'"\\ud800"'), "malformed_json"),
    Poison(b"\xff\xfe" + binance(), "not_utf8"),
]  # fmt: skip

COINBASE = [
    *(Poison(coinbase(**{field: ""}), "missing_field", name) for field, name in (
        ("product_id", "symbol"), ("trade_id", "trade_id"), ("price", "price"), ("size", "size"),
        ("time", "event_time"), ("sequence", "sequence"),
    )),
    *(Poison(coinbase(time=f"{day}T00:00:00Z"), "impossible_time") for day in FAR),
    Poison(coinbase(time="infinity"), "impossible_time"),
    Poison(coinbase(sequence=1.7), "invalid_value", "sequence is 1.7"),
    Poison(coinbase(sequence="1_000"), "invalid_value", "sequence is 1_000"),
]  # fmt: skip

SPLITS = [
    *(Poison(split(**{field: ""}), "missing_field", name) for field, name in (
        ("ticker", "symbol"), ("execution_date", "ex_date"), ("split_from", "split_from"), ("split_to", "split_to"),
    )),
    *(Poison(split(execution_date=day), "impossible_time", f"ex_date is {day}") for day in FAR),
    Poison(split(execution_date="infinity"), "invalid_value", "ex_date is infinity"),
    Poison(split(ticker="A\0B"), "invalid_value", "the payload holds a NUL character"),
]  # fmt: skip

DIVIDENDS = [
    *(Poison(dividend(**{field: ""}), "missing_field", name) for field, name in (
        ("ticker", "symbol"), ("ex_dividend_date", "ex_date"), ("cash_amount", "cash_amount"),
    )),
    *(Poison(dividend(ex_dividend_date=day), "impossible_time", f"ex_date is {day}") for day in FAR),
    *(Poison(dividend(declaration_date=day), "impossible_time", f"declared_on is {day}") for day in FAR),
]  # fmt: skip

OBSERVATIONS = [
    *(Poison(observation(**{field: ""}), "missing_field") for field in ("realtime_start", "date", "value")),
    *(Poison(observation(realtime_start=day), "impossible_time", f"published_on is {day}") for day in FAR),
    *(Poison(observation(date=day), "impossible_time", f"observation_date is {day}") for day in FAR),
]

MEMBERS = [
    *(Poison(f"BAD,{day},".encode(), "impossible_time", f"valid_from is {day}") for day in FAR),
    *(Poison(f"BAD,2020-01-01,{day}".encode(), "impossible_time", f"valid_to is {day}") for day in FAR[1:]),
    Poison(b"A\0B,2020-01-01,", "invalid_value", "the row holds a NUL character"),
    Poison(b"BAD", "malformed_row"),
    Poison(b"\xff,2020-01-01,", "not_utf8"),
]

TRADES = [
    Poison(table([trade_row(ticker="A\0B")]), "invalid_value", "the row holds a NUL character"),
    Poison(table([trade_row(conditions="1\0,2")]), "invalid_value", "the row holds a NUL character"),
    Poison(table([trade_row(price="1\0")]), "invalid_value", "the row holds a NUL character"),
    Poison(table([trade_row(sequence_number="1.7")]), "invalid_value", "sequence is 1.7"),
    Poison(table([trade_row(sequence_number="1_000")]), "invalid_value", "sequence is 1_000"),
    Poison(table([trade_row(participant_timestamp="1709596800000000000.5")]), "invalid_value", "time is"),
    Poison(table([trade_row(participant_timestamp="9999999999999999999")]), "impossible_time"),
    Poison(table([trade_row(price="")]), "missing_field", "price"),
]

QUOTE = ["GOOD", "12", "2", "1", "11", "1", "1", "", "", f"{EVENT + DAY * 2 // 3}000000", "1", "", "1", ""]
QUOTE_COLUMNS = [
    "ticker", "ask_exchange", "ask_price", "ask_size", "bid_exchange", "bid_price", "bid_size", "conditions",
    "indicators", "participant_timestamp", "sequence_number", "sip_timestamp", "tape", "trf_timestamp",
]  # fmt: skip
QUOTES = [
    Poison(table([[*QUOTE[:1], "1\0", *QUOTE[2:]]]), "invalid_value", "the row holds a NUL character"),
    Poison(table([[*QUOTE[:7], "1\0", *QUOTE[8:]]]), "invalid_value", "the row holds a NUL character"),
    Poison(table([["", *QUOTE[1:]]]), "missing_field", "symbol"),
]


def capture(records: list[bytes]) -> bytes:
    """Lines of a Binance capture, each received as it happened."""
    return b"".join(b"%d000000 %s\n" % (EVENT, record) for record in records)


def document(name: str, records: list[bytes]) -> bytes:
    return b'{"%s": [%s]}' % (name.encode(), b",\n".join(records))


@dataclass(frozen=True)
class Vendor:
    """A feed's file: a good record, the poison, and the table that the good record goes to."""

    feed: str
    name: str
    body: bytes
    poison: list[Poison]
    table: str
    first: int = 2
    """The position of the first poisoned record."""


def records_of(poison: list[Poison]) -> list[bytes]:
    return [item.record for item in poison]


def rows_of(poison: list[Poison]) -> bytes:
    return b"\n".join(item.record.rstrip(b"\r\n") for item in poison) + b"\n"


# A Coinbase record without a time of receipt stands first; Binance's good neighbours are a trade and a quote.
NOT_RECEIVED = Poison(coinbase(trade_id=2, time="2200-01-01T00:00:00Z"), "missing_field", "source_time")
VENDORS = [
    Vendor(
        "binance_spot", "binance_spot_X_1", capture([binance(), binance("bookTicker"), *records_of(BINANCE)]),
        BINANCE, "trades", first=3,
    ),
    Vendor(
        "coinbase_exchange", "coinbase_exchange_ws_1.txt",
        NOT_RECEIVED.record + b"\n"
        + b"".join(b"1709596800.5: %s\n" % record for record in [*records_of(COINBASE), coinbase()]),
        [NOT_RECEIVED, *COINBASE], "trades", first=1,
    ),
    Vendor(
        "massive_splits", "massive_splits_2024-06-01.json", document("results", [split(), *records_of(SPLITS)]),
        SPLITS, "corporate_actions",
    ),
    Vendor(
        "massive_dividends", "massive_dividends_2024-06-01.json",
        document("results", [dividend(pay_date="9999-12-31", record_date=""), *records_of(DIVIDENDS)]),
        DIVIDENDS, "corporate_actions",
    ),
    Vendor(
        "alfred_observations", "alfred_GOOD_fetched_2024-06-01.json",
        document("observations", [observation(), *records_of(OBSERVATIONS)]), OBSERVATIONS, "macro_observations",
    ),
    Vendor(
        "index_membership", "good_ticker_start_end.csv",
        b"ticker,start_date,end_date\nGOOD,2020-01-01,9999-12-31\n" + rows_of(MEMBERS), MEMBERS, "universe_membership",
    ),
    Vendor(
        "massive_trades", "massive_trades_2024-03-05.csv", table([COLUMNS, trade_row()]) + rows_of(TRADES),
        TRADES, "trades",
    ),
    Vendor(
        "massive_quotes", "massive_quotes_2024-03-05.csv", table([QUOTE_COLUMNS, QUOTE]) + rows_of(QUOTES),
        QUOTES, "quotes",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Poison of every kind, in one build."""
    warehouse = Warehouse(tmp_path_factory.mktemp("poisoned"), leave=1)
    for vendor in VENDORS:
        path = warehouse.root / vendor.name
        path.write_bytes(vendor.body)
        outcome = warehouse.load(path, vendor.feed)
        assert outcome.status == "loaded", outcome.message
    added = warehouse.root / "added_ticker_start_end.csv"
    added.write_text("ticker,start_date,end_date,load_seq\nGOOD,2020-01-01,,never mind\n")
    assert warehouse.load(added, "index_membership").status == "loaded"
    assert warehouse.build().built
    return warehouse


@pytest.mark.parametrize("vendor", VENDORS, ids=[vendor.feed for vendor in VENDORS])
def test_poison_is_quarantined_for_its_reason(poisoned: Warehouse, vendor: Vendor) -> None:
    found = poisoned.ask(
        "select source_position, reason, detail from canonical.quarantine where feed = ? order by 1", vendor.feed
    )
    expected = [(vendor.first + n, item.reason, item.detail) for n, item in enumerate(vendor.poison)]
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [(row, detail) for row, (*_, detail) in zip(found, expected, strict=True) if detail not in row[2]] == []


@pytest.mark.parametrize("vendor", VENDORS, ids=[vendor.feed for vendor in VENDORS])
def test_the_good_neighbours_of_poison_are_canonical(poisoned: Warehouse, vendor: Vendor) -> None:
    name = "series_id" if vendor.table == "macro_observations" else "symbol"
    rows = poisoned.ask(
        f"select distinct {name}, source_position from canonical.{vendor.table} where source = ?", vendor.name
    )
    assert [(row[0].removesuffix("USDT").removesuffix("-USD"), row[1]) for row in rows] == [
        ("GOOD", len(vendor.poison) + 1 if vendor.first == 1 else 1)
    ]


def test_poison_adds_up(poisoned: Warehouse) -> None:
    assert poisoned.ask("select count(*), bool_and(is_conserved) from observability.conservation") == [
        (len(VENDORS) + 1, True)
    ]


def test_the_last_of_all_dates_is_an_open_end(poisoned: Warehouse) -> None:
    rows = poisoned.ask("select index_name, valid_to from canonical.universe_membership order by 1")
    assert rows == [("added", None), ("good", None)]


def test_a_header_that_names_a_column_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x_ticker_start_end.csv"
    path.write_text("ticker,start_date,end_date,__file\nAA,2020-01-01,,x\n")
    outcome = Warehouse(tmp_path).load(path, "index_membership")
    assert outcome.status == "refused"
    assert "__file" in str(outcome.message)


# --- What a build reads --------------------------------------------------------------------------------------


CANARY = "canary-7f3a91"
DAYS = 30
A_DAY = 12  # more rows than the catalog would keep to itself


def day_of(number: int, size: str = "1") -> list[bytes]:
    """The trades and quotes of one day, and a record that cannot be used."""
    lines = []
    for n in range(A_DAY):
        at = EVENT + number * DAY + n * 3_600_000
        trade, quote = number * 100 + n, number * 100 + n
        lines.append(b"%d000000 %s\n" % (at, binance(t=trade, T=at, q=size)))
        lines.append(b"%d000000 %s\n" % (at, binance("bookTicker", u=quote)))
    return [*lines, b"%d000000 %s\n" % (EVENT + number * DAY, binance(p=""))]


def add(warehouse: Warehouse, name: str, *days: list[bytes]) -> None:
    path = warehouse.root / f"binance_spot_X_{name}"
    path.write_bytes(b"".join(line for day in days for line in day))
    outcome = warehouse.load(path, "binance_spot")
    assert outcome.status == "loaded", outcome.message


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Thirty days, published by a process that has secrets in its environment. Tests add to it, in order."""
    warehouse = Warehouse(tmp_path_factory.mktemp("grown"))
    add(warehouse, "1", *(day_of(number) for number in range(DAYS)))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD"):
            patch.setenv(name, CANARY)
        for command in ("build", "status", "connect"):
            done = warehouse.mdp(command)
            assert done.returncode == 0, done.stderr[-3000:]
            (warehouse.root / f"{command}.out").write_text(done.stdout + done.stderr)
    return warehouse


def test_a_secret_of_the_environment_is_told_nowhere(grown: Warehouse) -> None:
    told = [path for path in grown.root.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert told == []
    assert (grown.settings.state_dir / "logs" / "dbt.log").exists(), "the log was among what was looked at"


def test_a_refusal_and_a_model_that_is_gone_are_nothing_new(grown: Warehouse) -> None:
    broken = grown.root / "massive_splits_2024-06-01.json"
    broken.write_text('{"results": [')
    assert grown.load(broken, "massive_splits").status == "refused"
    with writing(grown) as connection:
        connection.execute("insert into lake.observability.progress values ('a_model_of_old', 0, '')")
    assert not grown.build().built
    found = status.overview(grown.settings)
    assert found.waiting == 0
    assert [(feed.feed, feed.loads, feed.refused) for feed in found.feeds if feed.refused] == [("massive_splits", 0, 1)]


@contextmanager
def writing(warehouse: Warehouse) -> Iterator[duckdb.DuckDBPyConnection]:
    """The head of the lake, under the writers' lock, past dbt."""
    with lock.writers_lock(warehouse.settings):
        connection = lake.open_for_writing(warehouse.settings)
        try:
            yield connection
        finally:
            connection.close()


def files_read(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, int]:
    """How many files DuckDB opens, at most in one scan, of each table of the lake that a query reads."""
    ((_, plan),) = connection.execute(f"explain (analyze, format json) {query}").fetchall()
    found: dict[str, int] = {}
    waiting = [json.loads(plan)]
    while waiting:
        node = waiting.pop()
        waiting += node.get("children", [])
        facts = node.get("extra_info") or {}
        if "Total Files Read" in facts:
            name = str(facts["Table"])
            found[name] = max(found.get(name, 0), int(facts["Total Files Read"]))
    return found


@pytest.fixture(autouse=True, scope="module")
def every_statement_is_logged() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBT_LOG_LEVEL_FILE", "debug")
        yield


def executed(warehouse: Warehouse, pattern: str) -> list[str]:
    """Statements of the last build that dbt's log tells, from `pattern` to their end."""
    log = (warehouse.settings.state_dir / "logs" / "dbt.log").read_text()
    return re.findall(rf"^\s*({pattern}.*?)\n(?=\S*\d\d:\d\d:\d\d)", log, re.DOTALL | re.MULTILINE)


BY_DAY = {"int_trades__versioned", "int_quotes__versioned", "bars_1m"}


def test_an_incremental_build_reads_only_what_changed(grown: Warehouse) -> None:
    """One new day after thirty: what tests, bars and conservation read is that day, not history."""
    compiled = grown.settings.state_dir / "target" / "compiled" / "market_data_platform" / "models"
    shutil.rmtree(compiled)
    add(grown, "2", day_of(DAYS))
    grown.build()
    tests = {path: path.read_text() for path in compiled.rglob("*.yml/*.sql")}
    forgetting = {
        statement.partition("\n")[0]: statement.replace("delete from", "select count(*) from", 1)
        for statement in executed(grown, 'delete from "lake"."research"."bars_1[md]"')
    }
    assert len(forgetting) == 2
    conservation = {path: path.read_text() for path in compiled.rglob("conservation.sql")}
    assert len(conservation) == 1
    scanned: dict[str, int] = {}
    with grown.reader() as connection:
        for table_name in BY_DAY:
            ((files,),) = connection.execute(
                "select file_count from ducklake_table_info('lake') where table_name = ?", [table_name]
            ).fetchall()
            assert files > DAYS, f"{table_name} has a file a day"
        for what, query in {**tests, **forgetting, **conservation}.items():
            for name, files in files_read(connection, query).items():
                assert files <= 2, f"{what} reads {files} files of {name}"
                scanned[name] = max(scanned.get(name, 0), files)
    assert scanned.keys() >= BY_DAY


# --- Plain dbt, in parts -------------------------------------------------------------------------------------


def dbt(warehouse: Warehouse, *arguments: str) -> None:
    """Plain dbt, in this process, which has parsed the project; test_publishing.py runs it in one of its own."""
    try:
        with dbt_runs.Project(warehouse.settings) as project:
            project.run([*arguments])
    finally:
        if lock.is_held(warehouse.settings):
            lock.release(warehouse.settings)  # as the end of its process would


def count_in_head(warehouse: Warehouse) -> int:
    with lake.open_version(warehouse.settings, None) as connection:
        ((count,),) = connection.execute("select count(*) from versioned.int_trades__versioned").fetchall()
    return int(count)


def bars_and_trades(warehouse: Warehouse) -> list[int]:
    """How many trades the bars of each length hold as of now, and how many there are."""
    return [
        int(warehouse.ask(f"select sum({column}) from {table_name} where known_to is null")[0][0])
        for column, table_name in (
            ("trade_count", "research.bars_1m"),
            ("trade_count", "research.bars_1d"),
            ("1", "canonical.trades"),
        )
    ]


def test_a_model_made_anew_alone_is_refused_and_loses_nothing(grown: Warehouse) -> None:
    add(grown, "3", day_of(DAYS + 1), day_of(4, size="2"))
    before = count_in_head(grown)
    with pytest.raises(dbt_runs.BuildFailedError) as refused:
        dbt(grown, "run", "--full-refresh", "--select", "int_trades__versioned")
    assert "select its parents too: dbt build --select +int_trades__versioned" in " ".join(str(refused.value).split())
    assert count_in_head(grown) == before


def test_models_run_in_parts_miss_nothing_and_are_published_when_all_have_run(grown: Warehouse) -> None:
    """A load that comes after the last run is left for the next build."""
    version = client.published_version(grown.settings)
    for selected in ("bars_1m", "+int_trades__versioned"):
        dbt(grown, "run", "--select", selected)
        with pytest.raises(dbt_runs.BuildFailedError, match="not every model has read every load"):
            build.publish(grown.settings)
    assert client.published_version(grown.settings) == version
    dbt(grown, "run")
    add(grown, "4", day_of(DAYS + 2))
    assert build.publish(grown.settings).new_loads == 1
    minutes, days, trades = bars_and_trades(grown)
    assert minutes == days == trades == (DAYS + 2) * A_DAY


# --- Tables that a run left behind ---------------------------------------------------------------------------


def test_a_dropped_table_is_read_again_from_the_first_load(grown: Warehouse) -> None:
    """The load that came after the last run is the news; what plain dbt has made of it is finished by a build."""
    dbt(grown, "run", "--select", "+int_trades__versioned")
    with writing(grown) as connection:
        connection.execute("drop table lake.versioned.int_trades__versioned")
    outcome = grown.build()
    assert (outcome.built, outcome.new_loads) == (True, 1)
    minutes, days, trades = bars_and_trades(grown)
    assert minutes == days == trades == (DAYS + 3) * A_DAY


LAYOUT = """
    select table_name, transform, column_name
    from __ducklake_metadata_lake.ducklake_table as tables
    inner join __ducklake_metadata_lake.ducklake_partition_info as parts using (table_id)
    inner join __ducklake_metadata_lake.ducklake_partition_column as part using (partition_id, table_id)
    inner join __ducklake_metadata_lake.ducklake_column as columns using (table_id, column_id)
    where tables.end_snapshot is null and parts.end_snapshot is null and columns.end_snapshot is null
    order by table_name, partition_key_index
"""
NOT_NULL = """
    select schema_name, table_name, column_name
    from duckdb_columns()
    where database_name = 'lake' and not is_nullable
    order by all
"""


def test_what_a_failed_run_made_of_tables_is_taken_back(grown: Warehouse) -> None:
    """A column renamed, a table dropped, one added: as a full refresh with other code would leave them."""
    version, before = client.published_version(grown.settings), grown.tables()
    with writing(grown) as connection:
        layout = connection.execute(LAYOUT).fetchall(), connection.execute(NOT_NULL).fetchall()
        connection.execute("alter table lake.research.bars_1m rename column trade_count to trades")
        connection.execute("drop table lake.research.bars_1d")
        connection.execute("create table lake.research.bars_1d as select 1 as something_else")
        connection.execute("drop table lake.versioned.int_quotes__versioned")
        connection.execute("delete from lake.versioned.int_trades__versioned where event_date = '2024-03-09'")
        connection.execute("create table lake.research.draft as select 1 as one")
        publishing.note(connection, "", "failed", "dbt build --full-refresh")
    scratch = grown.settings.state_dir / publishing.SCRATCH
    scratch.with_name(f"{scratch.name}.wal").write_bytes(b"left by a process that was killed")
    outcome = grown.build()
    assert (outcome.restored, outcome.built, outcome.version) == (True, False, version)
    with lake.open_version(grown.settings, None) as connection:
        head = publishing.head(connection)
        assert layout == (connection.execute(LAYOUT).fetchall(), connection.execute(NOT_NULL).fetchall())
        assert {row[1] for row in layout[0]} >= {"identity", "day"}
        ((drafts,),) = connection.execute("select count(*) from duckdb_tables() where table_name = 'draft'").fetchall()
        assert drafts == 0
    assert differences(before, grown.tables(version=head)) == []


@pytest.mark.long
def test_after_all_of_that_it_equals_a_warehouse_made_anew(grown: Warehouse, tmp_path: Path) -> None:
    add(grown, "5", day_of(DAYS + 3), day_of(7, size="3"))
    grown.build()
    build.verify_tables(grown.settings)
    fresh = grown.copy(tmp_path / "fresh")
    fresh.build()
    assert differences(fresh.tables(), grown.tables()) == []


# --- Settings and secrets ------------------------------------------------------------------------------------


def test_lakes_of_one_name_with_two_suffixes_share_nothing() -> None:
    one, two = (Settings.from_env({"MDP_LAKE": f"/d/x.{suffix}"}) for suffix in ("v1", "v2"))
    places = [(lake.lake, lake.lake_data, str(lake.state_dir)) for lake in (one, two)]
    assert len({place for of_one in places for place in of_one}) == 6
    assert lock.lock_path(one) != lock.lock_path(two)


def test_a_catalog_has_one_lock_by_whatever_path(tmp_path: Path) -> None:
    (tmp_path / "real.sqlite").touch()
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "real.sqlite")
    (tmp_path / "directory").symlink_to(tmp_path)
    paths = {
        lock.lock_path(Settings.from_env({"MDP_LAKE": str(tmp_path / name)}))
        for name in ("real.sqlite", "link.sqlite", "directory/real.sqlite")
    }
    assert len(paths) == 1


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgres:host=h dbname=d password={CANARY}",
        f"postgres:host=h dbname=d password = '{CANARY}'",
        f"postgres://me:{CANARY}@h/d",
        f"postgres:postgresql://me:{CANARY}@h/d",
        f"postgres:postgresql://h/d?user=me&password={CANARY}",
    ],
)
def test_a_password_in_a_setting_is_refused_and_not_repeated(dsn: str) -> None:
    with pytest.raises(SettingsError, match="PGPASSWORD") as error:
        Settings.from_env({"MDP_LAKE": dsn, "MDP_LAKE_DATA": "/d"})
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("command", ["build", "status", "connect", "sql"])
def test_a_catalog_that_is_away_is_told_in_a_line_and_without_secrets(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake_of_nobody = {"MDP_LAKE": "postgres:dbname=d host=127.0.0.1 port=1 user=me", "MDP_LAKE_DATA": str(tmp_path)}
    secrets = {"PGPASSWORD": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY, "XDG_CACHE_HOME": str(tmp_path)}
    for name, value in (lake_of_nobody | secrets).items():
        monkeypatch.setenv(name, value)
    done = subprocess.run(
        [sys.executable, "-m", "market_data.cli", command, *(["select 1"] if command == "sql" else [])],
        env=dict(os.environ),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("mdp: the lake cannot be used"), done.stderr
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and CANARY in path.read_text()]


# --- Readers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "call ducklake_expire_snapshots('lake', versions => [1])",
        "select 1; call ducklake_expire_snapshots('lake', versions => [1])",
        "insert into canonical.quarantine select * from canonical.quarantine",
        "attach ':memory:' as other",
        "copy (select 1) to '/tmp/never'",
        "create table mine as select 1",
    ],
)
def test_mdp_sql_takes_questions_only(poisoned: Warehouse, query: str) -> None:
    done = CliRunner().invoke(cli.main, ["sql", query], env=poisoned.environment)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "takes only queries" in done.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "from ducklake_expire_snapshots('lake', versions => [1])",
        "call ducklake_set_option('lake', 'parquet_compression', 'zstd')",
    ],
)
def test_a_reader_can_expire_nothing(poisoned: Warehouse, statement: str) -> None:
    with poisoned.reader() as connection, pytest.raises(duckdb.Error, match="read-only"):
        connection.execute(statement)
    with poisoned.reader(1):
        pass  # the first version is still there


def test_pandas_nanoseconds_are_not_lost() -> None:
    assert client.instant(pd.Timestamp("2024-05-01 00:00:00.123456789")) == "2024-05-01 00:00:00.123456789"
    assert (
        client.instant(pd.Timestamp("2024-05-01 00:00:00.000000007", tz="America/New_York"))
        == "2024-05-01 04:00:00.000000007"
    )


def test_the_latest_is_no_age(poisoned: Warehouse) -> None:
    with market_data.connect(poisoned.settings) as reader:
        assert reader.macro("GOOD", known_at=market_data.LATEST).pl()["age_days"].to_list() == [None]
        assert reader.macro("GOOD", known_at="2024-04-01").pl()["age_days"].to_list() == [91]
