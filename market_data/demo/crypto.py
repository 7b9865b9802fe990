"""What the two crypto venues share: pairs, prices, books, and how a recorder cuts its files.

    one path of prices per pair ─┬─ binance.binance_stream(pair) ──── parts() ─ a file per pair and part
                                 └─ coinbase.coinbase_stream(pair) ×3 ─ parts() ─ a file per part

Two hours over a midnight of UTC. Books are consistent: applying each venue's changes to its snapshot gives
the best bid and ask that its ticker shows. Prices are whole cents, sizes whole numbers of 10^-8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from market_data.demo.ticks import HOUR, MILLISECOND, MINUTE, SECOND, Dice, packed, utc
from market_data.demo.truth import Parcel, Plant, Record

STREAMS = ("binance_spot", "coinbase_exchange")
"""The feeds that may come by Kafka as well."""
START = utc(date(2024, 5, 14), 23)
SECONDS = 7200
PARTS = ("20240514T2300", "20240514T2340", "20240515T0020")
CUTS = (0, 2400, 4800, SECONDS)
"""Where the parts begin, in seconds from START; the middle one holds midnight."""
DEPTH = 4
"""Levels of a book behind its best one."""
LATE = {"ETHUSDT/20240514T2340", "coinbase/20240514T2340"}
"""Parts that reach the warehouse only after all others."""


@dataclass(frozen=True)
class Pair:
    """A coin against the dollar. `step` is the most that its price moves in a second, `grid` the distance
    of a book's levels (both in cents), `lot` the venues' smallest size step (in 10^-8)."""

    base: str
    price: int
    step: int
    grid: int
    lot: int
    most_lots: int
    microseconds: bool = False
    skew: int = 0
    """Binance's recorder: ns by which its clock is wrong."""

    @property
    def binance(self) -> str:
        """Binance's name of the pair."""
        return f"{self.base}USDT"

    @property
    def coinbase(self) -> str:
        """Coinbase's name of the pair."""
        return f"{self.base}-USD"


PAIRS = (
    Pair("BTC", 6_150_000, 400, 500, 1_000, 30_000),
    Pair("ETH", 288_000, 25, 30, 10_000, 40_000),
    Pair("SOL", 14_300, 4, 5, 100_000, 60_000, microseconds=True, skew=-1_270 * MILLISECOND),
)


class Book:
    """The best levels of both sides, and what has changed since one last looked."""

    def __init__(self, dice: Dice, pair: Pair) -> None:
        self._dice = dice
        self._pair = pair
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}

    def size(self) -> int:
        """A size that somebody might offer."""
        return (1 + self._dice.below(self._pair.most_lots)) * self._pair.lot

    def move(self, bid: int, bid_size: int, ask: int, ask_size: int) -> tuple[dict[int, int], dict[int, int]]:
        """Move the touch; answers the levels that changed (size 0: gone), best first."""
        grid = self._pair.grid
        under, over = (bid - 1) // grid * grid, (ask // grid + 1) * grid
        bids = self._side(self.bids, [bid, *range(under, under - DEPTH * grid, -grid)], bid_size)
        asks = self._side(self.asks, [ask, *range(over, over + DEPTH * grid, grid)], ask_size)
        changed = _changes(self.bids, bids, best_first=-1), _changes(self.asks, asks, best_first=1)
        self.bids, self.asks = bids, asks
        return changed

    def _side(self, before: dict[int, int], prices: list[int], best_size: int) -> dict[int, int]:
        side = {price: before.get(price) or self.size() for price in prices}
        side[prices[0]] = best_size
        return side


def _changes(before: dict[int, int], after: dict[int, int], best_first: int) -> dict[int, int]:
    prices = sorted({*before, *after}, key=lambda price: price * best_first)
    return {price: after.get(price, 0) for price in prices if before.get(price) != after.get(price)}


def fair_path(seed: int, pair: Pair) -> list[int]:
    """The pair's fair price in every second, in cents: a walk that is drawn back to where it began."""
    dice = Dice(seed, "fair", pair.base)
    path, price = [], pair.price
    for _ in range(SECONDS):
        price += dice.between(-pair.step, pair.step) + (pair.price - price) // 1000
        path.append(price)
    return path


def parts(records: Iterable[Record]) -> list[list[Record]]:
    """Cut a stream by receive time, as a recorder does that opens a new file."""
    cut: list[list[Record]] = [[] for _ in PARTS]
    opens = [START + cut * SECOND for cut in CUTS[1:-1]]
    for record in records:
        cut[sum(record.received >= moment for moment in opens)].append(record)
    return cut


def capture(path: str, feed: str, records: list[Record], index: int, *, late: bool, notes: tuple[Plant, ...]) -> Parcel:
    if late:
        notes += (Plant("late", path, None, "loaded after the parts that follow it"),)
    closed = START + CUTS[index + 1] * SECOND + MINUTE
    return Parcel(
        path,
        feed,
        packed(b"".join(record.text + b"\n" for record in records)),
        tuple(records),
        arrives=closed + 9 * HOUR if late else closed,
        late=late,
        notes=notes,
    )
