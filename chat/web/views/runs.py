"""The state of a run for programs, and the form that stops it."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from chat import access
from chat.errors import ChatError
from chat.models import MessagePart
from chat.rendering.tools import words
from chat.runs import approve
from chat.runs.stop import stop_run
from chat.web.pages import redirect_to_end, refused_page
from chat.web.responses import error_json, handles_chat_errors, run_json, wants_json
from chatproject.lib.http import Request


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def stop(request: Request, run_id: UUID) -> HttpResponse:
    """Ask a run to stop."""
    found = access.run(request.user, run_id, write=True)
    if request.method != "POST":
        return redirect("chat:conversation", found.conversation_id)
    try:
        stop_run(user=request.user, run_id=run_id)
    except ChatError as error:
        return refused_page(request, error, found.conversation_id)
    if wants_json(request):
        return JsonResponse(run_json(access.run(request.user, run_id, write=True)))
    return redirect_to_end(found.conversation_id)


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def decide(request: Request, run_id: UUID, call: int) -> HttpResponse:
    """Allow or refuse a call of a tool that waits for its user's answer."""
    found = access.run(request.user, run_id, write=True)
    if request.method != "POST":
        return redirect("chat:conversation", found.conversation_id)
    allow = request.POST.get("allow")
    try:
        if allow not in {"0", "1"}:
            raise ChatError("bad_json")
        approve.decide(user=request.user, run_id=run_id, call=str(call), allow=allow == "1")
    except ChatError as error:
        return refused_page(request, error, found.conversation_id)
    if wants_json(request):
        return JsonResponse(run_json(access.run(request.user, run_id, write=True)))
    return redirect_to_end(found.conversation_id)


@require_safe
@handles_chat_errors
def tool_call(request: Request, message_id: UUID, call: int) -> HttpResponse:
    """Show the arguments and the whole result of a tool's call, for the owner of its reply."""
    message = access.message(request.user, message_id, write=True)
    part = message.parts.filter(kind=MessagePart.Kind.TOOL, data__call=str(call)).first()
    if part is None:
        raise ChatError("not_found")
    context = {
        "message": message,
        "tool": part.data,
        "arguments": words(part.data.get("arguments")),
        "title": part.data.get("title", ""),
    }
    return render(request, "chat/tool_call.html", context)


@require_safe
@never_cache
def run(request: Request, run_id: UUID) -> HttpResponse:
    """Return the state of a run, for programs; it has `text` when the run has ended."""
    try:
        return JsonResponse(run_json(access.run(request.user, run_id, write=True)))
    except ChatError as error:
        return error_json(error)
