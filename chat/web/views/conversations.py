"""Pages of conversations, and the forms that create, rename and delete them.

A view opens its objects through `access`, makes one call into the domain, and returns a page, or JSON
to programs. `handles_chat_errors` turns ChatError into pages or JSON.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse, HttpResponseBadRequest, JsonResponse
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from chat import access
from chat.conversations import assistants, instructions, lifecycle, offers, temporary
from chat.conversations import context as context_gauge
from chat.errors import ChatError
from chat.runs import delete as runs_delete
from chat.runs import start
from chat.web.forms import TitleForm, posted_id, row_id
from chat.web.pages import (
    conversation_page,
    new_form,
    new_page,
    page_context,
    posted_form,
    refused_page,
    start_posted,
    started_response,
)
from chat.web.responses import (
    error_json,
    handles_chat_errors,
    raise_unless_page,
    run_json,
    wants_json,
    with_status,
)
from chat.web.views.chats import changed_response
from chat.web.views.sharing import shared_page
from chatproject.lib.http import Request

# --- Pages ------------------------------------------------------------------------------------


@require_safe
@never_cache
@handles_chat_errors
def new(request: Request) -> HttpResponse:
    """Show a new chat, which is stored with its first message.

    ?assistant=ID names its assistant, ?project=ID its project; ?temporary=1 begins a temporary one.
    """
    project_id = posted_id(request.GET.get("project", ""))
    project = None if project_id is None else access.project(request.user, project_id)
    named = request.GET.get("assistant", "")
    if not named:
        return new_page(request, project=project)
    try:
        assistant = assistants.chosen(request.user, row_id(named))
    except ChatError:
        messages.error(request, _("This assistant is not available to you. Choose another one."))
        return redirect("chat:assistants")
    return new_page(request, assistant=assistant, project=project)


@require_safe
@never_cache
@handles_chat_errors
def conversation(request: Request, conversation_id: UUID) -> HttpResponse:
    """Show the end of a conversation, the part up to ?before=ID, or the one with ?message=ID.

    ?edit=ID edits a message.
    """
    found = access.conversation(request.user, conversation_id)
    if access.decide(request.user, found) < access.Access.WRITE:
        return shared_page(request, found)
    # A script fetches pages also in hidden tabs, and sends `conversation.read` for a visible one.
    if found.unread and not {"X-Swap", "X-Sync"} & set(request.headers):
        lifecycle.mark_read(user=request.user, conversation_id=conversation_id)
    if found.temporary and "X-Sync" not in request.headers:
        temporary.opened(found)
    before, message = request.GET.get("before", ""), request.GET.get("message", "")
    editing = request.GET.get("edit", "")
    return conversation_page(request, found, before=before, message=message, editing=editing)


# --- Actions on conversations -----------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def create(request: Request) -> HttpResponse:
    """Begin a conversation with its first message."""
    if request.method != "POST":
        return redirect("chat:new")  # a reload of the page that showed an error
    form = posted_form(request)
    try:
        begin = partial(start.send, user=request.user, clears_draft=form.cleaned_data["draft"])
        started = start_posted(request, form, begin)
    except ChatError as error:
        raise_unless_page(request, error)
        return new_page(request, form=new_form(refused=form), error=error)
    return started_response(request, started)


@require_safe
@never_cache
@handles_chat_errors
def context(request: Request, conversation_id: UUID) -> HttpResponse:
    """Return how full the context of a conversation is, with the model ?model=ID or its own.

    `html` is for the page, `first` the oldest message that is still sent, if older ones are left out.
    """
    found = access.conversation(request.user, conversation_id, write=True)
    chosen = request.GET.get("model", "")
    model = offers.chosen(request.user, row_id(chosen)) if chosen else found.chosen_model
    gauge = context_gauge.measure(found, model)
    shown = {"context_gauge": gauge, "id": conversation_id}
    html = render_to_string("chat/_context.html", shown)
    return JsonResponse(
        {"html": html, "first": gauge.first, "tokens": gauge.tokens, "room": gauge.room}
    )


@require_POST
@handles_chat_errors
def rename(request: Request, conversation_id: UUID) -> HttpResponse:
    """Give a conversation another name."""
    form = TitleForm(request.POST)
    is_valid = form.is_valid()
    problem = (
        "" if is_valid else _("A chat needs a name of 1 to 100 characters. It was not renamed.")
    )
    if is_valid:
        title = form.cleaned_data["title"]
        lifecycle.rename(user=request.user, conversation_id=conversation_id, title=title)
    if wants_json(request):
        return JsonResponse({"message": problem})
    if problem:
        messages.error(request, problem)
    if request.POST.get("from") == "list":
        return redirect("chat:list")
    return redirect("chat:conversation", conversation_id)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def change_instructions(request: Request, conversation_id: UUID) -> HttpResponse:
    """Show the instructions of a conversation on a page of their own, or store posted ones."""
    found = access.conversation(request.user, conversation_id, write=True)
    text, error = found.system_prompt, None
    if request.method == "POST":
        text = request.POST.get("system_prompt", "").replace("\r\n", "\n")
        try:
            instructions.change(user=request.user, conversation_id=conversation_id, text=text)
        except ChatError as refusal:
            raise_unless_page(request, refusal)
            error = refusal
        else:
            saved = _("The instructions are saved. They hold from the next reply on.")
            if wants_json(request):
                return JsonResponse({"message": saved})
            messages.success(request, saved)
            return redirect("chat:conversation", conversation_id)
    context = {"conversation": found, "instructions": text, "error": error.message if error else ""}
    response = render(request, "chat/instructions.html", page_context(request) | context)
    return with_status(response, error) if error else response


@require_POST
@handles_chat_errors
def delete(request: Request, conversation_id: UUID) -> HttpResponse:
    """Delete a conversation, and stop its active runs."""
    try:
        found, at = runs_delete.delete(user=request.user, conversation_ids=[conversation_id])
    except ChatError as error:
        return refused_page(request, error, conversation_id)
    return changed_response(request, "delete", found, at, "chat:list")


@require_POST
@handles_chat_errors
def keep(request: Request, conversation_id: UUID) -> HttpResponse:
    """Turn a temporary conversation into an ordinary one."""
    return redirect(temporary.keep(user=request.user, conversation_id=conversation_id))


@require_POST
@handles_chat_errors
def close(request: Request, conversation_id: UUID) -> HttpResponse:
    """Note that the page of a temporary conversation was closed; `opened` is the time at which it was made."""
    opened = request.POST.get("opened", "")
    try:
        opened_at = datetime.fromisoformat(opened) if opened else None
    except ValueError:
        return HttpResponseBadRequest()
    if opened_at is not None and opened_at.tzinfo is None:
        return HttpResponseBadRequest()
    temporary.close(user=request.user, conversation_id=conversation_id, opened_at=opened_at)
    return HttpResponse(status=204)


@require_safe
@never_cache
def active_run(request: Request, conversation_id: UUID) -> HttpResponse:
    """Return the active runs of a conversation, and the message that its page ends with.

    `run` is the first of `runs`.
    """
    try:
        found = access.conversation(request.user, conversation_id)
    except ChatError as error:
        return error_json(error)
    active = lifecycle.active_runs(found)
    leaf = next((run.message_id for run in active if run.moves_leaf), found.leaf_id)
    if access.decide(request.user, found) < access.Access.WRITE:
        # A reader follows the reply that the page will end with, and sees no text of errors.
        shown = [run.pk for run in active if run.moves_leaf][:1]
        return JsonResponse({"run": None, "runs": [{"id": one} for one in shown], "leaf": leaf})
    runs = [run_json(run) for run in active]
    return JsonResponse({"run": runs[0] if runs else None, "runs": runs, "leaf": leaf})
