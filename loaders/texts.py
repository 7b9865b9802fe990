"""Names as messages show them."""

from __future__ import annotations

from collections.abc import Collection


def few(names: Collection[str], most: int = 10) -> str:
    """Return names for a message: the first ones, and how many more there are."""
    more = len(names) - most
    return ", ".join([*names][:most]) + (f" and {more} more" if more > 0 else "")
