"""What the tests share: real servers, each started on first use and once per process of a run, and the real captures.

    fixture ──► services/up NAME --random-ports (a directory of this run) ──► the fixture's fields and .env
    end of run ──► services/down, logs of a failed run kept

Where a server's programs (or the captures) are absent, the tests that need them are skipped and one line of
the summary says what to install. With MDP_REQUIRE_SERVICES=1 the absence of programs fails the tests instead.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SERVICES = REPOSITORY / "services" / "services.py"
EXIT_MISSING = 3
SERVICE_FIXTURES = {"kafka_server", "secure_kafka_server", "s3_server", "postgres_server"}

# What is missing and the way out → the tests skipped for it; and other lines for the summary.
NOTES = pytest.StashKey[list[str]]()


@dataclass
class Server:
    """A server of this run. `stop`, `kill` and `start` keep its data, its address and its secrets."""

    name: str
    root: Path  # MDP_SERVICES_DIR of this run
    env: dict[str, str]  # what leads a client to it, `.env` for a subprocess

    @property
    def pid(self) -> int:
        """Its process. Raises RuntimeError where it does not run."""
        pid = json.loads((self.root / self.name / "service.json").read_text())["pid"]
        if pid is None:
            raise RuntimeError(f"{self.name} is stopped")
        return int(pid)

    @property
    def log(self) -> Path:
        return self.root / f"{self.name}.log"

    def start(self) -> None:
        """Start it where it is not up; returns when it answers."""
        self.env.update(services_up(self.name, self.root))

    def stop(self) -> None:
        """Stop it in good order, its data kept."""
        services("down", self.name, "--keep", root=self.root).check_returncode()

    def kill(self) -> None:
        """SIGKILL, as a crash would; returns when the process is gone."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while alive(pid):
            assert time.monotonic() < deadline, f"{self.name} (process {pid}) outlives SIGKILL"
            time.sleep(0.02)

    def restart(self) -> None:
        self.stop()
        self.start()


@dataclass
class KafkaServer(Server):
    @property
    def bootstrap(self) -> str:
        """host:port"""
        return self.env["MDP_KAFKA"]

    def new_topic(self, partitions: int = 1, *, prefix: str = "test", **config: str) -> str:
        """Make a topic, return its name, which no other has. `config`: `retention_ms="-1"` and so on."""
        from kafka.admin import KafkaAdminClient, NewTopic

        name = f"{prefix}-{secrets.token_hex(6)}"
        settings = {key.replace("_", "."): value for key, value in config.items()}
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings)])
        finally:
            admin.close()
        return name


@dataclass
class S3Server(Server):
    bucket: str = ""  # made for this run

    @property
    def endpoint(self) -> str:
        """http://host:port"""
        return self.env["AWS_ENDPOINT_URL_S3"]

    @property
    def access_key(self) -> str:
        return self.env["AWS_ACCESS_KEY_ID"]

    @property
    def secret_key(self) -> str:
        return self.env["AWS_SECRET_ACCESS_KEY"]

    @property
    def region(self) -> str:
        return self.env["AWS_REGION"]

    def client(self, **changed: Any) -> Any:
        """A boto3 client of it, whatever the environment says; `changed` overrides its arguments."""
        import boto3

        arguments = {
            "endpoint_url": self.endpoint,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "region_name": self.region,
        }
        return boto3.client("s3", **(arguments | changed))

    def new_bucket(self) -> str:
        """Make an empty bucket and return its name."""
        name = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name


@dataclass
class PostgresServer(Server):
    host: str = ""
    port: int = 0
    user: str = ""
    database: str = ""

    @property
    def password(self) -> str:
        return self.env["PGPASSWORD"]

    @property
    def dsn(self) -> str:
        """For libpq and DuckDB, with the password. `.env` has it apart, as PGPASSWORD."""
        return self.dsn_of(self.database)

    def dsn_of(self, database: str) -> str:
        return f"dbname={database} host={self.host} port={self.port} user={self.user} password={self.password}"

    def new_database(self) -> str:
        """Make an empty database and return its name."""
        import duckdb

        name = f"test_{secrets.token_hex(6)}"
        with duckdb.connect() as connection:
            load_extension_from_wheel(connection, "postgres_scanner")
            connection.execute(f"ATTACH '{self.dsn}' AS pg (TYPE postgres)")
            connection.execute(f"CALL postgres_execute('pg', 'CREATE DATABASE {name}', use_transaction := false)")
        return name


def load_extension_from_wheel(connection: Any, name: str) -> None:
    """Load a DuckDB extension from its wheel, with no network and no per-user directory."""
    import importlib

    import duckdb

    package = importlib.import_module(f"duckdb_extension_{name}")
    file = Path(package.__path__[0]) / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
    connection.execute(f"LOAD '{file}'")


def leave_signatures_unchecked() -> None:
    """Load extensions in this process with no look at their signatures, which takes most of the time of opening a lake.

    What the tests start as processes of their own, mdp among them, looks at them, as it does at a user's; here only the
    connect behind it does (`inspect.unwrap`).
    """
    import duckdb

    connect = duckdb.connect

    @functools.wraps(connect)
    def connect_unchecked(
        database: str | Path = ":memory:", read_only: bool = False, config: Mapping[str, Any] | None = None
    ) -> duckdb.DuckDBPyConnection:
        return connect(database, read_only, {"allow_unsigned_extensions": "true", **(config or {})})

    duckdb.connect = connect_unchecked


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    state = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return True
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def services(command: str, *arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Run services/COMMAND as a person would, in the directory `root`."""
    return subprocess.run(
        [sys.executable, str(SERVICES), command, *arguments],
        env={**os.environ, "MDP_SERVICES_DIR": str(root)},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def skip_for(what: str, way_out: str) -> NoReturn:
    """Skip a test for want of something that the summary then names once, for all tests that want it."""
    skipped = pytest.skip.Exception(f"{what} (see the line above)")
    vars(skipped)["missing"] = (what, way_out)
    raise skipped


class MissingProgramsError(Exception):
    """The programs of a service are not installed; the message says what to install."""


def services_up(name: str, root: Path) -> dict[str, str]:
    done = services("up", name, "--random-ports", root=root)
    if done.returncode == EXIT_MISSING:
        raise MissingProgramsError(done.stderr.strip().removeprefix("services: error: "))
    if done.returncode:
        raise RuntimeError(f"services/up {name} failed:\n{done.stderr}")
    pairs = (shlex.split(line)[1].partition("=") for line in done.stdout.splitlines())
    return {key: value for key, _, value in pairs}


def sweep() -> None:
    """Stop what an earlier run that was killed has left behind."""
    for root in Path(tempfile.gettempdir()).glob("mdp-tests-*-*"):
        owner = root.name.split("-")[2]
        if root.is_dir() and root.stat().st_uid == os.geteuid() and owner.isdigit() and not alive(int(owner)):
            services("down", root=root)
            shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def services_root(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The directory of this run's services: not pytest's own, which PostgreSQL's user could not enter."""
    sweep()
    root = Path(tempfile.mkdtemp(prefix=f"mdp-tests-{os.getpid()}-"))
    yield root
    if request.session.testsfailed and (logs := list(root.glob("*.log"))):
        kept = Path(tempfile.mkdtemp(prefix="mdp-tests-logs-"))
        for log in logs:
            shutil.copy(log, kept)
        request.config.stash[NOTES].append(f"The services' logs of this failed run are kept in {kept}")
    done = services("down", root=root)
    if done.returncode:
        raise RuntimeError(f"services/down failed; {root} is left as it is:\n{done.stderr}")
    shutil.rmtree(root)


def start_or_skip(name: str, root: Path) -> dict[str, str]:
    try:
        return services_up(name, root)
    except MissingProgramsError as error:
        missing = str(error)
    if os.environ.get("MDP_REQUIRE_SERVICES") == "1":
        pytest.fail(f"MDP_REQUIRE_SERVICES=1, and {missing}", pytrace=False)
    skip_for("SERVICES MISSING", missing)


@pytest.fixture(scope="session")
def kafka_server(services_root: Path) -> KafkaServer:
    """Apache Kafka: `.bootstrap`, `.new_topic()`, `.stop()`, `.kill()`, `.start()`, `.env`."""
    return KafkaServer("kafka", services_root, start_or_skip("kafka", services_root))


@pytest.fixture(params=["kafka-python", "confluent"])
def kafka_client(request: pytest.FixtureRequest) -> str:
    """Each of the clients; tests marked `once` run with the second only in make test-long."""
    return str(request.param)


@pytest.fixture(scope="session")
def secure_kafka_server(services_root: Path) -> Server:
    """Kafka behind TLS and SASL, for its user of PLAIN: `.env`."""
    return Server("kafka-tls", services_root, start_or_skip("kafka-tls", services_root))


@pytest.fixture(scope="session")
def s3_server(services_root: Path) -> S3Server:
    """S3: `.endpoint`, `.access_key`, `.secret_key`, `.bucket`, `.client()`, `.new_bucket()`, `.env`."""
    found = start_or_skip("s3", services_root)
    connection = {key: value for key, value in found.items() if key.startswith("AWS_")}
    server = S3Server("s3", services_root, connection)
    server.bucket = server.new_bucket()
    return server


@pytest.fixture(scope="session")
def postgres_server(services_root: Path) -> PostgresServer:
    """PostgreSQL: `.dsn`, `.host`, `.port`, `.user`, `.password`, `.database`, `.new_database()`, `.env`."""
    env = start_or_skip("postgres", services_root)
    at: Mapping[str, str] = dict(part.split("=", 1) for part in shlex.split(env["MDP_LAKE"].removeprefix("postgres:")))
    return PostgresServer(
        "postgres",
        services_root,
        env,
        host=at["host"],
        port=int(at["port"]),
        user=at["user"],
        database=at["dbname"],
    )


@pytest.fixture(scope="session")
def services_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`services_command("up", "s3", root=directory)`: services/ as a person would run it."""
    return services


@pytest.fixture(scope="session")
def load_extension() -> Callable[[Any, str], None]:
    """`load_extension(connection, "ducklake")`: a DuckDB extension from its wheel, no network needed."""
    return load_extension_from_wheel


@pytest.fixture(scope="session")
def captures() -> Path:
    """The directory of the real captures: MDP_CAPTURES, else ../shared/data beside the repository."""
    stated = os.environ.get("MDP_CAPTURES")
    place = Path(stated).expanduser().resolve() if stated else REPOSITORY.parent / "shared" / "data"
    if not place.is_dir():
        skip_for("CAPTURES MISSING", f"there is no {place}; set MDP_CAPTURES to the directory with them")
    return place


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask for a server or the captures, so that `-m "not services"` leaves them out."""
    for item in items:
        wanted = set(getattr(item, "fixturenames", ()))
        if wanted & SERVICE_FIXTURES:
            item.add_marker("services")
        if "captures" in wanted:
            item.add_marker("captures")
        if item.get_closest_marker("once") and item.callspec.params.get("kafka_client") == "confluent":
            item.add_marker("long")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a skipped test misses travels with its report, from whichever process ran it."""
    if missing := getattr(call.excinfo and call.excinfo.value, "missing", None):
        item.user_properties.append(("missing", missing))
    return (yield)


class Summary:
    """Gathers what was missing and what is to be said, and says it loudly at the end, once."""

    def __init__(self) -> None:
        self.missing: dict[tuple[str, str], int] = {}
        self.notes: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties if report.skipped else ():
            if name == "missing":
                what, way_out = value
                self.missing[what, way_out] = self.missing.get((what, way_out), 0) + 1

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.notes += getattr(node, "workeroutput", {}).get("notes", [])

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for (what, way_out), count in self.missing.items():
            tests = "1 TEST" if count == 1 else f"{count} TESTS"
            terminalreporter.write_line(f"{what}, {tests} SKIPPED: {way_out}", yellow=True, bold=True)
        for note in self.notes:
            terminalreporter.write_line(note, yellow=True, bold=True)


def pytest_configure(config: pytest.Config) -> None:
    leave_signatures_unchecked()
    if not hasattr(config, "workerinput"):  # each worker has it from here
        shared = os.environ["PYTEST_SHARED"] = tempfile.mkdtemp(prefix=f"mdp-tests-{os.getpid()}-")
        config.add_cleanup(lambda: shutil.rmtree(shared, ignore_errors=True))
    summary = Summary()
    config.stash[NOTES] = summary.notes
    config.pluginmanager.register(summary)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["notes"] = session.config.stash[NOTES]
