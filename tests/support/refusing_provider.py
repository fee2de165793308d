"""A provider that refuses requests by rules, and answers all others with GOOD_TEXT."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.support.provider_answers import AnsweringProvider, Case

Body = dict[str, Any]
Condition = Callable[[Body], bool]
Rule = Callable[[Body], "tuple[int, Any] | None"]


class Refusing(AnsweringProvider):
    """A provider with rules: the first that returns a status and JSON for a request refuses it so."""

    def __init__(self, *rules: Rule) -> None:
        super().__init__(Case(id="rules", body=b"", expect={}))
        self.rules = rules

    def refuses(self, request: Body) -> bool:
        for status, answer in filter(None, (rule(request) for rule in self.rules)):
            body, kind = json.dumps(answer).encode(), "application/json"
            if status == 200:
                body, kind = b"data: %b\n\n" % body, "text/event-stream"
            self.case = Case("rule", body, {}, status=status, content_type=kind)
            return True
        return False


def when(condition: Condition, answer: Any, status: int = 400) -> Rule:
    """Return the rule that refuses requests for which a condition holds."""
    return lambda request: (status, answer) if condition(request) else None


def always(answer: Any) -> Rule:
    return lambda request: (400, answer)


def has(name: str) -> Condition:
    """Return the condition that a request has a field."""
    return lambda request: name in request


def has_role(*roles: str) -> Condition:
    return lambda request: any(message["role"] in roles for message in request["messages"])


def cap(request: Body) -> int:
    found = request.get("max_tokens") or request.get("max_completion_tokens")
    return int(found or 0)


def error(message: str, **fields: Any) -> Body:
    return {"error": {"message": message, "type": "invalid_request_error", **fields}}
