"""The page of a chat, new or stored, as views and refused forms return it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse

from chat import access
from chat.conversations import lifecycle, listing, transcript
from chat.errors import ChatError
from chat.models import Conversation
from chat.runs import cost, describe
from chat.web.answers import http_status, raise_unless_page, run_json, wants_json, with_retry_after
from chat.web.forms import MessageForm, new_client_id
from chatproject.lib.http import Request

# Stands in addresses of what does not exist yet when a page is rendered; the script puts the id in
# its place.
NO_ID = UUID(int=0)

# What static/js/app.js imports, so that a browser fetches it all at once.
MODULES = sorted(
    path.relative_to(folder).as_posix()
    for folder in map(Path, settings.STATICFILES_DIRS)
    for path in folder.glob("js/*/*.js")
    if path.stem != "password_field"  # of the pages without a chat
)


def new_page(
    request: Request, *, form: MessageForm | None = None, error: ChatError | None = None
) -> HttpResponse:
    assistant = lifecycle.default_assistant()
    response = render(
        request,
        "chat/conversation.html",
        page_context(request)
        | {
            "conversation": None,
            "conversation_id": NO_ID,
            "assistant": assistant,
            "usual_cost": cost.usual_cost(user=request.user, assistant=assistant),
            "form": form or blank_form(),
            "form_action": reverse("chat:create"),
            "error": error.message if error else "",
            "error_code": error.code if error else "",
        },
        status=http_status(error) if error else 200,
    )
    return with_retry_after(response, error)


def conversation_page(
    request: Request,
    conversation: Conversation,
    *,
    before: str = "",
    editing: str = "",
    form: MessageForm | None = None,
    error: ChatError | None = None,
) -> HttpResponse:
    part = transcript.part(conversation, before)
    edited = transcript.own_message(conversation, editing)
    action = (
        reverse("chat:edit", args=[edited.id])
        if edited
        else reverse("chat:send", args=[conversation.id])
    )
    response = render(
        request,
        "chat/conversation.html",
        page_context(request)
        | {
            "conversation": conversation,
            "conversation_id": conversation.id,
            "part": part,
            "active_run": part.active_run,
            "editing": edited,
            "form": form or blank_form(edited.text if edited else ""),
            "form_action": action,
            "error": error.message if error else "",
            "error_code": error.code if error else "",
        },
        status=http_status(error) if error else 200,
    )
    return with_retry_after(response, error)


def page_context(request: Request) -> dict[str, Any]:
    return {
        "sidebar": listing.sidebar(request.user),
        "modules": MODULES,
        "no_id": NO_ID,
    }


def blank_form(text: str = "") -> MessageForm:
    return MessageForm(initial={"text": text, "client_id": new_client_id()})


def posted_form(request: Request) -> MessageForm:
    form = MessageForm(request.POST)
    form.full_clean()
    return form


def refilled_form(form: MessageForm) -> MessageForm:
    """The form with what was typed, under a new name: what failed was not sent."""
    return blank_form(form.cleaned_data["text"])


def refused_page(
    request: Request,
    error: ChatError,
    conversation_id: UUID,
    form: MessageForm | None = None,
    editing: str = "",
) -> HttpResponse:
    """The page as it was, with the error and the text on it."""
    raise_unless_page(request, error)
    return conversation_page(
        request,
        access.conversation(request.user, conversation_id),
        editing=editing,
        form=refilled_form(form) if form else None,
        error=error,
    )


def started_answer(request: Request, started: describe.Started) -> HttpResponse:
    if wants_json(request):
        return JsonResponse(run_json(started.run), status=202)
    return redirect_to_end(started.run.conversation)


def redirect_to_end(conversation: Conversation) -> HttpResponse:
    # The script takes this anchor as the sign that what was typed has arrived.
    return redirect(f"{conversation.get_absolute_url()}#end")
