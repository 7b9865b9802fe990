"""By what is new, or by history? Starting a loader, and building nothing new, on a short and a long ledger.

    a real load, then entries as live loading leaves them, one every five seconds ── mdp build takes them in ──┐
                                                                                                              ▼
    the same zone as a directory and on S3 (services/) ── start of a loader; mdp build with nothing new ── seconds

    .venv/bin/python benchmarks/ledger.py                         1,000 entries against 100,000
    .venv/bin/python benchmarks/ledger.py --entries 100 2000      for a look

Entries and pointers are written as files, without waiting for the disk, and copied below S3Proxy's directory: they are
what a loader writes, byte for byte, but that all name one segment, of one record that no model reads. What is measured
goes through the loaders and `mdp` alone, each time in a state as after a restart: nothing is remembered in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa

from loaders.chain import HEADS, Chain, Source, Sources
from loaders.ledger import ENTRIES, LOG, Entry, cursor_before, load_id
from loaders.segments import Load, SegmentWriter
from loaders.settings import Settings
from loaders.store import open_store
from loaders.times import iso
from market_data.build import build

REPOSITORY = Path(__file__).resolve().parents[1]
SERVICES = REPOSITORY / "services" / "services.py"
SOURCE = Source("binance_spot", "4L6g3nShT-eMCtK--X86sw", "binance_spot", "c2k0G4h2SjqI8lYvA3iPZA")
EVERY = 5 * 1_000_000_000
"""Nanoseconds between two segments."""
RECORD = (
    b'{"stream":"btcusdt@depth","data":{"e":"depthUpdate","E":1723161253937,"s":"BTCUSDT","U":1,"u":2,"b":[],"a":[]}}'
)
BEHIND = 12
"""Links that the remembered head lags behind."""


def lay_out(raw: Path, entries: int) -> None:
    """Make a raw zone whose chain has so many links, the last of them now."""
    store = open_store(str(raw))
    chain = Chain(store, SOURCE, 0)
    chain.begin(0)
    Sources(store).note(SOURCE)
    now = time.time_ns()
    writer = SegmentWriter(store, Load(SOURCE.feed, SOURCE.topic, load_id(chain.key(0)), now, None, "1", {}))
    columns = {
        "key": pa.array([b"BTCUSDT"], pa.binary()),
        "payload": pa.array([RECORD], pa.binary()),
        "source_partition": pa.array([0], pa.int32()),
        "source_position": pa.array([0], pa.int64()),
        "source_time": pa.array([now], pa.timestamp("ns")),
        "instrument": ["BTCUSDT"],
    }
    writer.add(pa.table(columns))
    writer.close()
    folder = (raw / f"{ENTRIES}{chain.key(0)}").parent
    for number in range(entries):
        at = now - (entries - 1 - number) * EVERY
        key = chain.key(number)
        entry = Entry(
            key=key,
            load_id=load_id(key),
            feed=SOURCE.feed,
            kind="stream",
            source=SOURCE.topic,
            bytes=len(RECORD),
            schema_version="1",
            records=1,
            files=tuple(writer.files),
            stream=chain.stream(number, number + 1),
            started_at=iso(at - EVERY),
            loaded_at=iso(at),
            loader_version="benchmark",
        )
        (folder / f"{number:020d}.json").write_bytes(msgspec.json.encode(entry))
        pointer = raw / f"{LOG}{cursor_before(at)}-{entry.load_id}.json"
        pointer.parent.mkdir(exist_ok=True)
        pointer.write_bytes(msgspec.json.encode({"key": key}))
    head = raw / f"{HEADS}{chain.key(0).rpartition('/')[0]}.json"
    head.parent.mkdir(parents=True, exist_ok=True)
    head.write_bytes(msgspec.json.encode({"next": max(0, entries - BEHIND)}))


def start(settings: Settings, entries: int) -> None:
    """What a loader asks of the ledger before it polls."""
    store = open_store(settings.raw, settings.s3)
    if Sources(store).last(SOURCE.feed, SOURCE.topic) != SOURCE or Chain(store, SOURCE, 0).begin(0) != entries:
        raise SystemExit("the loader would not start where the chain ends")


def build_nothing(settings: Settings, _: int) -> None:
    if build(settings).built:
        raise SystemExit("there was something to build")


def mdp_build(settings: Settings, _: int) -> None:
    mdp(settings)


def mdp(settings: Settings) -> None:
    places = {"MDP_RAW": settings.raw, "MDP_LAKE": settings.lake, "MDP_LAKE_DATA": settings.lake_data}
    command = [sys.executable, "-m", "market_data.cli", "build"]
    subprocess.run(command, env={**os.environ, **places}, check=True, stdout=subprocess.DEVNULL)


MEASURED: dict[str, Callable[[Settings, int], None]] = {
    "a loader's start": start,
    "mdp build, nothing new": mdp_build,
    "the same, without the start of Python": build_nothing,
}


def seconds(repeat: int, action: Callable[[], None]) -> float:
    """Return the median of several runs, after one that does not count."""
    taken = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def benchmark(options: argparse.Namespace, root: Path, bucket: Path | None) -> dict[str, dict[str, dict[int, float]]]:
    result: dict[str, dict[str, dict[int, float]]] = {}
    for entries in options.entries:
        home = root / str(entries)
        raw, lake, data = home / "raw", home / "lake.sqlite", home / "lake"
        lay_out(raw, entries)
        settings = Settings.from_env(
            {**os.environ, "MDP_RAW": str(raw), "MDP_LAKE": str(lake), "MDP_LAKE_DATA": str(data)}
        )
        mdp(settings)
        zones = {"directory": settings.raw}
        if bucket is not None:
            shutil.copytree(raw, bucket / str(entries))
            zones["S3"] = f"s3://{bucket.name}/{entries}"
        for place, zone in zones.items():
            at = Settings.from_env({**os.environ, "MDP_RAW": zone, "MDP_LAKE": str(lake), "MDP_LAKE_DATA": str(data)})
            for what, action in MEASURED.items():
                taken = seconds(options.repeat, lambda action=action, at=at, n=entries: action(at, n))
                result.setdefault(place, {}).setdefault(what, {})[entries] = taken
    return result


def show(result: dict[str, dict[str, dict[int, float]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    sizes = sorted({size for rows in result.values() for taken in rows.values() for size in taken})
    table = Table("where", "what", *(f"{size:,} entries, ms" for size in sizes), "ratio")
    for place, rows in result.items():
        for what, taken in rows.items():
            times = [taken[size] for size in sizes]
            table.add_row(place, what, *(f"{each * 1000:,.1f}" for each in times), f"{times[-1] / times[0]:.2f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="A loader's start and an empty build, on a short and a long ledger.")
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-s3", action="store_true", help="only a directory")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mdp-benchmark-") as name:
        root = Path(name)
        env = {**os.environ, "MDP_SERVICES_DIR": str(root / "services")}

        def services(*command: str) -> str:
            done = [sys.executable, str(SERVICES), *command]
            return subprocess.run(done, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout

        bucket = None
        try:
            if not options.no_s3:
                said = [part.partition("=") for part in shlex.split(services("up", "s3", "--random-ports"))]
                os.environ.update({variable: value for variable, _, value in said if variable.startswith("AWS_")})
                bucket = next((root / "services" / "s3").rglob("mdp"))
            result = benchmark(options, root, bucket)
        finally:
            if not options.no_s3:
                services("down", "s3")
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
