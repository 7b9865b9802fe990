"""Trying out a place: whether it gives back what was written, and keeps the rule that the ledger stands on.

    scratch(store) ── keys below _doctor-…, which no reader lists; removed at the end, whatever happens
         ├─ round_trip(store, …) ── write, read, list
         └─ race(stores, …) ─────── 8 writers, 20 rounds: one creates the object, and its bytes stand

Of the servers that speak S3 some ignore the condition of a put (If-None-Match), and some let several writers win.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from loaders.settings import S3Settings
from loaders.store import S3Store, Store, StoreError, open_store

NewKey = Callable[[str], str]

PREFIX = "_doctor-"
"""Readers list `_ledger/`, `_originals/` and folders of feeds; of the rest those that begin with _ are left out."""
WRITERS, ROUNDS, RACE_SECONDS = 8, 20, 6.0
"""Who races, how often, and the seconds after which no new round begins: where a server tells losers to try again, a
round takes half a second."""
ANSWER_SECONDS = 5.0
"""How long S3 may be silent."""
NO_LEDGER = (
    "it cannot hold the ledger, since two loaders would both commit the same records: use Amazon S3, S3Proxy 4.0.0 "
    "(services/up s3) or a directory on a local disk"
)
_CREDENTIALS = (
    "the server refuses the credentials",
    "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
)
_REGION = ("the bucket is in another region", "set AWS_REGION")
_NOBODY = ("no server answers at {endpoint}", "start it, or set AWS_ENDPOINT_URL")
TROUBLE = {
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "AccessDenied": ("the credentials may not do this", "let them list, read, write and delete there"),
    "NoSuchBucket": ("the bucket is not there", "make it, or name another one in {variable}"),
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "RequestTimeTooSkewed": ("this machine's clock and the server's differ too much", "set the clock, as by NTP"),
    "NotImplemented": ("the server cannot do what is asked", NO_LEDGER),
    "EndpointConnectionError": _NOBODY,
    "ConnectTimeoutError": _NOBODY,
    "ReadTimeoutError": _NOBODY,
    "ConnectionClosedError": _NOBODY,
    "SSLError": _NOBODY,
}
"""What is wrong and the way out, by what S3 or its client calls it."""


def opened(place: str, s3: S3Settings) -> Store:
    """Return a store with a client of its own, that is not patient. Raises StoreError."""
    return open_store(place, replace(s3, timeout_seconds=min(s3.timeout_seconds, ANSWER_SECONDS)))


def seconds_ahead(store: S3Store) -> float | None:
    """Return by how much this machine's clock is ahead of the server's, to half a second; None where it tells none.

    Asks once, and raises as `S3Store.server_time` does: what is wrong with the server is known soon.
    """
    before = time.time()
    told = store.server_time()
    return None if told is None else (before + time.time()) / 2 - told.timestamp() - 0.5


@contextmanager
def scratch(store: Store, left: list[str]) -> Iterator[NewKey]:
    """Give what makes keys of a name, and remove their objects at the end; `left` tells what cannot be removed."""
    folder, keys = f"{PREFIX}{secrets.token_hex(6)}", list[str]()

    def new_key(name: str) -> str:
        keys.append(f"{folder}/{name}")
        return keys[-1]

    try:
        yield new_key
    finally:
        # The first that stays ends it: each is tried for seconds.
        why = next((error for key in keys if (error := _not_removed(store, key)) is not None), None)
        if why is not None:
            left.append(f"objects of this trial stay below {store.uri(folder)}: {why}")
        with suppress(OSError):
            Path(store.uri(folder)).rmdir()


@contextmanager
def no_new_directories(place: str) -> Iterator[None]:
    """Remove the directories that come up below or above a local place, if nothing is in them."""
    path = Path(place)
    new = [] if "://" in place else [each for each in (path / ".tmp", path, *path.parents) if not each.exists()]
    try:
        yield
    finally:
        for each in new:
            with suppress(OSError):
                each.rmdir()


def round_trip(store: Store, new_key: NewKey) -> str | None:
    """Write, read and list an object; return what is wrong. Raises StoreError."""
    key = new_key("object")
    with store.open_write(key) as sink:
        sink.write(key.encode())
    if _bytes(store, key) != key.encode():
        return "what was written is not what is read"
    return None if list(store.list(key)) == [key] else "what was written is not listed at once"


def race(stores: Sequence[Store], new_key: NewKey) -> tuple[int, str | None]:
    """Let writers, one a store, race for a key; return the rounds, and what is wrong. Raises StoreError."""
    key = new_key("first")
    if not stores[0].put_if_absent(key, b"first"):
        return 0, "an object that is not there is said to be there"
    if stores[-1].put_if_absent(key, b"second") or _bytes(stores[0], key) != b"first":
        return 0, "an object that is there can be created again: If-None-Match is ignored"
    start, deadline, rounds, several, others = threading.Barrier(len(stores)), time.monotonic() + RACE_SECONDS, 0, 0, 0
    with ThreadPoolExecutor(len(stores)) as pool:
        while rounds < ROUNDS and time.monotonic() < deadline:
            key = new_key(f"round-{rounds}")

            def put(number: int, key: str = key) -> bool:
                start.wait()
                return stores[number].put_if_absent(key, f"writer {number}".encode())

            won = [number for number, wins in enumerate(pool.map(put, range(len(stores)))) if wins]
            rounds += 1
            several += len(won) != 1
            others += len(won) == 1 and _bytes(stores[0], key) != f"writer {won[0]}".encode()
    if several:
        return rounds, f"of {len(stores)} writers of one key not just one won, in {several} of {rounds} rounds"
    return rounds, f"the winner's bytes do not stand, in {others} of {rounds} rounds" if others else None


def trouble(error: OSError, s3: S3Settings, place: str, variable: str) -> tuple[str, str]:
    """Return what is wrong with a place that a variable names, and the way out; S3's own texts are not repeated."""
    if "://" not in place:
        return str(error), f"let this user write to {place}, or set {variable}"
    cause = error.__cause__
    name = str(getattr(cause, "response", {}).get("Error", {}).get("Code") or type(cause).__name__)
    if name in TROUBLE:
        what, way_out = TROUBLE[name]
        told = what.format(endpoint=s3.endpoint or "Amazon's address")
        return f"{place}: {told} ({name})", way_out.format(variable=variable)
    if isinstance(error, StoreError):
        return f"{place}: {error}", ""
    return f"{place}: what answers is no S3 server", "check AWS_ENDPOINT_URL"


def _not_removed(store: Store, key: str) -> StoreError | None:
    """Remove an object; return why it stays, or may stay."""
    try:
        store.delete(key)
    except StoreError as error:
        with suppress(StoreError):
            return error if store.exists(key) else None
        return error
    return None


def _bytes(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except KeyError:
        return None
