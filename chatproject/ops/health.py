"""Health checks: answered before Django, on any host, over plain HTTP, without a session or a cookie.

    /health         liveness: the process answers. Uses nothing else.
    /health/ready   readiness: 503 when a part is missing without which this process cannot work
                    (readiness.REQUIRED). With `?all=1` any missing part is a 503, for alarms.
    /health/seen    how the process sees a request of `manage.py doctor`; 404 to all others.

docs/operations/health.md describes them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from django.core import signing
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest

from chatproject.lib import db
from chatproject.ops import readiness

if TYPE_CHECKING:
    from chatproject.lib.server.asgi_types import Application, Receive, Scope, Send

logger = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds for each part to answer
FRESH = 0.5  # seconds for which a result is reused: any client may ask, as often as it likes

# The header by which `doctor` proves that it has the SECRET_KEY of this site.
DOCTOR_HEADER = "X-Parley-Doctor"
DOCTOR_SALT = "parley.doctor"
DOCTOR_SECONDS = 60

NOT_OK = "not checked"  # of a part whose answer depends on one that does not work

Answer = tuple[int, str, str]
"""Status, content type and body."""


def with_health(pages: Application) -> Application:
    """Answer the three paths, and pass on all other requests.

    Ahead of Django neither ALLOWED_HOSTS nor the redirect to https, the session or a busy thread
    stands between a probe and its answer.
    """
    parts = Readiness()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path not in ("/health", "/health/ready", "/health/seen"):
            await pages(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            answer: Answer = (405, "text/plain", "Use GET.\n")
        elif path == "/health":
            answer = (200, "text/plain", "ok\n")
        elif path == "/health/ready":
            wants_all = b"all" in parse_qs(scope["query_string"])
            answer = ready(await parts.check(), wants_all=wants_all)
        else:
            answer = seen(scope)
        status, kind, text = answer
        body = text.encode()
        headers = [
            (b"content-type", f"{kind}; charset=utf-8".encode()),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            *([(b"allow", b"GET, HEAD")] if status == 405 else ()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send(
            {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body}
        )

    return application


def ready(reasons: dict[str, str], *, wants_all: bool) -> Answer:
    """Return the answer to a probe, which names the parts and never a reason."""
    needed = reasons if wants_all else readiness.REQUIRED & reasons.keys()
    status = 503 if any(reasons[part] for part in needed) else 200
    return status, "application/json", json.dumps({part: not why for part, why in reasons.items()})


class Readiness:
    """The parts of the site as probes find them; each change of a part is one line in the log.

    At most one check runs at a time, and no call is repeated while it hangs: probes cost the same
    however many there are.
    """

    def __init__(self) -> None:
        self._check: asyncio.Task[dict[str, str]] | None = None
        self._checked_at = float("-inf")
        self._calls: dict[str, asyncio.Task[dict[str, str]]] = {}
        self._reported: dict[str, str] = {}

    async def check(self) -> dict[str, str]:
        """Return the reason of each part that does not work, and "" for all others."""
        is_stale = time.monotonic() - self._checked_at > FRESH
        if self._check is None or (self._check.done() and is_stale):
            self._check = asyncio.create_task(self._check_all())
        return await asyncio.shield(self._check)  # other probes wait for the same one

    async def _check_all(self) -> dict[str, str]:
        database, queue = await asyncio.gather(
            self._within_patience("database", lambda: db.run(readiness.database_parts)),
            self._within_patience("redis", lambda: asyncio.to_thread(readiness.redis_parts)),
        )
        found = {
            part: reasons.get(part, NOT_OK)
            for part, reasons in (
                ("database", database),
                ("migrations", database),
                ("redis", queue),
                ("worker", queue),
                ("clock", database),
            )
        }
        self._report(found)
        self._checked_at = time.monotonic()
        return found

    async def _within_patience(
        self, part: str, call: Callable[[], Awaitable[dict[str, str]]]
    ) -> dict[str, str]:
        task = self._calls.get(part)
        if task is None:
            task = self._calls[part] = asyncio.ensure_future(call())
        done, _ = await asyncio.wait({task}, timeout=PATIENCE)
        if not done:
            return {part: readiness.NO_ANSWER.format(seconds=PATIENCE)}
        del self._calls[part]
        try:
            return task.result()
        except Exception as error:
            # A bug in a check must not end the probe; its line in the log has the traceback.
            logger.exception("the check of %s failed", part)
            return {part: f"the check failed: {type(error).__name__}"}

    def _report(self, found: dict[str, str]) -> None:
        for part, reason in found.items():
            if reason and reason != NOT_OK and not self._reported.get(part):
                logger.warning("not ready: %s: %s", part, " ".join(reason.split())[:300])
            elif not reason and self._reported.get(part):
                logger.info("ready again: %s", part)
            if reason != NOT_OK:
                self._reported[part] = reason


def doctor_header() -> dict[str, str]:
    """Return the header with which this site's `doctor` asks for /health/seen."""
    return {DOCTOR_HEADER: signing.TimestampSigner(salt=DOCTOR_SALT).sign("seen")}


def seen(scope: Scope) -> Answer:
    """Return how this process sees a request, after the proxies in front of it."""
    # Without the Content-Type, whose parameters Django would decode.
    headers = [header for header in scope["headers"] if header[0] != b"content-type"]
    request = ASGIRequest({**scope, "headers": headers}, BytesIO())
    token = request.headers.get(DOCTOR_HEADER, "")
    try:
        signing.TimestampSigner(salt=DOCTOR_SALT).unsign(token, max_age=DOCTOR_SECONDS)
    except signing.BadSignature:
        return 404, "text/plain", "Not found.\n"
    try:
        request.get_host()
        is_allowed = True
    except DisallowedHost:
        is_allowed = False
    found: dict[str, Any] = {
        "scheme": request.scheme,
        "host": request.headers.get("Host", ""),
        "is_allowed": is_allowed,
        "client": request.META.get("REMOTE_ADDR", ""),
        "forwarded_proto": request.headers.get("X-Forwarded-Proto", ""),
        "forwarded_for": request.headers.get("X-Forwarded-For", ""),
    }
    return 200, "application/json", json.dumps(found)
