"""`mdp doctor` before real servers: what is right is said to be, what is wrong is told in a line, without secrets.

S3, PostgreSQL, Kafka of this run ── as they are, and with one thing wrong ── mdp doctor ──▶ lines, exit code
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from faults.proxy import FaultProxy

import loaders.store
from loaders import trial
from loaders.settings import Settings
from market_data import bookkeeping, doctor, lake
from market_data.cli import main

if TYPE_CHECKING:
    from conftest import KafkaServer, PostgresServer, S3Server, Server

pytestmark = pytest.mark.services
CANARY = "canary-in-the-coal-mine"
Lines = dict[str, str]


@pytest.fixture(autouse=True)
def without_kafka(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The lake is in tmp_path, and nobody is asked for long where no broker is meant."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MDP_KAFKA", "127.0.0.1:9")
    monkeypatch.setenv("MDP_LAKE", str(tmp_path / "lake.sqlite"))
    monkeypatch.setenv("MDP_LAKE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MDP_RAW", str(tmp_path / "raw"))
    monkeypatch.setattr(doctor, "KAFKA_SECONDS", 0.1)


def ask(*hidden: str, **env: str) -> tuple[int, Lines]:
    """Return the exit code, and by name what each line says; none of the `hidden` is in it, and nothing besides."""
    done = CliRunner().invoke(main, ["doctor"], env=env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.stderr == ""
    assert [secret for secret in hidden if secret in done.stdout] == []
    lines = {line[9:24].strip(): f"{line[:9].strip()}: {line[26:]}" for line in done.stdout.splitlines()}
    assert set(lines) <= {*NAMES, "clock", "removal"}, done.stdout
    return done.exit_code, lines


NAMES = ("settings", "raw zone", "conditional put", "lake catalog", "lake data", "Kafka")


def zone(server: S3Server, bucket: str) -> dict[str, str]:
    return {**server.env, "MDP_RAW": f"s3://{bucket}/some/raw"}


def keys(server: S3Server, bucket: str) -> list[str]:
    return [item["Key"] for item in server.client().list_objects_v2(Bucket=bucket).get("Contents", ())]


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3_server.endpoint)
    yield proxy
    proxy.close()


def test_a_raw_zone_on_s3_is_fine(s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    code, lines = ask(s3_server.secret_key, **zone(s3_server, bucket) | {"MDP_LAKE_DATA": f"s3://{bucket}/lake"})
    assert code == 0, lines
    assert lines["raw zone"] == f"ok: s3://{bucket}/some/raw can be written, read and listed"
    assert lines["conditional put"].startswith("ok: of 8 writers of one key exactly one won, in each of ")
    assert lines["clock"] == "ok: within 5 s of the raw zone's server"
    assert lines["lake data"] == f"ok: s3://{bucket}/lake can be written, read and listed"
    assert keys(s3_server, bucket) == []


class Generous(FaultProxy):
    """Tells each writer that it has won."""

    def __init__(self, endpoint: str, where: str) -> None:
        super().__init__(endpoint)
        self._where = where

    def forward(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any, bytes]:
        status, answered, data = super().forward(method, path, headers, body)
        return (200, answered, b"") if status == 412 and self._where in path else (status, answered, data)


@pytest.mark.parametrize(("where", "told"), [("", "If-None-Match is ignored"), ("/round-", "not just one won, in")])
def test_a_server_without_the_rule_is_found_out(where: str, told: str, s3_server: S3Server) -> None:
    bucket, proxy = s3_server.new_bucket(), Generous(s3_server.endpoint, where)
    try:
        code, lines = ask(**zone(s3_server, bucket) | {"AWS_ENDPOINT_URL_S3": proxy.endpoint})
    finally:
        proxy.close()
    assert code == 1
    assert lines["conditional put"].startswith("FAILS: ") and told in lines["conditional put"]
    assert "it cannot hold the ledger" in lines["conditional put"]
    assert lines["raw zone"].startswith("ok: ")
    assert keys(s3_server, bucket) == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"AWS_SECRET_ACCESS_KEY": CANARY}, "the server refuses the credentials (SignatureDoesNotMatch); check AWS_"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "the server refuses the credentials (InvalidAccessKeyId); check AWS_"),
        (
            {"MDP_RAW": "s3://no-such-bucket/raw"},
            "the bucket is not there (NoSuchBucket); make it, or name another one in MDP_RAW",
        ),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "no server answers at http://127.0.0.1:9 ("),
        ({"AWS_ENDPOINT_URL_S3": "nowhere"}, "Invalid endpoint: nowhere"),
    ],
)
def test_s3_that_cannot_be_used_is_told_in_a_line(
    wrong: dict[str, str], told: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders.store, "FIRST_WAIT", 3.0)  # 45 seconds in all, where it is asked again
    bucket = s3_server.new_bucket()
    started = time.monotonic()
    code, lines = ask(s3_server.secret_key, CANARY, **zone(s3_server, bucket) | wrong)
    assert code == 1
    assert lines["raw zone"].startswith(f"FAILS: {wrong.get('MDP_RAW', f's3://{bucket}/some/raw')}: ")
    assert told in lines["raw zone"]
    assert "conditional put" not in lines
    assert time.monotonic() - started < 30


def test_the_lakes_bucket_that_is_missing_is_told(s3_server: S3Server) -> None:
    code, lines = ask(**s3_server.env | {"MDP_LAKE_DATA": "s3://no-such-bucket/lake"} | {"MDP_RAW": "raw"})
    assert code == 1
    assert lines["lake data"] == (
        "FAILS: s3://no-such-bucket/lake: the bucket is not there (NoSuchBucket); "
        "make it, or name another one in MDP_LAKE_DATA"
    )


def test_a_server_that_fails_on_the_way_is_told(
    s3_server: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders.store, "FIRST_WAIT", 0.01)
    bucket = s3_server.new_bucket()
    proxy.fail("500", "put new file", times=10**6, after=20)
    code, lines = ask(**zone(s3_server, bucket) | {"AWS_ENDPOINT_URL_S3": proxy.endpoint})
    assert code == 1
    assert lines["raw zone"].startswith("ok: ") and lines["conditional put"].startswith("FAILS: ")
    assert keys(s3_server, bucket) == []


def test_what_may_not_be_deleted_is_told(
    s3_server: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders.store, "FIRST_WAIT", 0.01)
    bucket = s3_server.new_bucket()
    proxy.fail("500", "delete file", times=10**6)
    code, lines = ask(**zone(s3_server, bucket) | {"AWS_ENDPOINT_URL_S3": proxy.endpoint})
    assert code == 0
    folder = keys(s3_server, bucket)[0].rpartition("/")[0]
    assert lines["removal"].startswith(f"warning: objects of this trial stay below s3://{bucket}/{folder}: ")


@pytest.mark.parametrize(("off", "told"), [(-100, "100 s behind"), (100, "100 s ahead of")])
def test_a_clock_that_is_off_is_told(off: int, told: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SimpleNamespace(time=lambda: time.time() + off, monotonic=time.monotonic)
    monkeypatch.setattr(trial, "time", wrong)
    code, lines = ask(**zone(s3_server, s3_server.new_bucket()))
    assert code == 0
    said = lines["clock"]
    assert said.startswith("warning: this machine is ") and told.split()[2] in said
    assert abs(int(said.split()[4]) - 100) <= 2
    assert "runbook" in said


# --- PostgreSQL and Kafka ------------------------------------------------------------------------------------


def dsn_of(server: PostgresServer) -> str:
    return server.dsn_of(server.new_database()).partition(" password=")[0]


def test_a_catalog_in_postgresql(postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_LAKE", f"postgres:{dsn_of(postgres_server)}")
    monkeypatch.setenv("PGPASSWORD", postgres_server.password)
    code, lines = ask(postgres_server.password)
    assert (code, lines["lake catalog"].endswith("yet: `mdp build` makes it")) == (0, True)
    with lake.open_for_writing(Settings.from_env()) as connection:
        assert bookkeeping.are_there(connection, ["releases"]) is False, "the doctor has made nothing"
    code, lines = ask(postgres_server.password)
    assert (
        code,
        lines["lake catalog"].endswith("opened and written; nothing is published yet: `mdp build` does it"),
    ) == (
        0,
        True,
    )


def test_a_catalog_that_may_only_be_read(postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    dsn = dsn_of(postgres_server)
    monkeypatch.setenv("PGPASSWORD", postgres_server.password)
    monkeypatch.setenv("MDP_LAKE", f"postgres:{dsn}")
    monkeypatch.setenv("PGOPTIONS", "-c search_path=nowhere")
    code, lines = ask()
    assert (code, lines["lake catalog"].startswith("FAILS: ")) == (1, True)
    assert "cannot be written" in lines["lake catalog"]


def test_a_database_that_lets_nobody_in_is_told(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDP_LAKE", f"postgres:{dsn_of(postgres_server)}")
    code, lines = ask(CANARY, postgres_server.password, PGPASSWORD=CANARY)
    assert code == 1
    assert lines["lake catalog"].startswith("FAILS: the lake cannot be used: ")
    assert "password authentication failed" in lines["lake catalog"]


def test_a_database_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LAKE_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        code, lines = ask(MDP_LAKE=f"postgres:dbname=d host=127.0.0.1 port={port} user=me")
        assert time.monotonic() - started < 30
    assert (code, lines["lake catalog"]) == (1, "FAILS: no answer within 2 s; see that its server works")


def test_brokers_that_answer(kafka_server: KafkaServer, kafka_client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "KAFKA_SECONDS", 20.0)
    code, lines = ask(MDP_KAFKA=kafka_server.bootstrap, MDP_KAFKA_CLIENT=kafka_client)
    assert code == 0
    assert lines["Kafka"].startswith(f"ok: {kafka_server.bootstrap}, by {kafka_client}: the brokers answer; ")


def test_brokers_that_refuse_us(
    secure_kafka_server: Server, kafka_client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "KAFKA_SECONDS", 20.0)
    env = secure_kafka_server.env | {"MDP_KAFKA_CLIENT": kafka_client, "MDP_KAFKA_PASSWORD": CANARY}
    code, lines = ask(CANARY, **env)
    assert code == 1
    assert lines["Kafka"].startswith("FAILS: ") and "MDP_KAFKA_PASSWORD" in lines["Kafka"]


def test_brokers_that_are_away(kafka_client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "KAFKA_SECONDS", 5.0)
    started = time.monotonic()
    code, lines = ask(MDP_KAFKA_CLIENT=kafka_client)
    assert code == 0
    assert lines["Kafka"].startswith("warning: 127.0.0.1:9, by ") and lines["Kafka"].endswith("files need none")
    assert time.monotonic() - started < 30
