"""Does the warehouse say what the world's maker knows? Each thing planted, looked for where it must be.

    truth.json ── plantings, counts ──┐
    load_id of each delivery ─────────┼──> Finding(what, planted, found)
    published version ────────────────┘

The truth was added up while the world was made, with no look at a file or at the warehouse, so the two sides
have nothing in common but the contract.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from market_data.demo.truth import Delivery, Question, Truth

_VERSIONED = (
    "trades",
    "quotes",
    "book_updates",
    "bars",
    "corporate_actions",
    "universe_membership",
    "macro_observations",
)
_HERE = "load_id = plant.load_id and source_position = plant.position"
_LOAD = "load_id = plant.load_id"


@dataclass(frozen=True)
class Finding:
    """How many of a kind were planted (or counted by the world's maker), and how many the warehouse has."""

    what: str
    planted: int
    found: int

    @property
    def agrees(self) -> bool:
        """Whether nothing is missing and nothing too much."""
        return self.planted == self.found


KINDS: Mapping[str, tuple[str, str]] = {
    "defect": (
        "broken records set aside",
        f"exists (from canonical.quarantine where {_HERE} and reason = plant.reason)",
    ),
    "duplicate": ("records sent twice", f"exists (from copies where {_HERE} and is_duplicate)"),
    "overlap": (
        "files overlapping others",
        f"(select count(distinct source_position) from copies where {_LOAD} and source_position <= plant.records"
        " and is_duplicate)"
        " = plant.records",
    ),
    "same_bytes": (
        "files sent twice",
        f"not exists (from copies where {_LOAD} and source = plant.source and not is_duplicate)",
    ),
    "late": ("files come late", f"exists (from copies where {_LOAD} and not is_duplicate)"),
    "redelivery": (
        "days delivered again",
        f"exists (from observability.conservation where {_LOAD} and canonical_records > 0 and duplicates > 0)",
    ),
    "revision": (
        "values revised",
        f"exists (from copies where {_LOAD} and source_position = coalesce(plant.position, source_position)"
        " and revision > 0 and not is_duplicate)",
    ),
    "correction": (
        "trades corrected",
        f"exists (from canonical.trades where {_HERE} and not is_cancelled and known_to is null)",
    ),
    "cancel": (
        "trades cancelled",
        f"exists (from canonical.trades where {_HERE} and is_cancelled and known_to is null)",
    ),
    "refused": (
        "files refused whole",
        f"exists (from observability.loads where {_LOAD} and outcome = 'refused' and records = 0)",
    ),
    "header_only": (
        "file with no row",
        f"exists (from observability.conservation where {_LOAD} and raw_records = 0 and is_conserved)",
    ),
    "control": (
        "notices of a venue",
        f"exists (from observability.records_by_kind where {_LOAD} and disposition = 'control')",
    ),
    "blank": (
        "blank lines",
        f"exists (from observability.records_by_kind where {_LOAD} and kind = 'blank' and disposition = 'control')",
    ),
    "no_match": (
        "look-up with no match",
        f"exists (from observability.records_by_kind where {_LOAD} and disposition = 'control')",
    ),
    "fallback": (
        "second-best times taken",
        f"exists (from copies where {_HERE} and not is_duplicate and known_from is not null)",
    ),
    "unit": (
        "clock in microseconds",
        f"(select bool_and(abs(date_diff('day', event_time, received_time)) <= 1) from copies where {_LOAD})",
    ),
    "skew": (
        "recorder's clock behind",
        "(select bool_and(known_from >= event_time) and bool_or(received_time < event_time)"
        f" from copies where {_LOAD})",
    ),
    "drift": (
        "columns come or gone",
        f"exists (from observability.loads where {_LOAD} and json_array_length(drift, '$.added') > 0)"
        f" or exists (from canonical.quotes where {_LOAD} and bid_size is null)",
    ),
    "split": (
        "share split",
        f"exists (from canonical.corporate_actions where {_HERE} and action_type = 'split')",
    ),
    "rename": (
        "ticker change, unread",
        f"exists (from observability.records_by_kind where {_LOAD} and disposition = 'unread')",
    ),
    "new": ("member joining an index", f"exists (from canonical.universe_membership where {_HERE})"),
    "missing_value": (
        "figure missing at first",
        f"exists (from canonical.macro_observations where {_HERE} and value is null)",
    ),
}
"""For each kind of planting: how to call it, and a condition on `plant` that holds where it was found."""


def plantings(connection: duckdb.DuckDBPyConnection, truth: Truth, load_ids: Mapping[int, str]) -> list[Finding]:
    """Look for each planting, kind by kind; `load_ids` gives the load (or refusal) of each delivery's order.

    The connection reads the published version, with `lake` as its default catalog.
    """
    _register(connection, truth, load_ids)
    findings = []
    for kind in sorted({plant.kind for plant in truth.planted}, key=_rank):
        words, condition = KINDS.get(kind, (kind, "false"))
        planted, found = _row(
            connection,
            f"select count(*), count(*) filter ({condition}) from planted as plant where kind = ?",
            [kind],
        )
        findings.append(Finding(words, planted, found))
    return findings


def _rank(kind: str) -> tuple[int, str]:
    order = list(KINDS)
    return (order.index(kind) if kind in order else len(order), kind)


def _register(connection: duckdb.DuckDBPyConnection, truth: Truth, load_ids: Mapping[int, str]) -> None:
    """Make two temporary tables: `planted`, and `copies`, every record of its loads, duplicates included."""
    order_of = {delivery.path: delivery.order for delivery in truth.deliveries}
    rows = [
        {
            "kind": plant.kind,
            "load_id": load_ids.get(order_of[plant.path]),
            "source": plant.path.rpartition("/")[2],
            "position": plant.position,
            "reason": plant.reason,
            "records": plant.count,
        }
        for plant in truth.planted
    ]
    connection.register("planted", pa.Table.from_pylist(rows))
    connection.execute(
        "create or replace temp table copies as "
        + " union all by name ".join(
            "select columns(c -> c in ('load_id', 'source', 'source_position', 'is_duplicate', 'revision',"
            f" 'known_from', 'event_time', 'received_time')) from versioned.int_{table}__versioned"
            " where not is_deletion and load_id in (select load_id from planted)"
            for table in _VERSIONED
        )
    )


def counts(connection: duckdb.DuckDBPyConnection, truth: Truth, load_ids: Mapping[int, str]) -> list[Finding]:
    """Compare the maker's counts: load by load, table by table, listing by listing, answer by answer."""
    answers = [
        same
        for question in truth.questions
        for before_or_after in ("before", "after")
        for same in _answers(connection, question, before_or_after)
    ]
    return [
        _tally("loads, six counts each", _loads(connection, truth.deliveries, load_ids)),
        _tally("keys, versions of a table", _tables(connection, truth)),
        _tally("sums of traded sizes", _sizes(connection, truth)),
        _tally("answers as known then", answers),
    ]


def _tally(what: str, agree: Sequence[bool]) -> Finding:
    return Finding(what, len(agree), sum(agree))


def _loads(
    connection: duckdb.DuckDBPyConnection, deliveries: Sequence[Delivery], load_ids: Mapping[int, str]
) -> list[bool]:
    said = {
        load_id: tuple(numbers)
        for load_id, *numbers in connection.execute(
            "select load_id, raw_records, canonical_records, duplicates, quarantined, control, unread"
            " from observability.conservation"
        ).fetchall()
    }
    return [
        said.get(load_ids.get(delivery.order, ""))
        == (
            delivery.records,
            sum(delivery.canonical.values()),
            delivery.duplicates,
            sum(delivery.quarantined.values()),
            delivery.control,
            delivery.unread,
        )
        for delivery in deliveries
        if delivery.outcome in ("loaded", "redelivered")
    ]


def _tables(connection: duckdb.DuckDBPyConnection, truth: Truth) -> list[bool]:
    agree = []
    for name, expected in truth.tables.items():
        cancelled = "is_cancelled" if name == "trades" else "false"
        found = _row(
            connection,
            "select count(*) filter (known_to is null), count(*),"
            f" count(*) filter (known_to is null and {cancelled}) from canonical.{name}",
        )
        agree.append(found == (expected.keys, expected.versions, expected.cancelled))
    return agree


def _sizes(connection: duckdb.DuckDBPyConnection, truth: Truth) -> list[bool]:
    found = dict(
        connection.execute(
            "select venue || '/' || symbol, fsum(size) from canonical.trades"
            " where known_to is null and not is_cancelled group by all"
        ).fetchall()
    )
    return [
        abs(found.get(listing, 0.0) - float(size)) <= 1e-9 * float(size) for listing, size in truth.live_sizes.items()
    ]


def _answers(connection: duckdb.DuckDBPyConnection, question: Question, before_or_after: str) -> Iterator[bool]:
    known_at = question.ask_before if before_or_after == "before" else question.ask_after
    found = dict(
        connection.execute(
            "select observation_date::varchar, value"
            " from research.macro_series_as_of(?::timestamptz::timestamp_ns) where series_id = ?",
            [known_at, question.series_id],
        ).fetchall()
    )
    for answer in question.answers:
        value = answer.before if before_or_after == "before" else answer.after
        yield found.get(answer.observation_date) == (None if value is None else float(value))


def _row(connection: duckdb.DuckDBPyConnection, query: str, values: list[Any] | None = None) -> tuple[Any, ...]:
    row = connection.execute(query, values or []).fetchone()
    assert row is not None  # noqa: S101
    return row
