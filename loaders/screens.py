"""Where tables are shown: as wide as the terminal, and off one as wide as they need to be."""

from __future__ import annotations

import sys

from rich.console import Console

WIDE = 1_000_000
"""Characters of a line off a terminal: more than any table has, so that none loses a column or a part of a cell."""


def screen() -> Console:
    """Return the standard output."""
    return Console(width=None if sys.stdout.isatty() else WIDE)
