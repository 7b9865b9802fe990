"""The client's times, and what it says where there is nothing to ask."""

from __future__ import annotations

import datetime as dt
import inspect
import pkgutil
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import pandas as pd
import pytest
from click.testing import CliRunner

import market_data
from loaders.files import load
from loaders.settings import Settings
from market_data import cli
from market_data.client import Answer, NotPublishedError, instant

NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.parametrize(
    ("known_at", "expected"),
    [
        (dt.datetime(2024, 3, 8, 16), "2024-03-08 16:00:00.000000"),
        (dt.datetime(2024, 3, 8, 16, tzinfo=dt.UTC), "2024-03-08 16:00:00.000000"),
        (dt.datetime(2024, 3, 8, 16, tzinfo=NEW_YORK), "2024-03-08 21:00:00.000000"),
        (dt.datetime(2024, 7, 8, 16, 0, 0, 1, tzinfo=NEW_YORK), "2024-07-08 20:00:00.000001"),
        (dt.datetime(2024, 11, 3, 1, 30, tzinfo=NEW_YORK), "2024-11-03 05:30:00.000000"),
        (dt.datetime(2024, 11, 3, 1, 30, fold=1, tzinfo=NEW_YORK), "2024-11-03 06:30:00.000000"),
        (dt.date(2024, 3, 8), "2024-03-08 00:00:00.000000"),
        ("2024-03-08", "2024-03-08 00:00:00.000000"),
        ("2024-03-08 16:00", "2024-03-08 16:00:00.000000"),
        ("2024-03-08T16:00:00Z", "2024-03-08 16:00:00.000000"),
        ("2024-03-08T16:00:00-05:00", "2024-03-08 21:00:00.000000"),
        ("2024-03-08T16:00:00.123456+05:30", "2024-03-08 10:30:00.123456"),
        (market_data.LATEST, "2262-04-11 23:47:16.854775806"),
    ],
)
def test_an_instant_is_utc(known_at: market_data.client.KnownAt, expected: str) -> None:
    assert instant(known_at) == expected


@pytest.mark.parametrize("known_at", ["yesterday", "", "2024-13-01", "now()", "'; drop table x; --"])
def test_text_that_is_no_time_is_named(known_at: str) -> None:
    with pytest.raises(ValueError, match=r"known_at .* is no time; give"):
        instant(known_at)


@pytest.mark.parametrize(
    "known_at", [dt.datetime(2024, 3, 10, 2, 30, tzinfo=NEW_YORK), "2024-03-10 02:30 America/New_York"]
)
def test_a_time_that_the_clocks_skip_is_refused(known_at: market_data.client.KnownAt) -> None:
    with pytest.raises(ValueError, match="2024-03-10 02:30 does not exist in America/New_York"):
        instant(known_at)


@pytest.mark.parametrize("known_at", [None, 20240308, 1.5])
def test_what_is_no_time_at_all_is_refused(known_at: object) -> None:
    with pytest.raises(TypeError, match=r"give a time, or market_data\.LATEST"):
        instant(known_at)  # type: ignore[arg-type]


def test_no_time_and_no_version_are_refused() -> None:
    """What a frame has where there is no time, and what a variable is that nobody set."""
    with pytest.raises(ValueError, match="known_at is NaT, which is no time"):
        instant(pd.NaT)
    with pytest.raises(TypeError, match=r"at\(None\) names no version"):
        market_data.at(None)  # type: ignore[arg-type]


def test_nanoseconds_in_text_are_not_lost() -> None:
    assert instant("2024-03-08T16:00:00.123456789Z") == "2024-03-08 16:00:00.123456789"


def test_latest_says_so() -> None:
    assert repr(market_data.LATEST) == "market_data.LATEST"


def test_latest_is_the_same_from_a_header() -> None:
    connection = duckdb.connect()
    connection.execute("attach ':memory:' as lake")
    connection.execute("create schema lake.research")
    connection.execute(
        "create table lake.research.macro_series as select 'GDP' as series_id, date '2023-10-01' as observation_date,"
        " 7::bigint as age_days, timestamp_ns '2024-01-27' as known_from, null::timestamp_ns as known_to"
    )
    with market_data.Client(connection, 7) as md:
        line = str(md.header(market_data.LATEST))
        for known_at, age in (
            (market_data.LATEST, None),
            (market_data.client.Header.parse(line).known_at, None),
            ("2024-02-03", 7),
        ):
            assert md.macro("GDP", known_at=known_at).arrow["age_days"].to_pylist() == [age], known_at


def test_known_at_must_be_said() -> None:
    with pytest.raises(TypeError, match="known_at"):
        market_data.Client.bars(None, "BTCUSDT")  # type: ignore[arg-type,call-arg]
    with pytest.raises(TypeError, match="known_at"):
        market_data.Client.macro(None, "GDP")  # type: ignore[arg-type,call-arg]


def test_a_lake_with_nothing_in_it_says_the_way_out(tmp_path: Path) -> None:
    settings = Settings(str(tmp_path / "raw"), str(tmp_path / "lake.sqlite"), str(tmp_path / "lake"))
    with pytest.raises(NotPublishedError, match=r"nothing is published in the lake .*lake\.sqlite; .*mdp build"):
        market_data.connect(settings)
    assert not list(tmp_path.iterdir()), "asking made something"


@pytest.mark.parametrize(
    "command",
    [
        *("reprocess --feed massive_trades", "quarantine list", "quarantine show", "quarantine retry", "maintain"),
        *("releases", "releases pin a", "releases unpin a", "publish", "verify --tables", "connect", "sql x", "status"),
    ],
)
def test_without_a_lake_commands_say_how_to_begin_and_make_nothing(tmp_path: Path, command: str) -> None:
    settings = Settings(str(tmp_path / "raw"), str(tmp_path / "lake.sqlite"), str(tmp_path / "lake"))
    places = {"MDP_RAW": settings.raw, "MDP_LAKE": settings.lake, "MDP_LAKE_DATA": settings.lake_data}
    done = CliRunner().invoke(cli.main, command.split(), env=places)
    assert done.exit_code == (0 if command == "status" else 1)
    assert f"nothing is published in the lake {settings.lake}; load files and run `mdp build`, or" in done.output
    assert not list(tmp_path.iterdir()), "it made something"

    file = tmp_path / "splits.json"
    file.write_text('{"results": [{"ticker": "A", "split_from": 1, "split_to": 2}]}')
    load([file, tmp_path / "gone.json"], "massive_splits", settings=settings)  # and a refusal, which does not wait
    done = CliRunner().invoke(cli.main, command.split(), env=places)
    assert f"1 load waits for `mdp build` in the raw zone {settings.raw}\n" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "splits.json"], "it made something"


def test_features_is_a_function_with_the_arguments_of_the_clients() -> None:
    _, *arguments = inspect.signature(market_data.Client.features).parameters.values()
    assert list(inspect.signature(market_data.features).parameters.values()) == arguments


def test_no_module_has_the_name_of_what_is_exported() -> None:
    """Importing a submodule would put it in the place of the function."""
    modules = {module.name for module in pkgutil.iter_modules(market_data.__path__)}
    assert modules.isdisjoint(market_data.__all__)


def test_an_answer_is_arrow_for_all() -> None:
    import pyarrow as pa

    answer = Answer(pa.table({"price": [1.5, 2.5]}), 7, "2024-03-08")
    assert len(answer) == 2
    assert answer.pl()["price"].to_list() == [1.5, 2.5]
    assert answer.df()["price"].tolist() == [1.5, 2.5]
    assert pa.table(answer).equals(answer.arrow)
