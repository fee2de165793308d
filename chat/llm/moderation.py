"""A provider's moderation endpoint (`POST /moderations`, as OpenAI defines it)."""

from __future__ import annotations

import json
import time

from chat.llm.address import Failure, Server
from chat.llm.connections import Row
from chat.llm.deadline import within

CATEGORIES = 3  # names that are returned


class Unanswered(Exception):
    """The endpoint gave no verdict; `str` is the reason, for staff."""


def flagged(row: Row, model: str, text: str, seconds: float) -> list[str] | None:
    """Return the categories for which a provider flags a text; None if it does not flag it.

    Blocks for at most about so many seconds. Raises Unanswered.
    """
    if not row.enabled:
        raise Unanswered(f"provider {row.name} is disabled")
    request = {"input": text} | ({"model": model} if model else {})
    content = json.dumps(request).encode()
    url = f"{row.address.rstrip('/')}/moderations"

    def work() -> list[str] | None:
        deadline = time.monotonic() + seconds
        with Server(row.address, row.key, row.proxy, row.headers, deadline) as server:
            response = server.send("POST", url, content)
        if response.status != 200:
            raise Unanswered(f"{response.url} answered HTTP {response.status}: {response.words}")
        return _categories(response.data)

    try:
        return within(seconds, work, name="moderation")
    except (Failure, TimeoutError) as error:
        raise Unanswered(str(error)) from error


def _categories(data: object) -> list[str] | None:
    results = data.get("results") if isinstance(data, dict) else None
    if (
        not isinstance(results, list)
        or not results
        or not all(
            isinstance(one, dict) and isinstance(one.get("flagged"), bool) for one in results
        )
    ):
        raise Unanswered("the answer has an unexpected form")
    if not any(one["flagged"] for one in results):
        return None
    found: list[str] = []
    for one in results:
        categories = one.get("categories")
        if isinstance(categories, dict):
            found += [str(name)[:40] for name, is_met in categories.items() if is_met is True]
    return list(dict.fromkeys(found))[:CATEGORIES]
