"""How far to load: `caught-up`, a time, or offsets, turned into one position for each partition.

caught-up             the ends of all partitions as they are now
2024-08-08T12:00Z     the first record at or after that time, by Kafka's timestamps; else the end as it is now
0:5000,1:4800         offsets, each not included, of the partitions named; others are loaded on until these are done
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from loaders.consumers import Consumer, Partition, StreamError
from loaders.times import parse_time

CAUGHT_UP = "caught-up"
_OFFSETS = re.compile(r"\d+:\d+(?:,\d+:\d+)*")


@dataclass(frozen=True)
class Until:
    """Where to stop. Without a time and without offsets: at the ends of the partitions, as they are at the start."""

    time_ms: int | None = None
    offsets: Mapping[int, int] = field(default_factory=dict)


def parse_until(text: str) -> Until:
    """Read what the command line says. Raises ValueError where it cannot be understood."""
    if text == CAUGHT_UP:
        return Until()
    if _OFFSETS.fullmatch(text):
        pairs = [pair.split(":") for pair in text.split(",")]
        offsets = {int(partition): int(offset) for partition, offset in pairs}
        if len(offsets) < len(pairs):
            raise ValueError(f"{text!r} names a partition twice")
        return Until(offsets=offsets)
    try:
        moment = time_ms(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither {CAUGHT_UP}, nor an ISO time such as 2024-08-08, nor offsets such as 0:5000,1:4800"
        ) from None
    if moment > time.time_ns() // 1_000_000:
        raise ValueError(f"{text!r} lies in the future; leave out --until to load what comes")
    return Until(time_ms=moment)


def time_ms(text: str) -> int:
    """Return the milliseconds since 1970-01-01 UTC, rounded up, of an ISO date or time; a date has hyphens.

    Raises ValueError for anything else, digits too: they could be an offset.
    """
    if text.strip().isdigit():
        raise ValueError(f"{text!r} is no ISO time: a date has hyphens")
    return -(-parse_time(text) // 1_000_000)


def targets(until: Until, client: Consumer, partitions: Iterable[Partition]) -> dict[Partition, int]:
    """Return the position at which each partition is done. Raises StreamError for a partition that is not there."""
    partitions = list(partitions)
    if until.offsets:
        there = {partition.number: partition for partition in partitions}
        if missing := sorted(set(until.offsets) - set(there)):
            raise StreamError(f"--until names partition {missing[0]}; the topic has {len(there)}, from 0 on")
        return {there[number]: offset for number, offset in until.offsets.items()}
    ends = {partition: end for partition, (_, end) in client.bounds(partitions).items()}
    if until.time_ms is None:
        return ends
    found = client.at_time(partitions, until.time_ms)
    return {partition: end if (at := found.get(partition)) is None else min(at, end) for partition, end in ends.items()}
