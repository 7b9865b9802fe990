"""Small adversarial worlds of renames, and what must come of them by the contract alone, in plain Python.

    draw_world(rename_world, …) ──> deliveries of ticker events and OpenFIGI answers, trades
        └── names(K), meaning(K, listing, time) ──> what canonical.symbology_as_of and trades_as_of must answer

Everything is worked out anew for each time that is asked: no segments, no versions, nothing kept between two questions.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from worlds.adversarial import COLUMNS, Draw, table
from worlds.reference import DAY, File, Version, new_york, utc

SESSIONS = [dt.date(2022, month, day) for month, day in ((5, 3), (5, 12), (5, 31), (6, 8), (6, 9), (6, 13), (7, 7))]
"""Sessions with trades."""
DATES = [dt.date(2012, 5, 18), dt.date(2022, 5, 12), dt.date(2022, 6, 9), dt.date(2022, 6, 11), dt.date(2022, 6, 20)]
"""Dates of ticker changes: a Saturday among them."""
WINDOW_DAYS = 30


@dataclass(frozen=True)
class RenameWorld:
    """What masters say of a few tickers that nobody else uses, and their trades: (session, ticker, id, minute)."""

    tickers: tuple[str, ...]
    files: tuple[File, ...]
    trades: tuple[tuple[dt.date, str, int, int], ...]


def rename_world(number: int, draw: Draw) -> RenameWorld:
    tickers = tuple(f"R{number}{letter}" for letter in "XYZ")
    files: list[File] = []
    for chain in range(draw(st.integers(1, 3))):
        figi = f"BBG{number:03}{chain}"
        said: list[list[tuple[dt.date, str]]] = []
        at = draw(st.sampled_from([dt.date(2022, 6, 1), dt.date(2022, 6, 15), dt.date(2023, 1, 1)]))
        for delivery in range(draw(st.integers(1, 4))):
            if said and draw(st.integers(0, 4)) == 0:
                events = draw(st.sampled_from(said))  # said before: the same again, or a correction taken back
            else:
                dates = draw(
                    st.lists(st.sampled_from(DATES), min_size=1, max_size=4, unique=draw(st.integers(0, 9)) > 0)
                )
                events = [(date, draw(st.sampled_from(tickers))) for date in sorted(dates, reverse=True)]
            said.append(events)
            name = f"massive_ticker_events_{events[0][1]}_{number}_{chain}.json"
            title = draw(st.sampled_from(["Name", "Name", "New Name"]))
            files.append(
                File("massive_ticker_events", name, ticker_events(figi, title, events, delivery), midnight(at))
            )
            at += dt.timedelta(draw(st.sampled_from([1, 5, 40])))
    for ticker in draw(st.lists(st.sampled_from(tickers), max_size=2, unique=True)):
        at = draw(st.sampled_from([dt.date(2022, 5, 20), dt.date(2022, 7, 1)]))
        for _ in range(draw(st.integers(1, 3))):
            figis = draw(
                st.lists(st.sampled_from([f"BBG{number:03}0", f"BBG{number:03}Q", f"BBG{number:03}R"]), unique=True)
            )
            answers: list[dict[str, Any]] = [{"data": [listing(figi, ticker, draw) for figi in figis]}]
            if not figis or draw(st.integers(0, 4)) == 0:
                answers.append({"error": "Invalid idValue format"})
            body = json.dumps([answer for answer in answers if answer.get("data", True)]).encode()
            files.append(File("openfigi_mapping", f"openfigi_mapping_{ticker}.json", body, midnight(at)))
            at += dt.timedelta(draw(st.sampled_from([1, 5, 40])))
    trades = tuple(
        (session, ticker, 1 + place, draw(st.sampled_from([1, 120, 240])))
        for session in SESSIONS
        for place, ticker in enumerate(tickers)
        if draw(st.booleans())
    )
    return RenameWorld(tickers, tuple(files), trades)


def midnight(date: dt.date) -> int:
    return utc(dt.datetime.combine(date, dt.time(), dt.UTC))


def ticker_events(figi: str, name: str, events: Sequence[tuple[dt.date, str]], request: int) -> bytes:
    changes = [
        {"type": "ticker_change", "date": str(date), "ticker_change": {"ticker": ticker}} for date, ticker in events
    ]
    results = {"name": name, "composite_figi": figi, "cik": "0001", "events": changes}
    return json.dumps({"results": results, "status": "OK", "request_id": str(request)}).encode()


def listing(figi: str, ticker: str, draw: Draw) -> dict[str, str]:
    name = draw(st.sampled_from(["NAME", "NAME", "OTHER NAME"]))
    said = {"figi": figi, "compositeFIGI": figi, "ticker": ticker, "exchCode": "US", "name": name}
    return said | {"securityType": "Common Stock", "marketSector": "Equity"}


def day_files(worlds: Sequence[RenameWorld]) -> list[File]:
    """One delivery of each session with the trades of all worlds, and a second of two that lacks every other trade."""
    files = []
    for number, session in enumerate(SESSIONS):
        rows = [
            trade_row(session, ticker, trade_id, minute)
            for world in worlds
            for day, ticker, trade_id, minute in world.trades
            if day == session
        ]
        at = new_york(session, days=1, hour=6)
        name = f"massive_trades_{session}.csv"
        files.append(File("massive_trades", name, table([COLUMNS, *rows]), at))
        if number in (3, 4):
            files.append(File("massive_trades", name, table([COLUMNS, *rows[::2]]), at + 9 * DAY))
    return files


def trade_row(session: dt.date, ticker: str, trade_id: int, minute: int) -> list[str]:
    event = new_york(session, hour=9, minute=30) + minute * 60 * 10**9
    row = {"ticker": ticker, "conditions": "", "correction": "0", "exchange": "11", "id": str(trade_id)}
    row |= {"participant_timestamp": str(event), "price": "10", "sequence_number": str(minute * 10 + trade_id)}
    row |= {"sip_timestamp": str(event), "size": "100", "tape": "1", "trf_id": "", "trf_timestamp": ""}
    return [row[column] for column in COLUMNS]


# What must come of it


@dataclass(frozen=True)
class State:
    """What a delivery says of a key, in the end; nothing (None) where it takes the key back."""

    delivered_at: int
    known_from: int
    content: tuple[Any, ...] | None


Key = tuple[str, Any]


def states_of(
    said: Sequence[tuple[int, dict[Key, tuple[Any, ...]], bool]], rule: Callable[[Key], int | None]
) -> dict[Key, list[State]]:
    """The history of each key over deliveries: (delivered at, what it says of keys, whether it is complete)."""
    history: dict[Key, list[State]] = defaultdict(list)
    for at, says, is_complete in sorted(said, key=lambda delivery: delivery[0]):
        for key in {*says, *(history if is_complete else ())}:
            content = says.get(key)
            if not history[key] or history[key][-1].content != content:
                by_rule = rule(key)
                first = not history[key] and by_rule is not None
                known_from = by_rule if first and by_rule is not None else max(by_rule or at, at)
                history[key].append(State(at, known_from, content))
    return history


def known(states: Iterable[State], at: int) -> tuple[Any, ...] | None:
    alive = [state for state in states if state.known_from <= at]
    return alive[-1].content if alive else None


@dataclass(frozen=True)
class Claim:
    """A use of a listing by an instrument, from one date to another."""

    figi: str
    ticker: str
    begins: dt.date | None
    ends: dt.date | None
    before: str | None
    first: tuple[dt.date | None, str]


class Masters:
    """What the masters of some worlds say."""

    def __init__(self, files: Sequence[File]) -> None:
        events: dict[str, list[Any]] = defaultdict(list)
        answers: dict[str, list[Any]] = defaultdict(list)
        for file in files:
            document = json.loads(file.body)
            if file.feed == "massive_ticker_events":
                results = document["results"]
                figi = results["composite_figi"]
                says = {
                    (figi, dt.date.fromisoformat(event["date"])): (event["ticker_change"]["ticker"], results["name"])
                    for event in results["events"]
                }
                events[figi].append((file.delivered_at, says, True))
            else:
                asked = file.name.removeprefix("openfigi_mapping_").removesuffix(".json")
                found = [row for answer in document for row in answer.get("data", [])]
                is_complete = bool(found) and all("data" in answer for answer in document)
                says = {(asked, row["figi"]): (row["figi"], row["ticker"], row["name"]) for row in found}
                answers[asked].append((file.delivered_at, says, is_complete))
        self.changes: dict[Key, list[State]] = {}
        self.answers: dict[Key, list[State]] = {}
        for said in events.values():
            self.changes |= states_of(said, lambda key: new_york(key[1]))
        for said in answers.values():
            self.answers |= states_of(said, lambda key: None)

    def times(self) -> list[int]:
        """When anything becomes known."""
        both = (*self.changes.values(), *self.answers.values())
        return sorted({state.known_from for states in both for state in states})

    def claims(self, at: int) -> dict[str, list[Claim]]:
        """Of each ticker, its uses as known then, in order."""
        chains: dict[str, list[tuple[dt.date, str]]] = defaultdict(list)
        for (figi, date), states in self.changes.items():
            if content := known(states, at):
                chains[figi].append((date, content[0]))
        found: dict[str, list[Claim]] = defaultdict(list)
        for figi, chain in chains.items():
            chain.sort()
            for place, (date, ticker) in enumerate(chain):
                ends = chain[place + 1][0] if place + 1 < len(chain) else None
                before = chain[place - 1][1] if place else None
                found[ticker].append(Claim(figi, ticker, date, ends, before, chain[0]))
        return {ticker: self._one_at_a_time(claims) for ticker, claims in found.items()}

    @staticmethod
    def _one_at_a_time(claims: list[Claim]) -> list[Claim]:
        firsts: dict[Any, Claim] = {}
        for claim in sorted(claims, key=lambda claim: claim.figi):
            firsts.setdefault(claim.begins, claim)
        ordered = [firsts[date] for date in sorted(firsts)]
        for place, claim in enumerate(ordered[:-1]):
            following = ordered[place + 1].begins
            assert following is not None
            if claim.ends is None or claim.ends > following:
                ordered[place] = Claim(claim.figi, claim.ticker, claim.begins, following, claim.before, claim.first)
        return ordered

    def names(self, at: int) -> dict[str, list[tuple[str, Claim]]]:
        """Of each ticker the instruments that it meant, as known then, in order: those of OpenFIGI last."""
        claims = self.claims(at)
        found: dict[str, list[tuple[str, Claim]]] = defaultdict(list)
        for ticker, uses in claims.items():
            for use in uses:
                date, first = use.first
                users = [(other.begins, other.figi) for other in claims[first]]
                own = f"@{date}" if (date, use.figi) in users else f"@{date}/{use.figi}"
                found[ticker].append((listing_of(first) + ("" if users[0] == (date, use.figi) else own), use))
        listed: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for states in self.answers.values():
            alive = [state for state in states if state.known_from <= at]
            if alive and alive[-1].content:
                figi, ticker, _ = alive[-1].content
                listed[ticker].append((-alive[-1].delivered_at, figi))
        for ticker, figis in listed.items():
            uses = claims.get(ticker, [])
            if not uses or uses[-1].ends is not None:
                begins = uses[-1].ends if uses else None
                own = listing_of(ticker) + (f"@{begins}" if begins else "")
                found[ticker].append((own, Claim(min(figis)[1], ticker, begins, None, None, (begins, ticker))))
        return found

    def symbology(self, at: int) -> set[tuple[str, str, dt.date | None, dt.date | None]]:
        """What canonical.symbology_as_of must answer."""
        return {
            (listing_of(ticker), instrument, use.begins, use.ends if use.ends and new_york(use.ends) <= at else None)
            for ticker, uses in self.names(at).items()
            for instrument, use in uses
        }

    def meaning(self, at: int, ticker: str, time: int, trades: Sequence[Version]) -> str:
        """The instrument that a ticker meant at a time, as known then; `trades` are all trades known then."""
        instrument, given_up = listing_of(ticker), None
        ended = 0
        for name, use in self.names(at).get(ticker, []):
            begins = new_york(use.begins) if use.begins else 0
            if use.begins and use.before not in (None, ticker):
                opens = new_york(use.begins, days=-WINDOW_DAYS)
                before = [
                    trade.fact.row["event_time"]
                    for trade in trades
                    if trade.fact.row["symbol"] == use.before and opens <= trade.fact.row["event_time"] < begins
                ]
                begins = max(before) + 1 if before else begins
            begins = max(begins, ended)
            if time < begins:
                break
            instrument, given_up = name, use.ends
            ended = new_york(use.ends) if use.ends else 1 << 62
        if given_up is not None and time >= ended:
            return f"{listing_of(ticker)}@{given_up}"
        return instrument


def listing_of(ticker: str) -> str:
    return f"us_equities:{ticker}"
