"""`mdp seal`: the command line of sealing.

mdp seal --feed F ── loaders/seal.py ──▶ one line a day; exit code 0, 1 (a day could not be sealed) or 2 (usage)
"""

from __future__ import annotations

import click

from loaders import failpoints
from loaders.registry import RegistryError, find_feed, load_registry
from loaders.seal import GRACE_DAYS, SealError, check_closed, seal
from loaders.settings import Settings, SettingsError
from loaders.store import StoreError


@click.command("seal")
@click.option("--feed", "name", required=True, metavar="FEED", help="The feed whose days are sealed.")
@click.option("--date", metavar="DATE", help="One day of loading (ingest_date, UTC); by default all that are over.")
@click.option(
    "--grace-days",
    type=click.FloatRange(0),
    default=GRACE_DAYS,
    show_default=True,
    help="How long the files that a seal replaces stay: longer than any build takes.",
)
def seal_days(name: str, date: str | None, grace_days: float) -> None:
    """Make days of the raw zone that are over into few files, one an instrument.

    \b
    What came up to yesterday; run it once a day, beside whatever else is at work:
        mdp seal --feed binance_spot
    One day:
        mdp seal --feed binance_spot --date 2024-08-08

    Each record stays as it came, byte for byte, which is checked before anything changes for readers. The files that
    were replaced are removed by a later run, after the grace period. A seal that was killed is simply run again. Loads
    that are committed to such a day later are sealed by the next run.
    """
    try:
        settings = Settings.from_env()
        failpoints.arm(settings.failpoint)
        feed = find_feed(name, load_registry())
        if date is not None:
            check_closed(date)
    except (RegistryError, SettingsError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    told = 0
    try:
        for outcome in seal(feed, settings, date, grace_days=grace_days):
            click.echo(outcome.message)
            told += 1
    except (SealError, StoreError) as error:
        raise click.ClickException(f"{error}. Days named before are sealed; run it again to go on") from error
    if not told:
        click.echo(f"{feed.name}: no day to seal; what is loaded today can be sealed from tomorrow on")
