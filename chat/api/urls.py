"""The addresses of the OpenAI-compatible API, served ahead of Django's handler.

A call may wait for minutes, and Django keeps a thread for each request. Here a call is a task of the event loop, which
uses a thread only while it reads or writes the database. ALLOWED_HOSTS and cookies do not concern it: a key does.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import TYPE_CHECKING

import msgspec
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest

from chat.api import bodies, completions, embeddings, models, responses
from chat.api.auth import authorization_of
from chat.api.errors import UNKNOWN_PATH, ApiError, restarting
from chat.api.replies import ClientGone
from chat.api.requests import Request, in_thread

if TYPE_CHECKING:
    from chatproject.lib.server.asgi_types import Application, Receive, Scope, Send

logger = logging.getLogger(__name__)

BASE = "/v1/"

INTERNAL = "Something went wrong on our side. It has been logged. Try again."
PLAIN = "Use https: a key must not be sent unencrypted."


async def list_models(asked: Request) -> None:
    """Answer with the models that the user may use."""

    def read() -> list[dict[str, object]]:
        return [
            models.described(name, model) for name, model in models.named(asked.authenticate().user)
        ]

    found = await in_thread(read)
    await asked.answer(200, msgspec.json.encode({"object": "list", "data": found}))


async def one_model(asked: Request) -> None:
    """Answer with one model."""
    name = asked.path.removeprefix(f"{BASE}models/")

    def read() -> dict[str, object]:
        return models.described(name, models.find(asked.authenticate().user, name))

    await asked.answer(200, msgspec.json.encode(await in_thread(read)))


Handler = Callable[[Request], Awaitable[None]]

# Method, pattern of the path after BASE, handler; all need a key with the scope `models`.
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", r"chat/completions", completions.completions),
    ("POST", r"responses", responses.responses),
    ("POST", r"embeddings", embeddings.embeddings),
    ("GET", r"models", list_models),
    ("GET", r"models/.+", one_model),
)


def with_api(pages: Application) -> Application:
    """Answer the paths below BASE, and pass on all other requests."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(BASE):
            await pages(scope, receive, send)
            return
        asked = Request(scope, receive, send)
        try:
            await _answer(asked, scope)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            if not asked.has_begun:
                error = restarting()
                await asked.answer(error.status, error.body(), error.headers())
            raise
        except ApiError as error:
            if not asked.may_read_usage:
                error.message = error.general
            await asked.answer(error.status, error.body(), error.headers())
        except Exception:
            logger.exception("a call of the API failed")
            if not asked.has_begun:
                await asked.answer(500, ApiError(500, INTERNAL, code="internal").body())
            else:
                # The connection ends without its last chunk, so that the client does not take it for a whole reply.
                raise
        finally:
            asked.release()

    return application


async def _answer(asked: Request, scope: Scope) -> None:
    if settings.SECURE_SSL_REDIRECT and not _is_secure(scope):
        raise ApiError(403, PLAIN, code="https_required")
    handler = _handler(scope)
    asked.authorization = authorization_of(scope["headers"])
    if scope["method"] == "POST":
        await bodies.read(asked, scope)
    await handler(asked)


def _is_secure(scope: Scope) -> bool:
    """Return whether a request came by https, by the settings about proxies."""
    headers = [header for header in scope["headers"] if header[0] != b"content-type"]
    return ASGIRequest({**scope, "headers": headers}, BytesIO()).is_secure()


def _handler(scope: Scope) -> Handler:
    path = scope["path"].removeprefix(BASE).rstrip("/")
    found = [(method, handler) for method, route, handler in ROUTES if re.fullmatch(route, path)]
    if not found:
        raise ApiError(404, UNKNOWN_PATH, code="unknown_url")
    for method, handler in found:
        if method == scope["method"]:
            return handler
    raise ApiError(405, f"Use {found[0][0]} for this address.", code="method_not_allowed")
