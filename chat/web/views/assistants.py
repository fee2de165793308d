"""The gallery of assistants, and the forms that make, change and delete a user's own."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from chat import access
from chat.conversations import assistants, offers
from chat.errors import ChatError
from chat.models import Assistant
from chat.tools import offers as tool_offers
from chat.web.forms import AssistantForm, new_client_id
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors, raise_unless_page, with_status
from chatproject.lib.http import Request


@require_safe
@never_cache
@handles_chat_errors
def gallery(request: Request) -> HttpResponse:
    """Show the assistants that the user may choose, from ?after= on; ?q= has words to look for."""
    words, after = request.GET.get("q", "")[:200], request.GET.get("after", "")[:200]
    found = assistants.gallery(request.user, words, after)
    usable = {one.model.pk for one in offers.offered(request.user)}
    context = {
        "page": "assistants",
        "gallery": found,
        "words": words,
        "is_first": not after,
        "usable_models": usable,
        "is_shareable": settings.ASSISTANT_SHARING,
        "is_searchable": bool(words or found.next)
        or len(found.of_staff) + len(found.own) + len(found.shared) > SEARCHABLE,
    }
    return render(request, "chat/assistants.html", page_context(request) | context)


SEARCHABLE = 12  # assistants, from which on the page has a field to search them


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def new(request: Request) -> HttpResponse:
    """Make an assistant of the user's own."""
    return _form(request, None)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def edit(request: Request, assistant_id: int) -> HttpResponse:
    """Change one of the user's own assistants."""
    return _form(request, access.assistant(request.user, assistant_id))


def _form(request: Request, assistant: Assistant | None) -> HttpResponse:
    """Show the form of an assistant, or store what was posted and lead to a new chat with it."""
    choices: dict[str, Any] = {
        "providers": offers.by_provider(offers.offered(request.user)),
        "tools": tool_offers.offered(request.user, assistant.tools if assistant else ()),
        "assistant": assistant,
    }
    if request.method != "POST":
        form = AssistantForm(**choices)
        return _form_page(request, form, assistant, new_client_id())
    form = AssistantForm(request.POST, **choices)
    client_id = request.POST.get("client_id", "") or new_client_id()
    error = None
    if form.is_valid():
        try:
            if assistant is None:
                stored = assistants.create(
                    user=request.user, values=form.values, client_id=client_id
                )
                text = _("%(name)s is ready.")
            else:
                stored = assistants.change(
                    user=request.user, assistant_id=assistant.pk, values=form.values
                )
                text = _("%(name)s is saved.")
        except ChatError as refusal:
            raise_unless_page(request, refusal)
            error = refusal
        else:
            messages.success(request, text % {"name": f"\u2068{stored.name}\u2069"})
            return redirect(f"{reverse('chat:new')}?assistant={stored.pk}")
    response = _form_page(request, form, assistant, client_id, error)
    response.status_code = 400
    return with_status(response, error) if error else response


def _form_page(
    request: Request,
    form: AssistantForm,
    assistant: Assistant | None,
    client_id: str,
    error: ChatError | None = None,
) -> HttpResponse:
    context = {
        "page": "assistants",
        "form": form,
        "assistant": assistant,
        "client_id": client_id,
        "error": error.message if error else "",
    }
    return render(request, "chat/assistant.html", page_context(request) | context)


@require_POST
@handles_chat_errors
def delete(request: Request, assistant_id: int) -> HttpResponse:
    """Delete one of the user's own assistants."""
    deleted = assistants.delete(user=request.user, assistant_id=assistant_id)
    text = _("%(name)s was deleted. Chats with it go on.")
    messages.success(request, text % {"name": f"\u2068{deleted.name}\u2069"})
    return redirect("chat:assistants")
