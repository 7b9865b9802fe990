"""What the research tables cost against Polars: volatility, momentum, and bars of a minute.

    sessions of instruments, trades ── made in bulk ──▶ the lake of an empty build
        dbt compile --full-refresh ── the models' own SQL ──▶ tables ──┐
        the lake's Parquet files ── Polars, lazy and streaming ────────┴─ seconds; every row compared to 1e-9

    .venv/bin/python benchmarks/research_tables.py                                     10 million trades
    .venv/bin/python benchmarks/research_tables.py --instruments 200 --trades 500000   for a look
    .venv/bin/python benchmarks/research_tables.py --trades 0                          only the daily tables

Both read the same Parquet files and leave their answer in memory; each time is the least of three. The sessions hold
dividends, splits, a bar in 500 missing, and trading halts longer than the ten sessions that a return may span; the
members of the cross-section change each month. The trades have the Binance capture's shape: 50 instruments, a million a
day, 1 % of them duplicates, 0.5 % late by up to an hour, which revise bars. Polars makes the present bars and days
alone; the models make every version with the time from which it was known.

Wanted: volatility_1d and momentum_1d (with int_momentum_1d) at most 2 × Polars, bars_1m at most half of Polars, and no
row that differs. The exit code is 1 where it is not so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from loaders.settings import Settings
from market_data import lake
from market_data.build import build
from market_data.dbt_runs import Project

REPEATS = 3
WANTED = {"volatility_1d": 2.0, "momentum_1d": 2.0, "bars_1m": 0.5}
"""The most that each may cost, in times of Polars."""
MEMBERS = 500
WINDOWS = (5, 20, 60, 252)
ESTIMATORS = ("close_to_close", "parkinson", "garman_klass", "rogers_satchell", "yang_zhang")
MOMENTUM = {"momentum_3_1": (1, 3), "momentum_6_1": (1, 6), "momentum_12_1": (1, 12), "reversal_1m": (0, 1)}
"""From how many months ago to how many months ago a measure looks back."""
YEAR, MONTH, LONGEST_GAP = 252, 21, 10

DAYS = """
insert into lake.versioned.int_bars_1d__chained by name
with calendar as (
    select session_date, session_seq, close_at, row_number() over (order by session_date) - 1 as n
    from lake.versioned.int_sessions
    where calendar = 'XNYS' and session_date >= '2014-01-01'
    order by session_date
    limit {sessions}
),

bars as (
    select
        i,
        n,
        session_date,
        session_seq,
        close_at as session_close,
        format('us_equities:S{{:05d}}', i) as instrument_id,
        instrument_id as listing_id,
        format('S{{:05d}}', i) as symbol,
        (20 + i % 200) * exp(0.3 * sin(n / 90.0 + i) + 0.02 * (hash(i, n) / 2 ** 63 - 1)) as close,
        close * exp(0.01 * (hash(i, n, 'open') / 2 ** 63 - 1)) as open,
        greatest(open, close) * (1 + 0.01 * hash(i, n, 'high') / 2 ** 64) as high,
        least(open, close) * (1 - 0.01 * hash(i, n, 'low') / 2 ** 64) as low,
        (1000 + hash(i, n, 'volume') % 100000)::double as volume,
        (open + close) / 2 as vwap,
        vwap * volume as dollar_volume
    from range({instruments}) as instruments (i), calendar
    where hash(i, n, 'missing') % 500 != 0 and not (i % 50 = 0 and n % 1000 between 600 and 615)
)

select
    * exclude (i, n),
    'us_equities' as venue,
    'USD' as currency,
    'XNYS' as calendar,
    100 as trade_count,
    'vendor' as bar_source,
    lag(session_date) over history as previous_session_date,
    case when hash(i, n, 'split') % 2000 = 0 then 2 else 1 end as split_ratio,
    -- Prices here do not jump at a split: the one before was so much higher.
    lag(close) over history * split_ratio as previous_close,
    session_seq - lag(session_seq) over history as gap_sessions,
    case when (n + i) % 63 = 0 then 0.004 * close else 0 end as cash_dividend,
    [] as not_applied,
    session_close + interval 11 hours as known_from
from bars
window history as (partition by i order by n)
order by instrument_id, session_date
"""

MEMBERSHIPS = """
insert into lake.versioned.int_universe_top by name
with month_ends as (
    select calendar, max(session_date) as session_date, max(decision_time) as decision_time
    from lake.versioned.int_sessions
    where calendar = 'XNYS' and session_date between '2013-12-01' and '2039-01-01'
    group by calendar, date_trunc('month', session_date)
)

select
    'top_{members}' as universe,
    'equity' as asset_class,
    'USD' as currency,
    format('us_equities:S{{:05d}}', i) as instrument_id,
    format('S{{:05d}}', i) as symbol,
    session_date,
    session_date + 1 as valid_from,
    (lead(session_date) over (partition by i order by session_date))::date + 1 as valid_to,
    1e6 as adv_20,
    decision_time as known_from
from range({instruments}) as instruments (i), month_ends
qualify row_number() over (partition by session_date order by hash(i // 2 * 2, session_date), i) <= {members}
"""

TRADES = """
insert into lake.versioned.int_trades__versioned by name
with numbered as (
    select
        n,
        n >= 1000 and hash(n, 'duplicate') % 1000 < 10 as is_duplicate,
        n - case when is_duplicate then 1000 else 0 end as k,
        n % 50 as instrument,
        make_timestamp_ns({start} + n * {step} + 40000000) as received_time,
        (1 + hash(k, 'by') % 3600)::bigint * 1000000000 as lateness,
        {start} + k * {step} - case when hash(k, 'late') % 1000 < 5 then lateness else 0 end as event_ns
    from range({trades}) as numbers (n)
)

select
    format('COIN{{:02d}}USDT', instrument) as symbol,
    'binance:' || symbol as listing_id,
    'binance' as venue,
    (k // 50)::varchar as trade_id,
    make_timestamp_ns(event_ns // 1000000 * 1000000) as event_time,
    received_time,
    (1 + instrument) * 100 + round(10 * sin(k / 50000.0), 2) + (hash(k, 'tick') % 100) / 100.0 as price,
    (1 + hash(k, 'size') % 100000) / 100000.0 as size,
    if(hash(k, 'side') % 2 = 0, 'sell', 'buy') as side,
    false as is_cancelled,
    received_time as known_from,
    received_time as rule_known_from,
    'received' as knowledge_basis,
    0 as revision,
    'binance_spot' as feed,
    '1' as schema_version,
    format('{{:064x}}', n // 100000) as load_id,
    'binance_spot' as source,
    0 as source_partition,
    n as source_position,
    event_time::date as event_date,
    event_date as session_date,
    '' as identity_scope,
    '' as slot,
    1 + n // 100000 as load_seq,
    load_seq as build_seq,
    is_duplicate,
    false as is_deletion
from numbered
order by event_date, listing_id, event_time
"""


# Made anew by the models' own SQL.


@dataclass(frozen=True)
class Lake:
    """A lake of an empty build, which is filled in bulk, and what dbt compiles of the models then."""

    settings: Settings

    def fill(self, *statements: str) -> None:
        connection = lake.open_for_writing(self.settings)
        for statement in statements:
            connection.execute(statement)
        connection.close()

    def files(self, table: str) -> list[str]:
        with lake.open_version(self.settings, None) as connection:
            listed = f"from ducklake_list_files('lake', '{table}', schema => 'versioned')"
            return [str(file) for (file,) in connection.execute(f"select data_file {listed}").fetchall()]

    def compiled(self, *models: str) -> dict[str, str]:
        """The models' SQL as of a full refresh, by name."""
        Project(self.settings).run(["compile", "--full-refresh", "--select", *models])
        folder = self.settings.state_dir / "target" / "compiled"
        return {model: next(folder.rglob(f"research/**/{model}.sql")).read_text() for model in models}

    def run(self, sql: dict[str, str]) -> tuple[float, duckdb.DuckDBPyConnection]:
        """Seconds for some models, each of which may read the one before; the connection that holds their tables."""
        connection = lake.open_version(self.settings, None)
        connection.execute(f"set temp_directory = {lake.quoted(str(self.settings.state_dir / 'tmp'))}")
        connection.execute("set preserve_insertion_order = true")
        started = time.perf_counter()
        for model, query in sql.items():
            here = re.sub(rf'"lake"\."versioned"\."({"|".join(sql)})"', r"temp.main.\1", query)
            connection.execute(f"create temp table {model} as {here}")
        return time.perf_counter() - started, connection


# The same with Polars.


def sorted_days(files: list[str], *columns: str) -> pl.LazyFrame:
    """Days of the daily tables' input, in the order of their windows."""
    names = ("instrument_id", "session_seq", "session_date", "previous_close", "gap_sessions", "split_ratio")
    return pl.scan_parquet(files).select(*names, "cash_dividend", *columns).sort("instrument_id", "session_seq")


def rolled(kind: str, name: str, sessions: int) -> pl.Expr:
    """A rolling mean or variance over the last sessions of the calendar; null below four fifths of them."""
    roll = getattr(pl.col(name), f"rolling_{kind}_by")
    return roll("session_seq", f"{sessions}i", min_samples=-(-4 * sessions // 5)).over("instrument_id")


def observed() -> dict[str, pl.Expr]:
    """The logarithms of which volatility is made; null without a return."""
    has_return = pl.col("gap_sessions") <= LONGEST_GAP
    before = pl.col("previous_close") - pl.col("cash_dividend")
    logs = {
        "o": pl.col("split_ratio") * pl.col("open") / before,
        "h": pl.col("high") / pl.col("open"),
        "l": pl.col("low") / pl.col("open"),
        "c": pl.col("close") / pl.col("open"),
    }
    return {name: pl.when(has_return).then(ratio.log()) for name, ratio in logs.items()}


def polars_volatility(files: list[str]) -> pl.DataFrame:
    o, h, low, c = (pl.col(name) for name in "ohlc")
    terms = (
        sorted_days(files, "open", "high", "low", "close")
        .select("instrument_id", "session_seq", "session_date", **observed())
        .with_columns(
            r=o + c,
            range=(h - low) ** 2,
            klass=0.5 * (h - low) ** 2 - (2 * pl.lit(2.0).log() - 1) * c**2,
            rogers=h * (h - c) + low * (low - c),
            seen=o.is_not_null().cast(pl.Int64),
        )
    )
    sums = [
        pl.col("seen").rolling_sum_by("session_seq", f"{n}i").over("instrument_id").alias(f"observations_{n}")
        for n in WINDOWS
    ]
    kinds = {"r": "var", "o": "var", "c": "var", "range": "mean", "klass": "mean", "rogers": "mean"}
    sums += [rolled(kind, name, n).alias(f"{name}_{n}") for n in WINDOWS for name, kind in kinds.items()]
    estimates: list[pl.Expr] = []
    for n in WINDOWS:
        m = pl.col(f"observations_{n}")
        k = 0.34 / (1.34 + (m + 1) / (m - 1))
        squared = {
            "close_to_close": pl.col(f"r_{n}"),
            "parkinson": pl.col(f"range_{n}") / (4 * pl.lit(2.0).log()),
            "garman_klass": pl.col(f"klass_{n}"),
            "rogers_satchell": pl.col(f"rogers_{n}"),
            "yang_zhang": pl.col(f"o_{n}") + k * pl.col(f"c_{n}") + (1 - k) * pl.col(f"rogers_{n}"),
        }
        estimates.append(m)
        estimates += [
            pl.when(value >= 0).then((YEAR * value).sqrt()).alias(f"{name}_{n}") for name, value in squared.items()
        ]
    return terms.with_columns(sums).select("instrument_id", "session_date", *estimates).collect(engine="streaming")


def polars_momentum(files: list[str], member_files: list[str]) -> pl.DataFrame:
    gross = (pl.col("split_ratio") * pl.col("close") + pl.col("cash_dividend")) / pl.col("previous_close")
    has_return = pl.col("gap_sessions") <= LONGEST_GAP
    growth = pl.when(has_return).then(gross.log())
    log = pl.col("split_ratio") * pl.col("close") / (pl.col("previous_close") - pl.col("cash_dividend"))
    indices = (
        sorted_days(files, "close")
        .with_columns(growth=growth, r=pl.when(has_return).then(log.log()))
        .select(
            "instrument_id",
            "session_seq",
            "session_date",
            index_0=pl.col("growth").fill_null(0.0).cum_sum().over("instrument_id"),
            breaks_0=pl.col("growth").is_null().cum_sum().over("instrument_id"),
            volatility=(YEAR * rolled("var", "r", YEAR)).sqrt(),
        )
    )
    looked_back = indices
    for months in sorted({month for span in MOMENTUM.values() for month in span if month}):
        names = {"index_0": f"index_{months}", "breaks_0": f"breaks_{months}"}
        looked_back = looked_back.with_columns(asked=pl.col("session_seq") - MONTH * months).join_asof(
            looked_back.select("instrument_id", "session_seq", *names).rename(
                {**names, "session_seq": f"seq_{months}"}
            ),
            left_on="asked",
            right_on=f"seq_{months}",
            by="instrument_id",
            tolerance=LONGEST_GAP,
            check_sortedness=False,
        )

    def grown(to: int, since: int) -> pl.Expr:
        change = (pl.col(f"index_{to}") - pl.col(f"index_{since}")).exp() - 1
        return pl.when(pl.col(f"breaks_{to}") == pl.col(f"breaks_{since}")).then(change)

    measures = {name: grown(*span) * (-1 if name == "reversal_1m" else 1) for name, span in MOMENTUM.items()}
    values = (
        looked_back.select("instrument_id", "session_date", "volatility", **measures)
        .with_columns((pl.col(name) / pl.col("volatility")).alias(f"{name}_scaled") for name in MOMENTUM)
        .drop("volatility")
        .collect(engine="streaming")
    )
    members = (
        pl.scan_parquet(member_files)
        .filter(pl.col("universe") == f"top_{MEMBERS}")
        .select("instrument_id", "valid_from", "valid_to")
        .sort("valid_from")
    )
    compared = (
        values.lazy()
        .select("instrument_id", "session_date", *MOMENTUM)
        .sort("session_date")
        .join_asof(members, left_on="session_date", right_on="valid_from", by="instrument_id", check_sortedness=False)
        .filter(pl.col("session_date") < pl.col("valid_to"))
        .select(
            "instrument_id",
            "session_date",
            *(part for name in MOMENTUM for part in _compared(name)),
        )
    )
    return values.lazy().join(compared, on=["instrument_id", "session_date"], how="left").collect(engine="streaming")


def _compared(name: str) -> list[pl.Expr]:
    """Rank and score among the members of a session."""
    value = pl.col(name)
    count = value.count()
    rank = (value.round(12).rank("min") - 1) / (count - 1)
    score = (value - value.mean()) / value.std()
    several = pl.when(count > 1)
    return [
        several.then(rank).over("session_date").alias(f"{name}_rank"),
        several.then(score).over("session_date").alias(f"{name}_z"),
    ]


def polars_bars(files: list[str]) -> pl.DataFrame:
    price, size = pl.col("price"), pl.col("size")
    return (
        pl.scan_parquet(files)
        .filter(
            ~pl.col("is_duplicate"), ~pl.col("is_deletion"), ~pl.col("is_cancelled"), price > 0, size > 0,
            pl.col("known_to").is_null(),
        )
        .select("listing_id", "event_time", "price", "size", trade=pl.col("trade_id").cast(pl.Int64))
        .sort("listing_id", "event_time", "trade")
        .group_by("listing_id", bar_start=pl.col("event_time").dt.truncate("1m"))
        .agg(
            open=price.first(),
            high=price.max(),
            low=price.min(),
            close=price.last(),
            volume=size.sum(),
            vwap=(price * size).sum() / size.sum(),
            dollar_volume=(price * size).sum(),
            trade_count=pl.len(),
            first_trade_at=pl.col("event_time").first(),
            last_trade_at=pl.col("event_time").last(),
        )
        .collect(engine="streaming")
    )  # fmt: skip


# Compared.


def mismatches(connection: duckdb.DuckDBPyConnection, model: str, theirs: pl.DataFrame, key: list[str]) -> int:
    """Present rows of one that the other has not, or has otherwise: by 1e-9, or 1e-12 of what is almost zero."""
    connection.register("theirs", theirs.with_columns(is_theirs=pl.lit(True)).to_arrow())
    differ = []
    for name, kind in theirs.schema.items():
        if name in key:
            continue
        a, b = f"mine.{name}", f"theirs.{name}"
        far = f"abs({a} - {b}) > 1e-9 * greatest(abs({a}), abs({b}), 1e-3)" if kind.is_float() else f"{a} != {b}"
        differ.append(f"({a} is null) != ({b} is null) or coalesce({far}, false)")
    found = connection.execute(
        f"""
        select count(*)
        from (select *, true as is_mine from {model} where known_to is null) as mine
        full join theirs on {" and ".join(f"mine.{name} = theirs.{name}" for name in key)}
        where is_mine is null or is_theirs is null or {" or ".join(differ)}
        """
    ).fetchone()
    connection.unregister("theirs")
    return int(found[0]) if found else -1


def least(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The shortest of some runs, in seconds, and the last one's answer."""
    took: list[float] = []
    answer: Any = None
    for _ in range(repeats):
        answer = None  # two answers need not fit in memory
        started = time.perf_counter()
        answer = work()
        took.append(time.perf_counter() - started)
    return min(took), answer


def measured(
    made: Lake, models: list[str], with_polars: Callable[[], pl.DataFrame], key: list[str], repeats: int
) -> dict[str, Any]:
    """The last of some models, made with those before it, against Polars."""
    sql = made.compiled(*models)
    say(f"{models[-1]}: the models")
    seconds: list[float] = []
    for number in range(repeats):
        took, connection = made.run(sql)
        seconds.append(took)
        if number < repeats - 1:
            connection.close()
    say(f"{models[-1]}: Polars")
    polars_seconds, theirs = least(with_polars, repeats)
    say(f"{models[-1]}: comparing")
    (versions,) = connection.execute(f"select count(*) from {models[-1]}").fetchone() or (0,)
    wrong = mismatches(connection, models[-1], theirs, key)
    connection.close()
    return {
        "rows": theirs.height,
        "versions": versions,
        "model_seconds": round(min(seconds), 3),
        "polars_seconds": round(polars_seconds, 3),
        "ratio": round(min(seconds) / polars_seconds, 3),
        "wanted": WANTED[models[-1]],
        "mismatches": wrong,
    }


def say(what: str) -> None:
    """Progress, on the error stream."""
    print(f"{time.strftime('%T')} {what}", file=sys.stderr, flush=True)


def benchmark(root: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    settings = Settings(raw=str(root / "raw"), lake=str(root / "lake.sqlite"), lake_data=str(root / "lake"))
    say("building an empty lake")
    build(settings)
    made = Lake(settings)
    found: dict[str, dict[str, Any]] = {}
    if options.instruments:
        say("filling it with days")
        made.fill(
            DAYS.format(instruments=options.instruments, sessions=options.sessions),
            MEMBERSHIPS.format(instruments=options.instruments, members=MEMBERS),
        )
        days, members = made.files("int_bars_1d__chained"), made.files("int_universe_top")
        day = ["instrument_id", "session_date"]
        found["volatility_1d"] = measured(made, ["volatility_1d"], lambda: polars_volatility(days), day, options.repeat)
        found["momentum_1d"] = measured(
            made, ["int_momentum_1d", "momentum_1d"], lambda: polars_momentum(days, members), day, options.repeat
        )
    if options.trades:
        say("filling it with trades")
        made.fill(TRADES.format(trades=options.trades, start=19_800 * 86_400 * 10**9, step=86_400 * 1000))
        trades = made.files("int_trades__versioned")
        found["bars_1m"] = measured(
            made, ["bars_1m"], lambda: polars_bars(trades), ["listing_id", "bar_start"], options.repeat
        )
    return found


def show(found: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("table", "rows", "versions", "model, s", "Polars, s", "ratio", "wanted", "mismatches")
    for name, each in found.items():
        table.add_row(
            name, f"{each['rows']:,}", f"{each['versions']:,}", f"{each['model_seconds']:.2f}",
            f"{each['polars_seconds']:.2f}", f"{each['ratio']:.2f}", f"≤ {each['wanted']}", f"{each['mismatches']:,}",
        )  # fmt: skip
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description="Volatility, momentum and minute bars against Polars.")
    parser.add_argument("--instruments", type=int, default=5_000, help="0: no daily tables")
    parser.add_argument("--sessions", type=int, default=2_520)
    parser.add_argument("--trades", type=int, default=10_000_000, help="0: no bars")
    parser.add_argument("--repeat", type=int, default=REPEATS)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mdp-benchmark-") as name:
        found = benchmark(Path(name), options)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    kept = all(each["ratio"] <= each["wanted"] and each["mismatches"] == 0 and each["rows"] for each in found.values())
    return 0 if found and kept else 1


if __name__ == "__main__":
    sys.exit(main())
