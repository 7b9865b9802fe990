"""TLS and SASL against a real broker that asks for both: who may come in does, who may not is told so at once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from worlds.streams import FEED, WAIT, Zone

from loaders.settings import Settings

if TYPE_CHECKING:
    from conftest import Server

LINES = b'1723161254087896568 {"data":{"s":"BTCUSDT"}}\n1723161254087896569 {"data":{"s":"BTCUSDT"}}\n'
CANARY = "canary-of-a-password"
AT_ONCE = 60.0
"""Seconds in which a refusal is told, the start of Python included; the loader would try again for 300."""


@pytest.fixture
def zone(tmp_path: Path, secure_kafka_server: Server, kafka_client: str) -> Zone:
    return zone_by(tmp_path, secure_kafka_server, kafka_client)


def zone_by(root: Path, server: Server, client: str, changed: Mapping[str, str] | None = None) -> Zone:
    env = {**server.env, "MDP_KAFKA_CLIENT": client, **(changed or {})}
    return Zone(root, server.env["MDP_KAFKA"], kafka=env)


def published(zone: Zone) -> str:
    """Send two records to a new topic by mdp capture publish; return its name."""
    file, topic = zone.root / "capture.txt", f"secure-{time.time_ns()}"
    file.write_bytes(LINES)
    done = run(zone, "capture", "publish", str(file), "--topic", topic, "--feed", FEED)
    assert done.returncode == 0, done.stderr
    return topic


def run(zone: Zone, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from market_data.cli import main; main()", *arguments]
    return subprocess.run(command, env=zone.environment(), capture_output=True, text=True, timeout=WAIT, check=False)


def new_ca(directory: Path) -> tuple[Path, Path]:
    """Make a certificate that signs itself, and its key."""
    cert, key = directory / "other.pem", directory / "other-key.pem"
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=other")
    command = ["openssl", "req", "-x509", *new, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def refused_at_once(zone: Zone) -> str:
    started = time.monotonic()
    done = zone.load("any")
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - started < AT_ONCE
    return done.stderr


def test_by_tls_and_a_password_records_are_published_loaded_and_replayed(zone: Zone) -> None:
    topic = published(zone)
    done = zone.load(topic)
    assert "loaded 2 records" in done.stdout, done.stderr
    again = run(zone, "replay", "--feed", FEED, "--topic", topic, "--from", "0", "--to", "2")
    assert "2 were there" in again.stdout, again.stderr
    assert zone.kafka["MDP_KAFKA_PASSWORD"] not in done.stdout + done.stderr + again.stdout + again.stderr


@pytest.mark.once
@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_by_scram(mechanism: str, zone: Zone, tmp_path: Path, secure_kafka_server: Server, kafka_client: str) -> None:
    from kafka.admin import KafkaAdminClient, ScramMechanism, UserScramCredentialUpsertion

    from loaders.kafka_python import client_options

    settings = zone.settings
    admin = KafkaAdminClient(**client_options(settings.kafka, settings.kafka_security))
    user, kind = f"user-{time.time_ns()}", ScramMechanism[mechanism.replace("-", "_")]
    admin.alter_user_scram_credentials([UserScramCredentialUpsertion(user, kind, CANARY, iterations=4096)])
    admin.close()
    who = {"MDP_KAFKA_USER": user, "MDP_KAFKA_PASSWORD": CANARY, "MDP_KAFKA_SASL_MECHANISM": mechanism}
    done = zone_by(tmp_path, secure_kafka_server, kafka_client, who).load(published(zone))
    assert "loaded 2 records" in done.stdout, done.stderr
    assert CANARY not in done.stderr


def test_a_wrong_password_is_told_at_once_and_shown_nowhere(
    tmp_path: Path, secure_kafka_server: Server, kafka_client: str
) -> None:
    zone = zone_by(tmp_path, secure_kafka_server, kafka_client, {"MDP_KAFKA_PASSWORD": CANARY})
    said = refused_at_once(zone)
    assert "check MDP_KAFKA_USER, MDP_KAFKA_PASSWORD" in said
    file = tmp_path / "capture.txt"
    file.write_bytes(LINES)
    sent = run(zone, "capture", "publish", str(file), "--topic", "any", "--feed", FEED)
    assert sent.returncode == 1
    assert "check MDP_KAFKA_USER, MDP_KAFKA_PASSWORD" in sent.stderr
    settings = Settings.from_env(zone.environment())
    assert CANARY not in said + sent.stdout + sent.stderr + repr(settings) + secure_kafka_server.log.read_text()


@pytest.mark.parametrize("ca", ["another", "the system's"])
def test_a_broker_whose_certificate_nobody_known_signed_is_not_trusted(
    ca: str, tmp_path: Path, secure_kafka_server: Server, kafka_client: str
) -> None:
    known = str(new_ca(tmp_path)[0]) if ca == "another" else ""
    said = refused_at_once(zone_by(tmp_path, secure_kafka_server, kafka_client, {"MDP_KAFKA_CA": known}))
    assert "set MDP_KAFKA_CA to the PEM file of who signed it" in said


def test_a_name_that_is_not_the_certificates_is_not_trusted(
    tmp_path: Path, secure_kafka_server: Server, kafka_client: str
) -> None:
    port = secure_kafka_server.env["MDP_KAFKA"].rpartition(":")[2]
    zone = Zone(
        tmp_path,
        f"localhost:{port}",
        kafka={**secure_kafka_server.env, "MDP_KAFKA": f"localhost:{port}", "MDP_KAFKA_CLIENT": kafka_client},
    )
    assert "as its certificate does" in refused_at_once(zone)


@pytest.mark.once
def test_a_certificate_of_our_own_is_shown_to_the_broker(
    zone: Zone, tmp_path: Path, secure_kafka_server: Server, kafka_client: str
) -> None:
    files = Path(secure_kafka_server.env["MDP_KAFKA_CA"]).parent
    own = {"MDP_KAFKA_CERT": str(files / "client-cert.pem"), "MDP_KAFKA_KEY": str(files / "client-key.pem")}
    done = zone_by(tmp_path, secure_kafka_server, kafka_client, own).load(published(zone))
    assert "loaded 2 records" in done.stdout, done.stderr
    cert, key = new_ca(tmp_path)
    foreign = {"MDP_KAFKA_CERT": str(cert), "MDP_KAFKA_KEY": str(key)}
    refused = zone_by(tmp_path, secure_kafka_server, kafka_client, foreign).load("any", "--give-up-after", "2")
    assert refused.returncode == 1


@pytest.mark.once
@pytest.mark.parametrize("name", ["CA", "CERT"])
def test_a_file_that_is_not_there_is_named(
    name: str, tmp_path: Path, secure_kafka_server: Server, kafka_client: str
) -> None:
    more = {f"MDP_KAFKA_{name}": "/no/such.pem", "MDP_KAFKA_KEY": "/no/key.pem" if name == "CERT" else ""}
    said = refused_at_once(zone_by(tmp_path, secure_kafka_server, kafka_client, more))
    assert f"MDP_KAFKA_{name} (/no/such.pem)" in said
    assert "cannot be used" in said
