"""Lines of the log in JSON (LOG_FORMAT=json), one object per line, for programs that collect them."""

from __future__ import annotations

import logging
from typing import Any

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict

from chatproject.lib import log_context
from chatproject.lib.log_scrubbing import scrub
from chatproject.lib.outages import condense


class JSONFormatter(ProcessorFormatter):
    """Formats records of any logger as JSON, with the bound ids and without secrets.

    The report of an outage has no traceback, as in plain text.
    """

    def __init__(self) -> None:
        super().__init__(
            foreign_pre_chain=[
                add_ids,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                add_fields,
            ],
            processors=[
                ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                scrub_values,
                structlog.processors.JSONRenderer(),
            ],
        )

    def format(self, record: logging.LogRecord) -> str:
        return super().format(condense(record))


def add_ids(logger: Any, method: str, event: EventDict) -> EventDict:
    """Add the ids that are bound."""
    return {**event, **log_context.ids()}


def add_fields(logger: Any, method: str, event: EventDict) -> EventDict:
    """Add the fields of a record, which have precedence over bound ids.

    They are `fields` (of business events) or `json_fields`, which a line in plain text has in words.
    """
    record = event["_record"]
    event.update(getattr(record, "fields", getattr(record, "json_fields", {})))
    return event


def scrub_values(logger: Any, method: str, event: EventDict) -> EventDict:
    """Scrub each text, before the object's own quotes and line breaks stand among them."""
    return {name: scrubbed(value) for name, value in event.items()}


def scrubbed(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return scrub(str(value))
