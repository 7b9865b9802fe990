"""How answers look: a table on a terminal, JSON lines, CSV, a Parquet file; and how to attach the lake elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loaders.settings import Settings
from market_data import lake, publishing
from market_data.client import Answer
from market_data.leakcheck import NO_ONE_INPUT, Report, told
from market_data.maintenance import Maintained
from market_data.releases import Change, Published

WIDEST = 40
"""Characters of a value that a terminal's table shows."""
LONGEST = 400
"""Characters of a record that a terminal shows."""


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
        all_rows = answer.arrow.num_rows
        left_out = _show_table(answer.arrow, rows, screen)
        more = f"; --rows {all_rows} shows all" if rows < all_rows else ""
        screen.print(f"{min(rows, all_rows):,} of {all_rows:,} rows, version {answer.version}{more}", style="dim")
        if left_out:
            named = ", ".join(left_out)
            screen.print(f"no room for {named}: name columns, or take --csv or --json", style="dim", markup=False)


def _show_table(rows: pa.Table, limit: int, screen: Console) -> list[str]:
    """Show the first rows; return the columns that a terminal has no room for. Elsewhere there is room for all."""
    table, left_out = as_table(rows, limit, screen.width if screen.is_terminal else None)
    screen.print(table)
    return left_out


def told_read_otherwise(found: Sequence[tuple[str, int]]) -> str:
    """What is to be said of feeds with loads that their code of today has not read, and how many; with markup."""
    named = ", ".join(f"{feed} ({count:,})" for feed, count in found)
    options = "".join(f" --feed {feed}" for feed, _ in found)
    return (
        f"[yellow]loads that other code or another registry has read[/yellow] keep what they were read as: {named};"
        f" `mdp reprocess{options}` reads them again"
    )


def show_rows(rows: pa.Table, screen: Console, *, as_json: bool, nothing: str) -> None:
    """Show a few rows whole, as a table or as JSON lines, or say that there are none."""
    if as_json:
        if rows.num_rows:
            _copy(rows, "format json")
    elif not rows.num_rows:
        screen.print(nothing)
    else:
        left_out = _show_table(rows, rows.num_rows, screen)
        if left_out:
            screen.print(f"no room for {', '.join(left_out)}: take --json, or a pipe", style="dim", markup=False)


def show_quarantined(rows: pa.Table, all_rows: int, screen: Console) -> None:
    """Show records that cannot be used, of so many, each with its place, what is wrong with it, and its text.

    A terminal shows the beginning of a long text, everything else all of it.
    """
    longest = LONGEST if screen.is_terminal else sys.maxsize
    for row in rows.to_pylist():
        _show_place(row, screen)
        again = ", may be read now" if row["may_be_read"] else ""
        said = f"{row['reason']}: {row['detail'] or ''}{again}"
        screen.print(f"  [red]{escape(said)}[/red]", soft_wrap=True, highlight=False)
        text = row["record"] or ""
        screen.print(f"  {escape(text[:longest])}{'…' if len(text) > longest else ''}", soft_wrap=True, highlight=False)
    if rows.num_rows < all_rows:
        _literal(screen, f"{rows.num_rows:,} of {all_rows:,} records; --rows {all_rows} shows all")


def show_traced(rows: pa.Table, screen: Console) -> None:
    """Show the records that rows come from, each with its place, the objects that hold it, and its whole text."""
    for row in rows.to_pylist():
        _show_place(row, screen)
        if row["raw_object"] is None:
            screen.print(
                "  [red]the raw zone has no such record; `mdp verify` says what is amiss[/red]", soft_wrap=True
            )
            continue
        for name in ("raw_object", "original_file"):
            if row[name] is not None:
                screen.print(f"  {name:<13}  {escape(row[name])}", soft_wrap=True, highlight=False)
        text = "[dim]no payload[/dim]" if row["record"] is None else escape(row["record"])
        screen.print(f"  {'record':<13}  {text}", soft_wrap=True, highlight=False)


def _show_place(row: dict[str, Any], screen: Console) -> None:
    place = ":".join(
        str(row[name]) for name in ("source", "source_partition", "source_position") if row[name] is not None
    )
    named = f"[bold]{escape(row['feed'] or 'no feed')}[/bold] {escape(place)}  load {row['load_id']}"
    screen.print(named, soft_wrap=True, highlight=False)


def _copy(rows: pa.Table, options: str) -> None:
    """Write rows to standard output in a format of DuckDB's, which knows every type, nested ones included."""
    with tempfile.TemporaryDirectory() as directory, duckdb.connect() as connection:
        file = Path(directory) / "answer"
        connection.register("answer", rows)
        connection.execute(f"copy (from answer) to {lake.quoted(str(file))} ({options})")
        with file.open("rb") as written:
            shutil.copyfileobj(written, sys.stdout.buffer)
    sys.stdout.flush()


def as_table(rows: pa.Table, limit: int, width: int | None) -> tuple[Table, list[str]]:
    """The first rows as a table ``width`` characters wide, and the names of the columns that have no room in it.

    Without a width every column and every value has room. Numbers stand to the right, with twelve significant digits:
    more is the noise of sums.
    """
    texts = _texts(rows.slice(0, limit))
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    used, shown = 0, 0
    for position, field in enumerate(rows.schema):
        needed = max([len(field.name), *(min(len(row[position]), WIDEST) for row in texts)]) + 2
        if width is not None and shown and used + needed > width:
            break
        is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        justify: Literal["left", "right"] = "right" if is_number else "left"
        widest = None if width is None else max(WIDEST, len(field.name))
        table.add_column(escape(field.name), justify=justify, no_wrap=True, max_width=widest)
        used, shown = used + needed, shown + 1
    for row in texts:
        table.add_row(*(escape(value) for value in row[:shown]))
    return table, rows.column_names[shown:]


def _texts(rows: pa.Table) -> list[tuple[str, ...]]:
    if not rows.num_columns:
        return []
    columns = ", ".join(
        f"coalesce(printf('%.12g', {lake.identifier(field.name)}), '')"
        if pa.types.is_floating(field.type)
        else f"coalesce({lake.identifier(field.name)}::varchar, '')"
        for field in rows.schema
    )
    with duckdb.connect() as connection:
        connection.register("answer", rows)
        return connection.execute(f"select {columns} from answer").fetchall()


def show_connections(settings: Settings, version: int, screen: Console, *, is_last: bool = True) -> None:
    """Print the statements that attach a published version, ready to be pasted."""
    loads = "\n".join(f"  LOAD {lake.quoted(str(lake.extension_file(name)))};" for name in lake.extensions(settings))
    what = "The published version is" if is_last else "An earlier version:"
    screen.print(f"[bold]{what} {version}.[/bold] A reader sees it whole, whatever is being built.\n")
    screen.print(f"[bold]DuckDB[/bold] {duckdb.__version__}, for which these extensions are built:")
    _literal(
        screen,
        f"{loads}\n  {lake.attach_statement(settings, version)};\n  {lake.KEEP_ROWS};\n"
        "  FROM lake.research.bars_1d_as_of('2024-05-01');\n",
    )
    if is_last:
        publishing.write_connect_script(settings, version)
        screen.print("[bold]BI tools and DuckDB's shell[/bold] (.read FILE): a script to run on connecting, rewritten")
        screen.print("by each publication, so that it always attaches the last published version:")
        _literal(screen, f"  {publishing.connect_script(settings)}\n")
    screen.print("[bold]Python[/bold]:")
    _literal(
        screen,
        "  import market_data\n"
        f"  md = market_data.{'connect()' if is_last else f'at({version})'}\n"
        "  md.bars(known_at='2024-05-01').pl()          # as known then\n"
        "  md.macro('GDP', known_at=market_data.LATEST)  # all that this version knows\n",
    )
    if lake.s3_statements(settings):
        screen.print("S3 credentials are not printed: give DuckDB a secret (CREATE SECRET … TYPE s3) first.")


def _literal(screen: Console, text: str) -> None:
    screen.print(text, highlight=False, markup=False, soft_wrap=True)


def show_maintenance(done: Maintained, screen: Console, *, dry_run: bool) -> None:
    """Say what maintenance did, or would do: table by table its files, then versions and files that went."""

    def say(line: str) -> None:
        screen.print(line, soft_wrap=True, highlight=False, markup=False)

    if done.why_not_compacted:
        say(f"files were left as they are: {done.why_not_compacted}")
    for task in done.due:
        what = f"{_count(len(task.files), 'file')} of {task.bytes:,} bytes" if task.files else "rows in the catalog"
        say(f"would {task.kind} {task.name}: {what}")
    for name, (before, after) in sorted(done.tables.items()):
        size = f"{before.bytes:,} to {after.bytes:,} bytes"
        say(f"{name}: {_count(before.count, 'file')} to {after.count:,}, {size}")
    if done.published:
        say(f"published version {done.version}: the same rows in other files")
    would = "would expire" if dry_run else "expired"
    keep = "would keep" if dry_run else "kept"
    later = f" and {_count(done.later, 'snapshot')} that came after the last one" if done.later else ""
    say(f"{would} {_count(done.expired, 'snapshot')}; {keep} {_count(done.kept, 'published version')}{later}")
    would = "would remove" if dry_run else "removed"
    say(f"{would} {_count(done.removed, 'file')} that no kept version needs; {done.waiting:,} wait for readers to end")
    if done.why_no_orphans:
        say(f"looked for no files of killed writers: {done.why_no_orphans}")
    elif done.orphans:
        say(f"{would} {_count(done.orphans, 'file')} that killed writers left")
    if done.why_no_unfinished:
        say(f"looked for nothing that killed loaders left in the raw zone: {done.why_no_unfinished}")
    elif done.unfinished:
        say(f"{would} {_count(done.unfinished, 'unfinished file')} that killed loaders left in the raw zone")


def show_releases(found: list[Published], kept: int, screen: Console, *, as_json: bool) -> None:
    """Show published versions, of so many that are kept, newest first, and of each what changed, table by table."""
    for release in found:
        if as_json:
            sys.stdout.write(json.dumps(release.as_json()) + "\n")
            continue
        pins = f", pinned as {', '.join(release.pins)}" if release.pins else ""
        _literal(
            screen,
            f"version {release.version}, published {release.published_at:%Y-%m-%d %H:%M:%S} UTC,"
            f" {_told_loads(release)}, code {release.code_fingerprint}{pins}",
        )
        for table, change in release.changes.items():
            _literal(screen, f"  {table:<32} {_told(change)}")
    if len(found) < kept and not as_json:
        _literal(screen, f"{len(found):,} of {kept:,} versions that are kept; --last {kept} shows all")


def _told_loads(release: Published) -> str:
    others = ((release.read_again, "read again"), (release.refused, "refused"))
    return ", ".join([_count(release.loads, "new load"), *(f"{number:,} {what}" for number, what in others if number)])


def show_leaks(report: Report, screen: Console, *, as_json: bool, rows: int) -> None:
    """Show what a leak check found: each row that differs, or that none does."""
    if as_json:
        for leak in report.leaks:
            sys.stdout.write(json.dumps(asdict(leak), default=str) + "\n")
        if report.not_cut:
            sys.stdout.write(json.dumps({"not_cut": report.not_cut}) + "\n")
        return
    for leak in report.leaks[:rows]:
        _literal(screen, told(leak))
    if len(report.leaks) > rows:
        _literal(screen, f"… and {len(report.leaks) - rows:,} more; --rows {len(report.leaks)} shows all")
    inputs = sorted({table for leak in report.leaks for table in leak.inputs})
    found = f"{_count(len(report.leaks), 'row')} looked ahead, by {', '.join(inputs) or NO_ONE_INPUT}"
    found = found if report.leaks else f"no leak found{' in what could be cut' if report.not_cut else ''}"
    _literal(
        screen,
        f"{found}: compared {_count(report.rows, 'row')} of version {report.version}"
        f" at {_count(len(report.known_at), 'time')}; inputs {', '.join(report.tables)}",
    )
    if report.not_cut:
        tables = ", ".join(report.not_cut)
        _literal(screen, f"not cut, for they show only the present: {tables}; what looks ahead by them stays unseen")


def _told(change: Change) -> str:
    rows = [
        f"{number:,} {what}"
        for number, what in ((change.added, "added"), (change.revised, "revised"), (change.removed, "removed"))
        if number
    ]
    return ", ".join([*rows, *(["made anew"] if change.is_new else [])])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
