"""When the builder of `mdp live` builds: on news, taken together; after failures later and later; and what it puts in
order between builds. Builds, the lake and the clock are made up; the input is a real pipe.
"""

from __future__ import annotations

import os
import select
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loaders.settings import Settings
from market_data import builder, dbt_runs
from market_data.build import BuildFailedError, Outcome
from market_data.builder import COMPACT_EVERY, IDLE_SECONDS, LONGEST_WAIT, Builder

Step = Callable[["World"], None]


class World:
    """Each build takes the next step, which says what happens while it runs; after the last one the input ends."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.steps: list[Step] = []
        self.built_at: list[float] = []
        self.reports: list[dict[str, Any]] = []
        self.compacted: list[int] = []
        self.published: list[int] = []
        self.is_locked = self.finds_small_files = False
        self.closed = 0
        self.input, self._news = os.pipe()
        settings = Settings.from_env({"MDP_RAW": str(tmp_path), "MDP_LAKE": str(tmp_path / "lake.sqlite")})
        self.builder = Builder(settings, self.input, self.reports.append)
        project = SimpleNamespace(connection=self._connection)
        monkeypatch.setattr(builder, "Project", lambda *_, **__: nullcontext(project))
        monkeypatch.setattr(builder, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(builder, "select", SimpleNamespace(select=self._select))
        monkeypatch.setattr(builder.build, "build", self._build)
        monkeypatch.setattr(builder.dbt_runs, "close", self._close)
        monkeypatch.setattr(builder.lock, "writers_lock", self._lock)
        monkeypatch.setattr(builder.maintenance, "compact", self._compact)
        monkeypatch.setattr(builder.publishing, "publish_again", lambda *_: self.published.append(len(self.built_at)))

    def news(self, count: int = 1) -> None:
        os.write(self._news, b"\n" * count)

    def end(self) -> None:
        if self._news >= 0:
            os.close(self._news)
        self._news = -1

    def run(self, *steps: Step) -> bool:
        self.steps = list(steps)
        return self.builder.run()

    def told(self, event: str) -> list[dict[str, Any]]:
        return [report for report in self.reports if report["event"] == event]

    def _build(self, *_: object, **__: object) -> Outcome:
        self.built_at.append(self.now)
        if not self.steps:
            self.end()
            return Outcome(len(self.built_at), 0, built=False, restored=False)
        self.steps.pop(0)(self)
        return Outcome(len(self.built_at), 1, built=True, restored=False)

    def _select(self, read: list[int], write: list[int], error: list[int], seconds: float) -> Any:
        """What is ready now; else all of the time passes."""
        found = select.select(read, write, error, 0)
        self.now += 0 if found[0] else seconds
        return found

    def _compact(self, *_: object, min_files: int, at_once: int, seconds: float) -> list[str]:
        assert self.is_locked and (min_files, at_once, seconds) == (10, 4 << 20, 1.0)
        self.compacted.append(len(self.built_at))
        return ["some"] if self.finds_small_files else []

    def _close(self) -> None:
        self.closed += 1

    @contextmanager
    def _lock(self, _: Settings) -> Iterator[None]:
        self.is_locked = True
        yield
        self.is_locked = False

    @contextmanager
    def _connection(self) -> Iterator[object]:
        yield object()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.end()
    os.close(made.input)


def news(world: World) -> None:
    world.news()


def burst(world: World) -> None:
    world.news(300)
    world.news(200)


def nothing(_: World) -> None: ...


def end(world: World) -> None:
    world.end()


def fail(world: World) -> None:
    """Segments are committed meanwhile."""
    world.news()
    raise BuildFailedError(["stg_x: no such column"])


def test_what_comes_while_a_build_runs_is_taken_by_the_next_one_together(world: World) -> None:
    assert world.run(burst, burst, end)
    assert world.built_at == [0, 0, 0, 0]  # the last one is that of the input's end
    assert [report["event"] for report in world.reports] == ["building", "built"] * 3 + ["building", "idle"]


def test_without_news_it_looks_now_and_then(world: World) -> None:
    assert world.run(nothing, nothing, end)
    assert world.built_at == [0, IDLE_SECONDS, 2 * IDLE_SECONDS, 2 * IDLE_SECONDS]


def test_after_failures_it_waits_longer_and_longer_whatever_comes_meanwhile(world: World) -> None:
    assert world.run(*[fail] * 8, news, fail, end)
    pauses = [1, 2, 4, 8, 16, 32, LONGEST_WAIT, LONGEST_WAIT]
    between = [later - earlier for earlier, later in zip(world.built_at, world.built_at[1:], strict=False)]
    assert between == [*pauses, 0, 1, 0]
    failures = world.told("failed")
    assert [report["wait"] for report in failures] == [*pauses, 1]
    assert [report["attempts"] for report in failures] == [*range(1, 9), 1]
    assert all(report["failures"] == ["stg_x: no such column"] for report in failures)
    assert world.closed == 9  # no connection that has failed is used again


def test_the_inputs_end_is_not_waited_out_and_the_last_build_decides(world: World) -> None:
    def fail_and_end(world: World) -> None:
        world.end()
        fail_at_once(world)

    def fail_at_once(_: World) -> None:
        raise OSError("no space left")

    assert not world.run(fail_and_end, fail_at_once)
    assert world.built_at == [0, 0]
    assert world.told("failed")[-1]["failures"] == ["no space left"]


def test_small_files_are_put_together_every_few_builds(world: World) -> None:
    assert world.run(*[news] * (2 * COMPACT_EVERY + 1), end)
    assert world.compacted == [COMPACT_EVERY, 2 * COMPACT_EVERY]
    assert world.published == []  # nothing was due


def test_what_was_put_together_is_published(world: World) -> None:
    world.finds_small_files = True
    assert world.run(*[news] * COMPACT_EVERY, end)
    assert world.published == world.compacted == [COMPACT_EVERY]


def test_a_failure_to_put_files_together_is_told_and_tried_after_other_builds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object, **__: object) -> None:
        world.compacted.append(len(world.built_at))
        raise builder.maintenance.MaintenanceError("rows would change")

    monkeypatch.setattr(builder.maintenance, "compact", busy)
    assert world.run(*[news] * (COMPACT_EVERY + 2), end)
    assert world.compacted == [COMPACT_EVERY]
    assert [report["failures"] for report in world.told("failed")] == [["rows would change"]]


class Cursor:
    """One that, as dbt's connections do, can be reached from itself."""

    def __init__(self) -> None:
        self.me = self


def test_what_holds_dbts_connection_when_the_project_was_parsed_goes_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dbt_runs, "_parsed", {})
    cursor = Cursor()
    alive = weakref.ref(cursor)
    with monkeypatch.context() as open_now:
        open_now.setattr(dbt_runs, "_open_connection", Cursor)
        dbt_runs._keep("code", "manifest")
    del cursor
    dbt_runs.close()
    assert alive() is None
