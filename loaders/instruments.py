"""Which instrument a record is about, by the registry's `instrument_path`.

    data.s|s|stream@   the first that is there: record["data"]["s"], record["s"],
                       record["stream"] up to its "@", in upper case
    @series_id         the file's attribute of that name

Only a hint for sorting and finding: a record in which nothing is found has none, and no record fails for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


@dataclass(frozen=True)
class _Path:
    steps: tuple[str, ...]
    before_at: bool

    @cached_property
    def get(self) -> Callable[[Any], Any]:
        """Take the value from a decoded shape. Raises AttributeError where a step is missing."""
        return attrgetter(".".join(map(_field, self.steps)))


class Instruments:
    """Finds the instruments of a feed's records, given the attributes of the file they are in."""

    def __init__(self, instrument_path: str, attributes: Mapping[str, str]) -> None:
        choices = [text for text in instrument_path.split("|") if text]
        self._constant = next((attributes.get(text[1:]) for text in choices if text[0] == "@"), None)
        self._paths = tuple(
            _Path(tuple(text.removesuffix("@").split(".")), text.endswith("@")) for text in choices if text[0] != "@"
        )
        self._decoder = msgspec.json.Decoder(_shape(path.steps for path in self._paths))

    def of_json(self, payloads: Iterable[bytes]) -> pa.Array:
        """Return the instruments of records in JSON; null for one that is not JSON."""
        if not self._paths:
            return pa.array((self._constant for _ in payloads), pa.string())
        return pa.array(map(self._of_one, payloads), pa.string())

    def of_table(self, table: pa.Table) -> pa.ChunkedArray:
        """Return the instruments of rows; null where the column is missing or empty."""
        found = pa.chunked_array([pa.repeat(pa.scalar(self._constant, pa.string()), table.num_rows)])
        for path in reversed(self._paths):
            if len(path.steps) == 1 and path.steps[0] in table.column_names:
                column = table[path.steps[0]]
                if path.before_at:
                    column = pc.utf8_upper(pc.replace_substring_regex(column, pattern="(?s)@.*", replacement=""))
                found = pc.if_else(pc.fill_null(pc.equal(column, ""), True), found, column)
        return found

    def _of_one(self, payload: bytes) -> str | None:
        try:
            record = self._decoder.decode(payload)
        except _UNREADABLE:
            # Perhaps only one of the paths meets a value of another kind: look again without a shape.
            try:
                record = msgspec.json.decode(payload, type=dict[str, Any])
            except _UNREADABLE:
                return self._constant
        for path in self._paths:
            try:
                value = _follow(record, path.steps) if isinstance(record, dict) else path.get(record)
            except AttributeError:
                continue
            if isinstance(value, str) and value:
                return value.partition("@")[0].upper() if path.before_at else value
            if isinstance(value, int) and not isinstance(value, bool):
                return str(value)
        return self._constant


def _follow(record: Any, steps: tuple[str, ...]) -> Any:
    for step in steps:
        record = record.get(step) if isinstance(record, dict) else None
    return record


def _field(name: str) -> str:
    return f"f_{name}" if name.isidentifier() else f"x_{name.encode().hex()}"


def _shape(paths: Iterable[tuple[str, ...]]) -> Any:
    """Return a msgspec type that decodes nothing but the paths; anything at all at their ends."""
    branches: dict[str, list[tuple[str, ...]]] = {}
    for first, *rest in paths:
        branches.setdefault(first, []).append(tuple(rest))
    fields = [(_field(name), Any if () in rests else _shape(rests) | None, None) for name, rests in branches.items()]
    return msgspec.defstruct("Record", fields, rename={_field(name): name for name in branches}, gc=False)
