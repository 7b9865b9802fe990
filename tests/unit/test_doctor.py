"""`mdp doctor`: what works is said to work, what is planted is found, and nothing is left behind.

a set-up, whole or with one thing wrong ── mdp doctor ──▶ a line for each check, exit code
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from click.testing import CliRunner

import loaders.store
from loaders import trial
from loaders.consumers import BrokerError, StreamError
from loaders.ledger import Ledger
from loaders.settings import Settings
from loaders.store import LocalStore, StoreError, open_store
from loaders.verify import verify
from market_data import bookkeeping, doctor, lake
from market_data.cli import main

CANARY = "canary-in-the-coal-mine"
Doctor = Callable[..., tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture
def no_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: object) -> None:
        raise BrokerError("nobody answers")

    monkeypatch.setattr(doctor, "connect", away)
    monkeypatch.setattr(trial, "RACE_SECONDS", 60.0)  # a slow disk is no defect


@pytest.fixture
def asked(tmp_path: Path, no_brokers: None) -> Doctor:
    """`asked(MDP_RAW=…)`: the exit code, and the checks by name, of the set-up below tmp_path/w."""

    def ask(**changed: str) -> tuple[int, dict[str, dict[str, str]]]:
        place = tmp_path / "w"
        env = {"MDP_RAW": str(place / "raw"), "MDP_LAKE": str(place / "lake.sqlite"), "MDP_KAFKA": "127.0.0.1:9"}
        done = CliRunner().invoke(main, ["doctor", "--json"], env={**env, **changed})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        told = json.loads(done.stdout)
        assert told["ok"] == (done.exit_code == 0)
        return done.exit_code, {check["name"]: check for check in told["checks"]}

    return ask


def states(checks: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: check["state"] for name, check in checks.items()}


WELL = {
    "settings": "ok",
    "raw zone": "ok",
    "conditional put": "ok",
    "lake catalog": "ok",
    "lake data": "ok",
    "Kafka": "warning",
}


def test_a_directory_is_fine_and_stays_as_it_was(asked: Doctor, tmp_path: Path) -> None:
    code, checks = asked()
    assert (code, states(checks)) == (0, WELL)
    assert f"{trial.WRITERS} writers" in checks["conditional put"]["found"]
    assert f"{trial.ROUNDS} rounds" in checks["conditional put"]["found"]
    assert "`mdp build` makes it" in checks["lake catalog"]["found"]
    assert list(tmp_path.iterdir()) == [], "what was not there is not there"
    raw = tmp_path / "w" / "raw"
    LocalStore(raw).put_if_absent("feed/file", b"x")
    before = set(tmp_path.rglob("*"))
    assert asked()[0] == 0
    assert set(tmp_path.rglob("*")) == before


def test_people_get_a_line_for_each_check(tmp_path: Path, no_brokers: None) -> None:
    raw = tmp_path / "[bold]raw"
    env = {"MDP_RAW": str(raw), "MDP_LAKE": str(tmp_path / "lake.sqlite"), "MDP_KAFKA": "127.0.0.1:9"}
    done = CliRunner().invoke(main, ["doctor"], env=env)
    lines = done.stdout.splitlines()
    assert [line[:24].split("  ")[0].strip() for line in lines] == list(WELL.values())
    assert [line[9:24].strip() for line in lines] == list(WELL)
    assert f"{raw} can be written" in lines[1]
    assert lines[-1].endswith("nobody answers; start it or set MDP_KAFKA; files need none")


# --- The rule of the ledger ----------------------------------------------------------------------------------


class Deaf(LocalStore):
    """A server that ignores the condition."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self.open_write(key) as sink:
            sink.write(data)
        return True


class Racy(LocalStore):
    """A server that looks first, and writes then."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        there = self.exists(key)
        time.sleep(0.005)
        return not there and Deaf.put_if_absent(self, key, data)  # type: ignore[arg-type]


class Forgetful(LocalStore):
    """One writer wins, and the bytes of the last one stand."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        won = super().put_if_absent(key, data)
        if not won and key.rpartition("/")[2].startswith("round"):
            Deaf.put_if_absent(self, key, data)  # type: ignore[arg-type]
        return won


class Late(LocalStore):
    """Each writer is told that somebody else has won."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return super().put_if_absent(key, data) and not key.rpartition("/")[2].startswith("round")


class Stubborn(LocalStore):
    """What is not there is said to be there."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return False


def planted(monkeypatch: pytest.MonkeyPatch, kind: type[LocalStore]) -> None:
    monkeypatch.setattr(trial, "open_store", lambda url, _=None: kind(Path(url)))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Deaf, "If-None-Match is ignored"),
        (Racy, "not just one won, in"),
        (Forgetful, "the winner's bytes do not stand"),
        (Late, "not just one won, in 20 of 20 rounds"),
        (Stubborn, "is said to be there"),
    ],
)
def test_a_server_that_breaks_the_rule_is_no_place_for_the_ledger(
    kind: type[LocalStore], told: str, asked: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, kind)
    code, checks = asked()
    assert (code, states(checks)) == (1, WELL | {"conditional put": "FAILS"})
    assert told in checks["conditional put"]["found"]
    for word in ("cannot hold the ledger", "both commit the same records", "S3Proxy", "directory"):
        assert word in checks["conditional put"]["way_out"]
    assert list(tmp_path.iterdir()) == []


def test_in_each_round_all_writers_are_under_way_at_once(asked: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}
    lock = Lock()

    class Quick(LocalStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            with lock:
                new = key not in seen
                seen.setdefault(key, set()).add(threading.get_ident())
            return super().put_if_absent(key, data) if new else False

    planted(monkeypatch, Quick)
    assert asked()[0] == 0
    assert [len(threads) for key, threads in seen.items() if "round" in key] == [trial.WRITERS] * trial.ROUNDS


def test_few_rounds_are_run_where_each_takes_long(asked: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(LocalStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            time.sleep(0.05)
            return super().put_if_absent(key, data)

    planted(monkeypatch, Slow)
    monkeypatch.setattr(trial, "RACE_SECONDS", 0.2)
    found = asked()[1]["conditional put"]["found"]
    assert 1 <= int(found.rpartition("each of ")[2].split()[0]) <= 5


def test_a_failure_on_the_way_leaves_nothing(asked: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, left = Lock(), [20]

    class Breaking(LocalStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            with lock:
                left[0] -= 1
            if left[0] < 0:
                raise StoreError("the disk is full")
            return super().put_if_absent(key, data)

    planted(monkeypatch, Breaking)
    code, checks = asked()
    assert (code, checks["conditional put"]["state"]) == (1, "FAILS")
    assert "the disk is full" in checks["conditional put"]["found"]
    assert list(tmp_path.iterdir()) == []


class Cut(LocalStore):
    """What is read is not what was written."""

    def get(self, key: str) -> bytes:
        return super().get(key)[:-1]


class Hiding(LocalStore):
    """What was written is not listed yet."""

    def list(self, prefix: str, start_after: str | None = None) -> Iterator[str]:
        yield from ()


@pytest.mark.parametrize(("kind", "told"), [(Cut, "not what is read"), (Hiding, "not listed at once")])
def test_a_place_that_does_not_give_back_what_was_written_fails(
    kind: type[LocalStore], told: str, asked: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, kind)
    code, checks = asked()
    assert (code, checks["raw zone"]["state"]) == (1, "FAILS")
    assert told in checks["raw zone"]["found"]


class Keeping(LocalStore):
    """Nothing may be deleted."""

    def delete(self, key: str) -> None:
        raise StoreError("not allowed")


def test_what_cannot_be_removed_is_told_and_no_reader_sees_it(
    asked: Doctor, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, Keeping)
    code, checks = asked(MDP_RAW=settings.raw)
    assert (code, states(checks)) == (0, WELL | {"removal": "warning"})
    (folder,) = {path.parent for path in Path(settings.raw).rglob("*") if path.is_file()}
    assert str(folder) in checks["removal"]["found"]
    store = open_store(settings.raw)
    assert list(store.list("")) != []
    assert list(Ledger(store).entries()) == list(Ledger(store).since()) == []
    found: list[object] = []
    summary = verify(settings, tell=found.append)
    assert (summary.ok, summary.orphans, found) == (True, 0, [])


# --- Places --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", ["file", "file/raw", "/sys/mdp-raw"])
def test_a_raw_zone_that_cannot_be_written_fails(raw: str, asked: Doctor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, checks = asked(MDP_RAW=str(tmp_path / raw))
    assert (code, states(checks)) == (
        1,
        {name: "FAILS" if name == "raw zone" else state for name, state in WELL.items() if name != "conditional put"},
    )
    said = checks["raw zone"]["found"] + checks["raw zone"]["way_out"]
    assert str(tmp_path / raw) in said and "MDP_RAW" in said
    assert ("is a file" in said) == (raw == "file")


def test_a_setting_that_cannot_be_read_is_all_that_is_told(asked: Doctor) -> None:
    code, checks = asked(MDP_MEMORY="much")
    assert (code, states(checks)) == (1, {"settings": "FAILS"})
    assert checks["settings"]["found"] == "MDP_MEMORY is 'much'; give a size such as 4GB"


def test_a_lake_is_told_with_its_published_version(asked: Doctor, tmp_path: Path) -> None:
    place = Settings.from_env({"MDP_LAKE": str(tmp_path / "w" / "lake.sqlite")})
    with lake.open_for_writing(place) as connection:
        bookkeeping.create_tables(connection)
    assert asked()[1]["lake catalog"]["found"].endswith(
        "opened and written; nothing is published yet: `mdp build` does it"
    )
    with lake.open_for_writing(place) as connection:
        connection.execute(
            "insert into lake.observability.releases (version, last_load_seq, code_fingerprint) values (7, 1, 'x')"
        )
    code, checks = asked()
    assert (code, states(checks)) == (0, WELL)
    assert checks["lake catalog"]["found"].endswith("opened and written; version 7 is published")


def test_a_lake_that_cannot_be_written_fails(asked: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lake.sqlite").touch()
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    code, checks = asked(MDP_LAKE=str(tmp_path / "lake.sqlite"))
    assert (code, checks["lake catalog"]["state"]) == (1, "FAILS")
    assert checks["lake catalog"]["found"] == f"{tmp_path / 'lake.sqlite'} cannot be written"


@pytest.mark.parametrize("name", ["w", "w/lake.sqlite.state"])
def test_a_lake_needs_its_directories(
    name: str, asked: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_unwritable", lambda place: f"{place} is full" if place == tmp_path / name else None)
    code, checks = asked()
    assert (code, checks["lake catalog"]["state"]) == (1, "FAILS")
    assert checks["lake catalog"]["found"] == f"{tmp_path / name} is full"


@pytest.mark.parametrize("kind", ["text", "directory", "below a file", "below /sys"])
def test_a_catalog_that_is_no_lake_fails(kind: str, asked: Doctor, tmp_path: Path) -> None:
    path = tmp_path / "lake.sqlite"
    if kind == "directory":
        path.mkdir()
    elif kind == "below /sys":
        path = Path("/sys/lake.sqlite")
    else:
        path.write_text("no database\n" * 100)
    code, checks = asked(MDP_LAKE=str(path / "lake" if kind == "below a file" else path), MDP_LAKE_DATA=str(tmp_path))
    assert (code, states(checks)) == (1, WELL | {"lake catalog": "FAILS"})
    assert str(path if kind != "below /sys" else path.parent) in checks["lake catalog"]["found"]
    assert "MDP_LAKE" in checks["lake catalog"]["way_out"]


@pytest.mark.parametrize("kind", ["file", "below /sys"])
def test_lake_data_that_cannot_be_written_fails(kind: str, asked: Doctor, tmp_path: Path) -> None:
    place = tmp_path / "data" if kind == "file" else Path("/sys/data")
    if kind == "file":
        place.touch()
    code, checks = asked(MDP_LAKE_DATA=str(place))
    assert (code, states(checks)) == (1, WELL | {"lake data": "FAILS"})
    assert "cannot be written" in checks["lake data"]["found"]


def test_a_database_that_is_away_is_told_in_a_line(asked: Doctor, tmp_path: Path) -> None:
    code, checks = asked(
        MDP_LAKE="postgres:dbname=d host=127.0.0.1 port=1 user=me", MDP_LAKE_DATA=str(tmp_path), PGPASSWORD=CANARY
    )
    assert (code, checks["lake catalog"]["state"]) == (1, "FAILS")
    assert checks["lake catalog"]["found"].endswith("port 1 failed: Connection refused"), "the first line of it"
    assert CANARY not in json.dumps(checks)


# --- Servers -------------------------------------------------------------------------------------------------


def test_brokers_that_refuse_fail_and_silent_ones_do_not(asked: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> None:
        raise StreamError("Kafka does not let us in")

    monkeypatch.setattr(doctor, "connect", refused)
    code, checks = asked()
    assert (code, checks["Kafka"]["state"]) == (1, "FAILS")
    assert checks["Kafka"]["found"] == "127.0.0.1:9, by kafka-python: Kafka does not let us in"

    monkeypatch.setattr(doctor, "connect", lambda _: time.sleep(60))
    monkeypatch.setattr(doctor, "KAFKA_SECONDS", 0.1)
    started = time.monotonic()
    code, checks = asked()
    assert (code, checks["Kafka"]["state"]) == (0, "warning")
    assert "no answer within" in checks["Kafka"]["found"]
    assert time.monotonic() - started < 30


def test_a_client_that_is_asked_for_and_not_installed_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    env = {"MDP_RAW": str(tmp_path / "raw"), "MDP_LAKE": str(tmp_path / "lake"), "MDP_KAFKA_CLIENT": "confluent"}
    told = {check.name: check for check in doctor.examine(env)}
    assert told["Kafka"].state == "FAILS"
    assert "by confluent: the client confluent needs confluent-kafka, which is not installed" in told["Kafka"].found


def test_no_line_holds_a_secret(asked: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def talkative(_: object) -> None:
        raise BrokerError(f"cannot log in\nwith {CANARY}-kafka")

    def open_talkative(*_: Any) -> None:
        raise StoreError(f"S3 says {CANARY}-secret, {CANARY}-token")

    monkeypatch.setattr(doctor, "connect", talkative)
    monkeypatch.setattr(trial, "open_store", open_talkative)
    code, checks = asked(
        MDP_RAW="s3://bucket/raw",
        MDP_LAKE_DATA=str(tmp_path / "data"),
        AWS_ENDPOINT_URL=f"http://me:{CANARY}@127.0.0.1:9",
        AWS_ACCESS_KEY_ID="me",
        AWS_SECRET_ACCESS_KEY=f"{CANARY}-secret",
        AWS_SESSION_TOKEN=f"{CANARY}-token",
        MDP_KAFKA_SECURITY="SASL_PLAINTEXT",
        MDP_KAFKA_USER="me",
        MDP_KAFKA_PASSWORD=f"{CANARY}-kafka",
    )
    assert code == 1
    assert checks["Kafka"]["found"].endswith("by kafka-python: BrokerError, whose text holds a secret")
    assert checks["raw zone"]["found"].endswith("s3://bucket/raw: StoreError, whose text holds a secret")
    assert CANARY not in json.dumps(checks)


def test_a_secret_that_is_a_common_word_is_not_told_by_what_is_missing(
    asked: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_: object) -> None:
        raise BrokerError("kafka lets nobody in")

    monkeypatch.setattr(doctor, "connect", refuses)
    security = {"MDP_KAFKA_SECURITY": "SASL_PLAINTEXT", "MDP_KAFKA_USER": "me", "MDP_KAFKA_PASSWORD": "kafka"}
    _, checks = asked(MDP_KAFKA="127.0.0.1:9", **security)
    assert checks["Kafka"]["found"].startswith("127.0.0.1:9, by kafka-python: BrokerError")


def test_what_no_check_thinks_of_fails_that_check_alone(asked: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(doctor, "connect", broken)
    code, checks = asked()
    assert (code, checks["Kafka"]["state"]) == (1, "FAILS")
    assert checks["Kafka"]["found"] == "looking at it failed (RuntimeError)"
    assert checks["raw zone"]["state"] == checks["lake catalog"]["state"] == "ok"


@pytest.mark.parametrize(("variable", "name"), [("MDP_RAW", "raw zone"), ("MDP_LAKE_DATA", "lake data")])
def test_an_endpoint_where_nobody_is_is_told_once_and_without_its_password(
    variable: str, name: str, asked: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders.store, "FIRST_WAIT", 3.0)  # 45 seconds in all, where it is asked again
    started = time.monotonic()
    code, checks = asked(
        **{"MDP_RAW": str(tmp_path / "raw"), "MDP_LAKE_DATA": str(tmp_path), variable: "s3://bucket/some"},
        AWS_ENDPOINT_URL=f"http://me:{CANARY}@127.0.0.1:9",
        AWS_ACCESS_KEY_ID="me",
        AWS_SECRET_ACCESS_KEY=CANARY,
    )
    assert code == 1
    assert checks[name]["found"].startswith("s3://bucket/some: no server answers at http://…@127.0.0.1:9 (")
    assert "AWS_ENDPOINT_URL" in checks[name]["way_out"]
    assert CANARY not in json.dumps(checks)
    assert time.monotonic() - started < 30, "it is asked once"


@pytest.mark.parametrize(
    ("ahead", "state", "told"),
    [
        (4.0, "ok", "within 5 s"),
        (-4.0, "ok", "within 5 s"),
        (90.0, "warning", "this machine is 90 s ahead of the raw zone's server"),
        (-7300.0, "warning", "this machine is 7,300 s behind the raw zone's server"),
    ],
)
def test_a_clock_that_is_off_is_told(ahead: float, state: str, told: str) -> None:
    (check,) = doctor._clock(ahead)
    assert (check.state, told in check.found) == (state, True)
    assert doctor._clock(None) == []
