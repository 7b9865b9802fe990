"""The builder of `mdp live`: a process that builds as soon as something new is in the raw zone.

    a byte on the standard input: something was committed ──┐
    IDLE_SECONDS without one: others may load as well ──────┴──> build, test, publish ──> a report, a JSON line
    the end of the input: one last build, and the end              │ failed: wait, longer and longer

Builds follow each other in one process, so that dbt is loaded and parsed once; what comes while one runs is taken
together by the next. Every COMPACT_EVERY builds, where there is anything due, some small files are put together.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import duckdb

from loaders import logs
from loaders.settings import MIB, Settings, log_style
from loaders.store import StoreError
from market_data import build, dbt_runs, lock, maintenance, publishing
from market_data.dbt_runs import Project

IDLE_SECONDS = 5.0
LONGEST_WAIT = 60.0

COMPACT_EVERY = 5
"""Builds from one look for small files to the next."""
MIN_FILES = 10
"""Files of one table, partition and tier (market_data/maintenance.py) that may be there and stay as they are."""
COMPACT_SECONDS, COMPACT_BYTES = 1.0, 4 * MIB
"""After how long no further step begins, and what one takes: records wait for it. `mdp maintain` does the rest."""

FAILURES = (build.BuildFailedError, lock.LakeBusyError, maintenance.MaintenanceError, StoreError, duckdb.Error, OSError)
"""What may pass, or be mended, while loading goes on."""


@dataclass
class Builder:
    """Builds for as long as its input is open. `run` returns whether the last attempt went well."""

    settings: Settings
    input: int
    report: Callable[[dict[str, Any]], None]
    failed: int = 0
    built: int = 0
    complete_at: dict[int, float] = field(default_factory=lambda: dict.fromkeys(sorted(publishing.LAST_LAGGING), -inf))
    """When the tables that may lag by so many seconds had last taken in everything."""

    def run(self) -> bool:
        with Project(self.settings) as project:
            is_open = True
            while is_open:
                waiting = (lag for lag, at in self.complete_at.items() if time.monotonic() - at < lag)
                self._attempt(project, leave=next(waiting, None))
                is_open = self._wait()
            return self._attempt(project)

    def _attempt(self, project: Project, leave: int | None = None) -> bool:
        started = time.monotonic()
        self.report({"event": "building"})
        try:
            outcome = build.build(self.settings, project=project, leave=leave)
            self.complete_at |= {lag: time.monotonic() for lag in self.complete_at if leave is None or lag < leave}
            seconds = round(time.monotonic() - started, 3)
            self.failed = 0
            self.report({
                "event": "built" if outcome.built else "idle",
                "version": outcome.version,
                "loads": outcome.new_loads,
                "quarantined": outcome.quarantined,
                "read_otherwise": dict(outcome.read_otherwise),
                "seconds": seconds,
            })  # fmt: skip
            self.built += outcome.built
            if outcome.built and self.built % COMPACT_EVERY == 0:
                self._compact(project)
        except FAILURES as error:
            dbt_runs.close()  # a connection that has failed may go on failing
            self.failed += 1
            reasons = error.failures if isinstance(error, build.BuildFailedError) else [str(error)]
            self.report({"event": "failed", "failures": reasons, "attempts": self.failed, "wait": self._pause()})
            return False
        return True

    def _compact(self, project: Project) -> None:
        """Put small files together, of which each build adds some, beside readers; a little at a time."""
        with lock.writers_lock(self.settings), project.connection() as connection:
            if maintenance.compact(connection, min_files=MIN_FILES, at_once=COMPACT_BYTES, seconds=COMPACT_SECONDS):
                publishing.publish_again(connection, self.settings)

    def _pause(self) -> float:
        return min(LONGEST_WAIT, 2.0 ** min(self.failed - 1, 10))

    def _wait(self) -> bool:
        """Wait for news, or after a failure for its pause to be over; whether the input is still open."""
        if self.failed:
            deadline = time.monotonic() + self._pause()
            while (left := deadline - time.monotonic()) > 0:
                if not self._read(left):
                    return False
            return True
        return self._read(IDLE_SECONDS)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.input], [], [], seconds)
        return not ready or bool(os.read(self.input, 1 << 16))


def main() -> None:
    """Build until the standard input ends; reports go to the standard output."""
    out = sys.stdout

    def report(what: dict[str, Any]) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    gc.set_threshold(50_000, 20, 50)  # what dbt knows of the project stays, and need not be looked at so often
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # told to all processes at once: the supervisor closes the input
    logs.configure(log_style())
    logging.getLogger("market_data.build").setLevel(logging.CRITICAL)  # what was built is in the reports
    sys.exit(0 if Builder(Settings.from_env(), sys.stdin.fileno(), report).run() else 1)


if __name__ == "__main__":
    main()
