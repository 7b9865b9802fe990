"""How answers look: a table on a terminal, JSON lines, CSV, a Parquet file; and how to attach the lake elsewhere."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loaders.settings import Settings
from market_data import lake, publishing
from market_data.client import Answer, published_version


def write(answer: Answer, screen: Console, *, style: str | None, file: Path | None, rows: int) -> None:
    """Show an answer in the given style; ``rows`` limits only the table on the terminal."""
    if file is not None:
        pq.write_table(answer.arrow, file)
        screen.print(f"wrote {answer.arrow.num_rows:,} rows to {file}")
    elif style == "csv":
        _copy(answer.arrow, "format csv, header")
    elif style == "json":
        _copy(answer.arrow, "format json")
    else:
        screen.print(as_table(answer.arrow, rows))
        shown = min(rows, answer.arrow.num_rows)
        screen.print(f"{shown:,} of {answer.arrow.num_rows:,} rows, version {answer.version}", style="dim")


def _copy(rows: pa.Table, options: str) -> None:
    """Write rows to standard output in a format of DuckDB's, which knows every type, nested ones included."""
    with tempfile.TemporaryDirectory() as directory, duckdb.connect() as connection:
        file = Path(directory) / "answer"
        connection.register("answer", rows)
        connection.execute(f"copy (from answer) to {lake.quoted(str(file))} ({options})")
        with file.open("rb") as written:
            shutil.copyfileobj(written, sys.stdout.buffer)
    sys.stdout.flush()


def as_table(rows: pa.Table, limit: int = 50) -> Table:
    """The first rows as a table for a terminal, numbers to the right."""
    table = Table(header_style="bold")
    for field in rows.schema:
        is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        table.add_column(escape(field.name), justify="right" if is_number else "left", overflow="fold")
    with duckdb.connect() as connection:
        head = rows.slice(0, limit)
        connection.register("head", head)
        texts = connection.execute("select columns(*)::varchar from head").fetchall() if rows.num_columns else []
    for row in texts:
        table.add_row(*("" if value is None else escape(value) for value in row))
    return table


def show_connections(settings: Settings, screen: Console) -> None:
    """Print the statements that attach the published version, ready to be pasted."""
    version = published_version(settings)
    publishing.write_connect_script(settings, version)
    script = publishing.connect_script(settings)
    loads = "\n".join(f"  LOAD {lake.quoted(str(lake.extension_file(name)))};" for name in lake.extensions(settings))
    screen.print(f"[bold]The published version is {version}.[/bold] A reader sees it whole, whatever is being built.\n")
    screen.print("[bold]DuckDB[/bold] (any client of 1.5):")
    _literal(
        screen,
        f"{loads}\n  {lake.attach_statement(settings, version)};\n  FROM lake.research.bars_1d_as_of('2024-05-01');\n",
    )
    screen.print(
        "[bold]DuckDB's shell and BI tools[/bold], always the last published version: run this script on connecting."
    )
    _literal(screen, f"  .read {script}\n")
    screen.print("[bold]Python[/bold]:")
    _literal(
        screen,
        "  import market_data\n"
        "  md = market_data.connect()\n"
        "  md.bars(known_at='2024-05-01').pl()          # as known then\n"
        "  md.macro('GDP', known_at=market_data.LATEST)  # all that this version knows\n",
    )
    if lake.s3_statements(settings):
        screen.print("S3 credentials are not printed: give DuckDB a secret (CREATE SECRET … TYPE s3) first.")


def _literal(screen: Console, text: str) -> None:
    screen.print(text, highlight=False, markup=False, soft_wrap=True)
