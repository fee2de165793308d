"""The search engine of the tool `web_search`: any endpoint that answers with JSON, described by settings.

WEB_SEARCH_URL has `{query}` and may have `{language}`. With WEB_SEARCH_BODY, a JSON object in which a text may be
"{query}", the request is a POST. WEB_SEARCH_FIELDS maps the answer: the paths of the list of results, and of title,
address and text of one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

FIELDS = {"results": "results", "title": "title", "url": "url", "text": "content"}  # SearXNG's
MAX_BYTES = 2_000_000
TITLE_CHARACTERS = 200
TEXT_CHARACTERS = 600


class NotUnderstood(Exception):
    """An answer without a list of results where the settings say that it is."""


@dataclass(frozen=True, slots=True)
class Found:
    """A result of a search."""

    title: str
    url: str
    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """The request of a search."""

    url: str
    host: str
    headers: dict[str, str]
    body: bytes | None


def is_configured() -> bool:
    """Return whether the site has a search engine."""
    return bool(settings.WEB_SEARCH_URL)


def check_settings() -> None:
    """Raise ImproperlyConfigured for settings that cannot work."""
    if not is_configured():
        return
    unknown = set(settings.WEB_SEARCH_FIELDS) - set(FIELDS)
    if unknown:
        raise ImproperlyConfigured(
            f"WEB_SEARCH_FIELDS has {min(unknown)!r}. It may have {', '.join(FIELDS)}."
        )
    if "{query}" not in settings.WEB_SEARCH_URL + json.dumps(settings.WEB_SEARCH_BODY):
        raise ImproperlyConfigured(
            "WEB_SEARCH_URL has no {query}. Write it where the words belong."
        )


def request_of(query: str, language: str) -> Request:
    """Return the request for a search."""
    url = settings.WEB_SEARCH_URL.replace("{query}", quote(query, safe=""))
    url = url.replace("{language}", quote(language, safe=""))
    parts = urlsplit(url)
    headers = {"Accept": "application/json"}
    if settings.WEB_SEARCH_HEADER:
        name, value = settings.WEB_SEARCH_HEADER
        headers[name] = value
    body = None
    if settings.WEB_SEARCH_BODY:
        headers["Content-Type"] = "application/json"
        body = json.dumps(_filled(settings.WEB_SEARCH_BODY, query, language)).encode()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return Request(url, f"{parts.hostname}:{port}", headers, body)


def _filled(value: Any, query: str, language: str) -> Any:
    if isinstance(value, str):
        return value.replace("{language}", language).replace("{query}", query)
    if isinstance(value, dict):
        return {name: _filled(one, query, language) for name, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, query, language) for one in value]
    return value


def results_of(body: bytes, count: int) -> list[Found]:
    """Return the first results of an answer. Raises NotUnderstood."""
    fields = FIELDS | settings.WEB_SEARCH_FIELDS
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise NotUnderstood from None
    rows = _at(answer, fields["results"])
    if not isinstance(rows, list):
        raise NotUnderstood
    found: list[Found] = []
    for row in rows:
        url = str(_at(row, fields["url"]) or "")
        if url.startswith(("http://", "https://")) and len(found) < count:
            title, text = (
                " ".join(str(_at(row, fields[one]) or "").split()) for one in ("title", "text")
            )
            found.append(Found(title[:TITLE_CHARACTERS] or url, url, text[:TEXT_CHARACTERS]))
    return found


def _at(value: Any, path: str) -> Any:
    """Return the value at a path of names and numbers with dots between; None if there is none."""
    for name in path.split("."):
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value
