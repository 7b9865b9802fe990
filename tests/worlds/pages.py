"""Pages whose Python runs: each cell in turn, its output compared with the text block that follows it.

page.md ── ```python cells, one namespace ── what they print ──┬─ compared with the ```text block below each
                                         └── images/*.png ─────┴─ or, with MDP_WRITE_DOCS=1, written into the page
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CELL = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n^```text\n(?P<said>.*?)^```\n)?", flags=re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Ran:
    """A cell: where it stands, what the page says that it prints, and what it printed."""

    line: int
    stated: str
    printed: str


def run(page: Path, directory: Path) -> list[Ran]:
    """Run a page's cells in a directory of their own, where their pictures go too."""
    text = page.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__page__"}
    ran, parts, end = [], [], 0
    with contextlib.chdir(directory):
        for cell in _CELL.finditer(text):
            line = text.count("\n", 0, cell.start("code")) + 1
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * (line - 1) + cell["code"], str(page), "exec"), names)
            ran.append(Ran(line, cell["said"] or "", printed.getvalue()))
            parts += [text[end : cell.end("code")], "```\n"]
            parts += [f"\n```text\n{printed.getvalue()}```\n"] if printed.getvalue() else []
            end = cell.end()
    if os.environ.get("MDP_WRITE_DOCS") == "1":
        page.write_text("".join([*parts, text[end:]]), encoding="utf-8")
    return ran


def pictures(page: Path) -> list[str]:
    """The PNG files that a page shows, by their names in images/."""
    return re.findall(r"\(images/([\w-]+\.png)\)", page.read_text(encoding="utf-8"))
