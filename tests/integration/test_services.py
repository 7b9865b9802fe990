"""The local services are real and behave: round trips through each, and what up and down promise.

kafka_server, s3_server, postgres_server ──► clients, DuckLake on both ──► what was written is what is read
    services/up and down in a directory of their own ──► idempotent, loopback only, nothing left behind
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import duckdb
import pytest
import yaml
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaTimeoutError

pytestmark = pytest.mark.services

SERVICES = Path(__file__).resolve().parents[2] / "services"

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Load = Callable[[Any, str], None]


def read_topic(bootstrap: str, topic: str, count: int) -> list[Any]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, consumer_timeout_ms=10_000)
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        return [record for _, record in zip(range(count), consumer, strict=False)]
    finally:
        consumer.close()


# --- Kafka ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, "lz4", "zstd", "snappy", "gzip"])
def test_kafka_gives_back_what_it_was_given(kafka_server: Any, codec: str | None) -> None:
    topic = kafka_server.new_topic()
    sent = [
        (f"k{n}".encode(), None if n % 10 == 0 else bytes([n % 256]) * n, [("h", b"\xff"), ("h", b"")])
        for n in range(300)
    ]
    producer = KafkaProducer(bootstrap_servers=kafka_server.bootstrap, acks="all", compression_type=codec)
    for key, value, headers in sent:
        producer.send(topic, key=key, value=value, headers=headers, timestamp_ms=1_700_000_000_000)
    producer.close()

    got = read_topic(kafka_server.bootstrap, topic, len(sent))

    assert [(record.key, record.value, list(record.headers)) for record in got] == sent
    assert [record.offset for record in got] == list(range(len(sent)))
    assert {record.timestamp for record in got} == {1_700_000_000_000}


def test_kafka_makes_no_topic_unasked(kafka_server: Any) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka_server.bootstrap, max_block_ms=1000)
    try:
        with pytest.raises(KafkaTimeoutError):
            producer.send("never-made", b"x").get(timeout=5)
    finally:
        producer.close(timeout=1)
    admin = KafkaAdminClient(bootstrap_servers=kafka_server.bootstrap)
    try:
        assert "never-made" not in admin.list_topics()
    finally:
        admin.close()


def test_kafka_comes_back_after_a_crash_with_what_it_had(kafka_server: Any) -> None:
    topic, before = kafka_server.new_topic(), kafka_server.bootstrap
    producer = KafkaProducer(bootstrap_servers=before, acks="all")
    producer.send(topic, b"kept").get(timeout=60)
    producer.close()

    kafka_server.kill()
    kafka_server.start()

    assert kafka_server.bootstrap == before
    assert [record.value for record in read_topic(before, topic, 1)] == [b"kept"]


# --- S3 ---------------------------------------------------------------------------------------------------


def test_s3_gives_back_what_it_was_given(s3_server: Any) -> None:
    client, bucket = s3_server.client(), s3_server.bucket
    keys = [
        "plain",
        "a/b/ingest_date=2024-01-02/x.parquet",
        "_ledger/entries/file/f/ab@20240102T030405.6Z.json",
    ]
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode() * 1000)

    assert all(client.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode() * 1000 for key in keys)
    listed = client.list_objects_v2(Bucket=bucket, Prefix="a/")["Contents"]
    assert [entry["Key"] for entry in listed] == [keys[1]]


def test_s3_conditional_put_has_exactly_one_winner(s3_server: Any) -> None:
    bucket, writers, rounds = s3_server.new_bucket(), 8, 15
    clients = [s3_server.client(config=Config(retries={"total_max_attempts": 1})) for _ in range(writers)]
    start = threading.Barrier(writers)

    def put(writer: int, key: str) -> bool:
        start.wait(timeout=120)
        try:
            clients[writer].put_object(Bucket=bucket, Key=key, Body=str(writer).encode() * 5000, IfNoneMatch="*")
        except ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412)
            return False
        return True

    with ThreadPoolExecutor(writers) as pool:
        for number in range(rounds):
            key = f"race/{number}"
            won = [w for w, ok in enumerate(pool.map(put, range(writers), [key] * writers)) if ok]
            assert len(won) == 1
            body = clients[0].get_object(Bucket=bucket, Key=key)["Body"].read()
            assert body == str(won[0]).encode() * 5000


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"aws_secret_access_key": "not the secret"}, "SignatureDoesNotMatch"),
        ({"aws_access_key_id": "NOBODY"}, "InvalidAccessKeyId"),
        ({"config": Config(signature_version=UNSIGNED)}, "AccessDenied"),
    ],
)
def test_s3_refuses_who_does_not_know_the_secret(s3_server: Any, changed: dict[str, Any], code: str) -> None:
    with pytest.raises(ClientError) as refused:
        s3_server.client(**changed).put_object(Bucket=s3_server.bucket, Key="no", Body=b"x")
    assert refused.value.response["Error"]["Code"] == code
    with pytest.raises(ClientError):
        s3_server.client().head_object(Bucket=s3_server.bucket, Key="no")


# --- PostgreSQL and DuckLake ------------------------------------------------------------------------------


def test_postgres_answers_and_asks_for_the_password(postgres_server: Any, load_extension: Load) -> None:
    with duckdb.connect() as connection:
        load_extension(connection, "postgres_scanner")
        connection.execute(f"ATTACH '{postgres_server.dsn}' AS pg (TYPE postgres)")
        connection.execute("CREATE TABLE pg.public.seen AS SELECT range AS n FROM range(1000)")
        assert connection.execute("SELECT sum(n) FROM pg.public.seen").fetchone() == (499_500,)
        version = connection.execute(
            "SELECT * FROM postgres_query('pg', $$SELECT current_setting('server_encoding')$$)"
        ).fetchone()
        assert version == ("UTF8",)

        wrong = postgres_server.dsn.replace(postgres_server.password, "wrong")
        with pytest.raises(duckdb.Error, match="password authentication failed"):
            connection.execute(f"ATTACH '{wrong}' AS other (TYPE postgres)")


def test_ducklake_on_postgres_and_s3(postgres_server: Any, s3_server: Any, load_extension: Load) -> None:
    catalog = postgres_server.dsn_of(postgres_server.new_database())
    bucket = s3_server.new_bucket()

    def attach() -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect()
        for name in ("postgres_scanner", "httpfs", "ducklake"):
            load_extension(connection, name)
        connection.execute(
            f"""CREATE SECRET (TYPE s3, KEY_ID '{s3_server.access_key}', SECRET '{s3_server.secret_key}',
                REGION '{s3_server.region}', ENDPOINT '{s3_server.endpoint.removeprefix("http://")}',
                URL_STYLE 'path', USE_SSL false)"""
        )
        connection.execute(f"ATTACH 'ducklake:postgres:{catalog}' AS lake (DATA_PATH 's3://{bucket}/lake')")
        return connection

    with attach() as writer:
        writer.execute("CREATE TABLE lake.ticks AS SELECT range AS n, hash(range) AS h FROM range(200_000)")
        writer.execute("DELETE FROM lake.ticks WHERE n % 2 = 1")
    with attach() as reader:
        assert reader.execute("SELECT count(*), max(n) FROM lake.ticks").fetchone() == (100_000, 199_998)
    stored = s3_server.client().list_objects_v2(Bucket=bucket, Prefix="lake/")["Contents"]
    assert any(entry["Key"].endswith(".parquet") for entry in stored)


# --- what up and down promise -----------------------------------------------------------------------------


@pytest.fixture
def own_root(services_command: Command) -> Iterator[Path]:
    """A directory for services of one test, which uses their fixtures too: these skip it where programs are absent."""
    root = Path(tempfile.mkdtemp(prefix=f"mdp-tests-{os.getpid()}-"))
    yield root
    services_command("down", root=root).check_returncode()
    shutil.rmtree(root)


def exported(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return dict(shlex.split(line)[1].split("=", 1) for line in done.stdout.splitlines())


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found.extend(parents.get(one, []))
    return found


def listening_on(pids: list[int]) -> set[str]:
    """The addresses on which these processes listen, as /proc/net/tcp and tcp6 write them (hexadecimal)."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.update(re.findall(r"socket:\[(\d+)\]", str(descriptor.readlink())))
            except OSError:
                continue
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["kafka_server", "s3_server", "postgres_server"])
def test_services_listen_on_loopback_only(name: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(name)
    addresses = listening_on(family(server.pid))
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.usefixtures("s3_server", "postgres_server")
def test_up_twice_is_up_once_and_down_leaves_nothing(own_root: Path, services_command: Command) -> None:
    first = services_command("up", "s3", "postgres", "--random-ports", root=own_root)
    assert first.returncode == 0, first.stderr
    pids = [json.loads((own_root / n / "service.json").read_text())["pid"] for n in ("s3", "postgres")]
    everyone = [pid for one in pids for pid in family(one)]
    assert not (own_root / "kafka").exists()

    second = services_command("up", "s3", "postgres", "--random-ports", root=own_root)
    assert second.returncode == 0
    assert second.stdout == first.stdout
    assert second.stderr.count("already up") == 2
    assert services_command("status", "s3", "postgres", root=own_root).returncode == 0
    assert services_command("status", root=own_root).returncode == 1

    down = services_command("down", root=own_root)
    assert down.returncode == 0
    assert not [pid for pid in everyone if Path(f"/proc/{pid}/exe").exists()]
    assert [path.name for path in own_root.iterdir()] == [".lock"]
    assert services_command("down", root=own_root).returncode == 0


@pytest.mark.usefixtures("s3_server")
def test_kept_data_comes_back_and_secrets_differ_from_start_to_start(own_root: Path, services_command: Command) -> None:
    first = exported(services_command("up", "s3", "--random-ports", root=own_root))
    client = boto3.client(
        "s3",
        endpoint_url=first["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=first["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=first["AWS_SECRET_ACCESS_KEY"],
        region_name=first["AWS_REGION"],
    )
    bucket = first["MDP_RAW"].split("/")[2]
    client.put_object(Bucket=bucket, Key="kept", Body=b"x")
    assert services_command("down", "--keep", root=own_root).returncode == 0

    again = services_command("up", "s3", root=own_root)
    assert exported(again) == first
    assert client.get_object(Bucket=bucket, Key="kept")["Body"].read() == b"x"

    services_command("down", root=own_root).check_returncode()
    fresh = exported(services_command("up", "s3", "--random-ports", root=own_root))
    assert fresh["AWS_SECRET_ACCESS_KEY"] != first["AWS_SECRET_ACCESS_KEY"]
    for name in ("service.json", "s3proxy.properties"):
        assert (own_root / "s3" / name).stat().st_mode & 0o077 == 0
    assert fresh["AWS_SECRET_ACCESS_KEY"] not in (own_root / "s3.log").read_text()


def write_record(root: Path, **changed: object) -> None:
    record = {"ports": {"s3": 1}, "secrets": {}, "prepared": True, "pid": None, "process": None} | changed
    (root / "s3").mkdir()
    (root / "s3" / "service.json").write_text(json.dumps(record))


def test_down_ends_nothing_that_up_did_not_start(own_root: Path, services_command: Command) -> None:
    """The id that the record names belongs to another process by now."""
    with subprocess.Popen(["sleep", "60"]) as other:
        write_record(own_root, pid=other.pid, process="an earlier process")
        assert "was not up" in services_command("down", root=own_root).stderr
        assert other.poll() is None
        other.terminate()


@pytest.mark.usefixtures("s3_server")
def test_a_taken_port_is_named_and_eval_fails(own_root: Path, services_command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write_record(own_root, ports={"s3": port}, secrets={"access_key": "a", "secret_key": "b"})
        done = services_command("up", "s3", root=own_root)
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr
    assert "--random-ports" in done.stderr
    assert done.stdout == "false\n"


@pytest.mark.usefixtures("postgres_server")
def test_a_failed_start_names_its_log_and_leaves_no_process(own_root: Path, services_command: Command) -> None:
    services_command("up", "postgres", "--random-ports", root=own_root).check_returncode()
    services_command("down", "--keep", root=own_root).check_returncode()
    (own_root / "postgres" / "data" / "PG_VERSION").unlink()

    done = services_command("up", "postgres", root=own_root)

    assert done.returncode == 1
    log = own_root / "postgres.log"
    assert f"its log is kept: {log}" in done.stderr
    assert "PG_VERSION" in log.read_text()
    assert json.loads((own_root / "postgres" / "service.json").read_text())["process"] is None


def test_a_machine_without_the_programs_hears_what_to_install(own_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SERVICES / "services.py"), "up", "kafka"],
        env={"PATH": str(own_root), "MDP_SERVICES_DIR": str(own_root), "HOME": str(own_root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "apt-get install" in done.stderr
    assert "maven" in done.stderr


def test_an_unknown_service_is_refused(own_root: Path, services_command: Command) -> None:
    done = services_command("up", "redis", root=own_root)
    assert done.returncode == 2
    assert "unknown service 'redis'; known: kafka, kafka-tls, s3, postgres" in done.stderr


def test_compose_starts_the_same_services() -> None:
    """compose.yaml says again, for Docker, what services.py says: versions, settings, loopback."""
    compose = yaml.safe_load((SERVICES / "compose.yaml").read_text())
    pom = (SERVICES / "pom.xml").read_text()
    module = runpy.run_path(str(SERVICES / "services.py"))
    assert list(compose["services"]) == [name for name, service in module["SERVICES"].items() if service.usual]
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["healthcheck"]["test"]

    image_version = compose["services"]["kafka"]["image"].partition(":")[2]
    assert f"<version>{image_version}</version>" in pom
    assert image_version in module["Kafka"].title
    record = module["Record"](ports={"kafka": 9092, "controller": 9093, "s3": 9000}, secrets={})
    given = compose["services"]["kafka"]["environment"]
    placed = {"listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs"}
    for key, value in module["Kafka"](SERVICES).settings(record).items():
        if key not in placed:
            assert given["KAFKA_" + key.replace(".", "_").upper()] == str(value), key

    record.secrets = {"access_key": "a", "secret_key": "b"}
    s3 = module["S3"](SERVICES).settings(record)
    written = compose["configs"]["s3proxy.properties"]["content"].split()
    lines = dict(line.split("=", 1) for line in written if "=" in line)
    placed = {"s3proxy.endpoint", "s3proxy.identity", "s3proxy.credential", "jclouds.filesystem.basedir"}
    assert set(lines) == set(s3)
    assert {k: v for k, v in lines.items() if k not in placed} == {k: str(v) for k, v in s3.items() if k not in placed}


@pytest.mark.parametrize("name", ["up", "down", "status"])
def test_the_scripts_are_good_bash(name: str) -> None:
    script = SERVICES / name
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    said = subprocess.run([str(script), "--help"], capture_output=True, text=True, check=True).stdout
    assert "SERVICE" in said
