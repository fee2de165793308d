"""Runs: asking for a reply, following it, waiting for it, stopping it."""

from __future__ import annotations

import re
from typing import Annotated, Any
from uuid import UUID

from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from msgspec import UNSET
from ninja import Router
from ninja.responses import Status
from pydantic import Field

from accounts.models import Scope, User
from billing.credits import exact
from chat import access
from chat.api.rest import events, idempotency
from chat.api.rest.answers import answer_exception
from chat.api.rest.auth import ApiRequest, needs
from chat.api.rest.errors import Problem
from chat.api.rest.schemas import RunOut, RunStart, ToolDecision, responses
from chat.conversations.offers import Choice
from chat.models import Run
from chat.runs import approve, next_message, start, steps
from chat.runs.stop import stop_run
from chat.web import socket_limits
from chatproject.lib import db
from chatproject.lib.server.late_response import LateResponse

router = Router(tags=["runs"])

JSON = "application/json; charset=utf-8"
MOST_WAIT = 60  # seconds of one request; proxies often end silent ones after a minute
LAST_EVENT = re.compile(r"[0-9]{1,15}")

STREAM: dict[str, Any] = {
    "responses": {
        200: {
            "description": "The events of the run, as docs/protocol.md describes them.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
    "parameters": [
        {
            "in": "header",
            "name": "Last-Event-ID",
            "required": False,
            "description": "In place of `after`.",
            "schema": {"type": "string", "pattern": "^[0-9]{1,15}$"},
        }
    ],
}


@router.post(
    "/runs",
    auth=needs(Scope.WRITE),
    response=responses({200: RunOut, 201: RunOut}, 402, 409, 413),
    openapi_extra=idempotency.DESCRIBED,
)
def start_run(
    request: ApiRequest,
    response: HttpResponse,
    sent: RunStart,
) -> Status[dict[str, Any]]:
    """Send a message and ask for its reply. It is queued as a message of the chat is.

    A repetition with the same `Idempotency-Key` returns the same run with 200. While a reply of the conversation
    is being generated, the message is refused (`run_active`).
    """
    sender = request.auth
    choice = Choice(
        model_id=UNSET if sent.model is None else sent.model,
        effort=UNSET if sent.effort is None else sent.effort,
        temperature=UNSET if sent.temperature is None else sent.temperature,
        assistant_id=sent.assistant,
        project_id=sent.project,
        temporary=sent.temporary,
    )
    with idempotency.once(request, "run", sent) as client_id:
        started = start.send(
            user=sender.user,
            text=sent.text,
            client_id=client_id,
            conversation_id=sent.conversation,
            parent_id=sent.parent,
            choice=choice,
            attachment_ids=sent.attachments,
            api_key=sender.key,
        )
    response["Location"] = f"/api/v1/runs/{started.run.pk}"
    return Status(201 if started.is_new else 200, described(sender.user, started.run))


@router.get("/runs/{uuid:run_id}", auth=needs(Scope.READ), response=responses({200: RunOut}))
def read_run(request: ApiRequest, run_id: UUID) -> dict[str, Any]:
    """Return a run; `text` is its reply when it has ended."""
    user = request.auth.user
    return described(user, access.run(user, run_id))


@router.get(
    "/runs/{uuid:run_id}/events",
    auth=needs(Scope.READ),
    response=responses({204: None}),
    openapi_extra=STREAM,
)
def follow_run(
    request: ApiRequest,
    run_id: UUID,
    after: Annotated[
        int,
        Field(ge=0, le=2**53, description="The number of the last event that was received."),
    ] = 0,
) -> HttpResponseBase:
    """Return the events of a run as server-sent events, from the first or the next one on.

    Each is one JSON object; `id` is its number. The stream ends after the run's last event, and is 204 for a
    client that has received that, so that an EventSource does not connect again.
    """
    last_event_id = request.headers.get("Last-Event-ID", "")
    if last_event_id:
        if LAST_EVENT.fullmatch(last_event_id) is None:
            fields = [{"field": "Last-Event-ID", "message": "It is the number of an event."}]
            raise Problem("invalid_request", fields=fields)
        after = int(last_event_id)
    user = request.auth.user
    run = access.run(user, run_id)
    if run.has_ended and after >= run.seq:
        return HttpResponse(status=204)
    socket_limits.check_streams(user.pk)
    first, shared = next_message.first_events(user=user, run_id=run_id, after=after)
    following = events.Following(request.auth, run_id, after, shared)
    answer = StreamingHttpResponse(
        following.stream([event.encode() for event in first]),
        content_type="text/event-stream; charset=utf-8",
    )
    answer["X-Accel-Buffering"] = "no"  # nginx would collect the events
    return answer


@router.get("/runs/{uuid:run_id}/wait", auth=needs(Scope.READ), response=responses({200: RunOut}))
def wait_for_run(
    request: ApiRequest,
    run_id: UUID,
    seconds: Annotated[int, Field(ge=0, le=MOST_WAIT)] = 30,
) -> HttpResponseBase | dict[str, Any]:
    """Return a run when it has ended, or as it is after some seconds: ask again then."""
    run = access.run(request.auth.user, run_id)
    if run.has_ended or not seconds:
        return described(request.auth.user, run)
    socket_limits.check_streams(request.auth.user.pk)
    is_own = access.decide(request.auth.user, run) >= access.Access.WRITE
    shared = None if is_own else run.conversation_id
    following = events.Following(request.auth, run_id, 0, shared)

    async def answer() -> HttpResponse:
        await following.wait(seconds)
        return await db.run(_read_again, request, run_id)

    return LateResponse(answer, content_type=JSON)


def _read_again(request: ApiRequest, run_id: UUID) -> HttpResponse:
    """Return a run to a sender who has waited: key, session or share may have ended meanwhile."""
    try:
        events.check_sender(request.auth)
        run = access.run(request.auth.user, run_id)
    except Exception as error:  # noqa: BLE001 # logged there, if it is a bug
        return answer_exception(request, error)
    found = RunOut.model_validate(described(request.auth.user, run))
    return HttpResponse(found.model_dump_json(), content_type=JSON)


@router.post("/runs/{uuid:run_id}/stop", auth=needs(Scope.WRITE), response=responses({200: RunOut}))
def stop(request: ApiRequest, run_id: UUID) -> dict[str, Any]:
    """Ask a run to stop, and return it. It ends within a second, with its text so far; wait for that."""
    user = request.auth.user
    stop_run(user=user, run_id=run_id)
    return described(user, access.run(user, run_id))


@router.post(
    "/runs/{uuid:run_id}/tools/{int:call}",
    auth=needs(Scope.WRITE),
    response=responses({200: RunOut}, 409),
)
def decide(request: ApiRequest, run_id: UUID, call: int, body: ToolDecision) -> dict[str, Any]:
    """Allow or refuse a call of a tool that waits for it, one of the run's `waiting_for`; the run then goes on."""
    user = request.auth.user
    approve.decide(user=user, run_id=run_id, call=str(call), allow=body.allow)
    return described(user, access.run(user, run_id))


def described(user: User, run: Run) -> dict[str, Any]:
    """Return a run, whose reply was read, as answers have it; a reader by share gets nothing of model, error and cost."""
    is_own = access.decide(user, run) >= access.Access.WRITE
    error = None
    if run.error_code:
        error = {"code": run.error_code, "message": run.error_message}
        error = error if is_own else {"code": "run_failed", "message": ""}
    return {
        "id": run.pk,
        "waiting_for": [
            {**steps.part_of(one), "until": run.waits_until} for one in approve.waiting_calls(run)
        ]
        if is_own and run.waits_until is not None
        else [],
        "conversation": run.conversation_id,
        "message": run.message_id,
        "status": run.status,
        "attempt": run.attempt,
        "model": run.model_snapshot.get("name", "") if is_own else "",
        "text": run.message.text,
        "finish_reason": run.finish_reason,
        "error": error,
        "usage": run.usage if is_own and run.has_ended else None,
        "charged": exact(run.charged) if is_own and run.charged is not None else None,
        "queued_at": run.queued_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
    }
