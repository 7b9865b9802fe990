"""Objects read in parts and by many threads, where a Store gives them whole.

file_system(raw, s3) ── opened(files, uri) ──▶ size(), read_at(), read()        local or S3, the same
keys ── in_threads(pool, check, keys) ──▶ results in the order of the keys, few of them waiting
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

import pyarrow.fs as pafs

from loaders.settings import MIB, S3Settings
from loaders.store import ATTEMPTS

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 10
"""As many as one S3 client keeps connections for."""
AHEAD = 4 * THREADS
"""Items taken before the result of the first one is asked for."""


def file_system(url: str, s3: S3Settings) -> Any:
    """Return the file system of a directory or of s3://bucket/prefix. Nothing is asked yet."""
    if not url.startswith("s3://"):
        return pafs.LocalFileSystem()
    scheme, _, _ = (s3.endpoint or "https://").partition("://")
    return pafs.S3FileSystem(
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        session_token=s3.session_token,
        region=s3.region or "us-east-1",
        endpoint_override=s3.endpoint,
        scheme=scheme,
        connect_timeout=10,
        request_timeout=60,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


def place(uri: str) -> str:
    """Return an absolute path or an s3:// URL as its file system names it."""
    return uri.removeprefix("s3://")


def blocks(source: Any, size: int = 8 * MIB) -> Iterator[bytes]:
    """Yield what is left of an open file, in blocks."""
    while block := source.read(size):
        yield block


def digest(source: Any) -> str:
    """Return the SHA-256 of an open file, read from its beginning."""
    source.seek(0)
    seen = hashlib.sha256()
    for block in blocks(source):
        seen.update(block)
    return seen.hexdigest()


def in_threads(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int = AHEAD
) -> Iterator[Result]:
    """Yield function(item) for each item, in order, with a few of them under way at any time."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
