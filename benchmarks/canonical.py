"""What it costs to make canonical tables of trades, against Polars; and what a build costs by what is new.

    records made in bulk ── segments and ledger entries, as a loader writes them ──▶ raw zone
        (a) the payloads read ── (b) parsed by the staging model's rules ── (c) mdp build ── (d) the same in Polars

    the same 100,000 records more, and then nothing more, on a warehouse of 1, 10 and 50 million ── mdp build

    .venv/bin/python benchmarks/canonical.py                          10 million; then 1, 10 and 50: some half hour
    .venv/bin/python benchmarks/canonical.py --records 1 --sizes 1 2  for a look (millions)

Trades of the Binance capture's shape: 50 instruments, a million trades a day, 1 % duplicates, 0.5 % late (up to an
hour), 0.1 % malformed. Each measurement is a process of its own, of which the peak of resident memory is told too;
DuckDB may use 4 GB (MDP_MEMORY).

(d) does what (c) does to the same files, without history: decode, judge, part the malformed, drop duplicates, write
trades by date sorted by instrument and time, and bars of a minute and of a day. It writes Parquet, and keeps no
lineage, no versions, no catalog; it runs no tests and publishes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

REPOSITORY = Path(__file__).resolve().parents[1]
MILLION = 1_000_000
PER_DAY = MILLION
PER_LOAD = 100_000
MORE = 100_000
FIRST_DAY = 19_800  # days since 1970: 2024-03-18
MEMORY = "4GB"

RECORDS = """
with numbered as (
    select
        n,
        -- A duplicate repeats the record a thousand before it; a late one waits for up to an hour.
        n - case when n >= 1000 and hash(n, 'duplicate') % 1000 < 10 then 1000 else 0 end as k,
        hash(n, 'malformed') % 1000 < 1 as is_malformed
    from range({first}, {last}) as numbers (n)
),

trades as (
    select
        *,
        k % 50 as instrument,
        lpad(instrument::varchar, 2, '0') as number,
        (1 + instrument) * 100 + round(10 * sin(k / 50000.0), 2) + (hash(k, 'tick') % 100) / 100.0 as price,
        (1 + hash(k, 'size') % 100000) / 100000.0 as size,
        {start} + (k * {step})::bigint
            - case when hash(k, 'late') % 1000 < 5 then (1 + hash(k, 'by') % 3600) * 1000000000 else 0 end as event_ns,
        {start} + (n * {step})::bigint + 40000000 as received_ns
    from numbered
),

texts as (
    select
        n,
        received_ns,
        'COIN' || number || 'USDT' as symbol,
        is_malformed,
        '{{"stream":"coin' || number || 'usdt@trade","data":{{"e":"trade","E":' || (event_ns // 1000000 + 1)
        || ',"s":"COIN' || number || 'USDT","t":' || (instrument * 70000000 + k // 50)
        || ',"p":"' || price::decimal(18, 8) || '","q":"' || size::decimal(18, 8) || '","T":' || (event_ns // 1000000)
        || ',"m":' || (hash(k, 'side') % 2 = 0) || ',"M":true}}}}' as text
    from trades
)

select
    null::blob as key,
    -- A message that was cut off.
    (if(is_malformed, text[:length(text) - 40], text))::blob as payload,
    0::integer as source_partition,
    n::bigint as source_position,
    make_timestamp_ns(received_ns) as source_time,
    symbol as instrument
from texts
order by n
"""


def land(raw: Path, first: int, last: int) -> None:
    """Land records `first` up to, not including, `last` of the world: a load for every 100,000."""
    from loaders.chain import Chain, Source, Sources
    from loaders.ledger import Entry, load_id
    from loaders.segments import Load, SegmentWriter
    from loaders.store import open_store
    from loaders.times import iso

    store = open_store(str(raw))
    source = Source("binance_spot", "4L6g3nShT-eMCtK--X86sw", "trades", "c2k0G4h2SjqI8lYvA3iPZA")
    Sources(store).note(source)
    chain = Chain(store, source, 0)
    chain.begin(first)
    connection = duckdb.connect()
    start, step = FIRST_DAY * 86_400 * 10**9, 86_400 * 10**9 / PER_DAY
    for at in range(first, last, PER_LOAD):
        stop = min(at + PER_LOAD, last)
        table: pa.Table = connection.execute(
            RECORDS.format(first=at, last=stop, start=start, step=step)
        ).to_arrow_table()
        now, key = time.time_ns(), chain.key(at)
        writer = SegmentWriter(store, Load(source.feed, source.topic, load_id(key), now, None, "1", {}))
        writer.add(table)
        writer.close()
        entry = Entry(
            key=key,
            load_id=load_id(key),
            feed=source.feed,
            kind="stream",
            source=source.topic,
            schema_version="1",
            bytes=table.nbytes,
            records=stop - at,
            files=tuple(writer.files),
            stream=chain.stream(at, stop),
            started_at=iso(now),
            loaded_at=iso(now),
            loader_version="benchmark",
        )
        if not chain.extend(entry):
            raise SystemExit("another loader wrote to the benchmark's zone")


# What is measured; each in a process of its own, which prints a line of JSON.


def scan(home: Path) -> dict[str, Any]:
    """(a) Read every payload."""
    connection = _limited()
    started = time.perf_counter()
    query = "select count(*), sum(octet_length(payload)), sum(hash(payload)) from read_parquet(?)"
    (records, size, _) = connection.execute(query, [_files(home)]).fetchone() or (0, 0, 0)
    return {"seconds": time.perf_counter() - started, "records": records, "bytes": int(size)}


def parse(home: Path) -> dict[str, Any]:
    """(b) Parse every payload by the staging model's own SQL, as dbt compiled it, down to typed columns."""
    from loaders.settings import Settings
    from market_data import lake

    settings = Settings.from_env()
    connection = lake.open_version(settings, None)
    connection.execute(f"set memory_limit = '{MEMORY}'")
    connection.execute("attach ':memory:' as raw")
    connection.execute(
        f"create view raw.main.binance_spot as select *, 1::bigint as load_seq from read_parquet({_files(home)!r})"
    )
    compiled = next(settings.state_dir.rglob("compiled/**/staging/stg_binance_spot.sql")).read_text()
    columns = "sum(hash(kind, symbol, trade_id, price, size, side, event_time, disposition))"
    started = time.perf_counter()
    (records, _) = connection.execute(f"select count(*), {columns} from ({compiled})").fetchone() or (0, 0)
    return {"seconds": time.perf_counter() - started, "records": records}


def build(home: Path) -> dict[str, Any]:
    """(c) `mdp build`, tests and publication included. The process is the command's own."""
    from market_data.cli import main

    started = time.perf_counter()
    try:
        main(["build"])
    except SystemExit as end:
        if end.code:
            raise
    return {"seconds": time.perf_counter() - started}


def polars(home: Path) -> dict[str, Any]:
    """(d) Trades and bars of the same files with Polars."""
    import polars as pl

    started = time.perf_counter()
    message = pl.Struct(
        {
            "stream": pl.String,
            "data": pl.Struct(
                {
                    "e": pl.String,
                    "s": pl.String,
                    "t": pl.Int64,
                    "p": pl.String,
                    "q": pl.String,
                    "T": pl.Int64,
                    "m": pl.Boolean,
                }
            ),
        }
    )
    out = home / "polars"
    out.mkdir()
    records = pl.scan_parquet(_files(home)).select(
        "load_id", "source_partition", "source_position", "source_time", text=pl.col("payload").cast(pl.String)
    )
    is_whole = pl.col("text").str.starts_with("{") & pl.col("text").str.ends_with("}}")
    records.filter(~is_whole).sink_parquet(out / "quarantine.parquet")
    trades = (
        records.filter(is_whole)
        .with_columns(pl.col("text").str.json_decode(message).struct.field("data").struct.unnest())
        .filter(pl.col("e") == "trade")
        .select(
            "load_id",
            "source_position",
            symbol="s",
            trade_id="t",
            event_time=pl.from_epoch("T", time_unit="ms").cast(pl.Datetime("ns")),
            received_time="source_time",
            price=pl.col("p").cast(pl.Float64, strict=False),
            size=pl.col("q").cast(pl.Float64, strict=False),
            side=pl.when("m").then(pl.lit("sell")).otherwise(pl.lit("buy")),
        )
        .sort("source_position")
        .unique(["symbol", "trade_id"], keep="first")
        .sort("symbol", "event_time", "trade_id")
        .with_columns(event_date=pl.col("event_time").dt.date())
        .collect(engine="streaming")
    )
    trades.write_parquet(pl.PartitionBy(out / "trades", key="event_date"), mkdir=True)
    for name, every in (("bars_1m", "1m"), ("bars_1d", "1d")):
        bars = trades.group_by("symbol", period=pl.col("event_time").dt.truncate(every)).agg(
            open=pl.col("price").first(),
            high=pl.col("price").max(),
            low=pl.col("price").min(),
            close=pl.col("price").last(),
            volume=pl.col("size").sum(),
            dollar_volume=(pl.col("price") * pl.col("size")).sum(),
            trade_count=pl.len(),
        )
        bars.sort("symbol", "period").write_parquet(out / f"{name}.parquet")
    return {"seconds": time.perf_counter() - started, "trades": trades.height}


MEASURED: dict[str, Callable[[Path], dict[str, Any]]] = {"scan": scan, "parse": parse, "build": build, "polars": polars}


def _limited() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(f"set memory_limit = '{MEMORY}'")
    return connection


def _files(home: Path) -> list[str]:
    return sorted(str(path) for path in (home / "raw" / "binance_spot").rglob("*.parquet"))


def measured(what: str, home: Path) -> dict[str, Any]:
    """Run one measurement in a process of its own; adds the peak of its resident memory, in MB."""
    places = {"MDP_RAW": home / "raw", "MDP_LAKE": home / "lake.sqlite", "MDP_LAKE_DATA": home / "lake"}
    env = os.environ | {name: str(place) for name, place in places.items()} | {"MDP_MEMORY": MEMORY, "MDP_LOG": "json"}
    command = [sys.executable, __file__, "--measure", what, "--home", str(home)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peak() -> float:
    """The peak of this process's resident memory in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def against_polars(root: Path, records: int) -> dict[str, Any]:
    home = root / "whole"
    land(home / "raw", 0, records)
    found = {"build": measured("build", home)}
    for what in ("scan", "parse", "polars"):
        found[what] = measured(what, home)
    shutil.rmtree(home)
    return found


def by_history(root: Path, sizes: list[int]) -> dict[int, dict[str, Any]]:
    """Return for each size what 100,000 more records cost there, and then nothing more; medians of three."""
    found: dict[int, dict[str, Any]] = {}
    home = root / "grown"
    landed = 0
    for size in sizes:
        land(home / "raw", landed, size)
        first = measured("build", home)
        more, nothing = [], []
        landed = size
        for _ in range(3):
            land(home / "raw", landed, landed + MORE)
            landed += MORE
            more.append(measured("build", home))
            nothing.append(measured("build", home))
        found[size] = {
            "build before": first["seconds"],
            "100,000 more": sorted(taken["seconds"] for taken in more)[1],
            "nothing": sorted(taken["seconds"] for taken in nothing)[1],
            "peak": max(taken["peak"] for taken in more),
        }
        print(f"{size:,}: {found[size]}", file=sys.stderr)
    return found


def show(whole: dict[str, Any], grown: dict[int, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if whole:
        table = Table("what", "seconds", "of scan", "peak, MB")
        for what in ("scan", "parse", "build", "polars"):
            taken = whole[what]
            ratio = taken["seconds"] / whole["scan"]["seconds"]
            table.add_row(what, f"{taken['seconds']:.2f}", f"{ratio:.2f}", f"{taken['peak']:,.0f}")
        console.print(table)
        console.print(f"build / Polars: {whole['build']['seconds'] / whole['polars']['seconds']:.2f}")
    if grown:
        table = Table("records before", "100,000 more, s", "nothing new, s", "peak, MB")
        for size, taken in grown.items():
            row = (f"{taken[what]:,.2f}" for what in ("100,000 more", "nothing"))
            table.add_row(f"{size:,}", *row, f"{taken['peak']:,.0f}")
        console.print(table)
        first, last = grown[min(grown)], grown[max(grown)]
        for what in ("100,000 more", "nothing"):
            console.print(f"{what}, largest / smallest: {last[what] / first[what]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Canonical trades and bars against Polars, and by what is new.")
    parser.add_argument("--records", type=float, default=10, help="millions, against Polars; 0: not at all")
    parser.add_argument("--sizes", type=float, nargs="*", default=[1, 10, 50], help="millions, each with 100,000 more")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURED[options.measure](options.home) | {"peak": peak()}))
        return
    with tempfile.TemporaryDirectory(prefix="mdp-benchmark-") as name:
        root = Path(name)
        whole = against_polars(root, int(options.records * MILLION)) if options.records else {}
        grown = by_history(root, [int(size * MILLION) for size in options.sizes])
    show(whole, grown)
    if options.json:
        options.json.write_text(json.dumps({"whole": whole, "grown": grown}, indent=2) + "\n")


if __name__ == "__main__":
    main()
