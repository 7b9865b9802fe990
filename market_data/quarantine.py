"""`mdp quarantine`: what cannot be used, and whether today's code may read it.

published version's canonical.quarantine ─┬─> groups     by feed, reason and kind
                                          └─> records    one by one, with their bytes as text
observability.readings ── by which code ──> can it be read otherwise now? ── retry ──> reprocessing of those loads
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from loaders.settings import Settings
from market_data import fingerprints, lake, reprocessing
from market_data.client import published_version
from market_data.dbt_runs import Progress
from market_data.names import unknown

GROUPS = """
select
    feed,
    reason,
    kind,
    count(*) as records,
    count(distinct load_id) as loads,
    min(arrived_at) as first_arrived_at,
    max(arrived_at) as last_arrived_at,
    bool_or(is_other_code) as may_be_read
from chosen
group by feed, reason, kind
order by feed, records desc, reason, kind
"""

_PLACE = "the quarantine"

RECORDS = """
select
    feed,
    reason,
    detail,
    load_id,
    source,
    source_partition,
    source_position,
    kind,
    arrived_at,
    is_other_code as may_be_read,
    coalesce(try(decode(payload)), payload::varchar) as record,
    count(*) over () as all_records
from chosen
order by feed, arrived_at, source, source_partition, source_position
limit $most
"""

CHOSEN = """
with code as (
    select unnest($feeds::varchar[]) as feed, unnest($fingerprints::varchar[]) as fingerprint
),

read_by as (
    select load_id, readings.fingerprint is distinct from code.fingerprint as is_other_code
    from lake.observability.loads
    left join lake.observability.readings using (load_seq, load_id, feed)
    left join code using (feed)
),

chosen as (
    select quarantine.*, is_other_code
    from lake.canonical.quarantine
    left join read_by using (load_id)
    where ($feed is null or feed = $feed)
        and ($reason is null or reason = $reason)
        and ($load_id is null or load_id = $load_id)
)
"""


REASONS = (
    *("not_utf8", "malformed_json", "malformed_row", "unknown_kind"),
    *("missing_field", "invalid_value", "impossible_time", "impossible_value"),
)
"""What docs/quarantine.md lists."""


class UnknownError(ValueError):
    """There is no such reason, or no such load."""


@dataclass(frozen=True)
class Chosen:
    """Which records of the quarantine are meant; what is None chooses nothing."""

    feed: str | None = None
    reason: str | None = None
    load_id: str | None = None


def groups(settings: Settings, chosen: Chosen) -> pa.Table:
    """How many records there are by feed, reason and kind; ``may_be_read``: code of today has not judged them all."""
    return _ask(settings, GROUPS, chosen)


def records(settings: Settings, chosen: Chosen, most: int) -> tuple[pa.Table, int]:
    """The records themselves, in order of arrival, at most so many (one or more), and how many there are."""
    found = _ask(settings, RECORDS, chosen, most=most)
    return found.drop_columns("all_records"), found["all_records"][0].as_py() if found.num_rows else 0


def why_none(settings: Settings, chosen: Chosen) -> str:
    """What to say where no record is chosen: what is not there, and what is.

    Raises ``UnknownError`` for a reason that is none, and for a load that the published version does not have.
    """
    there = _ask(settings, "select distinct feed, reason, load_id from chosen", Chosen()).to_pydict()
    if chosen.load_id is not None and chosen.load_id not in there["load_id"]:
        known = _ask(settings, "select load_id from lake.observability.loads where load_id = $load_id", chosen)
        if not known.num_rows:
            raise UnknownError(unknown("load", chosen.load_id, dict.fromkeys(there["load_id"]), _PLACE, most=5))
        return f"load {chosen.load_id} has no record in quarantine"
    if chosen.reason is not None and chosen.reason not in {*REASONS, *there["reason"]}:
        raise UnknownError(unknown("reason", chosen.reason, sorted({*REASONS, *there["reason"]}), _PLACE))
    if not there["feed"]:
        return "nothing is in quarantine"
    asked = ", ".join(f"{name} {value}" for name, value in asdict(chosen).items() if value is not None)
    feeds = sorted({*there["feed"]})
    return f"no record in quarantine is of {asked}; there are of {', '.join(feeds)}: `mdp quarantine list`"


def retry(settings: Settings, chosen: Chosen, progress: Progress | None = None) -> reprocessing.Outcome:
    """Read the loads again that hold such records and that other code has judged. Raises as ``reprocess`` does."""
    found = _ask(settings, "select distinct feed, load_id from chosen where is_other_code", chosen)
    feeds = set(found["feed"].to_pylist()) & set(fingerprints.by_feed())
    if not feeds:
        return reprocessing.Outcome(published_version(settings))
    load_ids = found["load_id"].to_pylist()
    return reprocessing.reprocess(settings, feeds, load_ids=load_ids, progress=progress)


def _ask(settings: Settings, query: str, chosen: Chosen, **parameters: Any) -> pa.Table:
    known = fingerprints.by_feed()
    asked: dict[str, Any] = {
        "feeds": list(known),
        "fingerprints": list(known.values()),
        "feed": chosen.feed,
        "reason": chosen.reason,
        "load_id": chosen.load_id,
    }
    with lake.open_version(settings, published_version(settings)) as connection:
        return connection.execute(CHOSEN + query, asked | parameters).to_arrow_table()
