"""JSON documents: the elements of one list, each with its exact bytes, and the fields around the list.

    {"status": "OK", "results": [{…}, {…}], "request_id": "…"}      record_path results[]
      └── document ──────────────┼───┼──────── document ──┘
                                 └───┴── records: payload = the element's bytes

    results[]  results.events[]  observations[]     a list below fields
    [].data[]                                       a list in each object of the document's own list

The document is read twice, a few megabytes at a time: once for the fields around the list, which may stand
behind it, then for the elements. A document that is not JSON, or lacks the list, is refused. In a list of
objects with a list each, an object that has none (an error instead of an answer) is a record itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pyarrow as pa

from loaders.instruments import Instruments
from loaders.ledger import Drift
from loaders.sources import Refusal
from loaders.texts import few

BOM = b"\xef\xbb\xbf"
SAMPLED = 1_000
"""Elements at the beginning of a list that are looked at for fields added or missing."""
_INK = re.compile(rb"[^ \t\n\r]")
_SCALAR = re.compile(rb'[^ \t\n\r,:\[\]{}"]+')
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
_BETWEEN_OBJECTS = re.compile(rb"\}[ \t\n\r]*(,)[ \t\n\r]*\{")
_GUESSES = 4
_BATCH = 100_000
_TAIL_BYTES = 1 << 16
_RAW_LIST = msgspec.json.Decoder(list[msgspec.Raw])


class _Broken(Exception):
    """The text is not JSON here."""


class _Scanner:
    """Reads JSON from pieces of bytes, holding no more than a piece and the value at hand."""

    def __init__(self, pieces: Iterable[bytes], record_bytes: int) -> None:
        self._pieces = iter(pieces)
        self._data, self._place, self._before = b"", 0, 0
        self._limit = record_bytes
        self._ended = False
        while len(self._data) < len(BOM) and self._more():
            pass
        self._data = self._data.removeprefix(BOM)

    def peek(self) -> bytes:
        """Skip space and return the next byte, b"" at the end."""
        while True:
            ink = _INK.search(self._data, self._place)
            self._place = ink.start() if ink else len(self._data)
            if self._place < len(self._data) or not self._more():
                return self._data[self._place : self._place + 1]

    def take(self, expected: bytes) -> None:
        """Skip space and one byte, which must be the expected one."""
        found = self.peek()
        if found != expected:
            raise _Broken(self.where(f"{expected.decode()!r} expected, not {found.decode('latin-1')!r}"))
        self._place += 1

    def taken(self, wanted: bytes) -> bool:
        """Skip one byte if it is the wanted one, and say so."""
        if self.peek() != wanted:
            return False
        self._place += 1
        return True

    def key(self) -> bytes:
        """Return a key with its quotes, and skip the colon."""
        if self.peek() != b'"':
            raise _Broken(self.where("a key expected"))
        key = self.value()
        self.take(b":")
        return key

    def value(self) -> bytes:
        """Return the next value's exact bytes, having checked that it is JSON."""
        self.peek()
        while (end := self._value_end()) is None:
            if not self._more():
                raise _Broken(self.where("the document ends within a value"))
        value = self._data[self._place : end]
        _check(value, self)
        self._place = end
        return value

    def elements(self) -> Iterator[list[bytes]]:
        """Yield the elements of a list, many at a time; the '[' is taken already, the ']' will be."""
        if self.taken(b"]"):
            return
        while True:
            batch = self._bulk()
            if batch:
                yield batch
                continue
            batch, last = self._one_by_one()
            yield batch
            if last:
                return

    def end(self) -> None:
        """Make sure that nothing follows, and that the file was read to its end."""
        if self.peek():
            raise _Broken(self.where("there is more behind the document"))

    def where(self, what: str) -> str:
        return f"{what} at byte {self._before + self._place + 1:,}"

    def _more(self) -> bool:
        """Read another piece behind what is not yet used up; False at the end."""
        if self._ended:
            return False
        piece = next(self._pieces, None)
        if piece is None:
            self._ended = True
            return False
        if len(self._data) - self._place > self._limit:
            raise Refusal(self.where(f"holds a value longer than {self._limit:,} bytes"))
        self._before += self._place
        self._data = self._data[self._place :] + piece
        self._place = 0
        return True

    def _value_end(self) -> int | None:
        """Return where the value at hand ends, None if its end has not been read yet."""
        first = self._data[self._place : self._place + 1]
        if first == b'"':
            match = _STRING.match(self._data, self._place)
            return match.end() if match else None
        if first in (b"{", b"["):
            depth = 0
            for token in _TOKEN.finditer(self._data, self._place):
                text = token.group()
                if text in (b"{", b"["):
                    depth += 1
                elif text in (b"}", b"]"):
                    depth -= 1
                    if depth == 0:
                        return token.end()
                elif text == b'"':
                    return None
            return None
        match = _SCALAR.match(self._data, self._place)
        if match is None:
            if first:
                raise _Broken(self.where("a value expected"))
            return None
        return match.end() if match.end() < len(self._data) or self._ended else None

    def _bulk(self) -> list[bytes]:
        """Return the elements up to the last comma between two objects of what has been read, [] if unsure.

        If the text up to that comma, in brackets, is a JSON list, then the comma stands between two elements:
        one inside a string or a nested value would leave something open.
        """
        if self._place and len(self._data) - self._place < len(self._data) // 2:
            self._more()
        tail = max(self._place, len(self._data) - _TAIL_BYTES)
        commas = [match.start(1) for match in _BETWEEN_OBJECTS.finditer(self._data, tail)]
        for comma in reversed(commas[-_GUESSES:]):
            try:
                values = _RAW_LIST.decode(b"[" + self._data[self._place : comma] + b"]")
            except (msgspec.MsgspecError, RecursionError):
                continue
            self._place = comma + 1
            return [bytes(value) for value in values]
        return []

    def _one_by_one(self) -> tuple[list[bytes], bool]:
        """Return the elements that have been read, at least one, and whether the list ends with them."""
        values = [self.value()]
        while self.peek() == b",":
            self._place += 1
            self.peek()
            end = self._value_end()
            if end is None or len(values) == _BATCH:
                return values, False
            value = self._data[self._place : end]
            _check(value, self)
            values.append(value)
            self._place = end
        self.take(b"]")
        return values, True


def _check(value: bytes, scanner: _Scanner) -> None:
    try:
        _RAW_LIST.decode(b"[" + value + b"]")
    except RecursionError:
        return  # Nested too deep to be looked at; its brackets fit, so it is kept as it is.
    except msgspec.MsgspecError as error:
        raise _Broken(f"{scanner.where('a value')}: {error}") from error


@dataclass
class _Around:
    """The fields around a list, as they were met: names with their quotes, values as they stand."""

    outer: dict[bytes, bytes] = field(default_factory=dict)
    inner: dict[bytes, bytes] = field(default_factory=dict)
    has_list: bool = False

    def text(self) -> str:
        """Return them as one JSON object; of two with one name the inner one stands."""
        members = {**self.outer, **self.inner}
        return "{" + ",".join(f"{key.decode()}:{value.decode()}" for key, value in members.items()) + "}"


class _Reader:
    """Walks a document along the record path, once for what stands around lists and once for elements."""

    def __init__(self, record_path: str, record_bytes: int) -> None:
        head, _, tail = record_path.removesuffix("[]").rpartition("[]")
        self._many = record_path.startswith("[]") and record_path != "[]"
        self._steps = [
            step.encode() for step in (tail if self._many else record_path.removesuffix("[]")).split(".") if step
        ]
        if head:
            raise ValueError(f"record_path {record_path!r} is deeper than [].x[]")
        self._record_bytes = record_bytes
        self._path = record_path
        self.arounds: list[_Around] = []

    def survey(self, pieces: Iterable[bytes]) -> None:
        """Read the document once, for the fields around each list."""
        self.arounds = []
        size = 0
        for _, around in self._walk(pieces, survey=True):
            if around is not None:
                size += sum(map(len, around.outer.values())) + sum(map(len, around.inner.values()))
                if size > self._record_bytes:
                    raise Refusal(f"holds more than {self._record_bytes:,} bytes around its list")
                self.arounds.append(around)

    def elements(self, pieces: Iterable[bytes]) -> Iterator[tuple[list[bytes], int]]:
        """Yield elements and the number of the list they are in, after a survey."""
        number = 0
        for batch, around in self._walk(pieces, survey=False):
            if batch:
                yield batch, number
            if around is not None:
                number += 1

    def _walk(self, pieces: Iterable[bytes], survey: bool) -> Iterator[tuple[list[bytes], _Around | None]]:
        """Yield (elements, None), and ([], fields around the list) behind every list."""
        scanner = _Scanner(pieces, self._record_bytes)
        try:
            if not self._many:
                around = _Around()
                yield from self._inside(scanner, around, self._steps)
                if not around.has_list:
                    raise Refusal(f"has no list at {self._path}, where this feed's records are")
                yield [], around
            else:
                yield from self._each(scanner, survey)
            scanner.end()
        except _Broken as error:
            raise Refusal(f"is not a JSON document of this feed: {error}") from error

    def _each(self, scanner: _Scanner, survey: bool) -> Iterator[tuple[list[bytes], _Around | None]]:
        scanner.take(b"[")
        number = 0
        more = not scanner.taken(b"]")
        while more:
            if not survey and not self.arounds[number].has_list:
                yield [scanner.value()], None
                yield [], self.arounds[number]
            else:
                around = _Around()
                yield from self._inside(scanner, around, self._steps)
                yield [], around if around.has_list else _Around()
            number += 1
            more = scanner.taken(b",")
            if not more:
                scanner.take(b"]")

    def _inside(self, scanner: _Scanner, around: _Around, steps: list[bytes]) -> Iterator[tuple[list[bytes], None]]:
        """Walk one value down the steps to the list."""
        if not steps:
            scanner.take(b"[")
            around.has_list = True
            for batch in scanner.elements():
                yield batch, None
            return
        scanner.take(b"{")
        fields = around.outer if len(steps) > 1 or len(self._steps) == 1 else around.inner
        more = not scanner.taken(b"}")
        met = False
        while more:
            key = scanner.key()
            if _name(key) == steps[0]:
                if met:
                    raise _Broken(scanner.where(f"{key.decode()} stands twice"))
                met = True
                yield from self._inside(scanner, around, steps[1:])
            else:
                value = scanner.value()
                _check_text(key + value, scanner)
                fields[key] = value
            more = scanner.taken(b",")
            if not more:
                scanner.take(b"}")


def _name(key: bytes) -> bytes:
    return msgspec.json.decode(key, type=str).encode() if b"\\" in key else key[1:-1]


def _check_text(text: bytes, scanner: _Scanner) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise _Broken(f"{scanner.where('a field')} is not UTF-8: {error.reason}") from error


def read_document(
    chunks: Callable[[], Iterable[bytes]],
    record_path: str,
    fields: Iterable[str],
    instruments: Instruments,
    record_bytes: int,
    on_drift: Callable[[Drift], None],
) -> Iterator[pa.Table]:
    """Yield the elements of a document's list; `chunks` is called for each of the two passes.

    Raises Refusal where the document is broken or of another shape than the feed's.
    """
    reader = _Reader(record_path, record_bytes)
    reader.survey(chunks())
    texts = [around.text() for around in reader.arounds]
    position = 0
    sample: list[bytes] = []
    for payloads, number in reader.elements(chunks()):
        if len(sample) < SAMPLED and reader.arounds[number].has_list:
            sample += payloads[: SAMPLED - len(sample)]
            if len(sample) == SAMPLED:
                _compare(sample, tuple(fields), on_drift)
        rows = len(payloads)
        yield pa.table(
            {
                "payload": pa.array(payloads, pa.binary()),
                "key": pa.nulls(rows, pa.binary()),
                "source_position": pa.array(np.arange(position + 1, position + rows + 1)),
                "instrument": instruments.of_json(payloads),
                "document": pa.repeat(pa.scalar(texts[number], pa.string()), rows),
            }
        )
        position += rows
    if 0 < len(sample) < SAMPLED:
        _compare(sample, tuple(fields), on_drift)


def _compare(payloads: list[bytes], fields: tuple[str, ...], on_drift: Callable[[Drift], None]) -> None:
    """Tell how the fields of some elements differ from those known. Raises Refusal where they share none."""
    met: dict[str, None] = {}
    for payload in payloads:
        try:
            met.update(dict.fromkeys(msgspec.json.decode(payload, type=dict[str, msgspec.Raw])))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
    on_drift(Drift.between(met, fields))
    if fields and not met.keys() & set(fields):
        raise Refusal(f"has records that share no field with the feed, which has {few(fields)}")
