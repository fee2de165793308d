"""The page of all models with their prices, and the form that stores a user's model for new chats."""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from chat import access
from chat.conversations import offers
from chat.errors import ChatError
from chat.models import ChatPreference
from chat.web.forms import new_client_id, posted_model
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors, raise_unless_page, wants_json
from chatproject.lib import languages
from chatproject.lib.http import Request


@require_safe
@never_cache
@handles_chat_errors
def models(request: Request) -> HttpResponse:
    """List the models that the user may choose; with ?message=ID, to regenerate that reply with one."""
    reply = None
    if text := request.GET.get("message", ""):
        try:
            reply = access.message(request.user, UUID(text), write=True)
        except ValueError as error:
            raise ChatError("not_found") from error
    found = offers.offered(request.user)
    preference = ChatPreference.objects.filter(user=request.user).first()
    return render(
        request,
        "chat/models.html",
        page_context(request)
        | {
            "page": "models",
            "reply": reply,
            "client_id": new_client_id(),
            "providers": offers.by_provider(found),
            "preferred": preference.model_id if preference else None,
            "tokens_per_1000_words": languages.number(offers.TOKENS_PER_1000_WORDS),
        },
    )


@require_POST
@handles_chat_errors
def prefer(request: Request) -> HttpResponse:
    """Store the model for new chats; without one, return to the assistant's."""
    try:
        offers.prefer(user=request.user, model_id=posted_model(request))
    except ChatError as error:
        raise_unless_page(request, error)
        messages.error(request, error.message)
        return redirect("chat:models")
    if wants_json(request):
        return JsonResponse({})
    messages.success(request, _("Your choice for new chats is saved."))
    return redirect("chat:models")
