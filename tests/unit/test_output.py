"""Answers on a terminal: whole words, no noise, and a word about what had no room; elsewhere all of it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from loaders import screens
from market_data import output
from market_data.client import Answer, connect
from market_data.maintenance import Maintained


def shown(rows: pa.Table, width: int, is_terminal: bool = True) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=is_terminal)
    output.write(Answer(rows, 7, None), console, style=None, file=None, rows=2)
    return console.export_text()


def test_columns_without_room_are_named() -> None:
    rows = pa.table({f"column_{n}": ["some value"] * 3 for n in range(9)})
    text = shown(rows, 40)
    assert "some value" in text and "column_2  " in text
    assert "2 of 3 rows, version 7" in text
    assert "no room for column_3" in text and "column_8" in text


def test_off_a_terminal_no_column_and_no_cell_is_cut() -> None:
    rows = pa.table(
        {f"column_{n}": [f"a value of {n} that is longer than any of a terminal's" * 3] * 3 for n in range(99)}
    )
    text = shown(rows, screens.WIDE, is_terminal=False)
    for field in rows.schema:
        assert field.name in text and rows[field.name][0].as_py() in text
    assert "no room" not in text
    assert "2 of 3 rows, version 7; --rows 3 shows all" in text
    console = Console(width=40, record=True, file=io.StringIO(), force_terminal=True)
    output.show_rows(rows, console, as_json=False, nothing="")
    assert "no room for column_1, column_2" in console.export_text()


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [("", 1, ""), ("raise BrokenPipeError('a broker has gone')", 1, "mdp: a broker has gone\n")],
)
def test_a_reader_that_has_gone_ends_the_command_without_a_word(raised: str, code: int, said: str) -> None:
    program = (
        "import sys\nfrom market_data import cli\n@cli.main.command()\ndef many():\n    "
        + (raised or "[sys.stdout.write('a line\\n') for _ in range(100_000)]")
        + "\ncli.main(['many'])"
    )
    reads, writes = os.pipe()
    if not raised:
        os.close(reads)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writes, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, said)


def test_output_that_cannot_be_written_is_told_in_a_line() -> None:
    program = (
        "import sys\nfrom market_data import cli\n@cli.main.command()\ndef short():\n    "
        "sys.stdout.write('a line')\n    sys.exit(0)\ncli.main(['short'])"
    )
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, env=buffered, check=False
        )
    assert (done.returncode, done.stderr) == (1, "mdp: [Errno 28] No space left on device\n")


def test_maintenance_says_what_it_would_keep_in_published_versions() -> None:
    done = Maintained(
        version=7, published=False, why_not_compacted=None, due=(), tables={}, kept=1, later=2, expired=3, removed=0,
        waiting=0, orphans=0, why_no_orphans=None, unfinished=0, why_no_unfinished=None,
    )  # fmt: skip
    for dry_run, words in ((True, ("would expire", "would keep")), (False, ("expired", "kept"))):
        console = Console(record=True, width=200, file=io.StringIO())
        output.show_maintenance(done, console, dry_run=dry_run)
        line = f"{words[0]} 3 snapshots; {words[1]} 1 published version and 2 snapshots that came after the last one"
        assert line in console.export_text().splitlines()


def test_numbers_are_shown_without_the_noise_of_sums() -> None:
    text = shown(pa.table({"revision": [-64.30000000000109, None], "n": [1, 2]}), 80)
    assert "-64.3 " in text and "109" not in text


def test_a_path_is_no_settings() -> None:
    with pytest.raises(TypeError, match="MDP_LAKE"):
        connect("/x/lake.sqlite")  # type: ignore[arg-type]
