"""A warehouse for market data: every tick as it came, every table as it was known then.

import market_data

with market_data.connect() as md:
    md.bars("AAPL", known_at="2024-05-01").pl()
    md.macro("GDP", known_at=market_data.LATEST).df()
"""

from market_data.client import LATEST, Answer, Client, KnownAt, NotPublishedError, connect

__all__ = ["LATEST", "Answer", "Client", "KnownAt", "NotPublishedError", "connect"]
