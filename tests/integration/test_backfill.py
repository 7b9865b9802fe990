"""`mdp backfill`: the missing days of an archive, each once, whatever stops the run.

an archive (directory or S3) + a raw zone with some days ── backfill ──▶ days present, landed, missing, refused
"""

from __future__ import annotations

import datetime as dt
import gzip
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import S3Server

from loaders import backfill
from loaders.backfill import BackfillError, Report, expected_days, plan, run
from loaders.files import load
from loaders.ledger import Entry, Ledger
from loaders.registry import find_feed, load_registry
from loaders.settings import S3Settings, Settings
from loaders.store import open_store
from loaders.verify import verify
from market_data.cli import main

NAME = "massive_day_aggs"
FEED = find_feed(NAME, load_registry())
HEADER = b"ticker,volume,open,close,high,low,window_start,transactions\n"
FIRST, STOP = dt.date(2024, 5, 20), dt.date(2024, 6, 4)
SESSIONS = [dt.date(2024, 5, day) for day in (20, 21, 22, 23, 24, 28, 29, 30, 31)] + [dt.date(2024, 6, 3)]
HOLIDAY = dt.date(2024, 5, 27)
RANGE = ("--feed", NAME, "--from", str(FIRST), "--to", str(STOP))


def day_of(day: dt.date, rows: int = 3) -> bytes:
    return HEADER + b"".join(b"T%d,1,2,3,4,5,%d000000000,7\n" % (row, 86400 * day.toordinal()) for row in range(rows))


def put(root: Path, day: dt.date, data: bytes | None = None, *, name: str = NAME, suffix: str = ".csv.gz") -> Path:
    """Put a day's file where vendors do: below its year and month."""
    path = root / f"{day:%Y/%m}" / f"{name}_{day}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = day_of(day) if data is None else data
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_env({"MDP_RAW": str(tmp_path / "raw")})


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


def backfilled(source: object, settings: Settings, **given: Any) -> Report:
    return run(plan(FEED, FIRST, STOP, str(source), settings), FEED, settings, workers=2, **given)


def command(settings: Settings, source: object, *arguments: str) -> Result:
    arguments = ("backfill", *RANGE, "--source", str(source), *arguments)
    return CliRunner().invoke(main, arguments, env={"MDP_RAW": settings.raw})


def entries(settings: Settings, prefix: str = f"file/{NAME}/") -> list[Entry]:
    return list(Ledger(open_store(settings.raw, settings.s3)).entries(prefix))


def days_of(report: Report, status: str) -> list[dt.date]:
    return sorted(day for day, found in report.days.items() if found == status)


def whole(settings: Settings) -> None:
    """Each day is there once, all that the ledger names is there, and nothing else is."""
    days = [entry.attributes["session_date"] for entry in entries(settings)]
    assert len(days) == len(set(days))
    summary = verify(settings, hashes=True)
    assert summary.ok and summary.orphans == 0


def test_ten_days_of_which_some_are_there_and_some_cannot_be(settings: Settings, archive: Path) -> None:
    present, corrupt, missing = SESSIONS[:3], SESSIONS[4], SESSIONS[6]
    for day in SESSIONS:
        if day != missing:
            put(archive, day, suffix=".csv" if day in present[:1] else ".csv.gz")
    put(archive, FIRST - dt.timedelta(3))
    put(archive, STOP)
    put(archive, SESSIONS[5], name="massive_trades")
    (archive / "README.txt").write_text("not a day")
    (archive / f".{NAME}_{missing}.csv").write_text("hidden: still being copied")
    broken = put(archive, corrupt)
    broken.write_bytes(broken.read_bytes()[:-10])
    for day in present:  # the last one with other bytes: a correction is not this command's business
        (path,) = archive.rglob(f"{NAME}_{day}.csv*")
        load([path], NAME, settings=settings, delivered_at="2024-06-10" if day == present[1] else None)
    put(archive, present[2], day_of(present[2], rows=4))

    done = command(settings, archive)
    assert done.exit_code == 1, done.output
    for line in (
        "10 days",
        "present │     3 │ 2024-05-20, 2024-05-21, 2024-05-22",
        "landed  │     5 │ 2024-05-23, 2024-05-28, 2024-05-30, 2024-05-31, 2024-06-03",
        f"missing │     1 │ {missing}",
        f"refused │     1 │ {corrupt}",
        "landed 5 files, 15 records",
        "delivery time not stated for 5 files",
        "2 files left out",
        f"refused: {corrupt}: {broken}: refused: truncated gzip",
    ):
        assert line in done.output
    assert str(HOLIDAY) not in done.output
    assert len(entries(settings)) == 8
    whole(settings)

    put(archive, corrupt)
    put(archive, missing)
    again = command(settings, archive)
    assert again.exit_code == 0, again.output
    assert f"landed  │     2 │ {corrupt}, {missing}" in again.output
    assert len(entries(settings)) == 10
    assert command(settings, archive).exit_code == 0
    assert len(entries(settings)) == 10
    whole(settings)


def test_a_killed_run_goes_on(settings: Settings, archive: Path) -> None:
    for day in SESSIONS:
        put(archive, day, day_of(day, rows=20_000))
    environment = {**os.environ, "MDP_RAW": settings.raw}
    line = [sys.executable, "-m", "market_data.cli", "backfill", *RANGE, "--source", str(archive), "--workers", "1"]
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        before = len(entries(settings))
        with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as part:
            assert part.stderr is not None
            assert "loaded 20,000 records" in part.stderr.readline()
            part.send_signal(number)
            output, _ = part.communicate(timeout=300)
            assert part.returncode == code
        assert before < len(entries(settings)) < len(SESSIONS)
        assert verify(settings).ok
    assert "interrupted: nothing is half loaded; run it again to go on" in output
    assert "left" in output
    before = len(entries(settings))
    report = backfilled(archive, settings)
    assert report.complete
    assert (len(days_of(report, "present")), len(days_of(report, "landed"))) == (before, len(SESSIONS) - before)
    assert sum(entry.records for entry in entries(settings)) == 20_000 * len(SESSIONS)
    assert len(entries(settings)) == len(SESSIONS)


def test_interrupted_within_a_file_nothing_of_it_stays(settings: Settings, archive: Path) -> None:
    put(archive, SESSIONS[0], day_of(SESSIONS[0], rows=120_000), suffix=".csv")
    stop = threading.Event()

    def interrupt(_: str, part: float) -> None:
        if any(Path(settings.raw).rglob("*.parquet")):
            stop.set()

    report = backfilled(archive, settings, stop=stop, progress=interrupt)
    assert report.interrupted and not report.complete and days_of(report, "left") == SESSIONS[:1]
    assert not any(path for path in Path(settings.raw).rglob("*") if path.is_file())
    assert days_of(backfilled(archive, settings), "landed") == SESSIONS[:1]


def test_delivery_times_may_be_stated(settings: Settings, archive: Path) -> None:
    put(archive, SESSIONS[0])
    done = command(settings, archive, "--delivered-at", "2024-06-10T12:00:00-04:00")
    assert "not stated" not in done.output
    assert [entry.delivered_at for entry in entries(settings)] == ["2024-06-10T16:00:00.000000000Z"]


def test_days_with_few_of_the_fields_land_where_they_are_accepted(settings: Settings, archive: Path) -> None:
    put(archive, SESSIONS[0], b"ticker,close,colour\nA,1,red\n")
    done = command(settings, archive)
    assert f"refused │     1 │ {SESSIONS[0]}" in done.output
    assert f"; `--feed {NAME} --accept other-feed` lands it" in done.output
    done = command(settings, archive, "--accept", "other-feed")
    assert f"landed  │     1 │ {SESSIONS[0]}" in done.output


def test_of_two_files_for_a_day_none_is_guessed(settings: Settings, archive: Path) -> None:
    put(archive, SESSIONS[0], suffix=".csv")
    both = put(archive, SESSIONS[0])
    put(archive, SESSIONS[1])
    put(archive / "corrected", SESSIONS[1], day_of(SESSIONS[1], rows=4))
    report = backfilled(archive, settings)
    assert days_of(report, "landed") == SESSIONS[:1]
    assert [entry.source for entry in entries(settings)] == [both.name], "of a file and its .gz the latter"
    assert days_of(report, "refused") == SESSIONS[1:2]
    assert "2 files claim it" in report.refusals[0] and "/corrected/" in report.refusals[0]


def test_a_day_is_known_by_name_and_size_too(settings: Settings, archive: Path) -> None:
    path = put(archive, SESSIONS[0])
    load([path], NAME, settings=settings, attributes={"session_date": "as stated"})
    found = plan(FEED, FIRST, STOP, str(archive), settings)
    assert found.todo == [] and days_of(found.report, "present") == SESSIONS[:1]


def test_every_day_and_each_instrument_where_markets_do_not_close(settings: Settings, archive: Path) -> None:
    feed = find_feed("binance_spot", load_registry())
    archive.mkdir()
    line = b'1717200000000000000 {"stream":"x@trade","data":{"e":"trade","s":"X"}}\n'
    for name in ("btcusdt_20240601", "ethusdt_20240601", "btcusdt_20240602"):
        (archive / f"binance_spot_{name}").write_bytes(line + name.encode() + b"\n")
    load([archive / "binance_spot_btcusdt_20240601"], "binance_spot", settings=settings)
    first, stop = dt.date(2024, 6, 1), dt.date(2024, 6, 4)
    report = run(plan(feed, first, stop, str(archive), settings), feed, settings, workers=1)
    assert report.files == 2 and len(entries(settings, "file/binance_spot/")) == 3
    assert {str(day): status for day, status in report.days.items()} == {
        "2024-06-01": "landed",
        "2024-06-02": "landed",
        "2024-06-03": "missing",
    }


def test_a_day_of_which_one_file_is_refused_is_not_there(settings: Settings, archive: Path) -> None:
    feed = find_feed("binance_spot", load_registry())
    for name in (
        "a/binance_spot_btcusdt_20240601",
        "b/binance_spot_btcusdt_20240601",
        "a/binance_spot_ethusdt_20240601",
    ):
        (archive / name).parent.mkdir(parents=True, exist_ok=True)
        (archive / name).write_bytes(name.encode())
    first, stop = dt.date(2024, 6, 1), dt.date(2024, 6, 2)
    report = run(plan(feed, first, stop, str(archive), settings), feed, settings, workers=1)
    assert (report.files, report.days, report.complete) == (1, {first: "refused"}, False)


def test_a_link_out_of_the_archive_is_refused(settings: Settings, archive: Path, tmp_path: Path) -> None:
    put(archive, SESSIONS[0]).rename(tmp_path / "elsewhere")
    (archive / f"{NAME}_{SESSIONS[0]}.csv.gz").symlink_to(tmp_path / "elsewhere")
    report = backfilled(archive, settings)
    assert days_of(report, "refused") == SESSIONS[:1] and "leads out of" in report.refusals[0]


def test_days_that_a_feed_should_have() -> None:
    assert expected_days(FEED, FIRST, STOP) == SESSIONS
    assert expected_days(FEED, HOLIDAY, HOLIDAY + dt.timedelta(1)) == []
    today = dt.datetime.now(dt.UTC).date()
    utc = find_feed("coinbase_exchange", load_registry())
    assert expected_days(utc, today - dt.timedelta(2), today + dt.timedelta(9))[-1] < today
    with pytest.raises(BackfillError, match="known for the years 1996 to"):
        expected_days(FEED, dt.date(1990, 1, 1), dt.date(1990, 2, 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--feed", "massive_splits"), "are not of a day each"),
        (("--feed", "nothing"), "known feeds: "),
        (("--to", str(FIRST)), "the range is [from, to)"),
        (("--from", "last week"), "is no date such as 2024-06-03"),
        (("--source", "/nowhere"), "is no directory"),
        (("--source", "s3://"), "names no bucket"),
        (("--delivered-at", "soon"), "is not an ISO date or time"),
    ],
)
def test_what_cannot_be_begun(settings: Settings, archive: Path, arguments: tuple[str, str], words: str) -> None:
    archive.mkdir()
    done = command(settings, archive, *arguments)
    assert done.exit_code == 2 and words in " ".join(done.output.split())


def test_an_archive_on_s3(
    s3_server: S3Server, settings: Settings, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, client = s3_server.new_bucket(), s3_server.client()
    for day in SESSIONS[:4]:
        path = put(archive, day, day_of(day, rows=2_000))
        client.upload_file(str(path), bucket, f"archive/{path.relative_to(archive)}")
    client.put_object(Bucket=bucket, Key=f"other/{NAME}_{SESSIONS[5]}.csv", Body=day_of(SESSIONS[5]))
    client.put_object(Bucket=bucket, Key=f"archive/{NAME}_{SESSIONS[6]}.csv.gz", Body=b"\x1f\x8b")
    load([path], NAME, settings=settings)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)

    done = command(settings, f"s3://{bucket}/archive")
    assert done.exit_code == 1, done.output
    assert "present │     1 │ 2024-05-23" in done.output
    assert "landed  │     3 │ 2024-05-20, 2024-05-21, 2024-05-22" in done.output
    assert "refused │     1 │ 2024-05-29" in done.output and "truncated gzip" in done.output
    assert "delivery time not stated for 3 files" in done.output
    assert list(temporary.iterdir()) == []
    for entry in entries(settings):
        assert (Path(settings.raw) / str(entry.original)).read_bytes() == next(archive.rglob(entry.source)).read_bytes()
        assert entry.records == 2_000
    assert f"s3://{bucket}/archive/2024/05/{NAME}_2024-05-20.csv.gz" in {e.path_given for e in entries(settings)}
    whole(settings)
    empty = command(settings, f"s3://{bucket}/nothing")
    assert empty.exit_code == 2 and "holds nothing" in empty.output

    # The raw zone on S3 too: nothing is there yet, so everything is landed; then damage is found there as well.
    remote = Settings(
        raw=f"s3://{bucket}/raw",
        lake=settings.lake,
        lake_data=settings.lake_data,
        s3=S3Settings(s3_server.access_key, s3_server.secret_key, None, s3_server.region, s3_server.endpoint),
    )
    assert len(days_of(backfilled(f"s3://{bucket}/archive", remote), "landed")) == 4
    assert verify(remote).ok
    whole(remote)
    entry = next(entry for entry in entries(remote) if entry.records)
    client.delete_object(Bucket=bucket, Key=f"raw/{entry.files[0].path}")
    found: list[str] = []
    assert not verify(remote, tell=lambda finding: found.append(finding.what)).ok
    assert found == [f"file {entry.files[0].path} is not there"]


def test_a_copy_that_ends_early_is_not_loaded(
    s3_server: S3Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_server.new_bucket()
    s3_server.client().put_object(Bucket=bucket, Key=f"a/{NAME}_{SESSIONS[0]}.csv", Body=day_of(SESSIONS[0]))
    monkeypatch.setattr(backfill, "blocks", lambda source: [source.read(70)])
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    done = command(settings, f"s3://{bucket}/a")
    assert done.exit_code == 1 and "gave 70 bytes of" in done.output and "run it again to go on" in done.output
    assert entries(settings) == []
