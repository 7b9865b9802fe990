"""What is said about the companies: actions, renames, identifiers, and the members of an index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta

from market_data.demo.equities import (
    COMPANIES,
    DIVIDEND_CENTS,
    EX_DIVIDEND,
    PAYING,
    RENAMED,
    SPLIT,
    SPLITTING,
    sessions,
)
from market_data.demo.ticks import Dice, decimal, iso, new_york, utc
from market_data.demo.truth import Fate, Parcel, Plant, Record, repeated

INDEX = "demo50"
ALPHABET = "BCDFGHJKLMNPQRSTVWXYZ0123456789"


def reference(seed: int) -> Iterator[Parcel]:
    """All reference files."""
    yield _splits()
    yield from _dividends()
    yield _ticker_events(seed)
    yield from _openfigi(seed)
    yield from _membership(seed)


def _element(record: Mapping[str, object]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def _document(head: str, records: Sequence[Record], tail: str) -> bytes:
    return head.encode() + b",".join(record.text for record in records) + tail.encode()


def _answers(name: str, fetched: date, records: Sequence[Record], notes: tuple[Plant, ...] = ()) -> Parcel:
    """A `results` list; the time of its delivery stands in the file's name."""
    path = f"reference/massive_{name}_{fetched}.json"
    body = _document('{"results":[', records, '],"status":"OK","request_id":"4f1c7d0b9a3e"}\n')
    return Parcel(path, f"massive_{name}", body, tuple(records), arrives=utc(fetched), notes=notes)


# --- corporate actions ------------------------------------------------------------------------------------


def _splits() -> Parcel:
    day = sessions()[SPLIT].isoformat()
    splits = [
        _split(day, 1, 2, SPLITTING, "split", "two for one; the price halves on its date"),
        _split("2019-08-26", 3, 4, "ITHK"),
        _split("2016-02-01", 10, 1, "NULL"),
    ]
    again = repeated(splits[1])._replace(planted="duplicate", why="the same split twice in one answer")
    return _answers("splits", date(2024, 5, 20), [*splits, again])


def _split(day: str, old: int, new: int, ticker: str, planted: str = "", why: str = "") -> Record:
    text = _element({"execution_date": day, "split_from": old, "split_to": new, "ticker": ticker})
    return Record(
        text,
        Fate.CANONICAL,
        "corporate_actions",
        ticker,
        (ticker, "split", day),
        planted=planted,
        why=why,
    )


def _dividends() -> Iterator[Parcel]:
    ex_date = sessions()[EX_DIVIDEND]
    known = [
        _dividend(PAYING, "2024-02-20", ex_date, DIVIDEND_CENTS - 2),
        _dividend("ORBT", "2024-01-30", date(2024, 2, 14), 31),
        _dividend("NA", "2023-11-02", date(2023, 11, 20), 15),
    ]
    yield _answers("dividends", date(2024, 3, 1), known)
    amount = decimal(DIVIDEND_CENTS, 2)
    corrected = _dividend(PAYING, "2024-02-20", ex_date, DIVIDEND_CENTS)._replace(
        planted="revision", why=f"the amount corrected to {amount}, which the price drops by on the ex-date"
    )
    undeclared = _dividend("QUAY", None, date(2024, 4, 30), 100, kind="SC")._replace(
        planted="fallback", why="no declaration date"
    )
    spoilt = Record(
        _dividend("CADE", "2024-05-01", date(2024, 5, 15), 20).text.replace(b":0.2,", b':"abc",'),
        Fate.QUARANTINED,
        reason="invalid_value",
        planted="defect",
        why="cash amount abc",
    )
    again = [repeated(record) for record in known[1:]]
    yield _answers("dividends", date(2024, 5, 20), [corrected, *again, undeclared, spoilt])


def _dividend(ticker: str, declared: str | None, ex_date: date, cents: int, kind: str = "CD") -> Record:
    fields = {
        "cash_amount": cents / 100,
        "currency": "USD",
        "declaration_date": declared,
        "dividend_type": kind,
        "ex_dividend_date": ex_date.isoformat(),
        "frequency": 4 if kind == "CD" else 0,
        "pay_date": (ex_date + timedelta(days=21)).isoformat(),
        "record_date": (ex_date + timedelta(days=1)).isoformat(),
        "ticker": ticker,
    }
    text = _element({name: value for name, value in fields.items() if value is not None})
    key = (ticker, "dividend", ex_date.isoformat(), kind)
    return Record(text, Fate.CANONICAL, "corporate_actions", ticker, key)


# --- names ------------------------------------------------------------------------------------------------


def _figi(dice: Dice) -> str:
    return "BBG0" + "".join(ALPHABET[dice.below(len(ALPHABET))] for _ in range(8))


def _ticker_events(seed: int) -> Parcel:
    """A rename, dated two days after the first trade under the new ticker."""
    (renamed,) = (company for company in COMPANIES if company.later)
    dated = sessions()[RENAMED] + timedelta(days=2)
    events = [
        Record(
            _element({"ticker_change": {"ticker": ticker}, "type": "ticker_change", "date": day}),
            Fate.CANONICAL,
            "ticker_changes",
            ticker,
            (renamed.ticker, day),
            planted=planted,
            why=why,
        )
        for ticker, day, planted, why in (
            (renamed.later, dated.isoformat(), "rename", f"{renamed.ticker} trades so two days before"),
            (renamed.ticker, "2011-09-19", "", ""),
        )
    ]
    head = (
        f'{{"results":{{"name":"Drift Fixtures, Inc. Common Stock",'
        f'"composite_figi":"{_figi(Dice(seed, "figi", renamed.ticker))}","cik":"0001999001","events":['
    )
    fetched = new_york(date(2024, 5, 21), 8)
    return Parcel(
        f"reference/massive_ticker_events_{renamed.later}.json",
        "massive_ticker_events",
        _document(head, events, ']},"status":"OK","request_id":"70c2b5e91d46"}\n'),
        tuple(events),
        arrives=fetched,
        delivered_at=iso(fetched),
    )


def _openfigi(seed: int) -> Iterator[Parcel]:
    """Identifiers of some of the companies; one request finds nothing."""
    fetched = new_york(date(2024, 5, 21), 9)
    for ticker in ("ABLX", "NULL", "TWIN"):
        dice = Dice(seed, "figi", ticker)
        composite, share_class = _figi(dice), _figi(dice)
        listings = [
            Record(
                _listing(ticker, exchange, figi, composite, share_class),
                Fate.CANONICAL,
                "figi_listings",
                ticker,
                (ticker, figi),
            )
            for exchange, figi in (("US", composite), ("UW", _figi(dice)), ("UN", _figi(dice)))
        ]
        head, tail = '[{"data":[', "]}]\n"
        unmatched: list[Record] = []
        if ticker == "NULL":
            warning = '{"warning":"No identifier found."}'
            tail = f"]}},{warning}]\n"
            unmatched = [Record(warning.encode(), Fate.CONTROL, planted="no_match", why="a request that found nothing")]
        yield Parcel(
            f"reference/openfigi_mapping_{ticker}.json",
            "openfigi_mapping",
            _document(head, listings, tail),
            (*listings, *unmatched),
            arrives=fetched,
            delivered_at=iso(fetched),
        )


def _listing(ticker: str, exchange: str, figi: str, composite: str, share_class: str) -> bytes:
    return _element(
        {
            "figi": figi,
            "name": f"{ticker} HOLDINGS INC",
            "ticker": ticker,
            "exchCode": exchange,
            "compositeFIGI": composite,
            "securityType": "Common Stock",
            "marketSector": "Equity",
            "shareClassFIGI": share_class,
            "securityType2": "Common Stock",
            "securityDescription": ticker,
        }
    )


# --- index ------------------------------------------------------------------------------------------------


def _membership(seed: int) -> Iterator[Parcel]:
    """The index's members in two deliveries. The file has the renamed company under its later name."""
    dice = Dice(seed, INDEX)
    ours = [company.later or company.ticker for company in COMPANIES]
    others = [f"{ALPHABET[number % 20]}{ALPHABET[number // 20]}ZZ" for number in range(34)]
    rows = [
        _member(ticker, f"{2008 + dice.below(14)}-{1 + dice.below(12):02d}-{1 + dice.below(28):02d}")
        for ticker in (*ours, *others[:30])
    ]
    former = [
        _member(ticker, f"{2005 + dice.below(3)}-06-01", f"{2015 + dice.below(8)}-{1 + dice.below(12):02d}-15")
        for ticker in others[30:]
    ]
    first = sorted([*rows, *former], key=lambda record: record.text)
    yield _members(date(2024, 5, 2), first)

    leaving = rows[-1]
    left = leaving._replace(
        text=leaving.text + b"2024-05-20",
        planted="revision",
        why="its membership has ended: a second version, not another membership",
    )
    joining = _member("JNDZZ", "2024-05-20")._replace(planted="new", why="takes the place of the one leaving")
    second = [left if record is leaving else repeated(record) for record in first]
    yield _members(date(2024, 5, 29), [*second, joining])


def _member(ticker: str, start: str, end: str = "") -> Record:
    return Record(
        f"{ticker},{start},{end}".encode(),
        Fate.CANONICAL,
        "universe_membership",
        ticker,
        (INDEX, ticker, start),
        versions=2 if end else 1,
    )


def _members(day: date, records: Sequence[Record]) -> Parcel:
    delivered = new_york(day, 8)
    text = b"\n".join([b"ticker,start_date,end_date", *(record.text for record in records), b""])
    return Parcel(
        f"reference/{iso(delivered)[:10]}/{INDEX}_ticker_start_end.csv",
        "index_membership",
        text,
        tuple(records),
        arrives=delivered,
        delivered_at=iso(delivered),
    )
