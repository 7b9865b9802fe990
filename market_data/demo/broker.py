"""A Kafka broker of the demo's own, started by the checkout's services/ and stopped when the demo ends.

    services/services.py up ──> Kafka on free ports of 127.0.0.1, all that is its in DIR/services ──> down, keeping it

What the broker holds stays in the demo's directory: the next run finds the same cluster at the same ports.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SERVICES = Path(__file__).resolve().parents[2] / "services" / "services.py"
FOLDER = "services"
"""Where the broker's data and log are, in the demo's directory."""


class NoBrokerError(RuntimeError):
    """The broker cannot be started or stopped; the message says why, and the way out."""


@contextmanager
def broker(place: Path) -> Iterator[str]:
    """Yield the address of a broker that has its data in `place`, and stop it however the demo ends.

    SIGTERM and SIGHUP, which would end this process at once, end it as Ctrl-C does meanwhile.
    """
    if not SERVICES.is_file():
        raise NoBrokerError(
            f"mdp demo --kafka starts its broker by services/ of a checkout, and there is no {SERVICES}: run it from a"
            " checkout (make demo ARGS=--kafka), or run mdp demo without --kafka, which needs no services"
        )
    before = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        try:
            said = _services(place, "up", "kafka", "--random-ports")
            (export,) = said.splitlines()
            yield shlex.split(export)[1].removeprefix("MDP_KAFKA=")
        finally:
            _services(place, "down", "--keep", "kafka")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def remove(place: Path) -> None:
    """Stop a broker that a killed demo may have left in `place`, and remove its data."""
    if (place / FOLDER).is_dir() and SERVICES.is_file():
        _services(place, "down", "kafka")


def start_command(place: Path) -> str:
    """How a person starts the broker again."""
    return (
        f"MDP_SERVICES_DIR={shlex.quote(str((place / FOLDER).absolute()))} {shlex.quote(str(SERVICES.parent))}/up kafka"
    )


def _services(place: Path, *arguments: str) -> str:
    """Run services/ to its end and return its output. It gets no Ctrl-C of ours, and ends in good order."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, str(SERVICES), *arguments],
        env={**os.environ, "MDP_SERVICES_DIR": str((place / FOLDER).absolute())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, told = process.communicate()
    except BaseException:
        if arguments[0] == "up":
            process.terminate()
        process.communicate()
        raise
    if process.returncode:
        why = told.strip().rpartition("services: error: ")[2] or f"exit code {process.returncode}"
        if arguments[0] == "up":
            raise NoBrokerError(f"the demo's broker does not start: {why} (mdp demo without --kafka needs none of it)")
        raise NoBrokerError(f"the demo's broker does not stop: {why}")
    return said


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
