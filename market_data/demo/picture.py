"""The demo's picture: one series as it was known on two dates.

    two answers of `macro_series_as_of` ── levels, one line each ──┐
                                        └─ what the revision changed ─┴──> PNG

The colours are two of Okabe and Ito's, which colour-blind eyes tell apart; line and marker say the same.
"""

from __future__ import annotations

import datetime as dt
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EARLIER, LATER, QUIET = "#0072B2", "#D55E00", "#555555"


@dataclass(frozen=True)
class Known:
    """A series as known at a time (UTC, as a person writes it): values by the first day of their period."""

    known_at: str
    values: Mapping[dt.date, float]


def draw(file: Path, *, title: str, unit: str, earlier: Known, later: Known, caption: str) -> None:
    """Write the two answers and their difference to `file` as PNG, 1600 by 1000 pixels."""
    with tempfile.TemporaryDirectory() as scratch:
        # Where matplotlib keeps its list of fonts; its own choice would be the home directory.
        os.environ.setdefault("MPLCONFIGDIR", scratch)
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 6.25), dpi=160, facecolor="white")
        levels, changes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        figure.subplots_adjust(left=0.09, right=0.965, top=0.845, bottom=0.135, hspace=0.14)
        figure.text(0.09, 0.945, title, fontsize=15, fontweight="bold")

        style = {"linewidth": 2, "markersize": 5.5, "clip_on": False}
        levels.plot(
            *_points(earlier), color=EARLIER, linestyle=(0, (4, 2)), marker="o", markerfacecolor="white",
            label=f"as known at {earlier.known_at}", **style,
        )  # fmt: skip
        levels.plot(*_points(later), color=LATER, marker="s", label=f"as known at {later.known_at}", **style)
        levels.set_ylabel(unit)
        levels.legend(loc="lower right", frameon=False, fontsize=11, handlelength=3)
        levels.yaxis.set_major_formatter("{x:,.0f}")

        common = sorted(earlier.values.keys() & later.values.keys())
        difference = [later.values[day] - earlier.values[day] for day in common]
        changes.bar(common, difference, width=dt.timedelta(days=42), color=LATER, alpha=0.85)
        changes.axhline(0, color=QUIET, linewidth=0.8)
        changes.set_ylabel("revision")
        changes.yaxis.set_major_formatter(_signed)
        changes.set_xticks([day for day in common if day.month > 1], minor=True)
        years = [day for day in common if day.month == 1]
        changes.set_xticks(years, [str(day.year) for day in years])
        for panel in (levels, changes):
            _tidy(panel)
        figure.align_ylabels()
        figure.text(0.09, 0.03, caption, fontsize=9, color=QUIET)
        figure.text(0.09, 0.895, _said(difference), fontsize=11, color=QUIET)
        figure.savefig(file, format="png", metadata={"Title": title, "Description": caption})
        if os.environ["MPLCONFIGDIR"] == scratch:
            del os.environ["MPLCONFIGDIR"]


def _signed(change: float, _: object = None) -> str:
    return f"{change:+,.0f}".replace("-", "−") if round(change) else "0"


def _points(known: Known) -> tuple[list[dt.date], list[float]]:
    days = sorted(known.values)
    return days, [known.values[day] for day in days]


def _said(difference: list[float]) -> str:
    changed = [change for change in difference if change]
    span = f"{_signed(min(changed))} to {_signed(max(changed))}"
    return f"One revision changed {len(changed)} of {len(difference)} quarters, by {span}"


def _tidy(panel: Axes) -> None:
    """Only what the eye needs: light horizontal lines, no box."""
    panel.grid(axis="y", color="#dddddd", linewidth=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(QUIET)
    panel.tick_params(axis="both", colors=QUIET, labelsize=10, length=0)
    panel.tick_params(axis="x", which="both", length=3)
    panel.yaxis.label.set_color(QUIET)
