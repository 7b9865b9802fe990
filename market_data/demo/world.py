"""The demo's world: small files in the vendors' own formats, and the truth about them.

    crypto ──────┐
    equities ────┤              ┌─ DIR/<delivery>/<file> ... what a loader loads
    reference ───┼─ parcels ────┤
    macro ───────┘              └─ Tally ── DIR/truth.json    what must come of it

Needs no network, no clock and no random numbers but its own, so that a seed always gives the same world.
Every file's content is the same on every machine; the compressed bytes are, for the same zlib.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from market_data.demo.crypto import binance, coinbase
from market_data.demo.equities import COMPANIES, equities, sessions
from market_data.demo.macro import macro, questions
from market_data.demo.reference import reference
from market_data.demo.truth import Parcel, Tally, Truth

TRUTH = "truth.json"


def parcels(seed: int) -> Iterator[Parcel]:
    """All files, for one key in the order of knowledge."""
    yield from binance(seed)
    yield from coinbase(seed)
    yield from equities(seed)
    yield from reference(seed)
    yield from macro(seed)


def generate(directory: Path, seed: int = 7) -> Truth:
    """Write the world below `directory` (made if need be) and answer the truth, also as `truth.json`.

    `Truth.deliveries` lists the files in the order in which the demo loads them. The directory must be
    empty: files of another world beside these would be loaded with them.

    Raises FileExistsError if `directory` holds anything.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty: name an empty directory for the demo's world")
    tally = Tally()
    for parcel in parcels(seed):
        path = directory / parcel.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(parcel.body)
        tally.take(parcel)
    tickers = {name for company in COMPANIES for name in (company.ticker, company.later) if name}
    truth = tally.truth(seed, questions(seed), map(str, sessions()), tickers)
    (directory / TRUTH).write_text(truth.text(), encoding="utf-8")
    return truth
