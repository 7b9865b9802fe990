"""A vendor file as a stream of bytes that can be trusted.

    file ── blocks (SHA-256 in every pass) ── gunzip, limited ──▶ blocks of content ──▶ a reader

The file is opened once and read by position, so a pass may be repeated; a pass that meets other bytes than
the first one did refuses the file. Compression is told by the first bytes, never by the name.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

from loaders.settings import MIB, Limits

GZIP_MAGIC = b"\x1f\x8b"
SMALLEST_GZIP = 18
CHUNK_BYTES = 8 * MIB
"""Content a reader works on at a time."""

Progress = Callable[[Path, int, int], None]
"""Called with the file, the bytes read so far, and the file's size times the passes made over it."""


class Refusal(Exception):
    """The file cannot be loaded; the message is for the person who gave it."""


class Source:
    """An open vendor file. Use as a context manager; `path` must be resolved (no links left in it)."""

    def __init__(self, path: Path, limits: Limits, progress: Progress | None = None, passes: int = 1) -> None:
        self.path, self.limits = path, limits
        self._progress, self._passes, self._done = progress, passes, 0
        self.sha256: str | None = None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise Refusal(f"cannot be opened: {error.strerror}") from error
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        try:
            if not stat.S_ISREG(status.st_mode):
                raise Refusal("is not a regular file")
            if self.size > limits.file_bytes:
                raise Refusal(f"holds {self.size:,} bytes; the limit is {limits.file_bytes:,}")
        except Refusal:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def digest(self) -> str:
        """Read the file once and return its SHA-256, which every later pass must meet again."""
        for _ in self.blocks():
            pass
        assert self.sha256 is not None  # noqa: S101 (set by the pass)
        return self.sha256

    def blocks(self) -> Iterator[bytes]:
        """Yield the file's own bytes. Raises Refusal at the end if they are not those of the first pass."""
        before, seen = self._version(), hashlib.sha256()
        offset = 0
        while block := self._read(offset):
            offset += len(block)
            seen.update(block)
            self._advance(len(block))
            yield block
        found = seen.hexdigest()
        if offset != self.size or self._version() != before or self.sha256 not in (None, found):
            raise Refusal("changed while it was read; load it again when its writer has finished")
        self.sha256 = found

    def content(self) -> Iterator[bytes]:
        """Yield the file's content, decompressed if it is gzip. Raises Refusal where it is broken."""
        if self._read(0, 2) == GZIP_MAGIC:
            yield from _gunzip(self.blocks(), self.limits)
            return
        if self.path.name.endswith(".gz") and self.size < SMALLEST_GZIP:
            raise Refusal("is a truncated gzip file")
        yield from self.blocks()

    def chunks(self) -> Iterator[bytes]:
        """Yield the content in pieces of about CHUNK_BYTES."""
        return _joined(self.content(), CHUNK_BYTES)

    def _read(self, offset: int, size: int = MIB) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise Refusal(f"cannot be read at byte {offset:,}: {error.strerror}") from error

    def _version(self) -> tuple[int, int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _advance(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(self.path, self._done, self.size * self._passes)


def _joined(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    parts: list[bytes] = []
    held = 0
    for block in blocks:
        parts.append(block)
        held += len(block)
        if held >= size:
            yield b"".join(parts)
            parts, held = [], 0
    if parts:
        yield b"".join(parts)


def _gunzip(blocks: Iterable[bytes], limits: Limits) -> Iterator[bytes]:
    """Yield what gzip members hold, one after the other; anything behind the last one is refused."""
    member = zlib.decompressobj(wbits=31)
    members, taken, given = 1, 0, 0
    for block in blocks:
        taken += len(block)
        data, full = block, False
        while data or full:
            if member.eof:
                member, members = zlib.decompressobj(wbits=31), members + 1
            try:
                content = member.decompress(data, MIB)
            except zlib.error as error:
                what = "corrupt gzip" if members == 1 else f"bytes behind gzip member {members - 1} that are not gzip"
                raise Refusal(f"{what} ({error})") from error
            if given == 0 and content[:2] == GZIP_MAGIC:
                raise Refusal("gzip inside gzip; unpack it once")
            given += len(content)
            _check_size(given, taken, limits)
            data = member.unused_data if member.eof else member.unconsumed_tail
            full = len(content) == MIB and not member.eof
            if content:
                yield content
    if not member.eof:
        raise Refusal("truncated gzip: the end of the compressed data is missing")


def _check_size(given: int, taken: int, limits: Limits) -> None:
    if given > limits.file_bytes:
        raise Refusal(f"decompresses to more than {limits.file_bytes:,} bytes, the limit")
    if given > limits.ratio_from_bytes and given > limits.ratio * taken:
        raise Refusal(f"decompresses to more than {limits.ratio} times its size, as only a decompression bomb does")
