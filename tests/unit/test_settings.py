"""Where things are, by the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders.settings import Settings, SettingsError


def test_defaults_stand_below_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_env({})
    assert settings.raw == str(tmp_path / "warehouse/raw")
    assert settings.lake == str(tmp_path / "warehouse/lake.sqlite")
    assert settings.lake_data == str(tmp_path / "warehouse/lake")
    assert settings.kafka == "127.0.0.1:9092"
    monkeypatch.chdir("/")
    assert settings.raw == str(tmp_path / "warehouse/raw")


def test_an_empty_variable_counts_as_unset() -> None:
    empty = dict.fromkeys(["MDP_RAW", "MDP_LAKE", "MDP_LAKE_DATA", "MDP_KAFKA", "AWS_ENDPOINT_URL"], "")
    assert Settings.from_env(empty) == Settings.from_env({})


def test_a_lake_elsewhere_keeps_its_files_beside_it() -> None:
    settings = Settings.from_env({"MDP_LAKE": "/data/a/lake.sqlite"})
    assert settings.lake_data == "/data/a/lake.sqlite.data"
    assert settings.state_dir == Path("/data/a/lake.sqlite.state")
    assert Settings.from_env({"MDP_LAKE": "/data/a/lake.sqlite", "MDP_LAKE_DATA": "s3://b/x/"}).lake_data == "s3://b/x"


def test_a_shared_lake_says_where_its_files_are() -> None:
    with pytest.raises(SettingsError, match="MDP_LAKE_DATA"):
        Settings.from_env({"MDP_LAKE": "postgres:dbname=lake"})


@pytest.mark.parametrize(
    ("catalog", "way_out"),
    [
        ("md:lake", "not supported yet"),
        ("postgres:dbname=d password=x", "PGPASSWORD"),
        ("s3://bucket/lake.sqlite", "MDP_LAKE_DATA"),
    ],
)
def test_a_catalog_that_cannot_be_used_is_refused(catalog: str, way_out: str) -> None:
    with pytest.raises(SettingsError, match=way_out):
        Settings.from_env({"MDP_LAKE": catalog, "MDP_LAKE_DATA": "/d"})


@pytest.mark.parametrize("place", ["gs://bucket/x", "s3://", "file:///tmp/x", "a\0b"])
def test_a_place_of_another_kind_is_refused(place: str) -> None:
    with pytest.raises(SettingsError, match="MDP_RAW"):
        Settings.from_env({"MDP_RAW": place})


def test_s3_reads_the_usual_variables_and_shows_no_secret() -> None:
    settings = Settings.from_env(
        {
            "MDP_RAW": "s3://bucket/raw/",
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "canary-secret",
            "AWS_SESSION_TOKEN": "canary-token",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_ENDPOINT_URL": "http://a",
            "AWS_ENDPOINT_URL_S3": "http://b",
        }
    )
    assert settings.raw == "s3://bucket/raw"
    assert (settings.s3.access_key, settings.s3.secret_key) == ("me", "canary-secret")
    assert (settings.s3.region, settings.s3.endpoint) == ("eu-west-1", "http://b")
    assert "canary" not in repr(settings)
