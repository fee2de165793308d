"""Errors of operations as answers: each exception has a code and a status (errors.py)."""

from __future__ import annotations

import logging

import redis
from django.core.exceptions import (
    RequestDataTooBig,
    TooManyFieldsSent,
    TooManyFilesSent,
)
from django.http import HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from ninja.errors import AuthenticationError, HttpError, ValidationError

from accounts.api_keys import KeyRefused
from chat.api.rest.auth import Sender
from chat.api.rest.errors import Problem, of_chat, of_fields, of_key, of_limit
from chat.errors import ChatError
from chatproject.lib import db
from chatproject.lib.rate_limits import RateLimited

logger = logging.getLogger(__name__)

RETRY_AFTER = 5  # seconds, while Redis or the database is unreachable


def answer(problem: Problem) -> HttpResponse:
    """Return an error as an answer."""
    return JsonResponse(problem.body(), status=problem.status, headers=problem.headers())


def answer_exception(request: HttpRequest, error: Exception | type[Exception]) -> HttpResponse:
    """Return the answer to an exception of an operation; a bug is logged with its traceback."""
    raised = error if isinstance(error, Exception) else error()
    sender = getattr(request, "auth", None)
    if isinstance(raised, ChatError) and isinstance(sender, Sender) and not sender.may_read_usage:
        raised.message = raised.general
    return answer(_problem_of(raised))


def _problem_of(error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case ChatError():
            return of_chat(error)
        case KeyRefused():
            return of_key(error)
        case RateLimited():
            return of_limit(error)
        case ValidationError():
            return of_fields(error.errors)
        case AuthenticationError():
            return of_key(KeyRefused("missing_api_key"))
        case RequestDataTooBig():
            return Problem("body_too_large")
        case MultiPartParserError() | TooManyFieldsSent() | TooManyFilesSent():
            return Problem("invalid_form")
        case UnreadablePostError():
            return Problem("invalid_json")
        case HttpError() if isinstance(error.__cause__, Problem):
            return error.__cause__
        case redis.RedisError():
            return of_chat(ChatError("unavailable", retry_after=RETRY_AFTER))
    if isinstance(error, db.UNREACHABLE):
        return of_chat(ChatError("unavailable", retry_after=RETRY_AFTER))
    logger.error("a request of the REST API failed", exc_info=error)
    return of_chat(ChatError("internal"))
