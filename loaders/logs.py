"""What the programs tell while they work: lines for people, or one JSON object a line for machines.

    event(log, "segment-committed", "binance_spot/0: 512 records", topic=…) ── logging ──▶ stderr

    text   12:00:01 binance_spot/0: 512 records, offsets 0 to 511
    json   {"time":"2024-06-03T12:00:01.000000Z","level":"info","logger":"loaders.kafka",
            "event":"segment-committed","message":"…","topic":"binance_spot","records":512}

Events go through the standard library's logging, so that a program that uses the loaders as a library decides
itself what becomes of them. Settings and secrets are never among the fields.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
import time
from typing import Literal, TextIO

import msgspec

Style = Literal["text", "json"]
OURS = ("loaders", "market_data")
"""The loggers whose events are told from `info` on; of other libraries only warnings are."""


def event(
    log: logging.Logger,
    name: str,
    message: str,
    /,
    level: int = logging.INFO,
    *,
    on_screen: bool = False,
    **fields: object,
) -> None:
    """Tell that something happened: its name (constant, in kebab case), a sentence, and what it is about.

    `on_screen` says that people see it on the standard output anyway, so that only machines need the line. Fields
    are in seconds, bytes and records, as their names say.
    """
    log.log(level, "%s", message, extra={"event": name, "fields": fields, "on_screen": on_screen})


def configure(wanted: Style) -> None:
    """Send events to the error stream. Configuring again replaces what was before."""
    handler = _Handler()
    handler.setFormatter(_Json() if wanted == "json" else _Text())
    if wanted == "text":
        handler.addFilter(lambda record: not getattr(record, "on_screen", False))
    root = logging.getLogger()
    for earlier in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)


def style() -> Style:
    """Return how events are told; "text" where nothing was configured."""
    ours = (handler.formatter for handler in logging.getLogger().handlers if isinstance(handler, _Handler))
    return "json" if isinstance(next(ours, None), _Json) else "text"


class _Handler(logging.StreamHandler[TextIO]):
    """The error stream as it is when an event comes. A reader that has gone away stops nothing."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


class _Text(logging.Formatter):
    """The time of day (local) and the sentence."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.getMessage()}"


class _Json(logging.Formatter):
    """One object a line; times in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="microseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", "message"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()
