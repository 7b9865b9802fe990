"""`mdp demo` as a newcomer runs it: once from nothing, with nothing of the user's in reach, then again.

mdp demo (a subprocess, its own HOME) ── what it says ──┐
                                     ├── its lake ──────┼── equal to truth.json
                                     └── revision.png, and the commands that it ends with
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from worlds import pages

import market_data
from loaders.ledger import Ledger
from loaders.settings import Settings
from loaders.store import open_store
from market_data.demo import show
from market_data.demo.truth import Truth

REPOSITORY = Path(__file__).resolve().parents[2]
MDP = Path(sys.prefix) / "bin" / "mdp"
BLUE, VERMILION = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


@dataclass(frozen=True)
class Demo:
    """A demo that was run in `home.parent / "here"`, and what it said."""

    here: Path
    env: dict[str, str]
    done: subprocess.CompletedProcess[str]
    seconds: float
    written_elsewhere: set[Path]

    @property
    def place(self) -> Path:
        return self.here / "the demo"

    @property
    def truth(self) -> Truth:
        return Truth.read(self.place / "world" / "truth.json")

    @property
    def settings(self) -> Settings:
        return replace(
            Settings.from_env({}),
            raw=str(self.place / "raw"),
            lake=str(self.place / "lake.sqlite"),
            lake_data=str(self.place / "lake_data"),
        )

    @property
    def places(self) -> dict[str, str]:
        """What names the demo's warehouse, for a process or a client."""
        settings = self.settings
        return {"MDP_RAW": settings.raw, "MDP_LAKE": settings.lake, "MDP_LAKE_DATA": settings.lake_data}

    def commands(self) -> list[str]:
        """The lines below "What to try next"."""
        after = self.done.stdout.partition("What to try next")[2].splitlines()[1:]
        return [line.strip() for line in after if line.startswith("  ")]


def run_demo(
    here: Path, env: dict[str, str], *, place: str = "the demo", arguments: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MDP, "demo", "--directory", place, *arguments],
        cwd=here,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=900,
        check=False,
    )


def checkout() -> set[Path]:
    """What stands in the checkout where a careless build would write."""
    skipped = {".git", ".venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}
    found = set()
    for top in (REPOSITORY, REPOSITORY / "dbt_project"):
        found |= {path for path in top.iterdir() if path.name not in skipped}
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One demo, run where HOME and the temporary directory are empty and a warehouse of the user's is named."""
    root = tmp_path_factory.mktemp("demo")
    here, home, scratch = root / "here", root / "home", root / "tmp"
    for directory in (here, home, scratch):
        directory.mkdir()
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(scratch),
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "100",
        "MDP_RAW": str(root / "users-raw"),
        "MDP_LAKE": str(root / "users-lake.sqlite"),
    }
    before = checkout()
    started = time.monotonic()
    done = run_demo(here, env)
    seconds = time.monotonic() - started
    cache = home / ".cache" / "market-data-platform"  # this user's, for all warehouses
    elsewhere = (checkout() - before) | {
        path
        for path in (*root.iterdir(), *here.iterdir(), *home.rglob("*"), *scratch.rglob("*"))
        if path not in (here, home, scratch, here / "the demo", cache.parent) and cache not in (path, *path.parents)
    }
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    yield Demo(here, env, done, seconds, elsewhere)


def test_it_writes_nothing_outside_its_directory(demo: Demo) -> None:
    assert demo.written_elsewhere == set()


def test_its_output_is_plain_in_a_pipe(demo: Demo) -> None:
    assert demo.done.stderr == ""
    assert all(character.isprintable() or character == "\n" for character in demo.done.stdout)


MASTERS = ("ticker_changes", "figi_listings")
"""What symbology and instruments are made of, and no table of its own."""


def relation(name: str) -> str:
    return f"(from versioned.int_{name}__versioned where not is_duplicate)" if name in MASTERS else f"canonical.{name}"


def test_it_says_what_is_in_its_lake(demo: Demo) -> None:
    truth, said = demo.truth, demo.done.stdout
    lines = [line.split() for line in said.splitlines()]
    landed = [one for one in truth.deliveries if one.outcome in ("loaded", "redelivered")]
    with market_data.connect(demo.settings) as client:
        feeds = client.sql(
            "select feed, sum(raw_records)::bigint as raw, sum(canonical_records)::bigint as canonical,"
            " sum(duplicates)::bigint as duplicates, sum(quarantined)::bigint as quarantined"
            " from observability.conservation group by feed"
        ).arrow.to_pylist()
        tables = {
            name: client.sql(f"select count(*) from {relation(name)}").arrow[0][0].as_py() for name in truth.tables
        }
    assert {row["feed"] for row in feeds} == {delivery.feed for delivery in landed}
    for row in feeds:
        own = [delivery for delivery in landed if delivery.feed == row["feed"]]
        assert row["raw"] == sum(delivery.records for delivery in own)
        assert row["canonical"] == sum(sum(delivery.canonical.values()) for delivery in own)
        assert row["duplicates"] == sum(delivery.duplicates for delivery in own)
        assert row["quarantined"] == sum(sum(delivery.quarantined.values()) for delivery in own)
        cells = [f"{number:,}" if number else "-" for number in list(row.values())[1:]]
        (shown,) = [line for line in lines if line[:1] == [row["feed"]]]
        assert shown[1:5] == cells and shown[-1] == "yes"
    assert tables == {name: table.versions for name, table in truth.tables.items()}
    for name, table in truth.tables.items():
        if name in MASTERS:
            continue
        assert any(line[:3] == [f"canonical.{name}", f"{table.keys:,}", f"{table.versions:,}"] for line in lines)


def test_it_finds_all_that_was_planted(demo: Demo) -> None:
    truth, said = demo.truth, demo.done.stdout
    assert "Everything agrees with the world's truth" in said
    for kind, words in (
        ("defect", "broken records set aside"),
        ("duplicate", "records sent twice"),
        ("late", "files come late"),
        ("revision", "values revised"),
        ("cancel", "trades cancelled"),
        ("refused", "files refused whole"),
    ):
        planted = sum(plant.kind == kind for plant in truth.planted)
        (line,) = [line for line in said.splitlines() if words in line]
        assert line.partition(words)[2].split()[:3] == [str(planted), "of", str(planted)]


def test_it_asks_one_question_twice(demo: Demo) -> None:
    (question,) = [one for one in demo.truth.questions if one.name == "second_estimate"]
    (revised,) = [one for one in question.answers if one.observation_date in question.revised]
    (line,) = [line for line in demo.done.stdout.splitlines() if line.startswith(revised.observation_date)]
    before, after = (float(number.replace(",", "")) for number in line.split()[1:3])
    assert (before, after) == (float(revised.before or "nan"), float(revised.after or "nan"))
    with market_data.connect(demo.settings) as client:
        for known_at, value in ((question.ask_before, before), (question.ask_after, after)):
            rows = client.macro(question.series_id, known_at=known_at).arrow.to_pylist()
            answers = {str(row["observation_date"]): row["value"] for row in rows}
            assert answers[revised.observation_date] == value
            assert f".macro('{question.series_id}', known_at='{known_at}')" in demo.done.stdout


def test_its_picture_shows_two_lines(demo: Demo) -> None:
    file = demo.place / "revision.png"
    assert "the demo/revision.png" in demo.done.stdout
    pixels = (imread(file)[..., :3] * 255).round().astype(int)
    height, width, _ = pixels.shape
    assert height >= 700 and width >= 1000
    for colour in (BLUE, VERMILION):
        assert (np.abs(pixels - colour).max(axis=2) <= 2).sum() > 1000
    assert 0.5 < (pixels == 255).all(axis=2).mean() < 0.98


def test_what_to_try_next_works(demo: Demo) -> None:
    export, *commands = demo.commands()
    assert export.startswith("export MDP_RAW=") and len(commands) >= 4
    env = {name: value for name, value in demo.env.items() if not name.startswith("MDP_")}
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", f"{export}\n{command}"],
            cwd=demo.here,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0 and done.stdout.strip(), f"{command}\n{done.stdout}\n{done.stderr}"


def test_a_second_run_changes_nothing(demo: Demo) -> None:
    def state() -> tuple[int, int]:
        entries = list(Ledger(open_store(demo.settings.raw)).entries())
        with market_data.connect(demo.settings) as client:
            return len(entries), client.version

    before = state()
    again = run_demo(demo.here, demo.env)
    assert again.returncode == 0, f"{again.stdout}\n{again.stderr}"
    assert state() == before
    assert "stands already" in again.stdout and f"nothing new: version {before[1]} stands" in again.stdout
    counts = demo.done.stdout.partition("Each raw record")[2].partition("What to try next")[0]
    assert counts and counts in again.stdout


def test_a_directory_that_is_not_the_demos_is_left_alone(demo: Demo) -> None:
    foreign = demo.here.parent / "foreign"
    foreign.mkdir()
    (foreign / "lake.sqlite").write_text("mine")
    for arguments in ((), ("--fresh",)):
        done = run_demo(demo.here, demo.env, place=str(foreign), arguments=arguments)
        assert done.returncode == 1 and "is not the demo's, so nothing was touched" in done.stderr
    assert [path.name for path in foreign.iterdir()] == ["lake.sqlite"]
    assert (foreign / "lake.sqlite").read_text() == "mine"


def test_the_page_on_lineage_says_where_numbers_come_from(demo: Demo) -> None:
    """Its commands, run as they stand there: the records that they lead to, in the files that they name."""
    page = (REPOSITORY / "docs" / "lineage.md").read_text()
    (bar,) = re.findall(r"^```sql\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    shown = []
    for command in re.findall(r"^mdp (trace .*)$", page, flags=re.MULTILINE):
        done = subprocess.run(
            [MDP, *shlex.split(command.partition(" <")[0]), "--json"],
            env=demo.env | demo.places, input=bar, capture_output=True, encoding="utf-8", check=True,
        )  # fmt: skip
        shown.append([json.loads(line) for line in done.stdout.splitlines()])
    vintages, trades = shown
    assert [json.loads(row["record"])["value"] for row in vintages] == ["24198.635", "24147.885"]
    assert all(row["record"] in page for row in vintages[:1])
    file = gzip.decompress(Path(trades[0]["original_file"]).read_bytes()).decode().splitlines()
    for row in trades:
        assert ",".join(json.loads(row["record"]).values()) == file[row["source_position"]].replace('"', "")


@pytest.mark.long
def test_starting_afresh_removes_only_what_the_demo_made(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "truth.json").write_text("{}")
    (tmp_path / "outside").mkdir()
    (tmp_path / "raw").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "kept").write_text("")
    (tmp_path / "notes.txt").write_text("")
    show._clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "notes.txt"}
    assert (tmp_path / "outside" / "kept").exists()


def test_the_tutorial_answers_as_its_page_says(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's cells, run in turn; MDP_WRITE_DOCS=1 writes what they print, and their pictures, into docs/."""
    page = REPOSITORY / "docs" / "tutorial.md"
    for name, value in demo.places.items():
        monkeypatch.setenv(name, value)
    place = page.parent if os.environ.get("MDP_WRITE_DOCS") == "1" else tmp_path
    for cell in pages.run(page, place):
        assert cell.printed == cell.stated, f"{page.name}, line {cell.line}"
    names = pages.pictures(page)
    assert names and {file.name for file in (place / "images").glob("*.png")} >= set(names)
    for name in names:
        drawn, shown = imread(place / "images" / name), imread(page.parent / "images" / name)
        assert drawn.shape == shown.shape, name
        assert drawn[..., :3].std() > 0.05, f"{name} is blank"
        # Fonts differ from machine to machine; most of a picture does not.
        assert np.mean(np.abs(drawn - shown) > 0.1) < 0.05, f"{name} looks otherwise; MDP_WRITE_DOCS=1 draws it anew"
