"""`Idempotency-Key`: a request that is repeated with the same key has one effect.

A row remembers the key and a digest of the request, for a day. The effect itself is idempotent by a
`client_id`, which is made of both, so that a row that was lost, or removed between, harms nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chat.api.rest.auth import ApiRequest
from chat.api.rest.errors import Problem
from chat.api.rest.schemas import Body
from chat.errors import ChatError
from chat.models import IdempotencyKey
from chat.web.forms import new_client_id

HEADER = "Idempotency-Key"
KEY = re.compile(r"[\x21-\x7e]{1,100}")

DESCRIBED: dict[str, Any] = {
    "parameters": [
        {
            "in": "header",
            "name": HEADER,
            "required": False,
            "description": "Any text of the client, new for each request. A repetition has one effect, for a day.",
            "schema": {"type": "string", "pattern": "^[!-~]{1,100}$"},
        }
    ]
}


@contextmanager
def once(request: ApiRequest, operation: str, sent: Body) -> Iterator[str]:
    """Remember the key of a request around its effect; yield the `client_id` of that.

    A request that was refused may be sent again with the same key, also in another form. Raises Problem
    `idempotency_conflict` for a key of another request.
    """
    key = request.headers.get(HEADER, "")
    if not key:
        yield new_client_id()
        return
    if KEY.fullmatch(key) is None:
        fields = [{"field": HEADER, "message": "It has 1 to 100 visible characters of ASCII."}]
        raise Problem("invalid_request", fields=fields)
    digest = hashlib.sha256(f"{operation} {sent.model_dump_json()}".encode()).hexdigest()
    row, is_new = IdempotencyKey.objects.get_or_create(
        user=request.auth.user, key=key, defaults={"digest": digest}
    )
    if row.digest != digest:
        raise Problem("idempotency_conflict")
    effect = hashlib.sha256(f"{key} {digest}".encode()).hexdigest()[:40]
    try:
        yield f"rest-{effect}"
    except (ChatError, Problem):
        if is_new:
            row.delete()
        raise
