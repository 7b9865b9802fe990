"""Brokers that are made up, by a clock that is: what the loader and the replay ask of Kafka, without Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from loaders.consumers import Batch, Changes, Partition, Topic

AT = Partition("binance_spot", 0)


class Clock:
    """Time that passes only where somebody waits."""

    time_ns = staticmethod(time.time_ns)

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Brokers:
    """A consumer and what it consumes: `values` by partition. `on` is called before each answer and may fail."""

    clock: Clock = field(default_factory=Clock)
    values: dict[Partition, list[bytes]] = field(default_factory=lambda: {AT: []})
    on: Callable[[str], object] = lambda _: None
    others: set[Partition] = field(default_factory=set)
    """Partitions that another member of the group reads."""
    starts: dict[Partition, int] = field(default_factory=dict)
    positions: dict[Partition, int] = field(default_factory=dict)
    fresh: set[Partition] = field(default_factory=set)

    @property
    def has_given(self) -> bool:
        """Whether all records were polled."""
        return bool(self.positions) and all(at == len(self.values[where]) for where, at in self.positions.items())

    def topic(self, name: str) -> Topic | None:
        self.on("topic")
        return Topic("cluster", "id", tuple(at.number for at in self.values if at.topic == name))

    def join(self, topics: Iterable[str]) -> None:
        self.fresh = self.values.keys() - self.others

    def take(self, partition: Partition) -> None:
        self.positions = {}

    def poll(self, seconds: float) -> Mapping[Partition, Batch]:
        self.clock.sleep(max(seconds, 0.01))
        self.on("poll")
        polled = {}
        for at, position in self.positions.items():
            values = self.values[at][position:]
            if values:
                many = len(values)
                offsets = range(position, position + many)
                polled[at] = Batch(offsets, [0] * many, [None] * many, values, [()] * many)
                self.positions[at] += many
        return polled

    def changes(self) -> Changes:
        fresh, self.fresh = self.fresh, set()
        return Changes(frozenset(self.values) - self.others, frozenset(fresh))

    def seek(self, partition: Partition, position: int, *, still: bool = False) -> None:
        self.positions.pop(partition, None)
        if not still:
            self.positions[partition] = position

    def position(self, partition: Partition) -> int | None:
        return self.positions.get(partition)

    def bounds(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, int]]:
        self.on("bounds")
        return {at: (self.starts.get(at, 0), len(self.values[at])) for at in partitions}

    def at_time(self, partitions: Iterable[Partition], time_ms: int) -> dict[Partition, int | None]:
        return dict.fromkeys(partitions)

    def commit(self, positions: Mapping[Partition, int]) -> None:
        pass

    def close(self) -> None:
        pass
