"""What may pass by itself: wait, longer and longer, say so, and give up after a while.

failure ── meet ──▶ logged, waited for ── … ──▶ StreamError       success ── over ──▶ logged
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from loaders import logs
from loaders.consumers import StreamError

SHORTEST_WAIT, LONGEST_WAIT = 0.5, 15.0

log = logging.getLogger(__name__)


class Trouble:
    """Waits longer and longer between attempts, says so, and gives up after a while."""

    def __init__(
        self, what: str, give_up_after: float, stopping: Callable[[], bool], count: Callable[[], object] = lambda: None
    ) -> None:
        """`what` is the work, as "writing to …"; `count` is called before each wait."""
        self._what, self._give_up_after, self._stopping, self._count = what, give_up_after, stopping, count
        self._since: float | None = None
        self._wait = SHORTEST_WAIT

    def meet(self, error: Exception) -> None:
        """Wait after a failure. Raises StreamError if it has been failing for too long."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since >= self._give_up_after:
            raise StreamError(
                f"{self._what} has failed for {now - self._since:.0f} s: {error}. Nothing is lost: what was "
                f"committed stays, and the next run goes on from there"
            ) from error
        self._count()
        logs.event(
            log,
            "retry",
            f"{self._what} failed ({error}); trying again in {self._wait:.1f} s",
            logging.WARNING,
            what=self._what,
            error=str(error),
            seconds=self._wait,
        )
        while time.monotonic() < now + self._wait and not self._stopping():
            time.sleep(0.1)
        self._wait = min(self._wait * 2, LONGEST_WAIT)

    def over(self) -> None:
        """Note that it works."""
        if self._since is not None:
            seconds = time.monotonic() - self._since
            message = f"{self._what} works again after {seconds:.1f} s"
            logs.event(log, "recovered", message, what=self._what, seconds=round(seconds, 3))
        self._since, self._wait = None, SHORTEST_WAIT
