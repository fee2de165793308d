"""The details of a reply: its model, times, tokens and cost, and its address."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from chat import access
from chat.errors import ChatError
from chat.models import Run
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors
from chatproject.lib import origins
from chatproject.lib.http import Request


@require_safe
@never_cache
@handles_chat_errors
def details(request: Request) -> HttpResponse:
    """Show the details of ?message=ID, as a page and in the menu of a reply."""
    try:
        message_id = UUID(request.GET.get("message", ""))
    except ValueError as error:
        raise ChatError("not_found") from error
    message = access.message(request.user, message_id, write=True)
    run = Run.objects.filter(message=message).first()
    first = run.first_token_at - run.queued_at if run and run.first_token_at else None
    whole = run.ended_at - run.queued_at if run and run.ended_at else None
    context = {
        "message": message,
        "run": run,
        "first_token": first.total_seconds() if first else None,
        "seconds": whole.total_seconds() if whole else None,
        "address": origins.public_address(
            request,
            f"{message.conversation.get_absolute_url()}?message={message.pk}#m-{message.pk}",
        ),
    }
    return render(request, "chat/details.html", page_context(request) | context)
