"""Running dbt in this process.

Project ── parsed once ──> manifest ──┬── run(arguments) ──> dbt, its log in the lake's state directory
                                      └── affected_by(feeds) ──> the nodes that new records of these feeds change
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Self

import duckdb

from loaders.registry import REGISTRY
from loaders.settings import Settings, user_cache
from market_data import bookkeeping, fingerprints, lake

PROJECT = REGISTRY.parent.parent
Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)`` while models and tests run."""

DEFINITIONS = ("view", "table_function")
"""Materializations that hold no data: under the same code they stand as they are."""
KEEP_A_MARK = ("incremental", "snapshot")
"""Materializations whose tables keep a mark in ``observability.progress``."""


class BuildFailedError(RuntimeError):
    """A model or a test failed; nothing was published. ``failures`` names each with its message."""

    def __init__(self, failures: list[str]) -> None:
        super().__init__("; ".join(failures) or "dbt failed before it ran anything")
        self.failures = failures


@dataclass(frozen=True)
class Affected:
    """What new records of some feeds change: all nodes to run, by name; and the tables that they do not reach."""

    nodes: tuple[str, ...]
    passed_over: tuple[str, ...]
    """Tables of this code that keep a mark, by name, none of whose feeds has anything new."""


@dataclass(frozen=True)
class Sorting:
    """What sorts the records of some feeds by kind: their staging models, and what reads the raw zone beside them
    (meta.reads_raw), by name."""

    staging: tuple[str, ...]
    beside: tuple[str, ...]


class Project:
    """The dbt project for one lake. What dbt has parsed is kept, so that a second run starts at once.

    In a ``with`` block dbt's connection is kept too, until its end. dbt's log holds what ran and what failed, and each
    statement where dbt's own variable DBT_LOG_LEVEL_FILE says `debug`: writing them takes a seventh of a build.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stays_open = self._has_tables = False
        self._state = settings.state_dir

    def __enter__(self) -> Self:
        self._stays_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._stays_open = False
        if _open_connection() is not None:
            close()

    def run(self, arguments: list[str], progress: Progress | None = None) -> None:
        """Run dbt; ``BuildFailedError`` where anything failed."""

        def on_event(event: Any) -> None:
            if progress and event.info.name == "LogStartLine":
                progress(str(event.data.node_info.node_name), int(event.data.index) - 1, int(event.data.total))

        result = self._invoke(arguments, [on_event])
        if result.success:
            return
        failures = []
        for item in getattr(result.result, "results", None) or []:
            if str(item.status) in ("error", "fail", "runtime error"):
                failures.append(f"{item.node.name}: {(item.message or '').strip()}")
        if not failures and result.exception is not None:
            failures.append(str(result.exception))
        raise BuildFailedError(failures)

    def sorting(self, feeds: Collection[str]) -> Sorting | None:
        """What is to run first where records of these feeds go to one table or another by their kind (meta.kinds)."""
        nodes = self.manifest.nodes
        sorted_by_kind = {name for node in nodes.values() for name in node.config.meta.get("kinds", {})}
        staging = {key: node.name for key, node in nodes.items() if node.config.meta.get("feed") in feeds}
        if sorted_by_kind.isdisjoint(staging.values()):
            return None
        beside = (
            node.name
            for node in nodes.values()
            if node.config.meta.get("reads_raw") and not staging.keys().isdisjoint(node.depends_on_nodes)
        )
        return Sorting(tuple(sorted(staging.values())), tuple(sorted(beside)))

    def affected_by(
        self,
        feeds: Collection[str],
        *,
        staged: Mapping[str, Set[str]] | None = None,
        leave: int | None = None,
        catch_up: bool = False,
    ) -> Affected:
        """What new records of these feeds change: their staging models, all tables downstream, and the tests of those.

        Views and functions are left out, and their tests are not. `staged`: the kinds of records that staging models
        were found to hold, `quarantined` among them; these have run (`sorting`) and are left out, and a model that
        reads none of these kinds from them is not reached by them. `leave`: the models that may lag by so many seconds
        or more (meta.may_lag), and what they feed, are left out too; they are not passed over, but stay behind. With
        `catch_up` the other ones that may lag are reached by whatever kind: what they have missed is not staged any
        more.
        """
        nodes = self.manifest.nodes
        children: dict[str, list[str]] = {}
        for name, node in nodes.items():
            for parent in node.depends_on_nodes:
                children.setdefault(parent, []).append(name)

        def reads(child: str, parent: str) -> bool:
            kinds, name = nodes[child].config.meta.get("kinds", {}), nodes[parent].name
            return not staged or name not in kinds or not staged[name].isdisjoint(kinds[name])

        def downstream(is_first: Callable[[Any], bool], *, by_kind: bool) -> set[str]:
            found: set[str] = set()
            todo = [name for name, node in nodes.items() if is_first(node)]
            while todo:
                name = todo.pop()
                if name not in found:
                    found.add(name)
                    todo += [child for child in children.get(name, []) if not by_kind or reads(child, name)]
            return found

        def is_of_feeds(node: Any) -> bool:
            return node.config.meta.get("feed") in feeds

        def lagging(seconds: int) -> set[str]:
            return downstream(lambda node: node.config.meta.get("may_lag", 0) >= seconds, by_kind=False)

        def has_run(node: Any) -> bool:
            return bool(staged) and ("feed" in node.config.meta or "reads_raw" in node.config.meta)

        reached = downstream(is_of_feeds, by_kind=True)
        if catch_up:
            reached |= downstream(is_of_feeds, by_kind=False) & lagging(1)
        waiting = lagging(leave) if leave else set()
        run = [
            nodes[name]
            for name in sorted(reached - waiting)
            if nodes[name].resource_type != "unit_test"
            and nodes[name].config.materialized not in DEFINITIONS
            and not has_run(nodes[name])
        ]
        passed_over = (
            node.alias
            for name, node in nodes.items()
            if name not in reached and node.config.materialized in KEEP_A_MARK
        )
        # By the name with the version: that without means all versions, of which the earlier ones are views.
        return Affected(tuple(node.search_name for node in run), tuple(sorted(passed_over)))

    @contextlib.contextmanager
    def connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection to the head of the lake: dbt's own where it is open. Use it under the writers' lock."""
        kept = _open_connection()
        connection = kept.cursor() if kept is not None else lake.open_for_writing(self._settings)
        try:
            connection.execute("set TimeZone = 'UTC'")  # a cursor begins with the machine's own
            if not self._has_tables:
                bookkeeping.create_tables(connection)
                self._has_tables = self._stays_open
            yield connection
        finally:
            connection.close()

    @property
    def manifest(self) -> Any:
        """The project as dbt parsed it. Raises ``BuildFailedError`` where it cannot be parsed."""
        code = _code()  # taken before it is read
        if code not in _parsed:
            result = self._invoke(["parse"], [])
            if not result.success:
                raise BuildFailedError([str(result.exception or "dbt cannot parse the project")])
            _keep(code, result.result)
        return _parsed[code]

    def _invoke(self, arguments: list[str], callbacks: list[Callable[[Any], None]]) -> Any:
        from dbt.cli.main import dbtRunner

        flags = ["--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT.parent), "--no-use-colors"]
        flags += ["--log-level", "none", "--log-level-file", os.environ.get("DBT_LOG_LEVEL_FILE", "info")]
        flags += ["--target-path", str(self._state / "target"), "--log-path", str(self._state / "logs")]
        flags += ["--no-write-json"]
        self._state.mkdir(parents=True, exist_ok=True)
        manifest = _parsed.get(_code())
        parsed_before = contextlib.nullcontext() if manifest else self._parsed_before()
        with _environment(self._settings), parsed_before, contextlib.redirect_stdout(io.StringIO()):
            result = dbtRunner(manifest=manifest, callbacks=callbacks).invoke(arguments + flags)
        connection = _open_connection()
        if connection is not None and result.success and self._stays_open:
            connection.execute("detach database if exists scratch")  # others may need the staged records
        else:
            close()
        return result

    @contextlib.contextmanager
    def _parsed_before(self) -> Iterator[None]:
        """Lend dbt what an earlier run of this user, of the same code and on any lake, has parsed.

        dbt itself checks that the files are the same, and parses what is not.
        """
        target = self._state / "target"
        name = f"{hashlib.sha256(_code().encode()).hexdigest()[:16]}.msgpack"
        parsed, kept = target / "partial_parse.msgpack", user_cache() / "parsed" / name
        parsed.unlink(missing_ok=True)  # perhaps of other code: dbt would keep tests of versioned models that are gone
        if kept.exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept, parsed)
        yield
        if parsed.exists() and not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            draft = kept.with_suffix(f".{os.getpid()}.tmp")
            shutil.copyfile(parsed, draft)
            draft.replace(kept)


_parsed: dict[str, Any] = {}
"""What this process has parsed, by its code: it is the same for any lake."""


def _keep(code: str, manifest: Any) -> None:
    """Keep what was parsed last, out of the garbage collector's sight, which would look through it in each build.

    While dbt's connection is open it stays in sight, with all else: what holds a cursor, and is done with later, would
    never be collected, nor the lake be free after `close`.
    """
    _parsed.clear()
    gc.unfreeze()
    _parsed[code] = manifest
    gc.collect()
    if _open_connection() is None:
        gc.freeze()


def _code() -> str:
    """What a parsed project depends on. (What a process parsed an hour ago may not be what the files say now.)"""
    return f"{PROJECT}\0{version('dbt-core')}\0{fingerprints.code_fingerprint()}"


@contextlib.contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """dbt reads the settings again, from the environment: say them absolutely, whatever directory it goes to."""
    says = {"MDP_RAW": settings.raw, "MDP_LAKE": settings.lake, "MDP_LAKE_DATA": settings.lake_data}
    before = {name: os.environ.get(name) for name in says}
    os.environ.update(says)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _open_connection() -> duckdb.DuckDBPyConnection | None:
    """dbt-duckdb's connection, which it keeps for the process's life; None where dbt was not even loaded."""
    connections = sys.modules.get("dbt.adapters.duckdb.connections")
    return getattr(connections.DuckDBConnectionManager._ENV, "conn", None) if connections else None


def close() -> None:
    """Close dbt-duckdb's connection, so that the lake is free for others."""
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager

    environment = DuckDBConnectionManager._ENV
    if environment is not None:
        environment.close()
        DuckDBConnectionManager._ENV = None
    gc.collect()
