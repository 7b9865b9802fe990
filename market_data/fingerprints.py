"""By which code records are read: one fingerprint of the whole project, and one of each feed.

    seeds/feeds.csv: the feed's row ─┐
    stg_<feed> ── tables that read it ┼─ with the macros, contracts and seed rows that they name ──> hash
    seeds/exchanges.csv: its rows ───┘

A feed's fingerprint is that of what makes records into canonical rows, quarantine and counts, and of no more: another
feed's staging, a comment, a research table or the choice of loads (macros/building) leaves it as it is. So does a
column of the registry that no such code names, as how soon a feed is late.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from loaders.registry import REGISTRY

PROJECT = REGISTRY.parent.parent
BOOK_CODE = ("books.py", "book_builds.py")
"""Modules of this package that a model calls: they are code of models too."""
_COMMENT = re.compile(r"\{#.*?#\}|--[^\n]*", re.DOTALL)
_MACRO = re.compile(r"\{%-?\s*macro\s+(\w+)\s*\(.*?\{%-?\s*endmacro\s*-?%\}", re.DOTALL)
_WORD = re.compile(r"\w+")
_LISTING = "staging_models"
"""The macro that lists all staging models: who calls it reads them all, and is no other code for one feed more."""


def code_fingerprint() -> str:
    """A hash of the models, macros, tests, seeds and modules that make tables: other code, other fingerprint."""
    digest = hashlib.sha256()
    for name in BOOK_CODE:
        digest.update((Path(__file__).parent / name).read_bytes() + b"\0")
    for path in sorted(PROJECT.rglob("*")):
        place = path.relative_to(PROJECT)
        if path.suffix in {".sql", ".py", ".yml", ".csv"} and not {"target", "logs", "dbt_packages"} & set(place.parts):
            digest.update(str(place).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def by_feed() -> Mapping[str, str]:
    """Of each feed of the registry: a hash of the code and the registry's rows that read its records."""
    return _by_feed(PROJECT, code_fingerprint())


@cache
def _by_feed(project: Path, _code: str) -> Mapping[str, str]:
    models = {path.stem: _text(path) for path in sorted((project / "models").rglob("*.sql"))}
    macros = dict(_macros(project / "macros"))
    contracts = _contracts(project / "models")
    seeds = {path.stem: list(_rows(path)) for path in sorted((project / "seeds").glob("*.csv"))}
    found = {}
    for row in seeds["feeds"]:
        staging = f"stg_{row['feed']}"
        reading = [name for name, text in models.items() if name == staging or _reads(text, staging)]
        texts = _reached([models[name] for name in reading], macros)
        words = set(_WORD.findall(" ".join(texts)))
        parts = [*texts, *(repr((name, contracts.get(name))) for name in reading)]
        parts += [
            repr((seed, sorted((column, value) for column, value in line.items() if column in words)))
            for seed, lines in seeds.items()
            if seed in words
            for line in lines
            if line.get("feed", row["feed"]) == row["feed"]
        ]
        found[row["feed"]] = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return found


def _text(path: Path) -> str:
    """The code of a file, without its comments and however it is laid out."""
    return " ".join(_COMMENT.sub(" ", path.read_text(encoding="utf-8")).split())


def _macros(directory: Path) -> Iterable[tuple[str, str]]:
    for path in sorted(directory.rglob("*.sql")):
        if "building" not in path.relative_to(directory).parts:
            yield from ((match[1], match[0]) for match in _MACRO.finditer(_text(path)))


def _reads(text: str, staging: str) -> bool:
    return f"'{staging}'" in text or f"{_LISTING}(" in text


def _reached(texts: list[str], macros: Mapping[str, str]) -> list[str]:
    """These texts and those of all macros that they name, directly or by another."""
    reached, todo = dict.fromkeys(texts), set(_WORD.findall(" ".join(texts)))
    seen: set[str] = {_LISTING}
    while todo:
        name = todo.pop()
        if name in macros and name not in seen:
            seen.add(name)
            todo |= set(_WORD.findall(macros[name]))
    return [*reached, *(macros[name] for name in sorted(seen & macros.keys() - {_LISTING}))]


def _contracts(directory: Path) -> dict[str, list[tuple[str, str]]]:
    """The columns of each model, as its contract names and types them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(directory.rglob("*.yml")):
        document: dict[str, Any] = yaml.load(path.read_bytes(), yaml.CSafeLoader) or {}
        for model in document.get("models") or []:
            columns = model.get("columns") or []
            found[model["name"]] = [(column["name"], str(column.get("data_type"))) for column in columns]
    return found


def _rows(path: Path) -> Iterable[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
