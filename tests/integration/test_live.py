"""`mdp live` on a real broker: what is sent is published, whatever ends meanwhile; and what it tells of itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from worlds.streams import FEED, WAIT, Message, numbered, produce, wait_for

from loaders.settings import Settings
from market_data import client, live, lock

if TYPE_CHECKING:
    from conftest import KafkaServer


class Live:
    """An `mdp live` at work, on a topic and a warehouse of its own."""

    def __init__(self, root: Path, server: KafkaServer, partitions: int = 1) -> None:
        self.server, self.topic, self.partitions = server, server.new_topic(partitions), partitions
        self.env = {
            **os.environ,
            "MDP_RAW": str(root / "raw"),
            "MDP_LAKE": str(root / "lake.sqlite"),
            "MDP_KAFKA": server.bootstrap,
            "MDP_LOCK_WAIT": "1",
        }
        self.settings = Settings.from_env(self.env)
        self.sent = 0
        self.said: list[str] = []

    def mdp(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", "from market_data.cli import main; main()", *arguments]

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        command = self.mdp("live", "--feed", FEED, "--topic", self.topic, "--segment-seconds", "0.5", *arguments)
        process = subprocess.Popen(
            command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stderr is not None
        reader = threading.Thread(target=lambda: self.said.extend(process.stderr or ()))
        reader.start()
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            reader.join()

    def send(self, count: int) -> None:
        produce(self.server.bootstrap, self.topic, numbered(self.sent, count, self.partitions))
        self.sent += count

    def send_book(self, *messages: dict[str, Any]) -> None:
        """Send what a venue says of a book, and a trade."""
        values = [json.dumps(message).encode() for message in messages]
        produce(self.server.bootstrap, self.topic, [Message(value, b"BTCUSDT") for value in values])
        self.send(1)

    def book(self) -> dict[str, Any] | None:
        """The last book in the published version."""
        time.sleep(0.5)
        with client.connect(settings=self.settings) as connection:
            query = (
                "select update_id, is_valid, bid_prices, ask_prices from canonical.book_snapshots"
                " order by event_time desc limit 1"
            )
            found: list[dict[str, Any]] = connection.sql(query).arrow.to_pylist()
        return found[0] if found else None

    def rows(self) -> int:
        """Trades in the published version, each once. Asked for now and then: it takes what builds need."""
        time.sleep(0.5)
        try:
            with client.connect(settings=self.settings) as connection:
                query = "select count(*) as n, count(distinct trade_id) as ids from canonical.trades"
                (row,) = connection.sql(query).arrow.to_pylist()
        except client.NotPublishedError:
            return 0
        assert row["n"] == row["ids"]
        return int(row["n"])

    def arrive(self) -> None:
        """Wait until all that was sent is published."""
        wait_for(lambda: self.rows() == self.sent, f"{self.sent} trades: {''.join(self.said[-20:])}")

    def state(self) -> dict[str, Any]:
        found = live.read_state(self.settings)
        assert found is not None
        return found

    def until(self, condition: Callable[[dict[str, Any]], Any], what: str) -> None:
        wait_for(lambda: bool(condition(live.read_state(self.settings) or {})), what)

    def status(self) -> str:
        done = subprocess.run(self.mdp("status"), env=self.env, capture_output=True, text=True, check=True)
        return done.stdout


@pytest.fixture
def run(tmp_path: Path, kafka_server: KafkaServer) -> Live:
    return Live(tmp_path, kafka_server, partitions=2)


def free_ports() -> int:
    """The first of three ports that are free, most likely."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1]) - 3


def test_what_is_sent_is_published_whatever_ends_meanwhile(run: Live) -> None:
    port = free_ports()
    run.send(100)
    with run.started("--loaders", "2", "--metrics-port", str(port)) as process:
        run.arrive()
        state = run.state()
        assert state["is_running"] and state["pid"] == process.pid
        assert "live since" in run.status()

        os.kill(state["loaders"][0]["pid"], signal.SIGKILL)
        run.send(100)
        run.arrive()
        run.until(lambda now: all(loader["state"] == "running" for loader in now["loaders"]), "both loaders")

        os.kill(run.state()["builder"]["pid"], signal.SIGKILL)
        run.send(100)
        run.arrive()
        said = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT).read().decode()
        assert 'mdp_restarts_total{process="builder"} 1.0' in said
        assert 'mdp_restarts_total{process="loader 1 of binance_spot"} 1.0' in said
        assert 'mdp_builds_total{outcome="failed"} 0.0' in said
        loaded = urllib.request.urlopen(f"http://127.0.0.1:{port + 2}/metrics", timeout=WAIT).read().decode()
        assert "mdp_loaded_records_total" in loaded

        # Another one for the same lake is refused.
        other = subprocess.run(
            run.mdp("live", "--feed", FEED, "--topic", run.topic),
            env=run.env,
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
        assert other.returncode == 1 and "already works" in other.stderr

        # While somebody else writes to the lake builds fail, are seen to fail, and loading goes on.
        with lock.writers_lock(run.settings):
            run.send(100)
            run.until(lambda now: now["builder"]["build"].get("failure"), "a build that fails")
            assert "the build has failed" in run.status()
            run.send(100)
        run.arrive()
        run.until(lambda now: "failure" not in now["builder"]["build"], "a build that goes well")

        # Told to leave, with all its processes at once, it publishes what it has read.
        run.send(10)
        run.until(lambda now: now["builder"]["build"]["state"] == "idle", "a pause")
        os.kill(run.state()["builder"]["pid"], signal.SIGTERM)
        process.terminate()
        assert process.wait(WAIT) == 0, "".join(run.said[-20:])
    assert live.read_state(run.settings) is None

    # It can end by itself; and its log for machines is that of all its processes.
    run.env["MDP_LOG"] = "json"
    run.said.clear()
    run.send(10)
    with run.started("--until", "caught-up") as process:
        assert process.wait(WAIT) == 0
    assert run.rows() == run.sent
    events = {event["event"]: event for event in map(json.loads, run.said)}
    assert events["segment-committed"]["process"] == "loader 1 of binance_spot"
    assert events["version-published"]["loads"] >= 1


@pytest.mark.long
def test_a_loader_that_cannot_go_on_is_told_and_tried_again(run: Live) -> None:
    """A topic that is not there yet; its supervisor, killed, takes the loaders with it."""
    topic, run.topic = run.topic, "not-there-yet"
    with run.started() as process:
        run.until(lambda now: now and now["loaders"][0]["state"] == "waiting", "a loader that has ended")
        assert "not-there-yet" in str(run.state()["loaders"][0]["last_error"])
        run.until(lambda now: now and now["loaders"][0]["ended"] > 1, "another try")
        assert "loader 1 of binance_spot has ended" in run.status()
        process.kill()
    run.until(lambda now: not now.get("is_running", True), "the lock's end")
    assert "has crashed" in run.status()
    run.topic = topic
    with run.started() as process:
        run.send(20)
        run.arrive()
        loader = run.state()["loaders"][0]["pid"]
        process.kill()
        wait_for(lambda: not Path(f"/proc/{loader}").exists(), "the loader's end")


@pytest.mark.long
def test_books_go_on_from_build_to_build(run: Live) -> None:
    run.send(10)
    with run.started():
        run.arrive()
        delta = {"e": "depthUpdate", "E": int(time.time() * 1000), "s": "BTCUSDT", "a": []}
        run.send_book(
            {"lastUpdateId": 10, "bids": [["99", "1"]], "asks": [["101", "1"]]},
            {**delta, "U": 11, "u": 12, "b": [["98", "2"]]},
        )
        book = {"update_id": 12, "is_valid": True, "bid_prices": [99.0, 98.0], "ask_prices": [101.0]}
        wait_for(lambda: run.book() == book, "a book")
        run.send_book({**delta, "U": 13, "u": 13, "b": [["99", "0"]]})
        wait_for(lambda: run.book() == {**book, "update_id": 13, "bid_prices": [98.0]}, "the next book")
        run.arrive()
