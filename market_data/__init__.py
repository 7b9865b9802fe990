"""A warehouse for market data: every tick as it came, every table as it was known then.

import market_data

with market_data.connect() as md:
    md.bars("AAPL", known_at="2024-05-01").pl()
    md.macro("GDP", known_at=market_data.LATEST).df()
    md.features(decisions, ["bars_1d.close", "macro_series.GDP"]).pl()
"""

from market_data.client import Answer, Client, Header, NotPublishedError, at, connect
from market_data.times import LATEST, KnownAt

__all__ = ["LATEST", "Answer", "Client", "Header", "KnownAt", "NotPublishedError", "at", "connect"]
