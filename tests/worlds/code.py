"""Other code than the checkout's: a copy of the dbt project, changed, for builds of this process.

other_code(directory, monkeypatch, {"models/staging/stg_x.sql": [("price <= 0", "price < 0")]})
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from market_data import dbt_runs, fingerprints
from worlds.warehouse import REPOSITORY

Edits = Mapping[str, Sequence[tuple[str, str]]]


def changed_copy(directory: Path, edits: Edits) -> Path:
    """A copy of the dbt project in which texts are replaced, file by file; each must be there."""
    project = directory / "dbt_project"
    shutil.copytree(REPOSITORY / "dbt_project", project, ignore=shutil.ignore_patterns("target", "logs"))
    shutil.copy(REPOSITORY / "profiles.yml", directory)
    for name, replacements in edits.items():
        text = (project / name).read_text(encoding="utf-8")
        for old, new in replacements:
            assert old in text, f"{name} does not say {old!r}"
            text = text.replace(old, new)
        (project / name).write_text(text, encoding="utf-8")
    return project


def other_code(directory: Path, monkeypatch: pytest.MonkeyPatch, edits: Edits) -> None:
    """Let this process build by a changed copy of the project."""
    use(changed_copy(directory, edits), monkeypatch)


def use(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbt_runs, "PROJECT", project)
    monkeypatch.setattr(fingerprints, "PROJECT", project)
