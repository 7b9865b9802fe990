"""A warehouse for market data: every tick as it came, every table as it was known then.

import market_data

with market_data.connect() as md:
    md.bars("AAPL", known_at="2024-05-01").pl()
    md.macro("GDP", known_at=market_data.LATEST).df()
    md.features(decisions, ["bars_1d.close", "macro_series.GDP"]).pl()

market_data.features(decisions, ["bars_1d.close"]).pl()  # one question, without a client of one's own
"""

from market_data.client import Answer, Client, Header, NotPublishedError, at, connect, features
from market_data.times import LATEST, KnownAt

__all__ = ["LATEST", "Answer", "Client", "Header", "KnownAt", "NotPublishedError", "at", "connect", "features"]
