"""The same warehouse with its raw zone and the lake's files on S3: load, build, read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import market_data
from loaders.files import load
from loaders.settings import S3Settings, Settings
from market_data import lake
from market_data.build import build

if TYPE_CHECKING:
    from conftest import S3Server

pytestmark = pytest.mark.services

VINTAGES = [
    {"realtime_start": "2024-04-25", "realtime_end": "2024-05-29", "date": "2024-01-01", "value": "100.5"},
    {"realtime_start": "2024-05-30", "realtime_end": "9999-12-31", "date": "2024-01-01", "value": "."},
]


def test_a_warehouse_on_s3(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.new_bucket()
    settings = Settings(
        raw=f"s3://{bucket}/raw",
        lake=str(tmp_path / "lake.sqlite"),
        lake_data=f"s3://{bucket}/lake",
        s3=S3Settings(
            access_key=s3_server.access_key,
            secret_key=s3_server.secret_key,
            region="us-east-1",
            endpoint=s3_server.endpoint,
        ),
    )
    file = tmp_path / "alfred_X_fetched_2024-06-01.json"
    file.write_text(json.dumps({"observations": VINTAGES}))
    assert [outcome.status for outcome in load([file], "alfred_observations", settings=settings)] == ["loaded"]
    assert build(settings).new_loads == 1
    assert not build(settings).built

    with market_data.connect(settings) as client:
        before = client.macro("X", known_at="2024-05-30").pl()
        after = client.macro("X", known_at=market_data.LATEST).pl()
        conserved = client.sql("select raw_records, is_conserved from observability.conservation").pl()
    assert before["value"].to_list() == [100.5]
    assert after["value"].to_list() == [None], "a missing value is a version: nothing falls back to an older one"
    assert conserved.rows() == [(2, True)]

    keys = [item["Key"] for item in s3_server.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert any(key.startswith("raw/alfred_observations/ingest_date=") for key in keys)
    assert any(key.startswith("raw/_ledger/entries/file/alfred_observations/") for key in keys)
    with lake.open_version(settings, None) as head:
        files = head.execute("select file_count from ducklake_table_info('lake')").fetchall()
    assert files, "the lake lists its tables"
    written = [path for path in tmp_path.rglob("*") if path.suffix == ".parquet"]
    assert not written, "the lake's files are on S3"
    outputs = [p for p in (tmp_path / "lake.sqlite.state").rglob("*") if p.is_file()]
    secret = s3_server.secret_key.encode()
    assert outputs and not [p for p in outputs if secret in p.read_bytes()], "the secret is in no log and no artifact"
