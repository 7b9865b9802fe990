"""kafka-python as the loader's Consumer.

A partition that was assigned is paused until it is sought. Errors that may pass by themselves are BrokerError.
"""

from __future__ import annotations

import functools
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from operator import itemgetter
from typing import Any

from loaders.consumers import (
    FETCH_BYTES,
    FIRST_ANSWER_SECONDS,
    PARTITION_FETCH_BYTES,
    POLL_RECORDS,
    REFUSED,
    REQUEST_SECONDS,
    UNKNOWN_CA,
    Batch,
    BrokerError,
    Changes,
    Membership,
    OutOfRange,
    Partition,
    StreamError,
    Topic,
)
from loaders.settings import KafkaSecurity

FIRST_AT_ONCE, MOST_AT_ONCE = 100, 2_000
"""Records that the client is asked for at once: at first, and where those before were small."""
_KEY_SIZE, _VALUE_SIZE, _HEADERS_SIZE = itemgetter(-3), itemgetter(-2), itemgetter(-1)
"""Of a record, in bytes; -1 where it has none."""

log = logging.getLogger(__name__)


class KafkaPython:
    """kafka-python as a Consumer."""

    def __init__(self, membership: Membership) -> None:
        from kafka import KafkaConsumer
        from kafka.admin import KafkaAdminClient
        from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

        _keep_names_of_headers()
        shared = {
            **client_options(membership.bootstrap, membership.security),
            "request_timeout_ms": REQUEST_SECONDS * 1000,
            "reconnect_backoff_max_ms": 2000,
        }
        with _told(), ExitStack() as undo:
            self._admin = KafkaAdminClient(**shared)
            undo.callback(self._admin.close)
            self._consumer = KafkaConsumer(
                **shared,
                group_id=membership.group,
                session_timeout_ms=int(membership.session_seconds * 1000),
                heartbeat_interval_ms=int(membership.heartbeat_seconds * 1000),
                partition_assignment_strategy=[CooperativeStickyAssignor],
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed",
                allow_auto_create_topics=False,
                max_poll_records=POLL_RECORDS,
                fetch_max_bytes=FETCH_BYTES,
                max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
                metrics_enabled=False,
            )
            undo.pop_all()
        self._lock = threading.Lock()
        self._fresh: set[Partition] = set()
        self._at_once = FIRST_AT_ONCE
        self._met: Exception | None = None
        """What was met behind records that the last poll gave."""

    def topic(self, name: str) -> Topic | None:
        with _told():
            (found,) = self._admin.describe_topics([name])
            if found["error_code"] == 3:
                return None
            if found["error_code"]:
                raise BrokerError(f"the brokers cannot describe topic {name} (error {found['error_code']})")
            cluster = self._admin.describe_cluster()["cluster_id"]
        numbers = sorted(part["partition_index"] for part in found["partitions"])
        return Topic(str(cluster), str(found["topic_id"]), tuple(numbers))

    def join(self, topics: Iterable[str]) -> None:
        self._consumer.subscribe(list(topics), listener=_listener(self))

    def take(self, partition: Partition) -> None:
        self._met = None
        self._consumer.assign([_at(partition)])
        self.hold([_at(partition)])

    def poll(self, seconds: float) -> dict[Partition, Batch]:
        """Gather what is there, a few records at a time: how large they are is known when they are there.

        What the brokers send is compressed, so that its size bounds nothing. What is met behind records that are good
        is raised by the next poll.
        """
        if self._met is not None:
            met, self._met = self._met, None
            raise met
        gathered: dict[Any, list[Any]] = {}
        count, size, largest = 0, 0, 1
        wait = int(seconds * 1000)
        while count < POLL_RECORDS and size < PARTITION_FETCH_BYTES:
            room = (PARTITION_FETCH_BYTES - size) // largest
            try:
                with _told():
                    polled = self._consumer.poll(wait, max(1, min(self._at_once, POLL_RECORDS - count, room)))
            except (BrokerError, OutOfRange, StreamError) as error:
                if not gathered:
                    raise
                self._met = error
                break
            found = [record for records in polled.values() for record in records]
            if not found:
                break
            for where, records in polled.items():
                gathered.setdefault(where, []).extend(records)
            largest = max(largest, *map(_VALUE_SIZE, found))
            count, wait = count + len(found), 0
            size += sum(sum(map(part, found)) for part in (_KEY_SIZE, _VALUE_SIZE, _HEADERS_SIZE))
            self._at_once = max(1, min(2 * self._at_once, MOST_AT_ONCE, PARTITION_FETCH_BYTES // largest))
        return {Partition(*where): _batch(records) for where, records in gathered.items()}

    def changes(self) -> Changes:
        with self._lock:
            assigned = frozenset(Partition(*where) for where in self._consumer.assignment())
            fresh, self._fresh = self._fresh, set()
        return Changes(assigned, frozenset(fresh) & assigned)

    def seek(self, partition: Partition, position: int, *, still: bool = False) -> None:
        where = _at(partition)
        if where not in self._consumer.assignment():
            return  # it was taken away meanwhile
        self._consumer.seek(where, position)
        (self._consumer.pause if still else self._consumer.resume)(where)

    def position(self, partition: Partition) -> int | None:
        where = _at(partition)
        if where not in self._consumer.assignment():
            return None
        with _told():
            found: int | None = self._consumer.position(where, REQUEST_SECONDS * 1000)
        return found

    def bounds(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, int]]:
        wanted = [_at(partition) for partition in partitions]
        with _told():
            first = self._consumer.beginning_offsets(wanted)
            last = self._consumer.end_offsets(wanted)
        return {Partition(*where): (first[where], last[where]) for where in wanted}

    def at_time(self, partitions: Iterable[Partition], time_ms: int) -> dict[Partition, int | None]:
        with _told():
            found = self._consumer.offsets_for_times({_at(partition): time_ms for partition in partitions})
        return {Partition(*where): at and at.offset for where, at in found.items()}

    def commit(self, positions: Mapping[Partition, int]) -> None:
        from kafka.errors import KafkaError
        from kafka.structs import OffsetAndMetadata

        offsets = {_at(at): OffsetAndMetadata(next_, "", -1) for at, next_ in positions.items()}
        try:
            self._consumer.commit(offsets, REQUEST_SECONDS * 1000)
        except KafkaError as error:
            log.info("the group did not take the offsets, which are advisory: %s", error)

    def close(self) -> None:
        with suppress(Exception):  # where the brokers are gone, there is no group to leave
            self._consumer.close(autocommit=False, timeout_ms=REQUEST_SECONDS * 1000)
        with suppress(Exception):
            self._admin.close()

    def hold(self, partitions: Iterable[Any]) -> None:
        """Let newly assigned partitions stand still until they are sought."""
        partitions = list(partitions)
        with self._lock:
            self._consumer.pause(*partitions)
            for where in partitions:
                self._consumer.seek(where, 0)
            self._fresh |= {Partition(*where) for where in partitions}


def client_options(bootstrap: str, security: KafkaSecurity) -> dict[str, Any]:
    """Return what kafka-python's clients of every kind are told of the brokers.

    Raises StreamError where a file cannot be used, or a broker's certificate is signed by none that is known.
    """
    _refusals.listen()
    _take_last_answers()
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap.split(","),
        "bootstrap_timeout_ms": FIRST_ANSWER_SECONDS * 1000,
        "security_protocol": security.protocol,
    }
    if security.tls:
        options["ssl_context"] = _trust(security)
        _check_certificates(options)
    if security.sasl:
        options["sasl_mechanism"] = security.mechanism
        options["sasl_plain_username"] = security.user
        options["sasl_plain_password"] = security.password
    return options


@functools.cache
def _take_last_answers() -> None:
    """Let kafka-python take what a broker sends right before it closes a connection: why it does not let us in.

    The client reads both at once, and then drops what came. So the end is told by its next look at the socket.
    """
    from kafka.net import transport

    def telling_the_end_apart(receive: Callable[[Any], tuple[bytes, Exception | None]]) -> Any:
        @functools.wraps(receive)
        def received(self: Any) -> tuple[bytes, Exception | None]:
            data, error = receive(self)
            return data, None if data else error

        return received

    for kind in (transport.KafkaTCPTransport, transport.KafkaSSLTransport):
        kind._sock_recv = telling_the_end_apart(kind._sock_recv)


class _Refusals(logging.Handler):
    """Hears in the client's log that the brokers do not let us in: while it connects for the first time, it says so
    nowhere else, and tries again. Nothing of that log is shown."""

    last: Exception | None = None

    def listen(self) -> None:
        self.last = None
        theirs = logging.getLogger("kafka")
        theirs.setLevel(logging.ERROR)
        theirs.propagate = False
        theirs.handlers = [self]

    def emit(self, record: logging.LogRecord) -> None:
        for about in record.args if isinstance(record.args, tuple) else ():
            if isinstance(about, Exception) and _is_locked_out(about):
                self.last = about


_refusals = _Refusals()


def _trust(security: KafkaSecurity) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=security.ca)
    except (OSError, ssl.SSLError) as error:
        raise StreamError(f"MDP_KAFKA_CA ({security.ca}) cannot be used: {error}") from error
    if security.cert is not None:
        try:
            context.load_cert_chain(security.cert, security.key, password="")
        except (OSError, ssl.SSLError, TypeError) as error:
            raise StreamError(
                f"MDP_KAFKA_CERT ({security.cert}) and MDP_KAFKA_KEY ({security.key}) cannot be used: {error}"
            ) from error
    return context


def _check_certificates(options: Mapping[str, Any]) -> None:
    """Shake hands with each broker that is named: kafka-python itself only says that the connection was lost."""
    for broker in options["bootstrap_servers"]:
        host, _, port = broker.rpartition(":")
        host = host.strip("[]")
        try:
            with socket.create_connection((host, int(port)), FIRST_ANSWER_SECONDS) as link:
                options["ssl_context"].wrap_socket(link, server_hostname=host).close()
        except ssl.SSLCertVerificationError as error:
            raise StreamError(UNKNOWN_CA.format(broker, error.verify_message)) from error
        except (OSError, ValueError):
            continue  # whether brokers can be reached, the client finds out


def _at(partition: Partition) -> Any:
    from kafka import TopicPartition

    return TopicPartition(*partition)


def _listener(client: KafkaPython) -> Any:
    from kafka import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        """Called on the client's own thread: it only lets new partitions wait."""

        def on_partitions_revoked(self, revoked: object) -> None:
            pass

        def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
            client.hold(assigned)

    return Listener()


def _keep_names_of_headers() -> None:
    """Let kafka-python read records with a header whose name is not UTF-8, on which it would stop.

    It decodes names as UTF-8, and there is no setting for it. So its class of record batches is replaced by one that
    reads such a batch again from bytes whose `decode` fails on nothing. Other batches are read as before.
    """
    from kafka.record import default_records, memory_records

    class Name(str):
        """A name that is not UTF-8: its bytes as surrogate escapes, and encoded, its bytes."""

        __slots__ = ()

        def encode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> bytes:
            return super().encode(encoding, "surrogateescape")

    class Bytes(bytearray):
        def __getitem__(self, at: Any) -> Any:
            found = super().__getitem__(at)
            return Bytes(found) if isinstance(at, slice) else found

        def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
            text = super().decode(encoding, "surrogateescape")
            return text if text.isascii() else Name(text)

    class Batch(default_records.DefaultRecordBatch):  # type: ignore[misc]
        __slots__ = ()

        def _read_msg(self, *arguments: Any) -> Any:
            try:
                return super()._read_msg(*arguments)
            except UnicodeDecodeError:
                self._buffer = Bytes(self._buffer)  # type: ignore[has-type,misc]
                return super()._read_msg(*arguments)

    memory_records.DefaultRecordBatch = Batch


def _batch(records: list[Any]) -> Batch:
    _, _, _, offsets, timestamps, _, keys, values, headers, *_ = zip(*records, strict=True)
    return Batch(offsets, timestamps, keys, values, headers)


@contextmanager
def _told() -> Iterator[None]:
    """Turn the client's errors into ours."""
    from kafka import errors

    try:
        yield
    except errors.OffsetOutOfRangeError as error:
        raise OutOfRange(str(error)) from error
    except errors.KafkaError as error:
        if told := refused(error):
            raise told from error
        name, said = type(error).__name__, str(error)
        raise BrokerError(said if said.startswith(name) else f"{name}: {said}".rstrip(": ")) from error


def refused(error: Exception) -> StreamError | None:
    """Return what to tell of an error that trying again does not mend; None for any other."""
    from kafka import errors

    if isinstance(error, errors.KafkaTimeoutError) and _refusals.last is not None:
        error = _refusals.last
    said = str(error) or type(error).__name__
    if _is_locked_out(error):
        return StreamError(f"{REFUSED}: {said}")
    if isinstance(error, errors.AuthorizationError | errors.KafkaConfigurationError | errors.LogTruncationError):
        return StreamError(f"Kafka refuses: {said}")
    return None


def _is_locked_out(error: object) -> bool:
    from kafka import errors

    return isinstance(error, errors.SaslAuthenticationFailedError | errors.UnsupportedSaslMechanismError)
