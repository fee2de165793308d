"""Forms that send, edit and regenerate messages and choose branches, and the estimate of a message's cost."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from uuid import UUID

from django.conf import settings
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from chat import access
from chat.conversations import branches
from chat.errors import ChatError
from chat.runs import cost, start
from chat.web.forms import new_client_id
from chat.web.pages import posted_form, refused_page, start_posted, started_response
from chat.web.responses import handles_chat_errors
from chatproject.lib.http import Request


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def send(request: Request, conversation_id: UUID) -> HttpResponse:
    """Send a message in a conversation."""
    if request.method != "POST":
        return redirect("chat:conversation", conversation_id)
    form = posted_form(request)
    try:
        started = start_posted(
            form, partial(start.send, user=request.user, conversation_id=conversation_id)
        )
    except ChatError as error:
        return refused_page(request, error, conversation_id, form)
    return started_response(request, started)


@require_POST
@handles_chat_errors
def estimate(request: Request) -> HttpResponse:
    """Estimate the cost of a text as a message of `conversation`, or as the first of a new one."""
    text = request.POST.get("text", "")[: settings.TEXT_MAX_CHARACTERS]
    conversation = request.POST.get("conversation", "")
    try:
        conversation_id = UUID(conversation) if conversation else None
    except ValueError as error:
        raise ChatError("not_found") from error
    found = cost.estimate(user=request.user, text=text, conversation_id=conversation_id)
    found = found or cost.Estimate()
    return JsonResponse({"shown": found.shown, **asdict(found)})


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def regenerate(request: Request, message_id: UUID) -> HttpResponse:
    """Ask for another reply in place of one."""
    reply = access.message(request.user, message_id)
    if request.method != "POST":
        return redirect("chat:conversation", reply.conversation_id)
    client_id = request.POST.get("client_id") or new_client_id()
    try:
        started = start.regenerate(user=request.user, message_id=message_id, client_id=client_id)
    except ChatError as error:
        return refused_page(request, error, reply.conversation_id)
    return started_response(request, started)


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def edit(request: Request, message_id: UUID) -> HttpResponse:
    """Send another text in place of the user's own message."""
    edited = access.message(request.user, message_id)
    if request.method != "POST":
        return redirect("chat:conversation", edited.conversation_id)
    form = posted_form(request)
    try:
        started = start_posted(form, partial(start.edit, user=request.user, message_id=message_id))
    except ChatError as error:
        return refused_page(request, error, edited.conversation_id, form, editing=str(message_id))
    return started_response(request, started)


def continue_reply(request: Request, message_id: UUID) -> HttpResponse:
    """Ask for the rest of a reply that reached its length limit."""
    reply = access.message(request.user, message_id)
    try:
        started = start.continue_reply(
            user=request.user,
            message_id=message_id,
            client_id=request.POST.get("client_id") or new_client_id(),
        )
    except ChatError as error:
        return refused_page(request, error, reply.conversation_id)
    return started_response(request, started)


def select_branch(request: Request, message_id: UUID) -> HttpResponse:
    """Show the branch of a message."""
    selected = branches.select(user=request.user, message_id=message_id)
    page = reverse("chat:conversation", args=[selected.conversation])
    return redirect(f"{page}#m-{message_id}")


# The buttons below messages belong to one form, since a page has hundreds: each names its action, and has
# the message as its value.
ACTIONS = {"regenerate": regenerate, "continue": continue_reply, "branch": select_branch}


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def actions(request: Request, conversation_id: UUID) -> HttpResponse:
    """Do the action of a button below a message."""
    if request.method != "POST":
        return redirect("chat:conversation", conversation_id)
    for name, act in ACTIONS.items():
        if name in request.POST:
            try:
                message_id = UUID(request.POST[name])
            except ValueError as error:
                raise ChatError("not_found") from error
            return act(request, message_id)
    raise ChatError("not_found")
