"""Points at which a process can be told to die, so that tests can kill it between any two steps.

    MDP_FAILPOINT=after-files          SIGKILL when the point is reached
    MDP_FAILPOINT=after-files:3        when it is reached for the third time
    MDP_FAILPOINT=after-files:3:stop   SIGSTOP instead: it sleeps there until SIGCONT, as a stalled machine would

Nothing is caught, flushed or closed at such a death: it is the one that a power cut or the kernel brings.
"""

from __future__ import annotations

import os
import re
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

SEAL_POINTS = (
    "before-sealed-files",
    "between-sealed-files",
    "after-sealed-files",
    "after-proof",
    "after-pointer",
    "after-seal",
    "before-removal",
    "after-removal-entry",
    "between-removed-files",
    "after-removal",
)
"""In the order in which `mdp seal` reaches them; a removal commits an entry, and so has an after-pointer, too."""

MAINTENANCE_POINTS = ("after-compaction", "before-publication", "after-publication", "between-expiries", "after-expiry")
"""In the order in which `mdp maintain` reaches them."""

_NAMES = tuple(dict.fromkeys((*POINTS, *SEAL_POINTS, *MAINTENANCE_POINTS)))
_POINT = re.compile(rf"(?P<name>{'|'.join(_NAMES)})(?::(?P<count>[1-9]\d*))?(?::(?P<stop>stop))?")
_left: dict[str, int] = {}
_signal: dict[str, signal.Signals] = {}


def arm(text: str | None) -> None:
    """Choose the point, the time and the signal; None for no point. Raises ValueError for what is none."""
    _left.clear()
    if text is None:
        return
    match = _POINT.fullmatch(text)
    if match is None:
        raise ValueError(f"MDP_FAILPOINT is {text!r}; give one of {', '.join(_NAMES)}, then perhaps :COUNT, :stop")
    _left[match["name"]] = int(match["count"] or 1)
    _signal[match["name"]] = signal.SIGSTOP if match["stop"] else signal.SIGKILL


def reach(name: str) -> None:
    """Die or stop here, if this is the point and the time."""
    if name in _left:
        _left[name] -= 1
        if _left[name] == 0:
            os.kill(os.getpid(), _signal[name])
