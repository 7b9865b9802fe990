"""Where things are: the one place that reads the environment.

MDP_RAW        raw zone: a directory or s3://bucket/prefix           (./warehouse/raw)
MDP_LAKE       the lake's catalog: a SQLite file or postgres:…               (./warehouse/lake.sqlite)
MDP_LAKE_DATA  the lake's files: a directory or s3://bucket/prefix   (./warehouse/lake)
MDP_KAFKA      bootstrap servers: host:port,…                        (127.0.0.1:9092)
MDP_KAFKA_CLIENT    what reads from Kafka: kafka-python or confluent  (kafka-python)
MDP_KAFKA_SECURITY  PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL       (PLAINTEXT)
MDP_KAFKA_CA, MDP_KAFKA_CERT, MDP_KAFKA_KEY  PEM files: who signs the brokers' certificates; our own certificate and key
MDP_KAFKA_SASL_MECHANISM  PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512      (SCRAM-SHA-512)
MDP_KAFKA_USER, MDP_KAFKA_PASSWORD           who we are, with SASL
MDP_LOCK_WAIT  seconds to wait for another writer of the lake       (600)
MDP_MEMORY     what DuckDB may use in a full refresh, such as 4GB; beyond it work goes to disk. Other builds use
               1.3 GB at most, or this  (80 % of the machine)
MDP_KEEP_DAYS  days for which `mdp maintain` keeps every published version  (7)
MDP_LOG        how events are told on the error stream: text or json  (text)
MDP_S3_TIMEOUT seconds without an answer after which a request to S3 is made again  (30)
MDP_FAILPOINT  a point at which the process kills itself, for tests  (none; loaders/failpoints.py)
MDP_SERVICES_DIR  where local services keep their files              (a temporary directory)
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION or AWS_DEFAULT_REGION,
AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL                              S3, as every AWS tool reads it
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

MIB = 1 << 20

KafkaClient = Literal["kafka-python", "confluent"]
KAFKA_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_BROKER = re.compile(r"(?:\w+://)?(?:\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::(\d{1,5}))?")
SASL_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it and the way out."""


@dataclass(frozen=True)
class Limits:
    """What a single file may ask of the machine; beyond it the file is refused."""

    file_bytes: int = 256 << 30
    """Bytes of a file, and of what it decompresses to. A day of all US quotes stays below it."""
    ratio: int = 200
    """Decompressed bytes for each compressed byte: market data has 5 to 30, a bomb 1000."""
    ratio_from_bytes: int = 4 * MIB
    """Decompressed bytes up to which the ratio is not looked at: a tiny file may well be repetitive."""
    record_bytes: int = 64 * MIB
    """Bytes of one record, and of the fields around a document's list, since these are held in memory."""


@dataclass(frozen=True)
class S3Settings:
    """How to reach S3. What is None is left to boto3's own ways (profiles, instance roles)."""

    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str | None = None
    endpoint: str | None = None
    timeout_seconds: float = 30.0


@dataclass(frozen=True)
class KafkaSecurity:
    """How Kafka's brokers are spoken to, in Kafka's own words; the files are PEM."""

    protocol: str = "PLAINTEXT"
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    mechanism: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def tls(self) -> bool:
        return self.protocol.endswith("SSL")

    @property
    def sasl(self) -> bool:
        return self.protocol.startswith("SASL_")


PLAINTEXT = KafkaSecurity()


@dataclass(frozen=True)
class Settings:
    """Where the raw zone, the lake and the services are; every path absolute."""

    raw: str
    lake: str
    lake_data: str
    kafka: str = "127.0.0.1:9092"
    kafka_client: KafkaClient = "kafka-python"
    kafka_security: KafkaSecurity = PLAINTEXT
    services_dir: str | None = None
    failpoint: str | None = None
    s3: S3Settings = S3Settings()
    limits: Limits = Limits()
    lock_wait_seconds: float = 600.0
    keep_days: float = 7.0
    memory: int | None = None
    """Bytes."""

    @property
    def lake_is_local(self) -> bool:
        """Whether the catalog is a SQLite file of this machine."""
        return not self.lake.startswith("postgres:")

    @property
    def state_dir(self) -> Path:
        """Where writers of this lake keep what is theirs: lock, staged records, dbt's target and logs."""
        if self.lake_is_local:
            return Path(f"{self.lake}.state")
        name = hashlib.sha256(f"{self.lake}\0{self.lake_data}".encode()).hexdigest()[:16]
        return user_cache() / "lakes" / name

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings; relative paths start at the current directory, empty variables are unset.

        Raises SettingsError for a place of a kind that is not known.
        """
        env = {name: value for name, value in (os.environ if environ is None else environ).items() if value}
        lake = _catalog(env.get("MDP_LAKE"))
        return cls(
            raw=_place("MDP_RAW", env.get("MDP_RAW", "warehouse/raw")),
            lake=lake,
            lake_data=_lake_data(env, lake),
            kafka=_brokers(env.get("MDP_KAFKA", "127.0.0.1:9092")),
            kafka_client=_kafka_client(env.get("MDP_KAFKA_CLIENT", "kafka-python")),
            kafka_security=_kafka_security(env),
            services_dir=_place("MDP_SERVICES_DIR", env["MDP_SERVICES_DIR"]) if "MDP_SERVICES_DIR" in env else None,
            failpoint=env.get("MDP_FAILPOINT"),
            lock_wait_seconds=_seconds("MDP_LOCK_WAIT", env.get("MDP_LOCK_WAIT", "600")),
            keep_days=_days("MDP_KEEP_DAYS", env.get("MDP_KEEP_DAYS", "7")),
            memory=_memory(env.get("MDP_MEMORY")),
            s3=S3Settings(
                access_key=_credential(env, "AWS_ACCESS_KEY_ID"),
                secret_key=_credential(env, "AWS_SECRET_ACCESS_KEY"),
                session_token=_credential(env, "AWS_SESSION_TOKEN"),
                region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION"),
                endpoint=env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL"),
                timeout_seconds=_seconds("MDP_S3_TIMEOUT", env.get("MDP_S3_TIMEOUT", "30")),
            ),
        )


def log_style() -> Literal["text", "json"]:
    """Return how events are told, which a program must know before it reads its other settings."""
    style = os.environ.get("MDP_LOG") or "text"
    if style not in ("text", "json"):
        raise SettingsError(f"MDP_LOG is {style!r}; give text or json")
    return "json" if style == "json" else "text"


def _brokers(value: str) -> str:
    """Return the bootstrap servers, each a host and perhaps a port, as either client reads them."""
    if "@" in value:
        raise SettingsError("MDP_KAFKA names a user; put that into MDP_KAFKA_USER and MDP_KAFKA_PASSWORD")
    for broker in value.split(","):
        found = _BROKER.fullmatch(broker.strip())
        if found is None or not 0 < int(found[1] or 9092) < 1 << 16:
            raise SettingsError(f"MDP_KAFKA is {value!r}: {broker.strip()!r} is no broker; give host:port,…")
    return value


def _kafka_client(value: str) -> KafkaClient:
    if value not in ("kafka-python", "confluent"):
        raise SettingsError(f"MDP_KAFKA_CLIENT is {value!r}; give kafka-python or confluent")
    return "confluent" if value == "confluent" else "kafka-python"


def _kafka_security(env: Mapping[str, str]) -> KafkaSecurity:
    """Return how the brokers are spoken to. Raises SettingsError where something is missing or would be ignored."""
    protocol = env.get("MDP_KAFKA_SECURITY", "PLAINTEXT").upper()
    if protocol not in KAFKA_PROTOCOLS:
        raise SettingsError(f"MDP_KAFKA_SECURITY is {protocol!r}; give one of {', '.join(KAFKA_PROTOCOLS)}")
    names = {name: f"MDP_KAFKA_{name.upper()}" for name in ("ca", "cert", "key", "user", "password")}
    values = {name: env.get(variable) for name, variable in names.items()}
    found = KafkaSecurity(protocol, mechanism=None, **values)
    mechanism = env.get("MDP_KAFKA_SASL_MECHANISM")
    ignored = [] if found.tls else ["ca", "cert", "key"]
    ignored += [] if found.sasl else ["user", "password"]
    for name in ignored:
        if values[name]:
            fitting = "SASL_SSL" if name in ("user", "password") else "SSL or SASL_SSL"
            raise SettingsError(
                f"{names[name]} is set, and MDP_KAFKA_SECURITY is {protocol}, which does not use it: give {fitting}"
            )
    if (found.cert is None) != (found.key is None):
        raise SettingsError("MDP_KAFKA_CERT and MDP_KAFKA_KEY belong together: set both, or neither")
    if not found.sasl:
        return found
    mechanism = (mechanism or "SCRAM-SHA-512").upper()
    if mechanism not in SASL_MECHANISMS:
        raise SettingsError(f"MDP_KAFKA_SASL_MECHANISM is {mechanism!r}; give one of {', '.join(SASL_MECHANISMS)}")
    for name in ("user", "password"):
        if not values[name]:
            raise SettingsError(f"MDP_KAFKA_SECURITY is {protocol}: set MDP_KAFKA_USER and MDP_KAFKA_PASSWORD too")
    return replace(found, mechanism=mechanism)


def _place(name: str, value: str) -> str:
    """Return an s3:// URL without its trailing slash, or an absolute path."""
    if value.startswith("s3://"):
        bucket = value.removeprefix("s3://").partition("/")[0]
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", bucket):
            # Not shown: somebody may have written the keys into it.
            raise SettingsError(
                f"{name} begins with s3://, and what follows cannot be a bucket; write s3://bucket/prefix, and the "
                f"credentials into the AWS variables"
            )
        return value.rstrip("/")
    if "://" in value:
        scheme = value.partition("://")[0]
        raise SettingsError(f"{name} is of the kind {scheme}://; use a directory or s3://bucket/prefix")
    if "\0" in value:
        raise SettingsError(f"{name} holds a NUL byte")
    return str(Path(value).expanduser().absolute())


def _credential(env: Mapping[str, str], name: str) -> str | None:
    """Return what says who we are to S3. What a header cannot hold would be shown by the error that says so."""
    value = env.get(name) or None
    if value is not None and not re.fullmatch(r"[!-~]+", value):
        raise SettingsError(f"{name} holds a space, a line break or another character that no key has; set it anew")
    return value


def user_cache() -> Path:
    """The per-user cache of this project, outside every warehouse."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "market-data-platform"


def _seconds(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise SettingsError(f"{name} is {value!r}; give a number of seconds") from None


def _days(name: str, value: str) -> float:
    try:
        days = float(value)
    except ValueError:
        days = -1
    if not 0 <= days < 1_000_000:
        raise SettingsError(f"{name} is {value!r}; give a number of days, 0 or more")
    return days


def _memory(value: str | None) -> int | None:
    """Return the bytes that a size such as 4GB or 512 MiB says."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT])(I?)B", value.upper())
    if not found:
        raise SettingsError(f"MDP_MEMORY is {value!r}; give a size such as 4GB")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("KMGT".index(unit) + 1))


def _catalog(value: str | None) -> str:
    """Return the catalog: the path that all writers of a SQLite file share, or what names a database."""
    if value is None:
        value = "warehouse/lake.sqlite"
    if value.startswith("md:"):
        raise SettingsError("MDP_LAKE names a MotherDuck database, which is not supported yet: give a path or postgres")
    if value.startswith("postgres:"):
        if re.search(r"password\s*=|://[^/@]*:[^/@]*@", value):
            raise SettingsError("MDP_LAKE holds a password; put it into PGPASSWORD or ~/.pgpass, which are read anyway")
        return value
    if value.startswith("s3://"):
        raise SettingsError("MDP_LAKE is the catalog, which S3 cannot hold: give a path or postgres, and MDP_LAKE_DATA")
    return str(Path(_place("MDP_LAKE", value)).resolve())


def _lake_data(env: Mapping[str, str], lake: str) -> str:
    """Return where the lake's files are: stated, or beside its SQLite catalog."""
    if "MDP_LAKE_DATA" in env:
        return _place("MDP_LAKE_DATA", env["MDP_LAKE_DATA"])
    if "MDP_LAKE" not in env:
        return str(Path("warehouse/lake").absolute())
    if lake.startswith("postgres:"):
        raise SettingsError("MDP_LAKE is in PostgreSQL: say where its files go, in MDP_LAKE_DATA")
    return f"{lake}.data"
