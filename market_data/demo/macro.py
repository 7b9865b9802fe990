"""Two economic series with all their vintages, in two answers fetched at different dates.

vintages(series) ── those published by the fetch ── realtime_end filled in ── a file
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import NamedTuple

from market_data.demo.ticks import Dice, decimal, iso, new_york, utc
from market_data.demo.truth import Answer, Fate, Parcel, Plant, Question, Record, repeated

FETCHES = (date(2024, 4, 12), date(2024, 6, 14))
OPEN_END = "9999-12-31"
BENCHMARK = date(2023, 9, 28)
SECOND_ESTIMATE = date(2024, 5, 30)
MISSING_MONTH = date(2023, 10, 1)


@dataclass(frozen=True)
class Series:
    """An economic series: its values' decimal places, and how many months a period has."""

    series_id: str
    places: int
    months: int
    first: date
    periods: int
    value: int
    growth: int
    """At most so much from one period to the next, in the last decimal place."""


GDP = Series("DEMOGDP", 3, 3, date(2020, 1, 1), 17, 21_500_000, 420_000)
CPI = Series("DEMOCPI", 1, 1, date(2021, 1, 1), 41, 2_622, 14)


class Vintage(NamedTuple):
    """A value (in units of the last place; null: missing) of a period, from its publication on."""

    period: date
    published: date
    value: int | None


def _months_later(day: date, months: int) -> date:
    years, month = divmod(day.month - 1 + months, 12)
    return day.replace(year=day.year + years, month=month + 1)


def gdp(seed: int) -> list[Vintage]:
    """A first, second and third estimate a month apart, and one benchmark revision of all history."""
    dice = Dice(seed, GDP.series_id)
    vintages: list[Vintage] = []
    value = GDP.value
    for number in range(GDP.periods):
        period = _months_later(GDP.first, number * GDP.months)
        value += dice.below(GDP.growth)
        estimates = [value]
        for _ in range(2):
            estimates.append(estimates[-1] + _other(dice, 60_000))
        if number == 5:
            # The third estimate takes the second back.
            estimates[2] = estimates[0]
        releases = [_months_later(period, GDP.months + later) for later in (0, 1, 2)]
        vintages += [
            Vintage(period, _release(release), estimate) for release, estimate in zip(releases, estimates, strict=True)
        ]
    return _benchmarked(vintages, lambda vintage: _other(dice, 150_000) + 90_000)


def _release(month: date) -> date:
    """Near the end of the month, as the statistical office likes it."""
    return {date(2024, 5, 1): SECOND_ESTIMATE}.get(month, month.replace(day=26))


def _benchmarked(vintages: Sequence[Vintage], change: Callable[[Vintage], int]) -> list[Vintage]:
    """All periods known at the benchmark get another value; what was still to come builds upon it."""
    result: list[Vintage] = []
    for period in sorted({vintage.period for vintage in vintages}):
        own = [vintage for vintage in vintages if vintage.period == period]
        before = [vintage for vintage in own if vintage.published < BENCHMARK]
        after = [vintage for vintage in own if vintage.published >= BENCHMARK]
        result += before
        if before and before[-1].value is not None:
            shift = change(before[-1]) or 1
            result.append(Vintage(period, BENCHMARK, before[-1].value + shift))
            after = [late._replace(value=(late.value or 0) + shift) for late in after]
        result += after
    return result


def _other(dice: Dice, reach: int) -> int:
    """Any change but none."""
    change = dice.between(-reach, reach)
    return change if change else 1


def cpi(seed: int) -> list[Vintage]:
    """One figure a month and its revision a year later; one month comes as missing first."""
    dice = Dice(seed, CPI.series_id)
    vintages: list[Vintage] = []
    value = CPI.value
    for number in range(CPI.periods):
        period = _months_later(CPI.first, number)
        value += dice.below(CPI.growth)
        published = _months_later(period, 1).replace(day=12)
        if period == MISSING_MONTH:
            vintages.append(Vintage(period, published, None))
            vintages.append(Vintage(period, published + timedelta(days=9), value))
        else:
            vintages.append(Vintage(period, published, value))
        vintages.append(Vintage(period, _months_later(period, 13).replace(day=12), value + _other(dice, 3)))
    return vintages


def macro(seed: int) -> Iterator[Parcel]:
    """Each series as fetched on two dates; the second answer repeats and supersedes the first."""
    for series, vintages in ((GDP, gdp(seed)), (CPI, cpi(seed))):
        known: set[tuple[date, date]] = set()
        for fetched in FETCHES:
            found = [vintage for vintage in vintages if vintage.published <= fetched]
            records = [
                record if (vintage.period, vintage.published) not in known else repeated(record)
                for vintage, record in zip(found, _records(series, found), strict=True)
            ]
            known |= {(vintage.period, vintage.published) for vintage in found}
            yield _answer(series, fetched, records)


def _records(series: Series, found: Sequence[Vintage]) -> Iterator[Record]:
    ends = [
        (later.published - timedelta(days=1)).isoformat() if later.period == vintage.period else OPEN_END
        for vintage, later in pairwise([*found, Vintage(date.max, date.max, None)])
    ]
    for vintage, end in zip(found, ends, strict=True):
        value = "." if vintage.value is None else decimal(vintage.value, series.places)
        text = (
            f'{{"realtime_start":"{vintage.published}","realtime_end":"{end}",'
            f'"date":"{vintage.period}","value":"{value}"}}'
        )
        yield Record(
            text.encode(),
            Fate.CANONICAL,
            "macro_observations",
            series.series_id,
            (series.series_id, vintage.period.isoformat()),
            planted="missing_value" if vintage.value is None else "",
            why="published as missing, filled nine days later" if vintage.value is None else "",
        )


def _answer(series: Series, fetched: date, records: Sequence[Record]) -> Parcel:
    path = f"macro/alfred_{series.series_id}_fetched_{fetched}.json"
    head = (
        '{"realtime_start":"1776-07-04","realtime_end":"9999-12-31","observation_start":"1600-01-01",'
        '"observation_end":"9999-12-31","units":"lin","output_type":1,"file_type":"json",'
        f'"order_by":"observation_date","sort_order":"asc","count":{len(records)},"offset":0,'
        '"limit":100000,"observations":['
    )
    body = head.encode() + b",".join(record.text for record in records) + b"]}\n"
    return Parcel(path, "alfred_observations", body, tuple(records), arrives=utc(fetched), notes=_notes(series, path))


def _notes(series: Series, path: str) -> tuple[Plant, ...]:
    if series is not GDP or str(FETCHES[0]) not in path:
        return ()
    return (Plant("revision", path, None, f"all history is revised on {BENCHMARK}"),)


def questions(seed: int) -> tuple[Question, ...]:
    """One series, asked on both sides of its benchmark revision and of one second estimate."""
    vintages = gdp(seed)
    return (
        _question("benchmark", vintages, BENCHMARK),
        _question("second_estimate", vintages, SECOND_ESTIMATE),
    )


def _question(name: str, vintages: Sequence[Vintage], published: date) -> Question:
    """Asked at noon of the day before the publication, and of the day after, on which it is known."""
    before = _known(vintages, published - timedelta(days=2))
    after = _known(vintages, published)
    return Question(
        name=name,
        series_id=GDP.series_id,
        revision_published_on=published.isoformat(),
        known_from=iso(new_york(published + timedelta(days=1))),
        ask_before=iso(new_york(published - timedelta(days=1), 12)),
        ask_after=iso(new_york(published + timedelta(days=1), 12)),
        answers=tuple(Answer(period, before.get(period), value) for period, value in after.items()),
        revised=tuple(period for period in before if before[period] != after[period]),
        new=tuple(period for period in after if period not in before),
    )


def _known(vintages: Sequence[Vintage], published: date) -> dict[str, str | None]:
    """The newest value of each period among what was published by that day."""
    return {
        vintage.period.isoformat(): None if vintage.value is None else decimal(vintage.value, GDP.places)
        for vintage in sorted(vintages)
        if vintage.published <= published
    }
