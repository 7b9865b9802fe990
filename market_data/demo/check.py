"""Does the warehouse say what the world's maker knows? Each thing planted, looked for where it must be.

    truth.json ── plantings, counts ──┐
    Landing of each delivery ─────────┼──> Finding(what, planted, found)
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

from market_data.demo.truth import LANDED, Delivery, Question, Truth

_OF_MASTERS = ("ticker_changes", "figi_listings")
"""What masters say makes symbology and instruments, and is itself no table of canonical."""
_VERSIONED = (
    "trades",
    "quotes",
    "bars",
    "corporate_actions",
    "universe_membership",
    "macro_observations",
    *_OF_MASTERS,
)
_HERE = "load_id = plant.load_id and source_position = plant.position"
_WHOLE = "delivery = plant.delivery"


@dataclass(frozen=True)
class Landing:
    """What became of a delivery: its loads (or its refusal), and where in them its records stand.

    A file is one load, whose positions are its lines, so that `places` is None. A capture that came by Kafka is a load
    for each segment: `places` has `line` (from 1), `load_id` and `position` (the offset) of every record.
    """

    loads: tuple[str, ...]
    places: pa.Table | None = None


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


def _of(relation: str) -> str:
    """What a relation has of the loads of the delivery that a planting is in."""
    return f"from {relation} join delivered using (load_id) where {_WHOLE}"


KINDS: Mapping[str, tuple[str, str]] = {
    "defect": (
        "broken records set aside",
        f"exists (from canonical.quarantine where {_HERE} and reason = plant.reason)",
    ),
    "duplicate": ("records sent twice", f"exists (from copies where {_HERE} and is_duplicate)"),
    "overlap": (
        "files overlapping others",
        f"(select count(*) from copies where {_WHOLE} and line <= plant.records and is_duplicate) = plant.records",
    ),
    "same_bytes": (
        "files sent twice",
        f"not exists (from copies where {_WHOLE} and source = coalesce(plant.source, source) and not is_duplicate)",
    ),
    "late": ("files come late", f"exists (from copies where {_WHOLE} and not is_duplicate)"),
    "redelivery": (
        "days delivered again",
        f"exists ({_of('observability.conservation')} and canonical_records > 0 and duplicates > 0)",
    ),
    "revision": (
        "values revised",
        f"exists (from copies where {_WHOLE} and line = coalesce(plant.line, line)"
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
        f"exists ({_of('observability.loads')} and outcome = 'refused' and records = 0)",
    ),
    "header_only": (
        "file with no row",
        f"exists ({_of('observability.conservation')} and raw_records = 0 and is_conserved)",
    ),
    "control": (
        "notices of a venue",
        f"exists ({_of('observability.records_by_kind')} and disposition = 'control')",
    ),
    "blank": (
        "blank lines",
        f"exists ({_of('observability.records_by_kind')} and kind = 'blank' and disposition = 'control')",
    ),
    "no_match": (
        "look-up with no match",
        f"exists ({_of('observability.records_by_kind')} and disposition = 'control')",
    ),
    "fallback": (
        "second-best times taken",
        f"exists (from copies where {_HERE} and not is_duplicate and known_from is not null)",
    ),
    "unit": (
        "clock in microseconds",
        f"(select bool_and(abs(date_diff('day', event_time, received_time)) <= 1) from copies where {_WHOLE})",
    ),
    "skew": (
        "recorder's clock behind",
        "(select bool_and(known_from >= event_time) and bool_or(received_time < event_time)"
        f" from copies where {_WHOLE})",
    ),
    "drift": (
        "columns come or gone",
        f"exists ({_of('observability.loads')} and json_array_length(drift, '$.added') > 0)"
        f" or exists ({_of('canonical.quotes')} and bid_size is null)",
    ),
    "split": (
        "share split",
        f"exists (from canonical.corporate_actions where {_HERE} and action_type = 'split')",
    ),
    "rename": (
        "ticker change followed",
        f"exists (from canonical.symbology as names where {_HERE} and instrument_id != listing_id and not exists ("
        "from canonical.trades_as_of('2200-01-01') as trades"
        " where trades.listing_id = names.listing_id and trades.instrument_id != names.instrument_id))",
    ),
    "new": ("member joining an index", f"exists (from canonical.universe_membership where {_HERE})"),
    "missing_value": (
        "figure missing at first",
        f"exists (from canonical.macro_observations where {_HERE} and value is null)",
    ),
}
"""For each kind of planting: how to call it, and a condition on `plant` that holds where it was found."""


def plantings(connection: duckdb.DuckDBPyConnection, truth: Truth, landings: Mapping[int, Landing]) -> list[Finding]:
    """Look for each planting, kind by kind; `landings` are by the order of the deliveries.

    The connection reads the published version, with `lake` as its default catalog.
    """
    _register_landings(connection, landings)
    _register_plants(connection, truth)
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


def _register_landings(connection: duckdb.DuckDBPyConnection, landings: Mapping[int, Landing]) -> None:
    """Make two views: `delivered`, the loads of each delivery, and `places`, of records that are not at their line."""
    delivered = pa.Table.from_pylist(
        [{"delivery": order, "load_id": load_id} for order, landing in landings.items() for load_id in landing.loads]
    )
    none = pa.schema({"line": pa.int64(), "load_id": pa.string(), "position": pa.int64(), "delivery": pa.int64()})
    places = pa.concat_tables(
        [
            landing.places.append_column("delivery", pa.repeat(pa.scalar(order), landing.places.num_rows))
            for order, landing in landings.items()
            if landing.places is not None
        ]
        or [none.empty_table()]
    )
    connection.register("delivered", delivered)
    connection.register("places", places)


def _register_plants(connection: duckdb.DuckDBPyConnection, truth: Truth) -> None:
    """Make two temporary tables: `planted`, and `copies`, every record of its deliveries, duplicates included."""
    deliveries = {delivery.path: delivery for delivery in truth.deliveries}
    rows = [
        {
            "kind": plant.kind,
            "delivery": deliveries[plant.path].order,
            "source": None if deliveries[plant.path].outcome == "published" else plant.path.rpartition("/")[2],
            "line": plant.position,
            "reason": plant.reason,
            "records": plant.count,
        }
        for plant in truth.planted
    ]
    connection.register("plants", pa.Table.from_pylist(rows))
    connection.execute(
        "create or replace temp table planted as"
        " select plants.*, coalesce(places.load_id, files.load_id) as load_id,"
        " coalesce(places.position, plants.line) as position"
        " from plants left join places using (delivery, line)"
        " left join (from delivered anti join places using (delivery)) as files using (delivery)"
    )
    connection.execute(
        "create or replace temp table copies as"
        " select copies.*, delivered.delivery, coalesce(places.line, source_position) as line from ("
        + " union all by name ".join(
            "select columns(c -> c in ('load_id', 'source', 'source_position', 'is_duplicate', 'revision',"
            f" 'known_from', 'event_time', 'received_time')) from versioned.int_{table}__versioned"
            " where not is_deletion and load_id in (select load_id from delivered semi join plants using (delivery))"
            for table in _VERSIONED
        )
        + ") as copies join delivered using (load_id) left join places"
        " on places.load_id = copies.load_id and places.position = source_position"
    )


def counts(connection: duckdb.DuckDBPyConnection, truth: Truth, landings: Mapping[int, Landing]) -> list[Finding]:
    """Compare the maker's counts: delivery by delivery, table by table, listing by listing, answer by answer."""
    _register_landings(connection, landings)
    answers = [
        same
        for question in truth.questions
        for before_or_after in ("before", "after")
        for same in _answers(connection, question, before_or_after)
    ]
    return [
        _tally("deliveries, by six counts", _deliveries(connection, truth.deliveries)),
        _tally("keys, versions of a table", _tables(connection, truth)),
        _tally("sums of traded sizes", _sizes(connection, truth)),
        _tally("answers as known then", answers),
    ]


def _tally(what: str, agree: Sequence[bool]) -> Finding:
    return Finding(what, len(agree), sum(agree))


def _deliveries(connection: duckdb.DuckDBPyConnection, deliveries: Sequence[Delivery]) -> list[bool]:
    said = {
        order: tuple(numbers)
        for order, *numbers in connection.execute(
            "select delivery, sum(raw_records), sum(canonical_records), sum(duplicates), sum(quarantined),"
            " sum(control), sum(unread)"
            " from observability.conservation join delivered using (load_id) group by delivery"
        ).fetchall()
    }
    return [
        said.get(delivery.order)
        == (
            delivery.records,
            sum(delivery.canonical.values()),
            delivery.duplicates,
            sum(delivery.quarantined.values()),
            delivery.control,
            delivery.unread,
        )
        for delivery in deliveries
        if delivery.outcome in LANDED
    ]


def _tables(connection: duckdb.DuckDBPyConnection, truth: Truth) -> list[bool]:
    agree = []
    for name, expected in truth.tables.items():
        cancelled = "is_cancelled" if name == "trades" else "false"
        shown = (
            f"(from versioned.int_{name}__versioned where not is_duplicate and not is_deletion)"
            if name in _OF_MASTERS
            else f"canonical.{name}"
        )
        found = _row(
            connection,
            "select count(*) filter (known_to is null), count(*),"
            f" count(*) filter (known_to is null and {cancelled}) from {shown}",
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
