"""Where the raw zone's objects are: a local directory or S3, behind one small class.

    open_store("/data/raw")           ── LocalStore ─┐
    open_store("s3://bucket/prefix")  ── S3Store ────┴─▶ put_if_absent, open_write, get, list, uri, …

An object appears whole or not at all, whoever dies when. Keys use '/', are relative to the store's root and
are listed in the order of their bytes, the same in both. Objects are never changed in place.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import re
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from loaders import logs
from loaders.settings import MIB, S3Settings

log = logging.getLogger(__name__)
T = TypeVar("T")
PART_BYTES = 16 * MIB
"""Size of the parts in which a large object goes to S3; 10,000 parts at most, so 160 GB an object."""
TEMPORARY = re.compile("[0-9a-f]{32}")
ATTEMPTS, FIRST_WAIT = 5, 0.4
"""How often a call to S3 is made before giving up, and seconds after the first; all waits sum to six seconds."""


class StoreError(OSError):
    """The store did not answer, or refused; the message names the object."""


class Sink(Protocol):
    """What `open_write` gives: takes bytes."""

    def write(self, data: bytes, /) -> object: ...


class Store(ABC):
    """A place of objects under keys. Every method raises StoreError when the place itself fails."""

    retries = 0
    """How many requests have been made again since the store was opened."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object, durable on return; False if it is there already. Of several callers one wins."""

    @abstractmethod
    def open_write(self, key: str) -> Any:
        """Return a context manager giving a Sink; on a clean exit the object appears, or is replaced."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return an object's bytes. Raises KeyError if there is none."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Say whether there is such an object."""

    @abstractmethod
    def list(self, prefix: str, start_after: str | None = None) -> Iterator[str]:
        """Yield the keys that begin with the prefix, in order, only those after `start_after` if given."""

    @abstractmethod
    def uri(self, key: str) -> str:
        """Return what DuckDB reads: an absolute path or an s3:// URL."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    @abstractmethod
    def remove_unfinished(self, age: dt.timedelta, *, dry_run: bool = False) -> int:
        """Remove what writers that were killed left unfinished, nothing having come to it for so long; how many.

        Objects stay. A writer that wakes up after all, and finds its own gone, gets a StoreError and may try again.
        """

    def put_file(self, key: str, local_path: Path) -> None:
        """Copy a local file into the store."""
        with local_path.open("rb") as source, self.open_write(key) as sink:
            shutil.copyfileobj(source, sink, MIB)


def open_store(url: str, s3: S3Settings | None = None) -> Store:
    """Return the store at a directory or at s3://bucket/prefix. Nothing is created or asked yet.

    Raises StoreError for settings of S3 that cannot be used.
    """
    if url.startswith("s3://"):
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        return S3Store(bucket, prefix, s3 or S3Settings())
    return LocalStore(Path(url).absolute())


def _checked(key: str) -> str:
    """Return a key that cannot leave the store. Raises ValueError for any other."""
    parts = key.split("/")
    if any(part in ("", ".", "..") or part.startswith(".") for part in parts) or "\0" in key or "\\" in key:
        raise ValueError(f"{key!r} is not a key: its parts must be names, not hidden, without '..', '\\' or NUL")
    return key


class LocalStore(Store):
    """Objects as files below a directory. Unfinished ones stand in `.tmp`, which no listing shows."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put_if_absent(self, key: str, data: bytes) -> bool:
        target = self._path(key)
        with _local_errors(key), self._temporary() as temporary:
            with temporary.open("xb") as file:
                file.write(data)
                _to_disk(file)
            self._make_directory(target.parent)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            _directory_to_disk(target.parent)
            return True

    @contextmanager
    def open_write(self, key: str) -> Iterator[Sink]:
        target = self._path(key)
        with _local_errors(key), self._temporary() as temporary:
            with temporary.open("xb") as file:
                yield _LocalSink(file, key)
                _to_disk(file)
            self._make_directory(target.parent)
            temporary.replace(target)
            _directory_to_disk(target.parent)

    def get(self, key: str) -> bytes:
        with _local_errors(key):
            try:
                return self._path(key).read_bytes()
            except FileNotFoundError:
                raise KeyError(key) from None

    def exists(self, key: str) -> bool:
        with _local_errors(key):
            return self._path(key).is_file()

    def list(self, prefix: str, start_after: str | None = None) -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        base = folder + "/" if folder else ""
        for key in self._below(self.root / folder, base, start_after or ""):
            if key.startswith(prefix):
                yield key
            elif key > prefix:
                return

    def uri(self, key: str) -> str:
        return str(self._path(key))

    def delete(self, key: str) -> None:
        with _local_errors(key):
            self._path(key).unlink(missing_ok=True)

    def remove_unfinished(self, age: dt.timedelta, *, dry_run: bool = False) -> int:
        oldest, removed = time.time() - age.total_seconds(), 0
        with _local_errors(str(self.root / ".tmp")):
            try:
                with os.scandir(self.root / ".tmp") as found:
                    entries = [entry for entry in found if TEMPORARY.fullmatch(entry.name)]
            except FileNotFoundError:
                return 0
            for entry in entries:
                with suppress(FileNotFoundError):  # its writer has finished meanwhile
                    is_file = entry.is_file(follow_symlinks=False)
                    if is_file and entry.stat(follow_symlinks=False).st_mtime < oldest:
                        if not dry_run:
                            Path(entry.path).unlink()
                        removed += 1
        return removed

    def _path(self, key: str) -> Path:
        return self.root / _checked(key)

    def _below(self, directory: Path, base: str, after: str) -> Iterator[str]:
        """Yield keys below a directory, in order; directories that end before `after` are not opened."""
        with _local_errors(str(directory)):
            try:
                with os.scandir(directory) as entries:
                    names = sorted(
                        entry.name + "/" if entry.is_dir() else entry.name
                        for entry in entries
                        if not entry.name.startswith(".")
                    )
            except (FileNotFoundError, NotADirectoryError):
                return
        for name in names:
            key = base + name
            if name.endswith("/"):
                if key > after or after.startswith(key):
                    yield from self._below(directory / name, key, after)
            elif key > after:
                yield key

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        folder = self.root / ".tmp"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _make_directory(self, directory: Path) -> None:
        """Create a directory so that it outlives a power cut, as the file in it must."""
        if not directory.is_dir():
            self._make_directory(directory.parent)
            directory.mkdir(exist_ok=True)
            _directory_to_disk(directory.parent)


class _LocalSink:
    """A file being written, whose failures (a full disk) name the object."""

    def __init__(self, file: Any, key: str) -> None:
        self._file, self._key = file, key

    def write(self, data: bytes, /) -> object:
        with _local_errors(self._key):
            return self._file.write(data)


@contextmanager
def _local_errors(what: str) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(error.errno, f"cannot write or read {what}: {error.strerror or error}") from error


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _directory_to_disk(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class S3Store(Store):
    """Objects below a prefix of a bucket. Conditional puts need a server that honours If-None-Match."""

    def __init__(self, bucket: str, prefix: str, s3: S3Settings) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self.bucket = bucket
        self._base = prefix.strip("/") + "/" if prefix.strip("/") else ""
        try:
            self._client = boto3.client(
                "s3",
                aws_access_key_id=s3.access_key,
                aws_secret_access_key=s3.secret_key,
                aws_session_token=s3.session_token,
                region_name=s3.region or "us-east-1",
                endpoint_url=s3.endpoint,
                config=Config(
                    connect_timeout=min(10.0, s3.timeout_seconds),
                    read_timeout=s3.timeout_seconds,
                    retries={"total_max_attempts": 1},
                    s3={"addressing_style": "path" if s3.endpoint else "auto"},
                    # Checksums beyond the signature's are a dialect that other servers than Amazon's may refuse.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise StoreError(_unasked(f"s3://{bucket}", error)) from error

    def put_if_absent(self, key: str, data: bytes) -> bool:
        name = self._name(key)
        lost = False

        def put(attempt: int) -> bool:
            nonlocal lost
            try:
                self._client.put_object(Bucket=self.bucket, Key=name, Body=data, IfNoneMatch="*")
            except Exception as error:
                if _status(error) == 412:
                    # The answer to an earlier attempt may have been lost after it took effect.
                    return lost and self.get(key) == data
                lost = True
                raise
            return True

        return self._call(key, put)

    @contextmanager
    def open_write(self, key: str) -> Iterator[Sink]:
        upload = _Upload(self, key)
        try:
            yield upload
        except BaseException:
            upload.abort()
            raise
        upload.complete()

    def get(self, key: str) -> bytes:
        def get(_: int) -> bytes:
            data: bytes = self._client.get_object(Bucket=self.bucket, Key=self._name(key))["Body"].read()
            return data

        try:
            return self._call(key, get)
        except FileNotFoundError:
            raise KeyError(key) from None

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Return an object's bytes, None if there is no such object."""

        def head(_: int) -> int:
            return int(self._client.head_object(Bucket=self.bucket, Key=self._name(key))["ContentLength"])

        try:
            return self._call(key, head)
        except FileNotFoundError:
            return None

    def list(self, prefix: str, start_after: str | None = None) -> Iterator[str]:
        after = self._base + start_after if start_after else ""
        while True:

            def page(_: int, after: str = after) -> dict[str, Any]:
                answer: dict[str, Any] = self._client.list_objects_v2(
                    Bucket=self.bucket, Prefix=self._base + prefix, StartAfter=after
                )
                return answer

            answer = self._call(prefix, page)
            names = [item["Key"] for item in answer.get("Contents", ())]
            yield from (name[len(self._base) :] for name in names)
            if not answer.get("IsTruncated") or not names:
                return
            after = names[-1]

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._name(key)}"

    def server_time(self) -> datetime | None:
        """Ask for one name, once, and return the server's clock (UTC, whole seconds); None where it tells none.

        Raises StoreError, or FileNotFoundError where what answers knows nothing of buckets.
        """

        def ask(_: int) -> dict[str, Any]:
            answer: dict[str, Any] = self._client.list_objects_v2(Bucket=self.bucket, Prefix=self._base, MaxKeys=1)
            return answer

        told = str(self._call("", ask, 1)["ResponseMetadata"]["HTTPHeaders"].get("date"))
        try:
            return parsedate_to_datetime(told).astimezone(UTC)
        except ValueError:
            return None

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._call(key, lambda _: self._client.delete_object(Bucket=self.bucket, Key=self._name(key)))

    def remove_unfinished(self, age: dt.timedelta, *, dry_run: bool = False) -> int:
        """See Store. The age of an upload is that of its beginning."""
        oldest, removed = dt.datetime.now(dt.UTC) - age, 0
        marker: dict[str, str] = {}
        while True:

            def page(_: int, marker: dict[str, str] = marker) -> dict[str, Any]:
                answer: dict[str, Any] = self._client.list_multipart_uploads(
                    Bucket=self.bucket, Prefix=self._base, **marker
                )
                return answer

            answer = self._call("", page)
            uploads = answer.get("Uploads", ())
            for upload in uploads:
                if upload["Initiated"] < oldest and upload["Key"].startswith(self._base):
                    removed += dry_run or self._abort(upload["Key"], upload["UploadId"])
            if not answer.get("IsTruncated") or not uploads:
                return removed
            marker = {"KeyMarker": uploads[-1]["Key"], "UploadIdMarker": uploads[-1]["UploadId"]}

    def _abort(self, name: str, upload: str) -> bool:
        """Abort an upload; False if it has ended meanwhile."""
        where = {"Bucket": self.bucket, "Key": name, "UploadId": upload}
        try:
            self._call(name[len(self._base) :], lambda _: self._client.abort_multipart_upload(**where))
        except FileNotFoundError:
            return False
        return True

    def _name(self, key: str) -> str:
        return self._base + _checked(key)

    def _call(self, key: str, request: Callable[[int], T], attempts: int = ATTEMPTS) -> T:
        """Make a request, again where that can help. Raises FileNotFoundError for 404, else StoreError."""
        from botocore.exceptions import BotoCoreError

        for attempt in range(attempts):
            try:
                return request(attempt)
            except Exception as error:
                status = _status(error)
                if isinstance(error, BotoCoreError) and status is None:
                    raise StoreError(_unasked(f"s3://{self.bucket}/{self._base}{key}", error)) from error
                if status is None:
                    raise
                if status == 404 and _code(error) != "NoSuchBucket":
                    raise FileNotFoundError(key) from error
                where, seconds = f"s3://{self.bucket}/{self._base}{key}", FIRST_WAIT * 2**attempt
                if (status not in (0, 408, 409, 429) and status < 500) or attempt == attempts - 1:
                    raise StoreError(f"S3 did not take or give {where}: {error}") from error
                self.retries += 1
                message = f"S3 did not take or give {where} ({error}); trying again in {seconds:.1f} s"
                logs.event(log, "store-retry", message, logging.WARNING, key=key, status=status, seconds=seconds)
            time.sleep(seconds)
        raise AssertionError("unreachable")


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error of S3, 0 where no answer came, None for an error of another kind."""
    from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError
    from botocore.exceptions import ConnectionError as NotConnectedError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError  # botocore lets it pass where an answer breaks off in its middle

    if isinstance(error, ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    unanswered = (HTTPClientError, IncompleteReadError, NotConnectedError, ResponseParserError, HTTPError)
    return 0 if isinstance(error, unanswered) else None


def _unasked(where: str, error: Exception) -> str:
    """Say why a request was never made, as for want of credentials, in one line."""
    way_out = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and check AWS_ENDPOINT_URL and the bucket's name"
    return f"S3 cannot be asked for {where}: {' '.join(str(error).split()).rstrip('.')}; {way_out}"


def _code(error: Exception) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


class _Upload:
    """An object on its way to S3: in one put if it is small, else in parts, invisible until completed."""

    def __init__(self, store: S3Store, key: str) -> None:
        self._store, self._key = store, key
        self._where = {"Bucket": store.bucket, "Key": store._name(key)}
        self._buffer = bytearray()
        self._id: str | None = None
        self._parts: list[dict[str, Any]] = []
        self._size = 0

    def write(self, data: bytes, /) -> object:
        self._buffer += data
        self._size += len(data)
        while len(self._buffer) >= PART_BYTES:
            self._send(bytes(self._buffer[:PART_BYTES]))
            del self._buffer[:PART_BYTES]
        return len(data)

    def complete(self) -> None:
        client, call = self._store._client, self._store._call
        if self._id is None:
            body = bytes(self._buffer)
            call(self._key, lambda _: client.put_object(**self._where, Body=body))
            return
        if self._buffer:
            self._send(bytes(self._buffer))
        parts = {"Parts": self._parts}

        def finish(_: int) -> None:
            client.complete_multipart_upload(**self._where, UploadId=self._id, MultipartUpload=parts)

        try:
            call(self._key, finish)
        except FileNotFoundError as error:
            # The upload is gone: an earlier attempt completed it and the answer was lost, or it was aborted.
            if self._store.size(self._key) != self._size:
                raise StoreError(f"the upload of {self._key} was aborted on the server") from error

    def abort(self) -> None:
        if self._id is not None:
            with suppress(Exception):
                self._store._client.abort_multipart_upload(**self._where, UploadId=self._id)

    def _send(self, body: bytes) -> None:
        client, call = self._store._client, self._store._call
        if self._id is None:
            self._id = call(self._key, lambda _: client.create_multipart_upload(**self._where)["UploadId"])
        number = len(self._parts) + 1
        answer = call(
            self._key,
            lambda _: client.upload_part(**self._where, UploadId=self._id, PartNumber=number, Body=body),
        )
        self._parts.append({"ETag": answer["ETag"], "PartNumber": number})
