"""The demo's world: small files in the vendors' own formats, and the truth about them.

    binance ─────┐
    coinbase ────┤
    equities ────┤              ┌─ DIR/<delivery>/<file> ... what a loader loads
    reference ───┼─ parcels ────┤
    macro ───────┘              └─ Tally ── DIR/truth.json    what must come of it

Needs no network, no clock and no random numbers but its own, so that a seed always gives the same world.
Every file's content is the same on every machine; the compressed bytes are, for the same zlib.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from market_data.demo.binance import binance
from market_data.demo.coinbase import coinbase
from market_data.demo.crypto import STREAMS
from market_data.demo.equities import COMPANIES, sessions
from market_data.demo.flat_files import equities
from market_data.demo.macro import macro, questions
from market_data.demo.reference import reference
from market_data.demo.truth import Parcel, Tally, Truth, published

TRUTH = "truth.json"


def parcels(seed: int) -> Iterator[Parcel]:
    """All files, for one key in the order of knowledge."""
    yield from binance(seed)
    yield from coinbase(seed)
    yield from equities(seed)
    yield from reference(seed)
    yield from macro(seed)


def generate(directory: Path, seed: int = 7, *, kafka: bool = False) -> Truth:
    """Write the world below `directory` (made if need be) and answer the truth, also as `truth.json`.

    `Truth.deliveries` lists the files in the order in which the demo loads them. To write again over the
    same or an unfinished world is safe. With `kafka` the files are the same, and the truth is of captures that come by
    Kafka.

    Raises FileExistsError if `directory` holds files of anything else, which a loader would take for a part
    of the world.
    """
    tally = Tally()
    written = {directory / TRUTH}
    for parcel in parcels(seed):
        path = directory / parcel.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(parcel.body)
        written.add(path)
        tally.take(published(parcel) if kafka and parcel.feed in STREAMS else parcel)
    strange = {path for path in directory.rglob("*") if path.is_file()} - written
    if strange:
        raise FileExistsError(f"{min(strange)} is not of the demo's world: name an empty directory for it")
    tickers = {name for company in COMPANIES for name in (company.ticker, company.later) if name}
    truth = tally.truth(seed, questions(seed), map(str, sessions()), tickers)
    (directory / TRUTH).write_bytes(truth.text().encode())
    return truth
