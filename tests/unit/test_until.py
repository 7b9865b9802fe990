"""How far to load and what to replay, as the command line says it; and the failpoints' names."""

from __future__ import annotations

import pytest

from loaders import failpoints
from loaders.replay import Bound, parse_bound
from loaders.until import Until, parse_until


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("caught-up", Until()),
        ("0:5", Until(offsets={0: 5})),
        ("0:5000,11:4800", Until(offsets={0: 5000, 11: 4800})),
        ("2024-08-08", Until(time_ms=1_723_075_200_000)),
        ("2024-08-08T12:00:00.0000001Z", Until(time_ms=1_723_118_400_001)),
    ],
)
def test_until_is_a_word_a_time_or_offsets(text: str, until: Until) -> None:
    assert parse_until(text) == until


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("soon", "neither caught-up, nor an ISO time such as 2024-08-08, nor offsets"),
        ("", "neither"),
        ("0:5,", "neither"),
        ("0:-1", "neither"),
        ("0:5,0:6", "names a partition twice"),
        ("2199-01-01", "lies in the future"),
        ("20240808", "nor an ISO time such as 2024-08-08"),
        ("5000", "nor offsets such as 0:5000"),
    ],
)
def test_what_until_cannot_be(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_until(text)


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("0", Bound(offset=0)),
        ("120000", Bound(offset=120_000)),
        ("12345678", Bound(offset=12_345_678)),
        ("20240808", Bound(offset=20_240_808)),
        ("2024-08-08", Bound(time_ms=1_723_075_200_000)),
        ("2024-08-08T12:00Z", Bound(time_ms=1_723_118_400_000)),
    ],
)
def test_a_bound_is_an_offset_or_a_time(text: str, bound: Bound) -> None:
    assert parse_bound(text) == bound


@pytest.mark.parametrize("text", ["", "-5", "soon", " 20240808", "\u0662\u0660\u0662\u0664"])
def test_what_a_bound_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match="neither an offset such as 120000 nor an ISO time such as 2024-08-08"):
        parse_bound(text)


@pytest.mark.parametrize("text", ["after-lunch", "after-files:0", "after-files:x", "after-files:1:nap", "after-files "])
def test_a_failpoint_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="MDP_FAILPOINT is"):
        failpoints.arm(text)
    failpoints.arm(None)
