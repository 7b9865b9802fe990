"""`mdp live`: loaders and builds, supervised together.

    Kafka ── mdp load kafka, a process or more for each feed ──▶ raw zone
                      │ a segment is committed          │
                      ▼                                 ▼
                 Supervisor ── there is something ──▶ builder (market_data/builder.py) ──▶ published version
                      │                                 │ built, failed
                      └── live.json, metrics, log ◀─────┘

Whichever process ends before it should is started again, after a pause that doubles up to LONGEST_PAUSE; not so a
loader that ends with USAGE_ERROR, which would end so again. Loading goes on while builds fail, and builds while loaders
stand still. A loader reads one feed: what holds one feed up holds up no other.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from loaders import logs
from loaders.settings import Settings

TICK_SECONDS = 0.2
LONGEST_PAUSE = 60.0
STEADY_SECONDS = 60.0
"""How long a process must have run for its next end to count as the first."""
LEAVE_SECONDS = 60.0
"""How long a loader may take to write what it holds, when it is told to leave."""
READ_SECONDS = 2.0
"""How long what a process has told may take to be read, once it has ended."""
USAGE_ERROR = 2
"""The exit code of a loader that cannot work as it was told to."""
BUILD_SECONDS = (1, 2, 3, 5, 8, 10, 15, 20, 30, 60, 120, 300, 600)

LOADER = "from market_data import cli, live; live.end_with_parent(); cli.main()"
"""What Python runs as a loader: `mdp`, which ends when its supervisor does."""

log = logging.getLogger(__name__)


class AlreadyLiveError(RuntimeError):
    """Another `mdp live` works for this lake on this machine."""


def state_file(settings: Settings) -> Path:
    """Where a running `mdp live` tells how it is, for `mdp status`; removed when it ends."""
    return settings.state_dir / "live.json"


def read_state(settings: Settings) -> dict[str, Any] | None:
    """What the `mdp live` of this lake tells of itself, with `is_running`; None where none runs or has crashed."""
    try:
        state: dict[str, Any] = json.loads(state_file(settings).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return {**state, "is_running": _is_locked(settings)}


@dataclass
class Metrics:
    """What Prometheus is told of the builds and the processes."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.builds = Counter("mdp_builds", "Builds, by how they ended.", ("outcome",), registry=self.registry)
        self.build_seconds = Histogram(
            "mdp_build_seconds", "Time from a build's start to its publication.", (),
            buckets=BUILD_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.version = Gauge("mdp_published_version", "The version that readers get.", registry=self.registry)
        self.published = Gauge(
            "mdp_published_timestamp_seconds", "When the last build ended well.", registry=self.registry
        )
        self.restarts = Counter(
            "mdp_restarts", "Processes that ended and were started again.", ("process",), registry=self.registry
        )
        for outcome in ("built", "failed"):
            self.builds.labels(outcome)


@dataclass
class Child:
    """A process of the supervisor's, and what is known of it."""

    name: str
    command: list[str]
    env: dict[str, str]
    events: queue.SimpleQueue[tuple[Child, dict[str, Any]]]
    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    ended: int = 0
    """How often in a row it has ended soon after it was started."""
    next_start: float = 0.0
    met: str | None = None
    """The last error that it told of since it was started."""
    last_error: str | None = None
    """Why it ended, the last time, until it has run for long enough."""
    has_worked: bool = False
    """It has come further than to read what it is told to do."""
    is_done: bool = False
    """It has ended, and is not started again."""
    has_failed: bool = False
    readers: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Start it, and read what it tells."""
        self.process = subprocess.Popen(  # noqa: S603
            self.command,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",  # a reader that fails would let the process wait for ever
            start_new_session=True,  # Ctrl-C is the supervisor's: it lets loaders leave first
        )
        os.set_blocking(self.process.stdin.fileno(), False)  # type: ignore[union-attr]
        self.started = time.monotonic()
        self.readers = [
            threading.Thread(target=self._read, args=[stream, name], daemon=True)
            for stream, name in ((self.process.stdout, "said"), (self.process.stderr, "complained"))
        ]
        for reader in self.readers:
            reader.start()

    def nudge(self) -> None:
        """Tell it that something is new. One that cannot take more knows already."""
        if self.process is not None and self.process.stdin is not None:
            with suppress(BlockingIOError, BrokenPipeError, ValueError):
                os.write(self.process.stdin.fileno(), b"\n")

    def reap(self) -> int | None:
        """Return the exit code of one that has ended, once, when what it told is among the events."""
        code = self.process.poll() if self.process is not None else None
        if code is not None:
            for reader in self.readers:
                reader.join(READ_SECONDS)
            self.process = None
        return code

    def told(self) -> dict[str, Any]:
        """What `mdp status` shows of it; times are epoch seconds."""
        over = "failed" if self.has_failed else "ended"
        state = "running" if self.process else over if self.is_done else "waiting"
        wait = max(0.0, self.next_start - time.monotonic())
        return {
            "name": self.name,
            "pid": self.process.pid if self.process else None,
            "state": state,
            "ended": self.ended,
            "last_error": self.last_error,
            "next_start": round(time.time() + wait, 1) if state == "waiting" else None,
        }

    def _read(self, stream: IO[str], otherwise: str) -> None:
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict):
                event = {"event": otherwise, "level": "info", "message": line.rstrip()}
            self.events.put((self, event))


class Supervisor:
    """Keeps loaders and a builder at work until it is stopped, or until all loaders have come to their end."""

    def __init__(
        self,
        settings: Settings,
        feeds: Sequence[str],
        *,
        loaders: Sequence[tuple[str, Sequence[str]]],
        has_end: bool,
        metrics: Metrics,
    ) -> None:
        """`loaders`: name and arguments of each `mdp load kafka`; `has_end`: whether they say where loading stops."""
        self._settings, self._feeds, self._metrics, self._has_end = settings, list(feeds), metrics, has_end
        self._events: queue.SimpleQueue[tuple[Child, dict[str, Any]]] = queue.SimpleQueue()
        env = {**os.environ, "MDP_LOG": "json"}
        command = [sys.executable, "-c", LOADER, "load", "kafka"]
        self._loaders = [Child(name, [*command, *own], env, self._events) for name, own in loaders]
        self._builder = Child("builder", [sys.executable, "-m", "market_data.builder"], env, self._events)
        self._started = time.time()
        self._build: dict[str, Any] = {"state": "starting"}
        self._asked_to_stop = 0
        self._failures: list[str] = []
        self._told = ""

    def stop(self) -> None:
        """Let `run` end: loaders write what they hold, and it is built; the second time, at once.

        May be called from a signal handler.
        """
        self._asked_to_stop += 1

    def run(self) -> list[str]:
        """Work. Returns what has failed in the end, and the way out. Raises AlreadyLiveError."""
        self._settings.state_dir.mkdir(parents=True, exist_ok=True)
        held = _lock(self._settings)
        if held is None:
            raise AlreadyLiveError(f"mdp live already works for {self._settings.lake}: see mdp status")
        with held:
            try:
                while not self._asked_to_stop and not all(child.is_done for child in self._loaders):
                    for child in (*self._loaders, self._builder):
                        self._tend(child)
                    self._take_events(TICK_SECONDS)
                    self._tell()
                self._leave()
                return self._failures
            finally:
                for child in (*self._loaders, self._builder):
                    if child.process is not None:
                        child.process.kill()
                state_file(self._settings).unlink(missing_ok=True)

    def _tend(self, child: Child) -> None:
        """Start what is to run, and note what has ended."""
        code = child.reap()
        if code == 0 and self._has_end and child is not self._builder:
            child.is_done = True
        elif code == USAGE_ERROR and child is not self._builder and not child.has_worked:
            child.is_done = child.has_failed = True
            message = f"{child.name} cannot work and is not started again: {self._reason(child, code)}"
            self._failures.append(message)
            logs.event(log, "process-ended", message, logging.ERROR, process=child.name)
        elif code is not None:
            reason = self._reason(child, code)
            child.ended, child.has_worked = child.ended + 1, True
            pause = min(LONGEST_PAUSE, 2.0 ** min(child.ended - 1, 10))
            child.next_start = time.monotonic() + pause
            self._metrics.restarts.labels(child.name).inc()
            message = f"{child.name} has ended ({reason}); it is started again in {pause:.0f} s"
            logs.event(log, "process-ended", message, logging.ERROR, process=child.name, seconds=pause)
        if child.process is not None and time.monotonic() - child.started > STEADY_SECONDS:
            child.ended, child.last_error, child.has_worked = 0, None, True
        if child.process is None and not child.is_done and time.monotonic() >= child.next_start:
            child.met = None
            child.start()

    def _reason(self, child: Child, code: int) -> str:
        """Return why a process has ended, noted as its last error."""
        self._take_events(0)
        child.last_error = child.met or (f"killed by signal {-code}" if code < 0 else f"exit code {code}")
        return child.last_error

    def _take_events(self, seconds: float) -> None:
        """Take what the processes have told, waiting for the first for a while."""
        with suppress(queue.Empty):
            child, event = self._events.get(timeout=seconds) if seconds else self._events.get_nowait()
            while True:
                if child is self._builder and "level" not in event:
                    self._take_report(event)
                else:
                    self._pass_on(child, event)
                child, event = self._events.get_nowait()

    def _pass_on(self, child: Child, event: dict[str, Any]) -> None:
        """Tell what a process has told, as if it were our own."""
        level = logging.getLevelName(str(event.get("level", "info")).upper())
        name, message = str(event.get("event")), str(event.get("message"))
        if name == "said" and child is not self._builder:
            return  # a loader's result, of which its log has told
        if name == "segment-committed":
            self._builder.nudge()
            child.last_error = None  # it works
        if level >= logging.ERROR or name == "complained":
            child.met = message
        known = {"time", "level", "logger", "event", "message"}
        fields = {key: value for key, value in event.items() if key not in known}
        logs.event(log, name, message, level, process=child.name, **fields)

    def _take_report(self, report: dict[str, Any]) -> None:
        now, what = round(time.time(), 1), report["event"]
        self._build["state"] = {"building": "building", "failed": "waiting"}.get(what, "idle")
        if what == "built":
            self._metrics.builds.labels("built").inc()
            self._metrics.build_seconds.observe(report["seconds"])
            message = f"published version {report['version']}: {report['loads']} loads, {report['seconds']:.1f} s"
            logs.event(log, "version-published", message, **{key: report[key] for key in report.keys() - {"event"}})
            if report["read_otherwise"]:
                told = ", ".join(report["read_otherwise"])
                message = f"loads of {told} keep what other code has read them as: `mdp reprocess` reads them again"
                logs.event(log, "read-otherwise", message, logging.WARNING, loads=report["read_otherwise"])
            self._build["last"] = {**report, "at": now}
        if what == "failed":
            self._metrics.builds.labels("failed").inc()
            self._build["failure"] = {**report, "next_try": now + report["wait"]}
            message = f"the build failed, and is tried again in {report['wait']:.0f} s: {'; '.join(report['failures'])}"
            logs.event(log, "build-failed", message, logging.ERROR, attempts=report["attempts"])
        if what in ("built", "idle"):
            self._build.pop("failure", None)
            self._metrics.version.set(report["version"])
            self._metrics.published.set(now)

    def _tell(self) -> None:
        """Write how things are, by rename, where they have changed."""
        told = json.dumps({
            "pid": os.getpid(),
            "started": round(self._started, 1),
            "feeds": self._feeds,
            "loaders": [child.told() for child in self._loaders],
            "builder": {**self._builder.told(), "build": self._build},
        })  # fmt: skip
        if told != self._told:
            path = state_file(self._settings)
            draft = path.with_suffix(".tmp")
            draft.write_text(told)
            draft.replace(path)
            self._told = told

    def _leave(self) -> None:
        """Let the loaders write what they hold, and the builder build it; note what fails."""
        for child in self._loaders:
            if child.process is not None:
                child.process.terminate()
        deadline = time.monotonic() + LEAVE_SECONDS
        while self._asked_to_stop < 2 and any(child.process is not None for child in self._loaders):
            self._take_events(TICK_SECONDS)
            self._tell()
            for child in self._loaders:
                if child.process is not None and time.monotonic() > deadline:
                    child.process.kill()
                code = child.reap()
                child.is_done = child.process is None
                # One that SIGTERM ends had not begun to read.
                if code and code != -signal.SIGTERM:
                    self._failures.append(
                        f"{child.name} failed while leaving ({self._reason(child, code)}); "
                        "what it had not committed is loaded by the next mdp live"
                    )
        if self._builder.reap() is not None or self._builder.process is None:
            self._builder.start()
        process = self._builder.process
        assert process is not None and process.stdin is not None  # noqa: S101
        process.stdin.close()
        while self._asked_to_stop < 2 and process.poll() is None:
            self._take_events(TICK_SECONDS)
            self._tell()
        code = self._builder.reap()
        self._take_events(0)
        way_out = "what was loaded is in the raw zone, and mdp build takes it in"
        if code is None:
            self._failures.append(f"it was stopped before the last build was over; {way_out}")
        elif code:
            failed = self._build.get("failure", {}).get("failures") if code == 1 else None
            reasons = failed or [self._reason(self._builder, code)]
            self._failures.append(f"the last build failed ({'; '.join(reasons)}); {way_out}")


def serve(metrics: Metrics, host: str, port: int) -> int:
    """Answer Prometheus from a thread; return the port. Raises OSError where the address cannot be used."""
    server, _ = start_http_server(port, host, metrics.registry)
    return int(server.server_port)


def supervise(supervisor: Supervisor) -> list[str]:
    """Run it until SIGTERM or Ctrl-C; return what has failed in the end."""

    def stop(_number: int, _frame: Any) -> None:
        supervisor.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return supervisor.run()


def _lock(settings: Settings) -> IO[str] | None:
    """Return the file that a running supervisor holds, held; None where another holds it."""
    file = _lock_file(settings).open("a")
    for wait in (0.1, 0.3, None):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if wait is not None:  # perhaps somebody only looks whether it is held
                time.sleep(wait)
    file.close()
    return None


def _is_locked(settings: Settings) -> bool:
    """Whether a supervisor holds the lock; one that starts just now asks again."""
    try:
        with _lock_file(settings).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _lock_file(settings: Settings) -> Path:
    return settings.state_dir / "live.lock"


def end_with_parent() -> None:
    """Let this process be told to leave when the one that started it is gone, however it went (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
