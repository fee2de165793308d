"""The pages of the prompt library: list, create, change, delete and use prompts."""

from __future__ import annotations

from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from chat import access
from chat.conversations import prompts as domain
from chat.errors import ChatError
from chat.web.forms import PromptForm, posted_id
from chat.web.pages import page_context, redirect_to_end
from chat.web.responses import handles_chat_errors, raise_unless_page
from chatproject.lib.http import Request


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def prompts(request: Request) -> HttpResponse:
    """List the prompts that the user may use; create one from a posted form."""
    return _edited(request, None)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def prompt(request: Request, prompt_id: UUID) -> HttpResponse:
    """Show a prompt of the user in a form, and store its changes."""
    return _edited(request, prompt_id)


def _edited(request: Request, prompt_id: UUID | None) -> HttpResponse:
    own = None if prompt_id is None else access.prompt(request.user, prompt_id)
    if request.method != "POST":
        initial = {"title": own.title, "text": own.text, "shared": own.shared} if own else None
        return _page(request, PromptForm(initial=initial), prompt_id)
    form = PromptForm(request.POST)
    if not form.is_valid():
        return _page(request, form, prompt_id, status=400)
    try:
        domain.save(user=request.user, prompt_id=prompt_id, **form.cleaned_data)
    except ChatError as error:
        raise_unless_page(request, error)
        form.add_error(None, error.message)
        return _page(request, form, prompt_id, status=400)
    messages.success(request, _("The prompt is saved."))
    return _to_list(_of_chat(request))


def _page(
    request: Request, form: PromptForm, prompt_id: UUID | None, status: int = 200
) -> HttpResponse:
    found = domain.offered(request.user)
    context = {
        "form": form,
        "edited": prompt_id,
        "own": [one for one in found if one.owner_id == request.user.pk],
        "others": [one for one in found if one.owner_id != request.user.pk],
        "sharing": settings.SHARED_PROMPTS,
        "of_chat": _of_chat(request),
    }
    return render(request, "chat/prompts.html", page_context(request) | context, status=status)


def _of_chat(request: Request) -> UUID | None:
    """Return the chat from which the library was opened, to which its prompts go; forms have it in their address."""
    return posted_id(request.GET.get("conversation", ""))


def _to_list(of_chat: UUID | None) -> HttpResponse:
    query = {} if of_chat is None else {"conversation": of_chat}
    return redirect(reverse("chat:prompts", query=query))


@require_safe
@never_cache
def prompt_list(request: Request) -> HttpResponse:
    """Return the prompts that the user may use, for the message field."""
    found = [
        {"id": one.pk, "title": one.title, "text": one.text, "own": one.owner_id == request.user.pk}
        for one in domain.offered(request.user)
    ]
    return JsonResponse({"prompts": found})


@require_POST
@handles_chat_errors
def delete(request: Request, prompt_id: UUID) -> HttpResponse:
    """Delete a prompt of the user."""
    access.prompt(request.user, prompt_id).delete()
    messages.success(request, _("The prompt is deleted."))
    return _to_list(_of_chat(request))


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def use(request: Request, prompt_id: UUID) -> HttpResponse:
    """Ask for the variables of a prompt, and put it into the message field of ?conversation=ID or of a new chat."""
    found = domain.usable(request.user, prompt_id)
    fields = request.POST if request.method == "POST" else request.GET
    conversation_id = posted_id(fields.get("conversation", ""))
    names = domain.variables(found.text)
    if request.method != "POST" and names:
        context = {"prompt": found, "variables": names, "of_chat": conversation_id}
        return render(request, "chat/use_prompt.html", page_context(request) | context)
    if request.method != "POST":
        return _to_list(conversation_id)
    values = {name: fields.get(f"variable-{number}", "") for number, name in enumerate(names, 1)}
    try:
        domain.use(user=request.user, prompt=found, conversation_id=conversation_id, values=values)
    except ChatError as error:
        raise_unless_page(request, error)
        messages.error(request, error.message)
        return _to_list(conversation_id)
    return redirect("chat:new") if conversation_id is None else redirect_to_end(conversation_id)
