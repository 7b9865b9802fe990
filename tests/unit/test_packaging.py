"""What the packaging promises: pinned by hash, layered, one reader of the environment, no private paths."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
LOCK = (REPOSITORY / "requirements.lock").read_text()
PINS = dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", LOCK, re.MULTILINE))
DEPENDENCIES = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]

# loaders/settings.py reads the environment; the others only tell a library in this process where things are.
MAY_TOUCH_ENVIRONMENT = {
    "loaders/settings.py",
    "market_data/live.py",  # hands it on to loaders and the builder
    "market_data/dbt_runs.py",  # dbt, run in this process, reads the settings again
    "market_data/demo/broker.py",  # services/ is told where to keep the demo's broker
    "market_data/demo/picture.py",  # matplotlib keeps its cache where MPLCONFIGDIR says
}


def name_of(requirement: str) -> str:
    """The distribution that a requirement asks for, spelled as the lock spells it."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def sources(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    """Every module of the packages: its path in the repository and its syntax tree."""
    for package in packages:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            yield path.relative_to(REPOSITORY).as_posix(), ast.parse(path.read_text(), str(path))


def imported(tree: ast.Module) -> set[str]:
    """The top-level names of all that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_the_lock_names_no_url() -> None:
    assert "://" not in LOCK
    assert "@ " not in LOCK


def test_every_pin_has_hashes() -> None:
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"(?m)^\s*#.*\n", "", LOCK).strip())
    assert len(entries) == len(PINS)
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("requirement", DEPENDENCIES)
def test_the_lock_pins_what_the_project_needs(requirement: str) -> None:
    from packaging.requirements import Requirement

    assert name_of(requirement) in PINS, "regenerate requirements.lock; its first lines say how"
    assert Requirement(requirement).specifier.contains(PINS[name_of(requirement)])


def test_what_is_installed_is_what_is_locked() -> None:
    installed = {name_of(each.name): each.version for each in importlib.metadata.distributions()}
    differing = {name: (pin, installed[name]) for name, pin in PINS.items() if installed.get(name, pin) != pin}
    assert differing == {}, "run make install"


def test_extension_wheels_match_duckdb() -> None:
    extensions = {name: pin for name, pin in PINS.items() if name.startswith("duckdb-extension")}
    assert len(extensions) >= 4
    assert set(extensions.values()) == {PINS["duckdb"]}


def test_loaders_know_nothing_of_what_reads_them() -> None:
    for path, tree in sources("loaders"):
        assert not imported(tree) & {"dbt", "duckdb", "market_data"}, path


def test_loading_loaders_loads_neither_dbt_nor_duckdb() -> None:
    modules = [path.removesuffix(".py").replace("/", ".") for path, _ in sources("loaders")]
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name.removesuffix(".__init__"))
print(*sorted({{"dbt", "duckdb", "market_data"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_environment_is_read_in_one_place() -> None:
    readers = {
        path
        for path, tree in sources("loaders", "market_data")
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"})
        or (isinstance(node, ast.alias) and node.name in {"environ", "environb", "getenv"})
    }
    assert readers <= MAY_TOUCH_ENVIRONMENT


def test_no_file_names_a_place_of_one_machine() -> None:
    places = re.compile(rb"(?<![\w.}])/(?:work|home/\w+|Users/\w+)/\w")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    files = [REPOSITORY / name for name in tracked.stdout.decode().split("\0") if name]
    naming = [
        str(file.relative_to(REPOSITORY))
        for file in files
        if file.is_file() and file != Path(__file__) and places.search(file.read_bytes())
    ]
    assert naming == []
