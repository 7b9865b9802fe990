"""What an error says of a name that is not there: those that are most like it, or have it as a part."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from loaders.texts import few


def unknown(kind: str, name: str, known: Iterable[str], place: str, most: int = 20) -> str:
    """``there is no column closs in bars_1d; did you mean close?``, or, where none is like it, what there is, up to
    so many."""
    names = list(known)
    by_case = {other.lower(): other for other in names}
    near = [by_case[other] for other in difflib.get_close_matches(name.lower(), by_case, n=3)]
    near = near or [other for other in names if name.lower() in re.split(r"\W", other.lower())][:3]
    if near:
        return f"there is no {kind} {name} in {place}; did you mean {' or '.join(near)}?"
    there = f"there are: {few(names, most)}" if names else "there is none"
    return f"there is no {kind} {name} in {place}; {there}"
