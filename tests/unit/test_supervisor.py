"""What `mdp live` makes of processes that end: here they are small programs, without Kafka and without a lake."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from loaders.lag import Lags
from loaders.settings import Settings
from market_data import live, status
from market_data.cli import main
from market_data.live import Metrics, Supervisor

FEED = "binance_spot"
BUILDS = "import sys; sys.stdin.read()"
FAILS = """
import sys
sys.stdin.read()
print('{"event": "failed", "failures": ["stg_x: no such column"], "attempts": 1, "wait": 1.0}', flush=True)
sys.exit(1)
"""
REFUSES = """
import sys
print('{"level": "error", "event": "failed", "message": "feed x is gone"}', file=sys.stderr)
sys.exit(2)
"""
LEAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
time.sleep(60)
"""
LEAVES_BADLY = LEAVES.replace(
    "sys.exit(0)", """sys.exit('{"level": "error", "event": "failed", "message": "the raw zone is full"}')"""
)
HAS_NOT_BEGUN = 'import time; print("ready", flush=True); time.sleep(60)'


class Small(Supervisor):
    """Supervises these programs, until all loaders that can are ready."""

    def __init__(self, tmp_path: Path, *loaders: str, builder: str = BUILDS) -> None:
        settings = Settings.from_env({"MDP_RAW": str(tmp_path), "MDP_LAKE": str(tmp_path / "lake.sqlite")})
        named: list[tuple[str, list[str]]] = [(f"loader {number}", []) for number in range(1, len(loaders) + 1)]
        super().__init__(settings, ["f"], loaders=named, has_end=False, metrics=Metrics())
        for child, program in zip((*self._loaders, self._builder), (*loaders, builder), strict=True):
            child.command = [child.command[0], "-c", program]
        self.ready: set[str] = set()

    def states(self) -> list[str]:
        return [child.told()["state"] for child in self._loaders]

    def _pass_on(self, child: live.Child, event: dict[str, Any]) -> None:
        super()._pass_on(child, event)
        self.ready |= {child.name} if event["message"] == "ready" else set()

    def _tell(self) -> None:
        super()._tell()
        self.state = live.read_state(self._settings) or {}
        if not self._asked_to_stop and all(child.name in self.ready or child.is_done for child in self._loaders):
            self.at_work = {**self.state, "is_running": True}
            self.stop()


def run(supervisor: Supervisor) -> list[str]:
    """Run it; one that does not end by itself is stopped, and a failure."""
    guard = threading.Timer(20, supervisor.stop)
    guard.start()
    try:
        return supervisor.run()
    finally:
        assert not guard.finished.is_set(), "it did not end by itself"
        guard.cancel()


def test_a_loader_that_cannot_work_as_told_is_not_started_again(tmp_path: Path) -> None:
    supervisor = Small(tmp_path, REFUSES, REFUSES)
    assert sorted(run(supervisor)) == [
        f"loader {number} cannot work and is not started again: feed x is gone" for number in (1, 2)
    ]
    assert supervisor.states() == ["failed", "failed"]
    told = shown(live=supervisor.at_work)
    assert "loader 1 has ended, is not started again: feed x is gone" in told


def test_each_feed_has_loaders_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds one feed up, as a topic that is not there, holds up no other."""
    made: list[Supervisor] = []

    def supervised(supervisor: Supervisor) -> list[str]:
        made.append(supervisor)
        return []

    monkeypatch.setattr(live, "supervise", supervised)
    monkeypatch.setattr(live, "serve", lambda *_: None)
    env = {"MDP_RAW": str(tmp_path), "MDP_LAKE": str(tmp_path / "lake.sqlite")}
    asked = ["--feed", FEED, "--feed", "coinbase_exchange", "--loaders", "2", "--metrics-port", "9100"]
    assert CliRunner().invoke(main, ["live", *asked], env=env).exit_code == 0
    told = {
        child.name: [
            child.command[at + 1] for at, word in enumerate(child.command) if word in ("--feed", "--metrics-port")
        ]
        for child in made[0]._loaders
    }
    assert told == {
        "loader 1 of binance_spot": ["binance_spot", "9101"],
        "loader 2 of binance_spot": ["binance_spot", "9102"],
        "loader 1 of coinbase_exchange": ["coinbase_exchange", "9103"],
        "loader 2 of coinbase_exchange": ["coinbase_exchange", "9104"],
    }


def shown(**told: Any) -> str:
    """What `mdp status` prints."""
    screen = Console(record=True, width=160, file=io.StringIO())
    status.show(status.Overview(1, [], 0, kafka=Lags([], []), **{"is_unfinished": False} | told), screen)
    return screen.export_text()


def test_one_that_was_started_again_is_told_of_until_it_has_run_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = f"""
from pathlib import Path
import sys
tries = Path({str(tmp_path / "tries")!r})
if not tries.exists():
    tries.touch()
    sys.exit("the topic is not there")
"""
    supervisor = Small(tmp_path, tries + LEAVES)
    assert run(supervisor) == []
    assert "loader 1 has ended, runs again: the topic is not there" in shown(live=supervisor.at_work)

    (tmp_path / "tries").unlink()
    commits = 'import sys; print(\'{"level": "info", "event": "segment-committed", "message": ""}\', file=sys.stderr)'
    supervisor = Small(tmp_path, f"{tries}{commits}; sys.stderr.flush(); import time; time.sleep(1)\n{LEAVES}")
    assert run(supervisor) == []
    assert "has ended" not in shown(live=supervisor.at_work), "it works"

    monkeypatch.setattr(live, "STEADY_SECONDS", 0.0)
    (tmp_path / "tries").unlink()
    supervisor = Small(tmp_path, f"{tries}import time; time.sleep(1)\n{LEAVES}")
    assert run(supervisor) == []
    assert "has ended" not in shown(live=supervisor.at_work)


def test_the_reason_told_is_that_of_the_end(tmp_path: Path) -> None:
    """Not what it has told since; and of one that has left as it was told to, nothing."""
    tries = f"""
from pathlib import Path
import sys
tries = Path({str(tmp_path / "tries")!r})
if not tries.exists():
    tries.touch()
    sys.exit("the topic is not there")
print("a warning of some library", file=sys.stderr, flush=True)
"""
    supervisor = Small(tmp_path, tries + LEAVES)
    assert run(supervisor) == []
    assert "runs again: the topic is not there" in shown(live=supervisor.at_work)
    assert supervisor.states() == ["ended"]
    assert "has ended" not in shown(live={**supervisor.state, "is_running": True})


def test_a_build_that_is_under_way_is_told(tmp_path: Path) -> None:
    supervisor = Small(tmp_path, LEAVES)
    assert run(supervisor) == []
    builder = {**supervisor.at_work["builder"], "build": {"state": "building"}}
    assert "a build is under way" in shown(live={**supervisor.at_work, "builder": builder})
    assert "a build is under way" not in shown(live=supervisor.at_work)


def test_a_run_that_is_under_way_is_told_from_one_that_failed(tmp_path: Path) -> None:
    assert "the last run failed" in shown(is_unfinished=True)
    told = shown(is_unfinished=True, writer={"pid": 12, "command": "mdp build", "since": "2024-08-08T00:00:00Z"})
    assert "the last run has not ended; mdp build (process 12) writes to the lake; readers have" in told
    assert "failed" not in told


def test_one_that_has_worked_is_started_again_whatever_it_says(tmp_path: Path) -> None:
    """A registry that is just being replaced may be unreadable for a moment."""
    times = f"""
from pathlib import Path
import sys
tries = Path({str(tmp_path / "tries")!r})
before = tries.read_text() if tries.exists() else ""
tries.write_text(before + "x")
if len(before) < 2:
    sys.exit(1 + len(before))
"""
    supervisor = Small(tmp_path, times + LEAVES)
    assert run(supervisor) == []
    assert (tmp_path / "tries").read_text() == "xxx"


def test_the_others_go_on_without_it(tmp_path: Path) -> None:
    supervisor = Small(tmp_path, REFUSES, LEAVES)
    failures = run(supervisor)
    assert [failure.partition(" cannot")[0] for failure in failures] == ["loader 1"]


def test_leaving_tells_what_failed_and_of_which_process(tmp_path: Path) -> None:
    def left(*loaders: str, builder: str = BUILDS) -> list[str]:
        return run(Small(tmp_path, *loaders, builder=builder))

    assert left(LEAVES, HAS_NOT_BEGUN) == []
    (loader,) = left(LEAVES, LEAVES_BADLY)
    assert loader.startswith("loader 2 failed while leaving (the raw zone is full); what it had not committed")
    (build,) = left(LEAVES, builder=FAILS)
    assert build.startswith("the last build failed (stg_x: no such column); what was loaded is in the raw zone")
    (crash,) = left(LEAVES, builder="import sys; sys.stdin.read(); sys.exit('out of memory')")
    assert crash.startswith("the last build failed (out of memory)")


def test_until_is_read_before_anything_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "supervise", lambda _: pytest.fail("it was started"))
    env = {"MDP_RAW": str(tmp_path), "MDP_LAKE": str(tmp_path / "lake.sqlite")}

    def asked(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["live", "--feed", FEED, *arguments], env=env)
        return done.exit_code, done.output.splitlines()[-1]

    assert asked("--until", "never") == (
        2,
        "Error: 'never' is neither caught-up, nor an ISO time such as 2024-08-08, nor offsets such as 0:5000,1:4800",
    )
    code, told = asked("--until", "0:5", "--feed", "coinbase_exchange")
    assert (code, told) == (2, "Error: --until with offsets is for a single feed")
    monkeypatch.setattr(live, "supervise", lambda _: ["loader 1 failed", "the last build failed"])
    assert asked("--until", "caught-up") == (1, "mdp: loader 1 failed; the last build failed")
