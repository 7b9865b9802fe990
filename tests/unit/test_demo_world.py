"""The demo's world is what its truth says.

    generate() ── files ── naive readers ── classify ── versions by key ── recount ──┐
               └─ truth ─────────────────────────────────────────────────────────────┴─ equal

The recount below is a second implementation of the rules (identity, duplicates, revisions, deletions,
defects) on plain dictionaries. It shares nothing with the generator but the files and their names.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest

from market_data.demo import Delivery, Truth, generate
from market_data.demo.crypto import STREAMS

CONTENT_HASH = "b01416de69c6baa8d2ecaa230630ab87790876ac62bae28a6e5bb1aa38876407"
NEW_YORK = ZoneInfo("America/New_York")
DAY = 86_400 * 10**9


# --- the world --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    directory = tmp_path_factory.mktemp("world")
    return directory, generate(directory)


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def content(path: Path) -> bytes:
    body = path.read_bytes()
    if path.suffix != ".gz":
        return body
    try:
        return gzip.decompress(body)
    except EOFError:
        return b"truncated"


def tree_hash(directory: Path) -> str:
    """Of the files' content: the compressed bytes may differ from zlib to zlib."""
    digest = hashlib.sha256()
    for path in files(directory):
        name = path.relative_to(directory).as_posix().encode()
        digest.update(name + b"\0" + hashlib.sha256(content(path)).digest())
    return digest.hexdigest()


def test_every_machine_makes_the_same_world(world: tuple[Path, Truth]) -> None:
    assert tree_hash(world[0]) == CONTENT_HASH


@pytest.mark.long
def test_two_runs_are_equal_byte_for_byte(world: tuple[Path, Truth], tmp_path: Path) -> None:
    again = tmp_path / "again"
    ran = subprocess.run(
        [sys.executable, "-m", "market_data.demo", str(again)], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    ours = {path.relative_to(world[0]): path.read_bytes() for path in files(world[0])}
    assert {path.relative_to(again): path.read_bytes() for path in files(again)} == ours


def test_a_directory_of_other_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("market_data.demo.world.parcels", lambda seed: iter(()))
    (tmp_path / "notes.csv").write_text("ticker,price\n")
    with pytest.raises(FileExistsError, match=r"notes\.csv is not of the demo's world"):
        generate(tmp_path)
    assert not (tmp_path / "truth.json").exists()


def test_it_is_small(world: tuple[Path, Truth]) -> None:
    directory, truth = world
    assert sum(path.stat().st_size for path in files(directory)) < 25_000_000
    assert 250_000 < sum(delivery.records for delivery in truth.deliveries) < 400_000


def test_the_truth_reads_back(world: tuple[Path, Truth]) -> None:
    directory, truth = world
    assert Truth.read(directory / "truth.json") == truth


def test_every_file_is_loaded_once(world: tuple[Path, Truth]) -> None:
    directory, truth = world
    on_disk = {path.relative_to(directory).as_posix() for path in files(directory)} - {"truth.json"}
    assert sorted(delivery.path for delivery in truth.deliveries) == sorted(on_disk)
    assert [delivery.order for delivery in truth.deliveries] == list(range(1, len(on_disk) + 1))


def test_names_fit_the_feed_registry(world: tuple[Path, Truth]) -> None:
    with (Path(__file__).parents[2] / "dbt_project/seeds/feeds.csv").open(encoding="utf-8", newline="") as seed:
        feeds = {row["feed"]: row for row in csv.DictReader(seed)}
    for delivery in world[1].deliveries:
        pattern = re.sub(r"<(\w+)>", r"(?P<\1>[^/]+?)", feeds[delivery.feed]["file_pattern"].replace(".", r"\."))
        assert re.fullmatch(rf"{pattern}(\.gz)?", Path(delivery.path).name), delivery.path


# --- sessions and companies -------------------------------------------------------------------------------


def test_sessions_are_the_exchange_s(world: tuple[Path, Truth]) -> None:
    calendars = pytest.importorskip("exchange_calendars")
    calendar = calendars.get_calendar("XNYS", start="2024-01-01", end="2024-12-31")
    first, last = world[1].sessions[0], world[1].sessions[-1]
    schedule = calendar.schedule.loc[first:last]
    assert tuple(str(day.date()) for day in schedule.index) == world[1].sessions
    assert {close.tz_convert(NEW_YORK).hour for close in schedule["close"]} == {16}
    assert len(world[1].sessions) == 60


def test_twenty_companies(world: tuple[Path, Truth]) -> None:
    directory, truth = world
    traded: dict[str, set[str]] = defaultdict(set)
    for delivery in truth.deliveries:
        if delivery.feed == "massive_day_aggs":
            session = delivery.path[-17:-7]
            traded[session] |= {row[0] for row in rows(directory / delivery.path)}
    assert tuple(sorted(traded)) == truth.sessions
    assert {len(tickers) for tickers in traded.values()} == {19, 20}
    assert set().union(*traded.values()) == set(truth.tickers)
    assert len(truth.tickers) == 21, "twenty companies, one of which changes its ticker"
    assert {"NA", "NULL", "nan"} <= set(truth.tickers)
    days = {ticker: [day for day, names in sorted(traded.items()) if ticker in names] for ticker in truth.tickers}
    assert days["DRFT"][-1] < days["DRFX"][0], "a rename: the one begins where the other ends"
    assert len(days["DRFT"]) + len(days["DRFX"]) == 60
    assert days["VANE"][-1] < truth.sessions[-1], "delisted"


def test_the_split_halves_the_price(world: tuple[Path, Truth]) -> None:
    directory, truth = world
    answers = [d for d in truth.deliveries if d.feed == "massive_splits"]
    split = json.loads(content(directory / answers[0].path))["results"][0]
    closes = {}
    for delivery in truth.deliveries:
        if delivery.feed == "massive_day_aggs":
            for row in rows(directory / delivery.path):
                if row[0] == split["ticker"]:
                    closes[delivery.path[-17:-7]] = float(row[3])
    day = split["execution_date"]
    before = truth.sessions[truth.sessions.index(day) - 1]
    assert closes[day] / closes[before] == pytest.approx(split["split_from"] / split["split_to"], rel=0.1)


def test_by_kafka_only_the_capture_that_is_sent_again_counts_otherwise(
    world: tuple[Path, Truth], tmp_path: Path
) -> None:
    directory, truth = world
    by_kafka = generate(tmp_path, kafka=True)
    assert tree_hash(tmp_path / "crypto") == tree_hash(directory / "crypto")
    assert (by_kafka.tables, by_kafka.live_sizes) == (truth.tables, truth.live_sizes)
    for streamed, filed in zip(by_kafka.deliveries, truth.deliveries, strict=True):
        if filed.feed not in STREAMS:
            assert streamed == filed
        elif filed.outcome == "loaded":
            assert streamed == replace(filed, outcome="published")
        else:
            original = filed.path.replace("/again/", "/binance/").replace("_copy", "")
            (first,) = [one for one in truth.deliveries if one.path == original]
            good = sum(first.canonical.values()) + first.duplicates
            again = replace(
                first, order=filed.order, path=filed.path, outcome="published", canonical={}, duplicates=good
            )
            assert streamed == again
    more = Counter(plant.reason for plant in by_kafka.planted) - Counter(plant.reason for plant in truth.planted)
    assert +more == Counter(first.quarantined)


# --- refusals ---------------------------------------------------------------------------------------------


def test_what_is_refused_deserves_it(world: tuple[Path, Truth]) -> None:
    directory, truth = world
    refused = [delivery for delivery in truth.deliveries if delivery.outcome == "refused"]
    assert {delivery.feed for delivery in refused} == {"massive_quotes", "massive_minute_aggs"}
    for delivery in refused:
        body = (directory / delivery.path).read_bytes()
        if delivery.feed == "massive_quotes":
            with pytest.raises(EOFError):
                gzip.decompress(body)
        else:
            header = gzip.decompress(body).split(b"\n")[0].decode()
            assert not set(header.split(",")) & {"ticker", "volume", "open", "close", "window_start"}


def test_same_bytes(world: tuple[Path, Truth]) -> None:
    directory, truth = world
    seen: dict[bytes, str | None] = {}
    for delivery in truth.deliveries:
        digest = hashlib.sha256((directory / delivery.path).read_bytes()).digest()
        if delivery.outcome == "unchanged":
            assert seen[digest] == delivery.delivered_at
        elif delivery.outcome == "redelivered":
            assert seen[digest] != delivery.delivered_at
        else:
            assert digest not in seen
        seen[digest] = delivery.delivered_at


# --- planted ----------------------------------------------------------------------------------------------


def test_planted_records_stand_where_the_truth_says(world: tuple[Path, Truth]) -> None:
    directory, truth = world
    pieces = {delivery.path: delivery for delivery in truth.deliveries}
    wanted = defaultdict(dict)
    for plant in truth.planted:
        assert plant.path in pieces
        if plant.position is not None and plant.reason:
            wanted[plant.path][plant.position] = plant.reason
    for path, reasons in wanted.items():
        found = {
            position: seen.reason
            for position, seen in enumerate(read(directory, pieces[path]), start=1)
            if seen.fate == "quarantined"
        }
        assert found == reasons


# --- the recount ------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """A raw record as the recount understands it; fate is a table's name for what may become canonical."""

    fate: str
    key: tuple[Any, ...] = ()
    content: Any = None
    known: tuple[Any, ...] = ()
    size: Decimal = Decimal(0)
    cancelled: bool = False
    reason: str = ""
    ends: bool = False
    levels: int = 1
    """Of an order book's message: each level is a key of its own."""


def bad(reason: str) -> Seen:
    return Seen("quarantined", reason=reason)


def rows(path: Path) -> list[list[str]]:
    """The well-formed rows of a CSV file."""
    text = content(path).decode("utf-8", "replace").splitlines()
    header, *data = csv.reader(text)
    return [row for row in data if len(row) == len(header)]


def number(text: Any) -> Decimal | None:
    try:
        found = Decimal(text)
    except (InvalidOperation, TypeError):
        return None
    return found if found.is_finite() else None


def nanoseconds(text: str) -> int | None:
    """Of ISO text; year 1 comes out far below zero."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1_000


def at_new_york(day: str, hours: int = 0, days: int = 0) -> int:
    local = datetime.combine(date.fromisoformat(day) + timedelta(days=days), datetime.min.time(), NEW_YORK)
    return int((local + timedelta(hours=hours)).timestamp()) * 10**9


def judged(values: list[Any], positive: list[bool], event: int | None, latest: int) -> str:
    """The reason to quarantine, or none. `values` are numbers as text; `positive`: which must be above 0."""
    if any(value is None for value in values):
        return "missing_field"
    numbers = [number(value) for value in values]
    if event is None or None in numbers:
        return "invalid_value"
    if any(must and found <= 0 for must, found in zip(positive, numbers, strict=True)):
        return "impossible_value"
    return "" if 0 < event <= latest + DAY else "impossible_time"


def binance_line(line: bytes) -> Seen:
    received_text, _, payload = line.partition(b" ")
    received = int(received_text)
    try:
        message = json.loads(payload.decode())
    except UnicodeDecodeError:
        return bad("not_utf8")
    except json.JSONDecodeError:
        return bad("malformed_json")
    if "lastUpdateId" in message:
        levels = message["bids"] + message["asks"]
        key = ("snapshot", message["lastUpdateId"])
        return Seen("book_updates", key, levels, (received,), levels=len(levels))
    data, stream = message["data"], message["stream"]
    symbol = data.get("s")
    if stream.endswith("@bookTicker"):
        values = [data.get(name) for name in ("b", "B", "a", "A", "u")]
        reason = judged(values, [False] * 5, received, received)
        return bad(reason) if reason else Seen("quotes", (symbol, data["u"]), values, (received,))
    if data.get("e") == "trade":
        if "t" not in data or "T" not in data:
            return bad("missing_field")
        event = data["T"] * (1_000 if data["T"] > 10**14 else 1_000_000)
        reason = judged([data.get("p"), data.get("q")], [True, True], event, received)
        facts = (data["T"], data.get("p"), data.get("q"), data["m"])
        known = (max(event, received),)
        return bad(reason) if reason else Seen("trades", (symbol, data["t"]), facts, known, Decimal(data["q"]))
    if data.get("e") == "depthUpdate":
        levels = data["b"] + data["a"]
        event = data["E"] * (1_000 if data["E"] > 10**14 else 1_000_000)
        facts = (data["E"], data["U"], levels)
        return Seen("book_updates", (symbol, data["u"]), facts, (max(event, received),), levels=len(levels))
    return Seen("control") if data.get("e") == "serverShutdown" else bad("unknown_kind")


def coinbase_line(line: bytes) -> Seen:
    if not line or line.startswith(b"wss://"):
        return Seen("control")
    prefix = re.match(rb"(\d+)\.(\d+): ", line)
    if not prefix:
        return bad("malformed_json")
    received = int(prefix[1]) * 10**9 + int(prefix[2].ljust(9, b"0"))
    try:
        message = json.loads(line[prefix.end() :].decode())
    except UnicodeDecodeError:
        return bad("not_utf8")
    except json.JSONDecodeError:
        return bad("malformed_json")
    kind = message["type"]
    if kind == "snapshot":
        levels = message["bids"] + message["asks"]
        return Seen("book_updates", (message["product_id"], received), levels, (received,), levels=len(levels))
    if kind == "l2update":
        changes = message["changes"]
        key = (message["product_id"], message["time"], str(changes))
        return Seen("book_updates", key, changes, (received,), levels=len(changes))
    if kind in ("subscribe", "subscriptions", "heartbeat", "error"):
        return Seen("control")
    if kind not in ("match", "last_match", "ticker"):
        return bad("unknown_kind")
    event = nanoseconds(message["time"])
    symbol = message["product_id"]
    facts = {name: value for name, value in message.items() if name != "type"}
    if kind == "ticker":
        reason = judged([message["best_bid"], message["best_ask"]], [False] * 2, event, received)
        key = (symbol, message["sequence"])
        return bad(reason) if reason else Seen("quotes", key, facts, (max(event or 0, received),))
    if "trade_id" not in message:
        return bad("missing_field")
    reason = judged([message["price"], message["size"]], [True, True], event, received)
    if reason:
        return bad(reason)
    known = (max(event or 0, received),)
    return Seen("trades", (symbol, message["trade_id"]), facts, known, Decimal(message["size"]))


def csv_rows(path: Path) -> Iterator[dict[str, str] | Seen]:
    header_line, *lines = content(path).split(b"\n")[:-1]
    header = header_line.decode().split(",")
    for line in lines:
        try:
            (cells,) = csv.reader([line.decode()])
        except UnicodeDecodeError:
            yield bad("not_utf8")
            continue
        yield dict(zip(header, cells, strict=True)) if len(cells) == len(header) else bad("malformed_row")


def flat_row(feed: str, session: str, row: dict[str, str], delivered: int) -> Seen:
    known = (at_new_york(session, hours=11, days=1), delivered)
    ticker = row["ticker"]
    if feed.endswith("_aggs"):
        values = [row[name] for name in ("volume", "open", "close", "high", "low")]
        reason = judged(values, [False] * 5, int(row["window_start"]), delivered)
        key = (ticker, feed, row["window_start"])
        return bad(reason) if reason else Seen("bars", key, (*values, row["transactions"]), known)
    stamped = row["participant_timestamp"] or row["sip_timestamp"]
    event = int(stamped) if stamped.isdigit() else None
    if feed == "massive_quotes":
        values = [row[name] for name in ("bid_price", "bid_size", "ask_price", "ask_size")]
        reason = judged(values, [False] * 4, event, delivered)
        key = (session, ticker, row["sequence_number"])
        return bad(reason) if reason else Seen("quotes", key, (event, *values), known)
    reason = judged([row["price"] or None, row["size"]], [True, True], event, delivered)
    if reason:
        return bad(reason)
    return Seen(
        "trades",
        (session, ticker, row["exchange"], row["trf_id"], row["id"]),
        (event, row["price"], row["size"], row["conditions"], row["correction"]),
        (*known, int(row["sequence_number"])),
        Decimal(row["size"]),
        row["correction"] in ("7", "8", "10", "11", "12"),
    )


def element(feed: str, found: dict[str, Any], path: Path) -> Seen:
    named = re.search(r"\d{4}-\d\d-\d\d", path.name)
    delivered = named[0] if named else ""
    if feed == "alfred_observations":
        key = (path.name.split("_")[1], found["date"])
        return Seen("macro_observations", key, found["value"], (found["realtime_start"], delivered))
    if feed == "massive_splits":
        key = (found["ticker"], "split", found["execution_date"])
        return Seen("corporate_actions", key, (found["split_from"], found["split_to"]), ("", delivered))
    if feed == "massive_dividends":
        if number(found["cash_amount"]) is None:
            return bad("invalid_value")
        key = (found["ticker"], "dividend", found["ex_dividend_date"], found["dividend_type"])
        return Seen("corporate_actions", key, sorted(found.items()), ("", delivered))
    if feed == "massive_ticker_events":
        return Seen("ticker_changes", (path.name, found["date"]), found["ticker_change"], ("", delivered))
    if "warning" in found:
        return Seen("control")
    return Seen("figi_listings", (path.name, found["figi"]), sorted(found.items()), ("", delivered))


def elements(feed: str, document: Any) -> Iterator[dict[str, Any]]:
    if feed == "openfigi_mapping":
        for answer in document:
            yield from answer.get("data", [answer])
    elif feed == "alfred_observations":
        yield from document["observations"]
    elif feed == "massive_ticker_events":
        yield from document["results"]["events"]
    else:
        yield from document["results"]


def read(directory: Path, delivery: Delivery) -> Iterator[Seen]:
    path = directory / delivery.path
    feed = delivery.feed
    if feed in ("binance_spot", "coinbase_exchange"):
        understand = binance_line if feed == "binance_spot" else coinbase_line
        yield from map(understand, content(path).split(b"\n")[:-1])
    elif path.name.endswith(".json"):
        yield from (element(feed, found, path) for found in elements(feed, json.loads(content(path))))
    else:
        delivered = nanoseconds(delivery.delivered_at or "") or 0
        for row in csv_rows(path):
            if isinstance(row, Seen):
                yield row
            elif feed == "index_membership":
                key = (row["ticker"], row["start_date"])
                yield Seen("universe_membership", key, row["end_date"], (delivered,), ends=row["end_date"] != "")
            else:
                yield flat_row(feed, path.name[-17:-7], row, delivered)


class Recount(NamedTuple):
    loads: dict[str, Counter[str]]
    keys: Counter[str]
    versions: Counter[str]
    cancelled: Counter[str]
    sizes: dict[str, Decimal]


@pytest.fixture(scope="module")
def recount(world: tuple[Path, Truth]) -> Recount:
    directory, truth = world
    loads: dict[str, Counter[str]] = {}
    history: dict[tuple[Any, ...], list[tuple[tuple[Any, ...], str, Seen]]] = defaultdict(list)
    days: dict[tuple[str, str], list[tuple[str, str, set[Any]]]] = defaultdict(list)
    for delivery in truth.deliveries:
        loads[delivery.path] = Counter()
        if delivery.outcome in ("refused", "unchanged"):
            continue
        keys = set()
        for position, seen in enumerate(read(directory, delivery), start=1):
            loads[delivery.path]["records"] += 1
            if seen.key:
                key = (seen.fate, delivery.feed, *seen.key)
                keys.add(key)
                order = (*seen.known, Path(delivery.path).name, position)
                history[key].append((order, delivery.path, seen))
            else:
                loads[delivery.path][f"{seen.fate} {seen.reason}".strip()] += 1
        if delivery.feed == "massive_trades":
            session = Path(delivery.path).name
            days[delivery.feed, session].append((delivery.delivered_at or "", delivery.path, keys))

    deletions: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for deliveries in days.values():
        for (_, _, before), (_, path, after) in pairwise(sorted(deliveries, key=lambda one: one[:2])):
            for key in before - after:
                deletions[key].append(path)

    result = Recount(loads, Counter(), Counter(), Counter(), defaultdict(Decimal))
    for key, versions in history.items():
        table, feed = key[:2]
        versions.sort(key=lambda version: version[0])
        earlier: list[Any] = []
        for _, path, seen in versions:
            streamed = feed in ("binance_spot", "coinbase_exchange")
            same = seen.content in earlier if streamed else earlier[-1:] == [seen.content]
            loads[path]["duplicates" if same else f"canonical {table}"] += 1
            if not same:
                ended_at_once = table == "universe_membership" and seen.ends and not earlier
                result.versions[table] += 2 if ended_at_once else seen.levels
                earlier.append(seen.content)
        result.keys[table] += versions[-1][2].levels
        for path in deletions.get(key, []):
            loads[path]["deletions"] += 1
            result.versions[table] += 1
        newest = versions[-1][2]
        if key in deletions or newest.cancelled:
            result.cancelled[table] += 1
        elif table == "trades":
            venue = {"binance_spot": "binance", "coinbase_exchange": "coinbase"}.get(feed, "us_equities")
            symbol = key[3] if venue == "us_equities" else key[2]
            result.sizes[f"{venue}/{symbol}"] += newest.size
    return result


def test_loads_recounted(world: tuple[Path, Truth], recount: Recount) -> None:
    for delivery in world[1].deliveries:
        expected = Counter(
            {
                "records": delivery.records,
                "duplicates": delivery.duplicates,
                "control": delivery.control,
                "unread": delivery.unread,
                "deletions": delivery.deletions,
                **{f"canonical {table}": count for table, count in delivery.canonical.items()},
                **{f"quarantined {reason}": count for reason, count in delivery.quarantined.items()},
            }
        )
        assert +recount.loads[delivery.path] == +expected, delivery.path


def test_loads_are_conserved(world: tuple[Path, Truth]) -> None:
    for delivery in world[1].deliveries:
        parts = sum(delivery.canonical.values()) + sum(delivery.quarantined.values())
        parts += delivery.duplicates + delivery.control + delivery.unread
        assert parts == delivery.records, delivery.path


def test_tables_recounted(world: tuple[Path, Truth], recount: Recount) -> None:
    for name, table in world[1].tables.items():
        counted = (recount.keys[name], recount.versions[name], recount.cancelled[name])
        assert counted == (table.keys, table.versions, table.cancelled), name
    assert set(recount.keys) == set(world[1].tables)


def test_live_sizes_recounted(world: tuple[Path, Truth], recount: Recount) -> None:
    assert {name: Decimal(total) for name, total in world[1].live_sizes.items()} == recount.sizes


def test_every_reason_and_every_fate_occurs(world: tuple[Path, Truth]) -> None:
    reasons = {reason for delivery in world[1].deliveries for reason in delivery.quarantined}
    assert reasons == {
        "malformed_json",
        "not_utf8",
        "malformed_row",
        "unknown_kind",
        "missing_field",
        "invalid_value",
        "impossible_value",
        "impossible_time",
    }
    assert {delivery.outcome for delivery in world[1].deliveries} == {
        "loaded",
        "redelivered",
        "unchanged",
        "refused",
    }
    assert sum(delivery.late for delivery in world[1].deliveries) == 5


# --- macro ------------------------------------------------------------------------------------------------


def test_questions_answered_from_the_files(world: tuple[Path, Truth]) -> None:
    directory, truth = world
    assert [question.name for question in truth.questions] == ["benchmark", "second_estimate"]
    for question in truth.questions:
        newest = sorted(directory.glob(f"macro/alfred_{question.series_id}_*.json"))[-1]
        observations = json.loads(content(newest))["observations"]

        def known(at: str, observations: list[dict[str, str]] = observations) -> dict[str, str]:
            moment = nanoseconds(at) or 0
            return {
                one["date"]: one["value"]
                for one in sorted(observations, key=lambda one: one["realtime_start"])
                if at_new_york(one["realtime_start"], days=1) <= moment
            }

        before, after = known(question.ask_before), known(question.ask_after)
        assert {answer.observation_date: answer.before for answer in question.answers if answer.before} == before
        assert {answer.observation_date: answer.after for answer in question.answers} == after
        assert question.revised
        assert list(question.revised) == sorted(day for day in before if before[day] != after[day])
        assert list(question.new) == sorted(set(after) - set(before))
        assert question.ask_before < question.known_from < question.ask_after
        assert nanoseconds(question.known_from) == at_new_york(question.revision_published_on, days=1)


def test_the_second_fetch_repeats_the_first(world: tuple[Path, Truth]) -> None:
    for series in ("DEMOGDP", "DEMOCPI"):
        first, second = sorted(world[0].glob(f"macro/alfred_{series}_*.json"))
        vintages = [
            {(one["date"], one["realtime_start"]): one["value"] for one in json.loads(content(path))["observations"]}
            for path in (first, second)
        ]
        assert vintages[0].items() < vintages[1].items()


# --- books ------------------------------------------------------------------------------------------------


def test_binance_depth_follows_the_snapshot(world: tuple[Path, Truth]) -> None:
    """By the venue's own recipe: no gap, and wherever both share an update id, the ticker's best prices."""
    last, best, compared = 0, {}, 0
    book: dict[str, dict[Decimal, Decimal]] = {"b": {}, "a": {}}
    for path in sorted(world[0].glob("crypto/binance/binance_spot_solusdt_*")):
        for line in content(path).split(b"\n")[:-1]:
            message = json.loads(line.partition(b" ")[2])
            data = message.get("data", message)
            if "lastUpdateId" in data:
                last = data["lastUpdateId"]
                for side, levels in (("b", data["bids"]), ("a", data["asks"])):
                    book[side] = {Decimal(price): Decimal(size) for price, size in levels}
            elif data.get("e") == "depthUpdate" and last:
                assert data["U"] == last + 1
                last = data["u"]
                for side in ("b", "a"):
                    book[side].update((Decimal(price), Decimal(size)) for price, size in data[side])
                    book[side] = {price: size for price, size in book[side].items() if size}
                bid, ask = max(book["b"]), min(book["a"])
                assert bid < ask
                if last in best:
                    compared += 1
                    assert best[last] == (bid, book["b"][bid], ask, book["a"][ask])
            elif message.get("stream", "").endswith("@bookTicker"):
                best = {data["u"]: tuple(Decimal(data[name]) for name in ("b", "B", "a", "A"))}
    assert compared > 3_000
