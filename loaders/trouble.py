"""What may pass by itself: wait, longer and longer, say so, and give up after a while.

failure ── meet ──▶ said, waited for ── … ──▶ StreamError       success ── over ──▶ said
"""

from __future__ import annotations

import time
from collections.abc import Callable

from loaders.consumers import StreamError

SHORTEST_WAIT, LONGEST_WAIT = 0.5, 15.0

Say = Callable[[str], None]


class Trouble:
    """Waits longer and longer between attempts, says so, and gives up after a while."""

    def __init__(self, what: str, give_up_after: float, say: Say, stopping: Callable[[], bool]) -> None:
        self._what, self._give_up_after, self._say, self._stopping = what, give_up_after, say, stopping
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
        self._say(f"{self._what} failed ({error}); trying again in {self._wait:.1f} s")
        while time.monotonic() < now + self._wait and not self._stopping():
            time.sleep(0.1)
        self._wait = min(self._wait * 2, LONGEST_WAIT)

    def over(self) -> None:
        """Note that it works."""
        if self._since is not None:
            self._say(f"{self._what} works again after {time.monotonic() - self._since:.1f} s")
        self._since, self._wait = None, SHORTEST_WAIT
