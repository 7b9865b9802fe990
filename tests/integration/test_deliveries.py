"""Deliveries at their oddest: one warehouse, a few files each, and what the contract says must come of them."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
from worlds.adversarial import COLUMNS, table
from worlds.reference import new_york
from worlds.warehouse import Warehouse

SESSION = dt.date(2023, 3, 6)
OTHER_SESSION = dt.date(2023, 3, 7)
RENAMED_SESSION = dt.date(2023, 3, 8)


def day_file(directory: Path, number: int, session: dt.date, trades: list[tuple[int, str]]) -> Path:
    """A file of massive_trades: of each trade its id and its correction code."""
    event = new_york(session, hour=10)
    rows = [
        [
            "AAPL",
            "",
            correction,
            "11",
            str(trade),
            str(event + trade),
            "12.5",
            str(trade),
            str(event),
            "100",
            "1",
            "",
            "",
        ]
        for trade, correction in trades
    ]
    return written(directory / str(number) / f"massive_trades_{session}.csv", table([COLUMNS, *rows]))


def written(path: Path, body: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    warehouse = Warehouse(tmp_path_factory.mktemp("odd"), leave=1)
    files = tmp_path_factory.mktemp("files")
    for number, (session, trades) in enumerate(
        [
            (SESSION, [(1, "0"), (2, "0")]),
            (SESSION, []),
            (OTHER_SESSION, [(1, "0"), (2, "0")]),
            (OTHER_SESSION, [(1, "8"), (2, "0")]),
            (OTHER_SESSION, [(2, "0")]),
        ]
    ):
        path = day_file(files, number, session, trades)
        assert warehouse.load(path, "massive_trades", f"2023-03-{10 + number}").status == "loaded"
    for number, price in enumerate(("price", "last_price", "price"), start=10):
        path = day_file(files, number, RENAMED_SESSION, [(1, "0"), (2, "0")] if number < 12 else [(1, "0")])
        path.write_bytes(path.read_bytes().replace(b"price", price.encode()) + b"\n" * (number == 12))
        assert warehouse.load(path, "massive_trades", f"2023-03-{10 + number}").status == "loaded"
    members = [
        "AA,2001-02-03,\nBB,2001-02-03,\n",
        "BB,2001-02-03,\n\n",  # a blank line at the end hides no member
        "AA,2001-02-03,\nBB,2001-02-03,2010-01-04\n",
    ]
    for number, rows in enumerate(members):
        path = written(
            files / f"members{number}" / "x_ticker_start_end.csv",
            f"ticker,start_date,end_date\n{rows}".encode(),
        )
        assert warehouse.load(path, "index_membership", f"2020-0{number + 1}-01").status == "loaded"
    # Documents do not say which series or index they are of: equal bytes may well be two series.
    body = json.dumps(
        {"observations": [{"realtime_start": "2019-03-08", "date": "2019-01-01", "value": "1.5"}]}
    ).encode()
    for name, status in (
        ("A_fetched_2020-01-01", "loaded"),
        ("B_fetched_2020-02-01", "loaded"),
        ("C_fetched_2020-01-01", "refused"),
    ):
        outcome = warehouse.load(written(files / f"alfred_{name}.json", body), "alfred_observations")
        assert outcome.status == status, outcome.message
    for number, index in enumerate(("y", "z")):
        path = written(files / f"{index}_ticker_start_end.csv", b"ticker,start_date,end_date\nAA,2001-02-03,\n")
        warehouse.load(path, "index_membership", f"2021-0{number + 1}-01")
    warehouse.build()
    return warehouse


def test_an_empty_delivery_of_a_day_takes_all_its_trades_back(odd: Warehouse) -> None:
    rows = odd.ask(
        "select trade_id, is_cancelled, known_from::date::varchar from canonical.trades"
        " where event_time::date = '2023-03-06' order by trade_id, revision"
    )
    assert rows == [
        *(("1", False, "2023-03-07"), ("1", True, "2023-03-11")),
        *(("2", False, "2023-03-07"), ("2", True, "2023-03-11")),
    ]


def test_a_cancelled_trade_that_goes_missing_is_no_news(odd: Warehouse) -> None:
    rows = odd.ask(
        "select trade_id, is_cancelled, known_from::date::varchar from canonical.trades"
        " where event_time::date = '2023-03-07' order by trade_id, revision"
    )
    assert rows == [("1", False, "2023-03-08"), ("1", True, "2023-03-13"), ("2", False, "2023-03-08")]


def test_a_vendor_that_renames_a_field_takes_no_day_back(odd: Warehouse) -> None:
    """The second delivery has no price, the third one trade less: that one alone takes it back."""
    rows = odd.ask(
        "select trade_id, is_cancelled, known_from::date::varchar from canonical.trades"
        " where event_time::date = '2023-03-08' order by trade_id, revision"
    )
    assert rows == [("1", False, "2023-03-09"), ("2", False, "2023-03-09"), ("2", True, "2023-03-22")]


def test_a_member_that_went_missing_and_came_back_is_a_member(odd: Warehouse) -> None:
    rows = odd.ask(
        "select symbol, valid_to::varchar, known_from::date::varchar, known_to::date::varchar"
        " from canonical.universe_membership where index_name = 'x' order by symbol, revision"
    )
    assert rows == [
        *(("AA", None, "2001-02-03", "2020-02-01"), ("AA", None, "2020-03-01", None)),
        *(("BB", None, "2001-02-03", "2010-01-04"), ("BB", "2010-01-04", "2010-01-04", None)),
    ]


def test_equal_bytes_of_two_series_are_never_lost_in_silence(odd: Warehouse) -> None:
    """Delivered at different times they are two series; at the same time the second is refused, and says why."""
    assert odd.ask("select series_id from canonical.macro_observations order by 1") == [("A",), ("B",)]
    refusals = odd.ask("select source, error from observability.loads where outcome = 'refused'")
    assert [source for source, _ in refusals] == ["alfred_C_fetched_2020-01-01.json"]
    assert "series_id" in refusals[0][1]


def test_equal_bytes_of_two_indices_are_two_indices(odd: Warehouse) -> None:
    rows = odd.ask(
        "select index_name, symbol from canonical.universe_membership where index_name in ('y', 'z') order by 1"
    )
    assert rows == [("y", "AA"), ("z", "AA")]
