"""The docs say what is so: links lead somewhere, commands, tables, feeds and reasons exist.

*.md ── links, `mdp …`, tables of README, reasons ──compared──> files, click's commands, dbt's YAML, the registry
"""

from __future__ import annotations

import inspect
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
import yaml

from loaders.registry import load_registry
from market_data import training_sets
from market_data.cli import main
from market_data.client import LATEST, Client
from market_data.quarantine import REASONS

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "dbt_project" / "models"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "DECISIONS.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
# CONTRIBUTING's recipe adds a feed that does not exist.
FICTIONAL = {"northpool_trades"}


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", _text(page)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def _models() -> dict[str, dict[str, Any]]:
    """Each dbt model that YAML describes and that is not the project's own (int_), by schema.table."""
    found = {}
    for file in sorted(MODELS.rglob("_*.yml")):
        for model in yaml.safe_load(_text(file)).get("models", []):
            if not model["name"].startswith("int_"):
                found[f"{file.relative_to(MODELS).parts[0]}.{model['name']}"] = model
    return found


def _table_rows(page: Path, heading: str, level: str = "##") -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = _text(page).split(f"\n{level} {heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
    assert lines is not None, f"{_name(page)} has no table below {heading!r}"
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines[0].splitlines()[2:]]


def test_each_fault_names_tests_that_exist_and_each_test_of_faults_is_named() -> None:
    faults = ROOT / "tests" / "faults"
    rows = re.findall(r"^\| (?!fault \|)(.+?) \|.*\|(.*)\|$", _text(faults / "README.md"), flags=re.MULTILINE)
    named = {fault: set(re.findall(r"`(test_\w+)`", tests)) for fault, tests in rows}
    there = {file: set(re.findall(r"def (test_\w+)", _text(file))) for file in (ROOT / "tests").rglob("test_*.py")}
    assert named and [fault for fault, tests in named.items() if not tests] == []
    assert set().union(*named.values()) - set().union(*there.values()) == set()
    of_faults = set().union(*(tests for file, tests in there.items() if file.parent == faults))
    assert of_faults - set(re.findall(r"`(test_\w+)`", _text(faults / "README.md"))) == set()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_and_images_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", _without_code(_text(page))) + re.findall(
        r"\[`[^`]*`\]\(([^)\s]+)\)", _text(page)
    ):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in _anchors(place)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=_name)
def test_pictures_are_whole_and_can_be_read_aloud(picture: Path) -> None:
    root = ElementTree.fromstring(_text(picture))
    svg = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{svg}title") and root.findtext(f"{svg}desc")
    assert "prefers-color-scheme: dark" in _text(picture)
    assert any(f"images/{picture.name})" in _text(page) for page in PAGES)


def _commands(text: str) -> list[list[str]]:
    """The `mdp …` commands of a page, each as its words: in code blocks and between backticks."""
    blocks = re.findall(r"^```(?:sh|text)?\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(mdp [^`]+)`", re.sub(r"(?ms)^```.*?^```", "", text))
    return [
        shlex.split(line.removeprefix(".venv/bin/"), comments=True)[1:]
        for line in lines
        if line.removeprefix(".venv/bin/").startswith("mdp ")
    ]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_exist_with_their_options(page: Path) -> None:
    for line in _commands(_text(page)):
        command: click.Command = main
        words = line
        while isinstance(command, click.Group):
            if command.invoke_without_command and (not words or words[0].startswith("--")):
                break
            assert words and words[0] in command.commands, f"there is no mdp {' '.join(words)}"
            command, words = command.commands[words[0]], words[1:]
        options = {option for parameter in command.params for option in parameter.opts}
        stated = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert stated <= options, f"mdp {command.name} has no {stated - options}"


def test_readme_shows_each_kind_of_command() -> None:
    shown = {words[0] for words in _commands(_text(ROOT / "README.md"))}
    assert {"load", "build", "status", "sql", "connect"} <= shown


def test_tables_are_models_with_the_grain_that_readme_states() -> None:
    for name, grain, _ in _table_rows(ROOT / "README.md", "The tables"):
        model = _models().get(name.strip("`"))
        assert model is not None, f"there is no model {name}"
        description = " ".join(model["description"].split())
        assert description.startswith(f"One row per {grain}"), f"{name}: {description}"
        assert description[len(f"One row per {grain}")] in " .,:", f"{name}: {description}"


def test_readme_leaves_no_public_table_out() -> None:
    listed = {name.strip("`") for name, *_ in _table_rows(ROOT / "README.md", "The tables")}
    public = {
        name
        for name in _models()
        if name.startswith(("canonical.", "research.", "observability."))
        and not name.endswith(("_as_of", "point_in_time"))
    }
    assert listed == public


def test_tables_with_macros_have_them() -> None:
    for name, model in _models().items():
        if name.startswith("research.") and not name.endswith(("_as_of", "point_in_time")):
            older = [f"{name}_v{of['v']}" for of in model.get("versions", []) if of["v"] != model["latest_version"]]
            assert {f"{table}_as_of" for table in (name, *older)} <= set(_models())


def test_the_clients_exposure_names_each_table_that_it_reads() -> None:
    (exposure,) = (
        one
        for one in yaml.safe_load(_text(MODELS / "research" / "_exposures.yml"))["exposures"]
        if one["name"] == "python_client"
    )
    stated = {re.sub(r"ref\('(\w+)'\)", r"\1", one) for one in exposure["depends_on"]}
    read = {"int_listing_spans", *training_sets.BY_INSTRUMENT.values()}

    class Recorder(Client):
        def _as_of(self, table: str, *_: Any, **__: Any) -> Any:
            read.add(table.partition(".")[2])

    for names in ({"research.universe"}, set()):
        client: Any = Recorder(None, 1)  # type: ignore[arg-type]
        client._names = names
        for name, method in inspect.getmembers(Client, inspect.isfunction):
            if "known_at" in inspect.getfullargspec(method).kwonlyargs and not name.startswith("_"):
                getattr(client, name)(known_at=LATEST)
        client.bars(known_at=LATEST, interval="1m")
        client.bars(known_at=LATEST, adjusted=True)
    # Of features, by the rule of FeatureReader: the tables of instruments and periods.
    for table, model in _models().items():
        columns = {column["name"] for column in model.get("columns", [])}
        has_periods = {"instrument_id", "known_from"} <= columns and bool(columns & {*training_sets.PERIODS})
        if has_periods and table.startswith("research.") and not table.endswith("_as_of"):
            read.add(table.partition(".")[2])
    assert {"trades", "book_snapshots", "volatility_1d", "bars_1m"} <= read
    assert stated == read | {training_sets.MACRO}


def test_reasons_are_those_that_quarantine_accepts() -> None:
    listed = [cells[0].strip("`") for cells in _table_rows(ROOT / "docs" / "quarantine.md", "Reasons")]
    assert listed == list(REASONS)
    columns = {column["name"]: column for column in _models()["canonical.quarantine"]["columns"]}
    accepted = [
        test["accepted_values"]["arguments"]["values"]
        for test in columns["reason"]["data_tests"]
        if "accepted_values" in test
    ]
    assert sorted(listed) == sorted(accepted[0])


def test_terms_of_conservation_are_its_columns() -> None:
    columns = {column["name"] for column in _models()["observability.conservation"]["columns"]}
    terms = {cells[0].strip("`") for cells in _table_rows(ROOT / "docs" / "quarantine.md", "Conservation")}
    assert terms == columns - {"load_id", "feed", "is_conserved"}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_feeds_are_in_the_registry(page: Path) -> None:
    stated = {words[words.index("--feed") + 1] for words in _commands(_text(page)) if "--feed" in words} | set(
        re.findall(r"`((?:massive|alfred|openfigi|binance|coinbase|index)_\w+)`", _text(page))
    )
    assert stated - FICTIONAL - {"index_name"} <= set(load_registry())


def test_each_feed_has_its_rule_in_the_time_model() -> None:
    page = _text(ROOT / "docs" / "time.md")
    assert [name for name in load_registry() if f"`{name}`" not in page] == []


def test_recipe_explains_each_column_of_the_registry() -> None:
    rows = _table_rows(ROOT / "CONTRIBUTING.md", "1. A row in the registry", level="###")
    stated = {name.strip("` ") for cells in rows for name in cells[0].split(",")}
    header = (ROOT / "dbt_project" / "seeds" / "feeds.csv").read_text(encoding="utf-8").splitlines()[0]
    columns = header.split(",")
    assert [name for name in columns if name not in stated] == []
    row = re.search(r"^northpool_trades,.*$", _text(ROOT / "CONTRIBUTING.md"), flags=re.MULTILINE)
    assert row is not None and len(row[0].split(",")) == len(columns)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", _text(ROOT / "Makefile"), flags=re.MULTILINE))
    stated = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", _text(page), flags=re.MULTILINE))
    assert stated <= targets
