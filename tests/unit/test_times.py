"""Delivery times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.times import compact, day, iso, parse_time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-11-03", "2024-11-03T00:00:00.000000000Z"),
        ("20241103", "2024-11-03T00:00:00.000000000Z"),
        ("2024-11-03T10:00", "2024-11-03T10:00:00.000000000Z"),
        ("2024-11-03 10:00:00.123456789", "2024-11-03T10:00:00.123456789Z"),
        ("2024-11-03T10:00:00.5+01:00", "2024-11-03T09:00:00.500000000Z"),
        ("20241103T093000Z", "2024-11-03T09:30:00.000000000Z"),
        ("1969-12-31T23:59:59.999999999Z", "1969-12-31T23:59:59.999999999Z"),
        ("1678-01-01", "1678-01-01T00:00:00.000000000Z"),
        ("2261-12-31T23:59:59.999999999Z", "2261-12-31T23:59:59.999999999Z"),
    ],
)
def test_a_time_is_read_to_the_nanosecond_and_as_utc(text: str, expected: str) -> None:
    assert iso(parse_time(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "24-11-03",
        "2024-13-01",
        "2024-02-30",
        "1677-12-31",
        "2262-01-01",
        "0001-01-01",
        "9999-12-31",
        "2024-11-03Z",
        "2024-11-03T25:00",
        "2024-11-03T10:00+99:00",
        "2024-11-03T10:00:00.1234567891",
        "1678-01-01T00:00+01:00",
    ],
)
def test_what_is_no_time_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"(is not|lies outside)"):
        parse_time(text)


@given(
    st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)),
    st.integers(-14 * 60, 14 * 60),
    st.integers(0, 999),
)
def test_every_time_comes_back(moment: datetime, zone: int, nanos: int) -> None:
    local = moment.replace(tzinfo=timezone(timedelta(minutes=zone)))
    text = local.isoformat(timespec="microseconds")
    text = f"{text[:26]}{nanos:03d}{text[26:]}"
    utc = local.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + f"{nanos:03d}Z"
    ns = parse_time(text)
    assert iso(ns) == utc
    assert parse_time(iso(ns)) == ns
    assert compact(ns) == utc.replace("-", "").replace(":", "")
    assert day(ns) == utc[:10]
