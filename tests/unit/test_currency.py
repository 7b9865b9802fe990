"""The currency of a pair, read off the venue's spelling by the macro itself."""

from __future__ import annotations

import re
from typing import Any

import duckdb
import jinja2
import pytest
from worlds.warehouse import REPOSITORY

TEXT = (REPOSITORY / "dbt_project" / "macros" / "research" / "currency.sql").read_text(encoding="utf-8")
(LISTED,) = re.findall(r"\(([A-Z|]+)\)\$", TEXT)


def pair(venue: str, symbol: str) -> Any:
    """The base and the quote currency."""
    macros: Any = jinja2.Environment().from_string(TEXT).module
    asked = (macros.base_currency_of("$venue", "$symbol"), macros.currency_of("$venue", "$symbol"))
    return duckdb.execute(f"select {', '.join(asked)}", {"venue": venue, "symbol": symbol}).fetchone()


@pytest.mark.parametrize("quote", LISTED.split("|"))
def test_each_listed_currency_is_found_whole(quote: str) -> None:
    """Also where the end of its name is listed: BIDR and IDR, BUSD."""
    assert pair("binance", f"QQ{quote}") == ("QQ", quote)


@pytest.mark.parametrize(
    ("symbol", "base", "quote"),
    [
        ("BTCBIDR", "BTC", "BIDR"),
        ("BNBBIDR", "BNB", "BIDR"),
        ("SHIBIDR", "SHIB", "IDR"),
        ("ADAEUR", "ADA", "EUR"),
        ("ETHAEUR", "ETH", "AEUR"),
        ("BTCXYZ", None, None),
    ],
)
def test_where_one_name_ends_in_another(symbol: str, base: str | None, quote: str | None) -> None:
    assert pair("binance", symbol) == (base, quote)


def test_other_venues() -> None:
    assert pair("coinbase", "BTC-EUR") == ("BTC", "EUR")
    assert pair("us_equities", "AAPL") == (None, "USD")
