"""Loaders: vendor files and streams, landed as they came.

    files ── loaders.files ──┐
                             ├── raw zone (Parquet + original bytes) + ledger
    Kafka ── (later) ────────┘

Nothing here interprets a market: a record is kept as received, with an envelope that says where and when it
came from. This package imports neither dbt nor `market_data`.
"""

VERSION = "0.1.0"
"""Written into every ledger entry, so that a load says which code made it."""
