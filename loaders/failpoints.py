"""Points at which a process can be told to die, so that tests can kill it between any two steps.

    MDP_FAILPOINT=after-files     SIGKILL when the point is reached
    MDP_FAILPOINT=after-files:3   when it is reached for the third time

Nothing is caught, flushed or closed at such a death: it is the one that a power cut or the kernel brings.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "before-origin",
    "after-origin",
    "before-files",
    "after-files",
    "after-pointer",
    "after-entry",
    "after-offsets",
    "after-head",
)
"""In the order in which a loader reaches them: the steps are origin, files, pointer, entry, offsets, head."""

_left: dict[str, int] = {}


def arm(text: str | None) -> None:
    """Choose the point and the time at which it kills; None for no point. Raises ValueError for another name."""
    _left.clear()
    if text is None:
        return
    name, _, count = text.partition(":")
    if name not in POINTS or not (count or "1").isdigit() or count == "0":
        raise ValueError(f"MDP_FAILPOINT is {text!r}; give one of {', '.join(POINTS)}, perhaps with :COUNT")
    _left[name] = int(count or 1)


def reach(name: str) -> None:
    """Die here, if this is the point and the time."""
    if name in _left:
        _left[name] -= 1
        if _left[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
