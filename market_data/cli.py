"""`mdp`: the command line.

mdp load file ──> raw zone ── mdp build ──> published version ── mdp sql, mdp status, mdp connect
mdp demo does all of it on a world of its own.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
import duckdb
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loaders import logs, screens
from loaders.backfill import backfill
from loaders.cli import load
from loaders.kafka_cli import CLIENT, capture, load_kafka, replay_kafka, streams_of, until_of
from loaders.registry import RegistryError, find_feed, load_registry
from loaders.seal_cli import seal_days
from loaders.settings import Settings, SettingsError, log_style
from loaders.store import StoreError
from market_data import lake, lock
from market_data.client import NotPublishedError, published_version

log = logging.getLogger(__name__)

screen = screens.screen()
notes = Console(stderr=True)


class _Commands(click.Group):
    """Errors that a person can act on are told in one line, not as a traceback.

    Where a reader of the output has gone, as `| head` does, the command ends without a word, with exit code 1.
    """

    def invoke(self, context: click.Context) -> Any:
        try:
            logs.configure(log_style())
            return self._flushed(context)
        except click.ClickException as error:
            if logs.style() == "text":
                raise
            logs.event(log, "failed", error.format_message(), logging.ERROR)
            sys.exit(error.exit_code)
        except (SettingsError, RegistryError, StoreError, NotPublishedError, lock.LakeBusyError) as error:
            fail(str(error))
        except duckdb.Error as error:
            fail(f"the lake cannot be used: {error}")
        except OSError as error:
            if isinstance(error, BrokenPipeError) and _output_has_no_reader():
                raise  # click ends quietly
            fail(str(error))

    def _flushed(self, context: click.Context) -> Any:
        """Run the command, and write what it has shown while a failure of that can still be told."""
        try:
            return super().invoke(context)
        finally:
            _flush()


def _flush() -> None:
    """Write out what was shown. Raises OSError where that fails; what was not written is dropped then."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # click drops it
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter fails on it at exit
        raise


def _output_has_no_reader() -> bool:
    """Whether the standard output is a pipe that nobody reads any more; other pipes may break too."""
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _needs_a_lake(settings: Settings) -> None:
    """Leave, having made nothing, where there is no lake. ``published_version`` raises then, and says how to begin."""
    if not lake.exists(settings):
        published_version(settings)


def fail(message: str) -> NoReturn:
    """Say what is wrong, and leave with exit code 1."""
    if logs.style() == "json":
        logs.event(log, "failed", message, logging.ERROR)
    else:
        notes.print(f"[red]mdp:[/red] {message}", highlight=False, soft_wrap=True)
    sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="market-data-platform")
def main() -> None:
    """A warehouse for market data: every tick as it came, every table as it was known then.

    \b
    mdp demo                                    see all of it, on a small made-up world
    mdp load file --feed massive_trades inbox/  land vendor files, unchanged
    mdp build                                   make tables of what is new, test them, publish them
    mdp sql "from research.bars_1d_as_of('2024-05-01')"
    mdp status                                  what came when, what was quarantined, how fresh it is
    mdp doctor                                  whether the raw zone, the lake and Kafka can be used
    mdp trace "from canonical.trades limit 1"   the raw record behind a row, and the file that holds it
    mdp quarantine list                         what cannot be used, and why
    mdp reprocess --feed binance_spot           read loads again that other code has read
    mdp connect                                 how to attach the lake from DuckDB, Python and BI tools
    mdp releases                                what changed from version to version; pins, which keep one for ever
    mdp leakcheck features.sql                  whether a query of yours looks ahead, and by which input

    Where things are: MDP_RAW (raw zone), MDP_LAKE (catalog), MDP_LAKE_DATA (the lake's files), by default all
    below ./warehouse.
    """


load.add_command(load_kafka)
main.add_command(load)
main.add_command(capture)
main.add_command(backfill)
main.add_command(replay_kafka)
main.add_command(seal_days)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for a build, on the terminal's error stream; silent where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def advance(name: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=f"{what}: {name[:60]}")

        yield advance


@main.command()
@click.option("--full-refresh", is_flag=True, help="Make every table anew from the raw zone.")
def build(full_refresh: bool) -> None:
    """Build what is new, test it and publish it.

    Reads only the loads that the lake has not taken in yet. If a model or a test fails, readers keep the version
    they had, and the next build first takes back what this one wrote.
    """
    from market_data import build as building

    settings = Settings.from_env()
    try:
        with progress_bar("building") as progress:
            outcome = building.build(settings, full_refresh=full_refresh, progress=progress)
    except building.BuildFailedError as error:
        _failed("the build failed; nothing was published", error.failures, settings)
    _tell(outcome)


@main.command()
def publish() -> None:
    """Test what plain dbt wrote since the published version, and publish it."""
    from market_data import build as building

    settings = Settings.from_env()
    _needs_a_lake(settings)
    try:
        with progress_bar("testing") as progress:
            outcome = building.publish(settings, progress=progress)
    except building.BuildFailedError as error:
        _failed("nothing was published", error.failures, settings)
    _tell(outcome)


@main.command()
@click.option("--tables", is_flag=True, help="Check the lake instead: every data test over every row.")
@click.option("--feed", metavar="FEED", help="Walk the ledger of one feed only.")
@click.option("--hashes", is_flag=True, help="Read every byte and compare its hash, not only sizes and row counts.")
def verify(tables: bool, feed: str | None, hashes: bool) -> None:
    """Check that the raw zone holds what its ledger says, or (--tables) that the lake holds what it promises.

    Names each fault and each hole, with its way out. The exit code is 1 if there is a fault. Holes that were accepted
    when they were met, and files that no entry names, are told and are no faults.
    """
    if tables and (feed or hashes):
        raise click.UsageError("--tables checks the whole lake; --feed and --hashes are for the ledger")
    if not tables:
        _verify_ledger(feed, hashes)
        return
    from market_data import build as building

    settings = Settings.from_env()
    _needs_a_lake(settings)
    try:
        with progress_bar("verifying") as progress:
            building.verify_tables(settings, progress=progress)
    except building.BuildFailedError as error:
        _failed("the lake does not hold what it promises", error.failures, settings)
    screen.print("every test holds on every row")


def _verify_ledger(feed: str | None, hashes: bool) -> None:
    from loaders import verify as ledger

    def say(line: object) -> None:
        screen.print(str(line), markup=False, highlight=False, soft_wrap=True)

    try:
        if feed is not None:
            find_feed(feed, load_registry())
        with progress_bar("verifying") as progress:
            summary = ledger.verify(Settings.from_env(), feed=feed, hashes=hashes, tell=say, progress=progress)
    except RegistryError as error:
        raise click.UsageError(str(error)) from error
    except StoreError as error:
        fail(str(error))
    for line in summary.lines():
        say(line)
    sys.exit(0 if summary.ok else 1)


def _failed(what: str, failures: list[str], settings: Settings) -> NoReturn:
    for failure in failures if logs.style() == "text" else ():
        notes.print(f"[red]✗[/red] {failure}", highlight=False, soft_wrap=True)
    fail(f"{what} (log: {settings.state_dir / 'logs' / 'dbt.log'})")


def _tell(outcome: Any) -> None:
    from market_data import output

    if outcome.restored:
        screen.print("took back what an unfinished run had left")
    if not outcome.built:
        screen.print(f"nothing new: version {outcome.version} stands")
        return
    if outcome.read_otherwise:
        screen.print(output.told_read_otherwise(outcome.read_otherwise), soft_wrap=True)
    if outcome.other_code:
        screen.print(
            "the project has changed since the last version: derived tables keep rows that nothing new reaches;"
            " `mdp build --full-refresh` makes all anew",
            soft_wrap=True,
        )
    if outcome.quarantined:
        screen.print(
            f"[yellow]{outcome.quarantined:,} records of the new loads cannot be used[/yellow]; why:"
            " `mdp quarantine list`",
            soft_wrap=True,
        )
    screen.print(
        f"published version {outcome.version}, with {outcome.new_loads} new load{'s' if outcome.new_loads != 1 else ''}"
    )


@main.command()
@click.option(
    "--keep-days", type=click.FloatRange(min=0), help="Keep every version this long [default: MDP_KEEP_DAYS, 7]."
)
@click.option(
    "--grace",
    "grace_hours",
    type=click.FloatRange(min=0),
    default=6,
    show_default=True,
    metavar="HOURS",
    help="Files go this long after the last version that needs them: longer than the longest query.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def maintain(keep_days: float | None, grace_hours: float, dry_run: bool) -> None:
    """Put small files together, expire old versions and remove files that nobody needs.

    Readers and their versions stay as they are. Kept are the last version of each UTC day, pinned ones, and all of the
    last seven days. Where a build failed or is not published yet, files are left as they are, and the rest is done.
    Files of the raw zone that killed loaders never finished go after a day.
    """
    from market_data import maintenance, output

    settings = Settings.from_env()
    _needs_a_lake(settings)
    try:
        done = maintenance.maintain(
            settings, keep_days=keep_days, grace=dt.timedelta(hours=grace_hours), dry_run=dry_run
        )
    except maintenance.MaintenanceError as error:
        fail(str(error))
    output.show_maintenance(done, screen, dry_run=dry_run)


@main.command()
@click.option("--feed", "feeds", required=True, multiple=True, metavar="FEED", help="A feed; may be repeated.")
@click.option(
    "--from", "since", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="Only loads delivered since (UTC)."
)
@click.option("--all", "everything", is_flag=True, help="Also what this code has read already.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def reprocess(feeds: tuple[str, ...], since: dt.datetime | None, everything: bool, as_json: bool) -> None:
    """Read the loads again that other code, or another registry, has read.

    \b
    mdp reprocess --feed binance_spot
    mdp reprocess --feed massive_trades --from 2024-03-01

    Builds what is new first. Reads in slices, so that memory is bounded, behind the published version, and publishes
    once, at the end; stopped before, the next build takes everything back. A stream's load counts as delivered when
    it was loaded.
    """
    from market_data import build as building
    from market_data import reprocessing

    settings, registry = Settings.from_env(), load_registry()
    try:
        for feed in feeds:
            find_feed(feed, registry)
    except RegistryError as error:
        raise click.UsageError(str(error)) from error
    try:
        with progress_bar("reading again") as progress:
            done = reprocessing.reprocess(
                settings, feeds, since=since.date() if since else None, everything=everything, progress=progress
            )
    except building.BuildFailedError as error:
        _failed("it failed; nothing was published", error.failures, settings)
    _tell_reread(done, _why_not_reread(done, feeds, since), as_json)


def _why_not_reread(done: Any, feeds: tuple[str, ...], since: dt.datetime | None) -> str:
    named = " or ".join(feeds)
    if done.asked_for:
        return "every load was read by the code of today: nothing to do"
    if done.last_delivered is None:
        return f"nothing was ever loaded of {named}: nothing to do (`mdp status` lists the feeds)"
    return (
        f"no load of {named} was delivered since {since:%Y-%m-%d}, the last was on {done.last_delivered}: nothing to do"
    )


def _tell_reread(done: Any, nothing: str, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        click.echo(json.dumps(asdict(done)))
    elif not done.loads:
        screen.print(f"{nothing}; version {done.version} stands")
    else:
        screen.print(
            f"read {done.loads:,} loads again, {done.records:,} records in {done.slices:,} slices;"
            f" {done.quarantined_before:,} of them could not be used, now {done.quarantined:,}",
            soft_wrap=True,
        )
        screen.print(f"published version {done.version}")


@main.group()
def quarantine() -> None:
    """Records that cannot be used: count them, look at them, read them again."""


def _choice(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--load", "load_id", metavar="LOAD_ID", help="Of one load."),
        click.option("--reason", metavar="REASON", help="Of one reason; docs/quarantine.md lists them."),
        click.option("--feed", metavar="FEED", help="Of one feed."),
    ):
        command = option(command)
    return command


def _chosen(feed: str | None, reason: str | None, load_id: str | None) -> Any:
    from market_data.quarantine import Chosen

    try:
        if feed is not None:
            find_feed(feed, load_registry())
    except RegistryError as error:
        raise click.UsageError(str(error)) from error
    return Chosen(feed, reason, load_id)


def _why_none(settings: Settings, chosen: Any) -> str:
    """What to say where no record is chosen; fails for a reason or a load that does not exist."""
    from market_data import quarantine as quarantined

    try:
        return quarantined.why_none(settings, chosen)
    except quarantined.UnknownError as error:
        fail(str(error))


@quarantine.command("list")
@_choice
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_quarantine(feed: str | None, reason: str | None, load_id: str | None, as_json: bool) -> None:
    """Count them by feed, reason and kind.

    may_be_read: other code has judged some of them; `mdp quarantine retry` has them judged again.
    """
    from market_data import output
    from market_data import quarantine as quarantined

    settings, chosen = Settings.from_env(), _chosen(feed, reason, load_id)
    found = quarantined.groups(settings, chosen)
    nothing = "" if found.num_rows else _why_none(settings, chosen)
    output.show_rows(found, screen, as_json=as_json, nothing=nothing)


@quarantine.command("show")
@_choice
@click.option("--rows", "most", type=click.IntRange(1), default=20, show_default=True, help="Records to show.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def show_quarantine(feed: str | None, reason: str | None, load_id: str | None, most: int, as_json: bool) -> None:
    """Show records with what is wrong, where they are, and their text."""
    from market_data import output
    from market_data import quarantine as quarantined

    settings, chosen = Settings.from_env(), _chosen(feed, reason, load_id)
    found, all_records = quarantined.records(settings, chosen, most)
    nothing = "" if all_records else _why_none(settings, chosen)
    if as_json or not all_records:
        output.show_rows(found, screen, as_json=as_json, nothing=nothing)
    else:
        output.show_quarantined(found, all_records, screen)


@quarantine.command("retry")
@_choice
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def retry_quarantine(feed: str | None, reason: str | None, load_id: str | None, as_json: bool) -> None:
    """Read the loads of such records again, where other code has judged them.

    What can be read now becomes canonical, known from when it could have been known, and leaves the quarantine. Loads
    that the code of today has judged already would be judged the same and stay as they are.
    """
    from market_data import build as building
    from market_data import quarantine as quarantined

    settings, chosen = Settings.from_env(), _chosen(feed, reason, load_id)
    try:
        with progress_bar("reading again") as progress:
            done = quarantined.retry(settings, chosen, progress)
    except building.BuildFailedError as error:
        _failed("it failed; nothing was published", error.failures, settings)
    nothing = "the code of today has judged all of these already: nothing to do"
    if not done.loads and not quarantined.groups(settings, chosen).num_rows:
        nothing = _why_none(settings, chosen)
    _tell_reread(done, nothing, as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(as_json: bool) -> None:
    """Show, per feed: the last load, rows, what was quarantined, and how fresh it is; for streams, the lag too.

    Lag is by offsets: what the brokers have and the ledger has not. Brokers that do not answer within three seconds
    are told, and what the ledger says is shown.
    """
    from market_data import status as overview

    settings = Settings.from_env()
    found = overview.overview(settings)
    if as_json:
        click.echo(overview.as_json(found))
    else:
        overview.show(found, screen)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool) -> None:
    """Look at the set-up, before anything is loaded or built, and say what works.

    Tries the raw zone, first of all whether of several writers of one object exactly one wins, which the ledger
    stands on and not every S3 server keeps; then the lake, Kafka and the clock. Leaves nothing behind. Brokers that
    do not answer are only a warning. The exit code is 1 if anything fails.
    """
    from market_data import doctor as checking

    checks = checking.examine()
    if as_json:
        click.echo(checking.as_json(checks))
    else:
        checking.show(checks, screen)
    sys.exit(0 if checking.is_well(checks) else 1)


@main.command()
@click.option("--feed", "feeds", required=True, multiple=True, metavar="FEED", help="A stream; may be repeated.")
@click.option("--topic", help="Another topic than the registry's, for a single feed.")
@click.option(
    "--loaders",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes for each feed, which share its partitions.",
)
@click.option("--until", metavar="WHEN", help="Stop there, built: caught-up (what is in Kafka now) or an ISO time.")
@click.option(
    "--segment-seconds",
    type=click.FloatRange(0.01),
    default=1.0,
    show_default=True,
    help="Age of a segment: how long a record may wait to be written.",
)
@click.option("--accept", multiple=True, type=click.Choice(["lost-records", "new-topic"]), help="See mdp load kafka.")
@CLIENT
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65000),
    metavar="PORT",
    help="Answer Prometheus here about builds and processes, and for each loader at the ports that follow.",
)
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="The address to answer Prometheus at.")
def live(
    feeds: tuple[str, ...],
    topic: str | None,
    loaders: int,
    until: str | None,
    segment_seconds: float,
    accept: tuple[str, ...],
    client: str | None,
    metrics_port: int | None,
    metrics_host: str,
) -> None:
    """Load streams and build what they bring, until SIGTERM or Ctrl-C.

    \b
    mdp live --feed binance_spot --feed coinbase_exchange
    mdp live --feed binance_spot --loaders 2 --metrics-port 9100

    As soon as a segment is in the raw zone, what depends on it is built, tested and published; what comes meanwhile is
    taken together by the next build. A build that fails is tried again, later and later, while loading goes on; a
    loader that ends is started again, unless it cannot work as it was told to. mdp status shows all of it.
    """
    from market_data import live as living

    settings = Settings.from_env()
    try:
        streams = streams_of(feeds, topic)
        until_of(until, streams)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    arguments = ["--segment-seconds", str(segment_seconds)]
    for name, value in (("--topic", topic), ("--until", until), ("--client", client)):
        arguments += [name, value] if value is not None else []
    for reason in accept:
        arguments += ["--accept", reason]
    metrics, names = living.Metrics(), [feed.name for feed in streams]
    each = [
        (f"loader {number} of {name}", ["--feed", name, *arguments])
        for name in names
        for number in range(1, loaders + 1)
    ]
    if metrics_port is not None:
        for number, (_, own) in enumerate(each, start=1):
            own += ["--metrics-port", str(metrics_port + number), "--metrics-host", metrics_host]
        living.serve(metrics, metrics_host, metrics_port)
    supervisor = living.Supervisor(settings, names, loaders=each, has_end=until is not None, metrics=metrics)
    try:
        failures = living.supervise(supervisor)
    except living.AlreadyLiveError as error:
        fail(str(error))
    if failures:
        fail("; ".join(failures))


@main.command()
@click.argument("query")
@click.option("--json", "style", flag_value="json", help="One JSON object a line.")
@click.option("--csv", "style", flag_value="csv", help="CSV with a header.")
@click.option("--parquet", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write a Parquet file.")
@click.option("--version", metavar="N", help="Ask a version that was published earlier: its number, or a pin's name.")
@click.option("--rows", default=50, show_default=True, help="Rows of the table to show.")
def sql(query: str, style: str | None, file: Path | None, version: str | None, rows: int) -> None:
    """Ask the published version in SQL; - reads the question from standard input.

    \b
    mdp sql "select venue, count(*) from canonical.trades group by venue"
    mdp sql "from research.macro_series_as_of('2009-02-01')" --csv
    """
    from market_data import connect as connect_client
    from market_data import output

    if query == "-":
        query = sys.stdin.read()
    with connect_client(version=version) as client:
        try:
            kinds = [statement.type.name for statement in duckdb.extract_statements(query)]
            if len(kinds) != 1 or kinds[0] not in ("SELECT", "EXPLAIN"):
                fail("`mdp sql` takes only queries, one at a time (SELECT, FROM, DESCRIBE, EXPLAIN)")
            answer = client.sql(query)
        except duckdb.Error as error:
            fail(str(error))
    output.write(answer, screen, style=style, file=file, rows=rows)


@main.command()
@click.argument("query")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row.")
@click.option("--version", metavar="N", help="Ask a version that was published earlier: its number, or a pin's name.")
@click.option("--rows", "most", type=click.IntRange(1), default=20, show_default=True, help="Rows to trace.")
def trace(query: str, as_json: bool, version: str | None, most: int) -> None:
    """Show the raw records that the rows of an answer come from, and what holds them; - reads the question from
    standard input.

    \b
    mdp trace "select * from canonical.trades where symbol = 'AAPL' order by price desc limit 1"

    The rows must have load_id, source_partition and source_position, as those of schema canonical have. The exit
    code is 1 if the raw zone lacks a record.
    """
    from market_data import connect as connect_client
    from market_data import output
    from market_data.trace import NotTraceableError, records

    if query == "-":
        query = sys.stdin.read()
    with connect_client(version=version) as client:
        try:
            found = records(client, Settings.from_env(), query, most + 1).arrow
        except (duckdb.Error, NotTraceableError) as error:
            fail(str(error))
    if found.num_rows > most:
        found = found.slice(0, most)
        notes.print(f"the first {most:,} rows; --rows N traces more", style="dim")
    if as_json or not found.num_rows:
        output.show_rows(found, screen, as_json=as_json, nothing="the answer has no rows")
    else:
        output.show_traced(found, screen)
    sys.exit(1 if found["raw_object"].null_count else 0)


@main.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a version and line, newest first.")
@click.option("--last", type=click.IntRange(1), default=10, show_default=True, metavar="N", help="How many versions.")
@click.pass_context
def releases(context: click.Context, as_json: bool, last: int) -> None:
    """Show the published versions that are kept: what changed in each, and its pins.

    \b
    mdp releases --last 3
    mdp releases pin paper-2024             keep the last published version for ever, under a name
    mdp releases pin paper-2024 --version 48

    Of each version the loads that are new since the kept version before, those that were read again, and the files that
    were refused; of each table the rows added and revised. A revised row was there and says something else now: as a
    rule since when it is not current any more, for a new version follows it. Numbers that differ by less than one part
    in 10¹² are equal. A view is told by the stored rows that it shows, features_1d by those of the daily tables that it
    joins.
    """
    if context.invoked_subcommand is not None:
        return
    from market_data import output
    from market_data.releases import kept_count, published

    settings = Settings.from_env()
    published_version(settings)
    with lake.open_version(settings, None) as connection:
        found, kept = published(connection, last), kept_count(connection)
    output.show_releases(found, kept, screen, as_json=as_json)


@releases.command()
@click.argument("name")
@click.option("--version", metavar="N", help="A published version, or a pin's name [default: the last one].")
def pin(name: str, version: str | None) -> None:
    """Keep a version for ever, under a name: that of a paper, a backtest, an audit.

    From Python it is market_data.at("NAME"); maintenance does not let it expire.
    """
    from market_data.releases import PinError
    from market_data.releases import pin as keep

    settings = Settings.from_env()
    published_version(settings)
    try:
        number = keep(settings, name, version)
    except PinError as error:
        fail(str(error))
    screen.print(f"version {number} is kept as {name}", highlight=False, markup=False)


@releases.command()
@click.argument("name")
def unpin(name: str) -> None:
    """Take a pin away: the version's age decides again how long it is kept."""
    from market_data.releases import PinError
    from market_data.releases import unpin as let_go

    settings = Settings.from_env()
    published_version(settings)
    try:
        number = let_go(settings, name)
    except PinError as error:
        fail(str(error))
    screen.print(f"{name} does not keep version {number} any more", highlight=False, markup=False)


@main.command()
@click.argument("query", metavar="SQL_FILE|MODEL")
@click.option("--key", metavar="COLUMNS", help="What tells one row from another, by commas [default: all but floats].")
@click.option("--time", metavar="COLUMN", help="When each row was to be had: a column of the answer, or an expression.")
@click.option("--at", "times", multiple=True, metavar="TIME", help="Cut the data then; may be repeated.")
@click.option("--samples", type=click.IntRange(1), default=24, show_default=True, help="About how many times to try.")
@click.option("--version", metavar="N", help="A published version, or a pin's name [default: the last one].")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a leak and line.")
@click.option("--rows", default=20, show_default=True, help="Leaks to show.")
def leakcheck(
    query: str,
    key: str | None,
    time: str | None,
    times: tuple[str, ...],
    samples: int,
    version: str | None,
    as_json: bool,
    rows: int,
) -> None:
    """Check whether a query of your own looks ahead, and which of its inputs it does so by.

    The query is asked again with the data cut to what was known at sampled times; each row that differs is a leak. It
    is a file, or a dbt model, and says as of when with $known_at, or in a comment:

    \b
    -- leakcheck: key = instrument_id, session_date; time = decision_time

    The exit code is 1 if there is a leak, or no row to be compared. docs/leakcheck.md has examples.
    """
    from market_data import connect as connect_client
    from market_data import leakcheck as checking
    from market_data import output
    from market_data.times import instant

    settings = Settings.from_env()
    with connect_client(settings, version=version) as client:
        number = client.version
    try:
        asked = checking.Query.read(
            checking.find(settings, query), [name.strip() for name in (key or "").split(",") if name.strip()], time
        )
        known_at = [dt.datetime.fromisoformat(instant(text, "--at")) for text in times]
        report = checking.check(settings, number, asked, samples=samples, known_at=known_at)
    except ValueError as error:
        fail(str(error))
    except duckdb.Error as error:
        fail(f"the query cannot be asked: {error}")
    output.show_leaks(report, screen, as_json=as_json, rows=rows)
    sys.exit(1 if report.leaks else 0)


@main.command()
@click.option("--version", metavar="N", help="A version that was published earlier: its number, or a pin's name.")
def connect(version: str | None) -> None:
    """Print how to attach the published version, or an earlier one, from DuckDB, Python and BI tools."""
    from market_data import output
    from market_data.releases import kept_version

    settings = Settings.from_env()
    last = published_version(settings)
    if version is None:
        output.show_connections(settings, last, screen)
        return
    with lake.open_version(settings, None) as head:
        number = kept_version(head, version)
    output.show_connections(settings, number, screen, is_last=False)


@main.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    show_default="warehouse/demo, with --kafka warehouse/demo-kafka",
    help="Where the demo's world, warehouse and picture go: a new or empty directory, or an earlier demo's.",
)
@click.option("--kafka", is_flag=True, help="Load the crypto captures from a Kafka broker, started for the demo.")
@click.option("--fresh", is_flag=True, help="Remove what an earlier demo made there, and make it anew.")
def demo(directory: Path | None, kafka: bool, fresh: bool) -> None:
    """Make a small world of vendor files, load and build it, and show what comes of it.

    \b
    Takes one to three minutes, needs no network, and touches neither your raw zone nor your lake.
    Run again, it finds everything loaded and built, changes nothing, and shows it once more.

    With --kafka, from a checkout with Java and Maven, the captures of the two crypto venues are published to a broker
    of services/ that runs as long as the demo, and loaded from there; what comes of them must be the same. The broker's
    data stays in the directory.

    The exit code is 1 where the warehouse does not agree with what is known of its world.
    """
    from market_data.demo import show

    try:
        place = directory or Path("warehouse/demo-kafka" if kafka else "warehouse/demo")
        page = Console(width=None if sys.stdout.isatty() else 120)
        show.run(place, page, fresh=fresh, kafka=kafka)
    except show.DemoError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
