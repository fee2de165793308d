"""The pages of chat, and the same actions for forms and programs that have no socket.

A view opens what it needs through access, makes one call into the domain, and answers with a page,
or with JSON to who asks for nothing else. Errors of the domain become pages or JSON in `answers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec
from uuid import UUID

import msgspec
from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from chat import access, conversations, runs, terms, transcript
from chat.events import ChatError
from chat.forms import MessageForm, TitleForm, new_client_id
from chat.models import Conversation, Run

if TYPE_CHECKING:
    from accounts.models import User

    class Request(HttpRequest):
        """Of somebody signed in: accounts.access lets nobody else through to these views."""

        user: User


P = ParamSpec("P")
View = Callable[Concatenate["Request", P], HttpResponse]

# Stands in addresses of what does not exist yet when a page is rendered; the script puts the id in
# its place.
NO_ID = UUID(int=0)

STATUS = {
    "not_signed_in": 401,
    "insufficient_credits": 402,
    "not_allowed": 403,
    "not_found": 404,
    "run_active": 409,
    "text_too_long": 413,
    "limit_reached": 429,
    "rate_limited": 429,
    "busy": 503,
    "unavailable": 503,
    "internal": 500,
}

# What static/js/app.js imports, so that a browser fetches it all at once.
MODULES = sorted(
    path.relative_to(folder).as_posix()
    for folder in map(Path, settings.STATICFILES_DIRS)
    for path in folder.glob("js/*/*.js")
    if path.stem != "password_field"  # of the pages without a chat
)


def answers(view: View[P]) -> View[P]:
    """Let a view raise ChatError: JSON for programs, the pages of 403 and 404 for people."""

    @wraps(view)
    def answer(request: Request, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        try:
            return view(request, *args, **kwargs)
        except ChatError as error:
            if _wants_json(request):
                return _error_json(error)
            if error.code == "not_found":
                raise Http404(error.message) from error
            if error.code == "not_allowed":
                raise PermissionDenied(error.message) from error
            raise

    return answer


def _wants_json(request: HttpRequest) -> bool:
    return request.accepts("application/json") and not request.accepts("text/html")


def _error_json(error: ChatError) -> HttpResponse:
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.credits is not None:
        body["credits"] = msgspec.structs.asdict(error.credits)
    if error.retry_after is not None:
        body["retry_after"] = error.retry_after
    return _with_hint(JsonResponse(body, status=_status(error)), error)


def _with_hint(response: HttpResponse, error: ChatError | None) -> HttpResponse:
    """Say in the header, too, when trying again may help."""
    if error is not None and error.retry_after is not None:
        response["Retry-After"] = str(math.ceil(error.retry_after))
    return response


def _status(error: ChatError) -> int:
    return STATUS.get(error.code, 400)


# --- Pages ------------------------------------------------------------------------------------


@require_GET
@never_cache
def new(request: Request) -> HttpResponse:
    """A new chat, which begins to exist with its first message."""
    return _new_page(request)


@require_GET
@never_cache
@answers
def conversation(request: Request, conversation_id: UUID) -> HttpResponse:
    """A conversation from its end, or (?before=ID) from an earlier message; ?edit=ID edits one."""
    found = access.conversation(request.user, conversation_id)
    return _page(
        request,
        found,
        before=request.GET.get("before", ""),
        editing=request.GET.get("edit", ""),
    )


@require_GET
@never_cache
@answers
def chats(request: Request) -> HttpResponse:
    """All conversations by day, a part at a time."""
    before = request.GET.get("before", "")
    page = conversations.page(request.user, before)
    return render(
        request,
        "chat/list.html",
        _frame(request)
        | {"page": "list", "days": page.days, "next": page.next, "is_first": not before},
    )


def _new_page(
    request: Request, *, form: MessageForm | None = None, error: ChatError | None = None
) -> HttpResponse:
    assistant = conversations.default_assistant()
    response = render(
        request,
        "chat/conversation.html",
        _frame(request)
        | {
            "conversation": None,
            "conversation_id": NO_ID,
            "assistant": assistant,
            "usual_cost": terms.usual_cost(user=request.user, assistant=assistant),
            "form": form or _form(),
            "form_action": reverse("chat:create"),
            "error": error.message if error else "",
            "error_code": error.code if error else "",
        },
        status=_status(error) if error else 200,
    )
    return _with_hint(response, error)


def _page(
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
        _frame(request)
        | {
            "conversation": conversation,
            "conversation_id": conversation.id,
            "part": part,
            "active_run": part.active_run,
            "editing": edited,
            "form": form or _form(edited.text if edited else ""),
            "form_action": action,
            "error": error.message if error else "",
            "error_code": error.code if error else "",
        },
        status=_status(error) if error else 200,
    )
    return _with_hint(response, error)


def _frame(request: Request) -> dict[str, Any]:
    return {
        "sidebar": conversations.sidebar(request.user),
        "modules": MODULES,
        "no_id": NO_ID,
    }


def _form(text: str = "") -> MessageForm:
    return MessageForm(initial={"text": text, "client_id": new_client_id()})


# --- Actions on conversations -----------------------------------------------------------------


@require_http_methods(["GET", "POST"])
@answers
def create(request: Request) -> HttpResponse:
    """Begin a conversation with its first message."""
    if request.method == "GET":
        return redirect("chat:new")  # a reload of the page that an error was told on
    form = _posted(request)
    try:
        started = runs.start(user=request.user, **form.cleaned_data)
    except ChatError as error:
        _raise_untold(request, error)
        return _new_page(request, form=_again(form), error=error)
    return _started(request, started)


@require_http_methods(["GET", "POST"])
@answers
def send(request: Request, conversation_id: UUID) -> HttpResponse:
    """Send a message in a conversation."""
    if request.method == "GET":
        return redirect("chat:conversation", conversation_id)
    form = _posted(request)
    try:
        started = runs.start(
            user=request.user, conversation_id=conversation_id, **form.cleaned_data
        )
    except ChatError as error:
        return _refuse_in(request, error, conversation_id, form)
    return _started(request, started)


@require_POST
@answers
def estimate(request: Request) -> HttpResponse:
    """What a text would cost as a message of `conversation`, or as the first of a new one."""
    text = request.POST.get("text", "")[: settings.TEXT_MAX_CHARACTERS]
    conversation = request.POST.get("conversation", "")
    try:
        conversation_id = UUID(conversation) if conversation else None
    except ValueError as error:
        raise ChatError("not_found") from error
    found = terms.estimate(user=request.user, text=text, conversation_id=conversation_id)
    if found is None:
        return JsonResponse({"shown": "", "usual": 0, "most": 0, "problem": "", "note": ""})
    return JsonResponse(
        {
            "shown": found.shown,
            "usual": found.usual,
            "most": found.most,
            "problem": found.problem,
            "note": found.note,
        }
    )


@require_POST
@answers
def rename(request: Request, conversation_id: UUID) -> HttpResponse:
    """Give a conversation another name."""
    form = TitleForm(request.POST)
    if form.is_valid():
        conversations.rename(
            user=request.user,
            conversation_id=conversation_id,
            title=form.cleaned_data["title"],
        )
    else:
        messages.error(request, "A chat needs a name of 1 to 100 characters. It was not renamed.")
    if request.POST.get("from") == "list":
        return redirect("chat:list")
    return redirect("chat:conversation", conversation_id)


@require_POST
@answers
def delete(request: Request, conversation_id: UUID) -> HttpResponse:
    """Take a conversation away, and stop what is being written in it."""
    found = access.conversation(request.user, conversation_id, write=True)
    active = conversations.active_run(found)
    if active is not None:
        try:
            runs.stop(user=request.user, run_id=active.id)
        except ChatError as error:
            return _refuse_in(request, error, conversation_id)
    conversations.delete(user=request.user, conversation_id=conversation_id)
    messages.success(request, f"“{found}” is deleted.")
    return redirect("chat:list")


# --- Actions on messages and runs -------------------------------------------------------------


@require_http_methods(["GET", "POST"])
@answers
def regenerate(request: Request, message_id: UUID) -> HttpResponse:
    """Ask for another reply in the place of one."""
    reply = access.message(request.user, message_id)
    if request.method == "GET":
        return redirect("chat:conversation", reply.conversation_id)
    client_id = request.POST.get("client_id") or new_client_id()
    try:
        started = runs.regenerate(user=request.user, message_id=message_id, client_id=client_id)
    except ChatError as error:
        return _refuse_in(request, error, reply.conversation_id)
    return _started(request, started)


@require_http_methods(["GET", "POST"])
@answers
def edit(request: Request, message_id: UUID) -> HttpResponse:
    """Send another text in the place of one's own message."""
    edited = access.message(request.user, message_id)
    if request.method == "GET":
        return redirect("chat:conversation", edited.conversation_id)
    form = _posted(request)
    try:
        started = runs.edit(user=request.user, message_id=message_id, **form.cleaned_data)
    except ChatError as error:
        return _refuse_in(request, error, edited.conversation_id, form, editing=str(message_id))
    return _started(request, started)


@require_http_methods(["GET", "POST"])
@answers
def stop(request: Request, run_id: UUID) -> HttpResponse:
    """Ask a run to stop."""
    found = access.run(request.user, run_id)
    if request.method == "GET":
        return redirect("chat:conversation", found.conversation_id)
    try:
        runs.stop(user=request.user, run_id=run_id)
    except ChatError as error:
        return _refuse_in(request, error, found.conversation_id)
    if _wants_json(request):
        return JsonResponse(_run_json(access.run(request.user, run_id)))
    return _to_end(found.conversation)


@require_GET
@never_cache
def run(request: Request, run_id: UUID) -> HttpResponse:
    """How a run stands, for programs; `text` is there when it is over."""
    try:
        return JsonResponse(_run_json(access.run(request.user, run_id)))
    except ChatError as error:
        return _error_json(error)


@require_GET
@never_cache
def active_run(request: Request, conversation_id: UUID) -> HttpResponse:
    """The run that is under way in a conversation, and the message that its page ends with."""
    try:
        found = access.conversation(request.user, conversation_id)
    except ChatError as error:
        return _error_json(error)
    active = conversations.active_run(found)
    return JsonResponse(
        {
            "run": _run_json(active) if active else None,
            "leaf": active.message_id if active else found.leaf_id,
        }
    )


def _posted(request: Request) -> MessageForm:
    form = MessageForm(request.POST)
    form.full_clean()
    return form


def _again(form: MessageForm) -> MessageForm:
    """The form with what was typed, under a new name: what failed was not sent."""
    return _form(form.cleaned_data["text"])


def _raise_untold(request: Request, error: ChatError) -> None:
    """Raise an error that the page at hand cannot tell: `answers` knows what to do with it."""
    if _wants_json(request) or error.code in {"not_found", "not_allowed"}:
        raise error


def _refuse_in(
    request: Request,
    error: ChatError,
    conversation_id: UUID,
    form: MessageForm | None = None,
    editing: str = "",
) -> HttpResponse:
    """The page as it was, with the error and the text on it."""
    _raise_untold(request, error)
    return _page(
        request,
        access.conversation(request.user, conversation_id),
        editing=editing,
        form=_again(form) if form else None,
        error=error,
    )


def _started(request: Request, started: runs.Started) -> HttpResponse:
    if _wants_json(request):
        return JsonResponse(_run_json(started.run), status=202)
    return _to_end(started.run.conversation)


def _to_end(conversation: Conversation) -> HttpResponse:
    # The script takes this anchor as the sign that what was typed has arrived.
    return redirect(f"{conversation.get_absolute_url()}#end")


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "conversation": run.conversation_id,
        "message": run.message_id,
        "status": run.status,
        "attempt": run.attempt,
        "text": run.message.text,
        "error": {"code": run.error_code, "message": run.error_message} if run.error_code else None,
    }
