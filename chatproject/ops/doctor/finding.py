"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Whether something works: a warning does not stop the site, a problem stops a part of it."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of a part of the site, its description (`found`) and the remedy; no text has a secret."""

    part: str
    level: Level
    found: str
    advice: str = ""


def ok(part: str, found: str) -> Finding:
    return Finding(part, Level.OK, found)


def warning(part: str, found: str, advice: str) -> Finding:
    return Finding(part, Level.WARNING, found, advice)


def problem(part: str, found: str, advice: str) -> Finding:
    return Finding(part, Level.PROBLEM, found, advice)


def one_line(error: object) -> str:
    """Return an error's text in one line of at most 200 characters, without a final full stop."""
    return " ".join(str(error).split())[:200].rstrip(". ") or type(error).__name__
