"""Forms that send, edit and regenerate messages choose branches and copy chats; a message's cost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages as notices
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from chat import access
from chat.attachments import uploads
from chat.conversations import branches, feedback, reports
from chat.errors import ChatError
from chat.models import Message, MessageFeedback, Report
from chat.models.feedback import TEXT_LENGTH
from chat.models.moderation import REPORT_LENGTH
from chat.rendering.message import rating_html
from chat.runs import cost, describe, next_message, start
from chat.web.forms import (
    MessageForm,
    new_client_id,
    posted_attachments,
    posted_id,
    posted_model,
    row_id,
)
from chat.web.pages import (
    NO_ID,
    new_form,
    new_page,
    page_context,
    posted_form,
    redirect_to_end,
    refused_page,
    start_posted,
    started_response,
)
from chat.web.responses import handles_chat_errors, raise_unless_page, wants_json, with_status
from chatproject.lib import rate_limits
from chatproject.lib.http import Request


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def send(request: Request, conversation_id: UUID) -> HttpResponse:
    """Send a message in a conversation; that of a page is queued while a reply is generated."""
    if request.method != "POST":
        return redirect("chat:conversation", conversation_id)
    form = posted_form(request)
    begin = partial(
        start.send,
        user=request.user,
        conversation_id=conversation_id,
        clears_draft=form.cleaned_data["draft"],
    )
    try:
        try:
            started = start_posted(request, form, begin)
        except ChatError as error:
            if error.code != "run_active" or wants_json(request):
                raise
            _queue(request, conversation_id, form)
            return redirect_to_end(conversation_id)
    except ChatError as error:
        return refused_page(request, error, conversation_id, form)
    return started_response(request, started)


def _queue(request: Request, conversation_id: UUID, form: MessageForm) -> None:
    # A form that is posted twice has one effect, and a changed text another.
    text = form.cleaned_data["text"]
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    next_message.queue(
        user=request.user,
        text=text,
        client_id=f"{form.cleaned_data['client_id'][:40]}.{digest}",
        conversation_id=conversation_id,
        choice=form.choice,
        attachment_ids=uploads.kept_ids(form.attached),
        clears_draft=form.cleaned_data["draft"],
    )


NEXT_ACTIONS = {
    "edit": next_message.edit,
    "remove": next_message.remove,
    "send": next_message.send,
}


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def change_next(request: Request, conversation_id: UUID) -> HttpResponse:
    """Take the next message back to be edited, remove it, or send a paused one."""
    if request.method != "POST":
        return redirect("chat:conversation", conversation_id)
    change = NEXT_ACTIONS.get(request.POST.get("action", ""))
    if change is None:
        raise ChatError("not_found")
    try:
        change(user=request.user, conversation_id=conversation_id)
    except ChatError as error:
        return refused_page(request, error, conversation_id)
    return redirect_to_end(conversation_id)


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def compare(request: Request, conversation_id: UUID) -> HttpResponse:
    """Send a message to several models; NO_ID begins a conversation."""
    known = None if conversation_id == NO_ID else conversation_id
    if request.method != "POST":
        return redirect("chat:new") if known is None else redirect("chat:conversation", known)
    form = posted_form(request)

    def begin(**fields: Any) -> describe.Started:
        return start.compare(
            user=request.user,
            model_ids=[row_id(one) for one in request.POST.getlist("models") if one],
            conversation_id=known,
            clears_draft=form.cleaned_data["draft"],
            **fields,
        )[0]

    try:
        started = start_posted(request, form, begin)
    except ChatError as error:
        if known is not None:
            return refused_page(request, error, known, form)
        raise_unless_page(request, error)
        return new_page(request, form=new_form(refused=form), error=error)
    return started_response(request, started)


@require_POST
@handles_chat_errors
def estimate(request: Request) -> HttpResponse:
    """Estimate the cost of a text as a message of `conversation`, or as the first of a new one in `project`.

    `model` names another model than the chat's, `assistant` the assistant of a new one; with `each`, `models`
    has the estimates of all models.
    """
    text = request.POST.get("text", "")[: settings.TEXT_MAX_CHARACTERS]
    conversation = request.POST.get("conversation", "")
    conversation_id = posted_id(conversation)
    project_id = posted_id(request.POST.get("project", ""))
    files = posted_attachments(request)
    assistant = request.POST.get("assistant", "")
    assistant_id = row_id(assistant) if assistant else None
    if "each" in request.POST:
        each = cost.estimate_each(
            user=request.user,
            text=text,
            conversation_id=conversation_id,
            attachment_ids=files,
            assistant_id=assistant_id,
            project_id=project_id,
        )
        return JsonResponse({"models": {key: _estimate_json(one) for key, one in each.items()}})
    found = cost.estimate(
        user=request.user,
        text=text,
        conversation_id=conversation_id,
        model_id=posted_model(request),
        attachment_ids=files,
        assistant_id=assistant_id,
        project_id=project_id,
    )
    return JsonResponse(_estimate_json(found or cost.Estimate()))


def _estimate_json(estimate: cost.Estimate) -> dict[str, object]:
    return {"shown": estimate.shown, **asdict(estimate)}


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def regenerate(request: Request, message_id: UUID) -> HttpResponse:
    """Ask for another reply in place of one."""
    reply = access.message(request.user, message_id, write=True)
    if request.method != "POST":
        return redirect("chat:conversation", reply.conversation_id)
    client_id = _client_id(request)
    model_id = posted_model(request)
    if model_id is None:
        return _again(request, start.regenerate, message_id, client_id)
    # Another button of the same page asks another model.
    begin = partial(start.regenerate, model_id=model_id)
    return _again(request, begin, message_id, f"{client_id[:40]}.{model_id}")


def _client_id(request: Request) -> str:
    return request.POST.get("client_id") or new_client_id()


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def edit(request: Request, message_id: UUID) -> HttpResponse:
    """Send another text in place of the user's own message."""
    edited = access.message(request.user, message_id, write=True)
    if request.method != "POST":
        return redirect("chat:conversation", edited.conversation_id)
    form = posted_form(request)
    try:
        started = start_posted(
            request, form, partial(start.edit, user=request.user, message_id=message_id)
        )
    except ChatError as error:
        return refused_page(request, error, edited.conversation_id, form, editing=str(message_id))
    return started_response(request, started)


# The buttons below messages belong to one form, since a page has hundreds: each names its action, and has
# the message as its value.
ACTIONS = ("regenerate", "continue", "branch", "fork", "good", "bad", "unrate")


@require_http_methods(["GET", "HEAD", "POST"])
@handles_chat_errors
def actions(request: Request, conversation_id: UUID) -> HttpResponse:
    """Do the action of a button below a message."""
    if request.method != "POST":
        return redirect("chat:conversation", conversation_id)
    action = next((name for name in ACTIONS if name in request.POST), "")
    try:
        message_id = UUID(request.POST.get(action, ""))
    except ValueError as error:
        raise ChatError("not_found") from error
    # A form that is posted twice has one effect, and that of another button of the same page another.
    digest = hashlib.blake2b(f"{action} {message_id}".encode(), digest_size=8).hexdigest()
    client_id = f"{_client_id(request)[:40]}.{digest}"
    match action:
        case "regenerate":
            return _again(request, start.regenerate, message_id, client_id)
        case "continue":
            return _again(request, start.continue_reply, message_id, client_id)
        case "fork":
            return _fork(request, message_id, client_id)
        case "good" | "bad" | "unrate":
            return _rate(request, message_id, action)
    selected = branches.select(user=request.user, message_id=message_id)
    page = reverse("chat:conversation", args=[selected.conversation])
    return redirect(f"{page}#m-{message_id}")


def _rate(request: Request, message_id: UUID, action: str) -> HttpResponse:
    """Store or remove the rating of a reply; a page asks for the details of a bad one."""
    if action == "unrate":
        reply = feedback.remove(user=request.user, message_id=message_id)
    else:
        reply = feedback.rate(user=request.user, message_id=message_id, rating=action)
    if wants_json(request):
        return JsonResponse({"rating": reply.rating, "html": rating_html(reply)})
    return redirect("chat:feedback", reply.pk) if action == "bad" else redirect(_place(reply))


def _place(message: Message) -> str:
    """Return the address of a message in its chat."""
    page = reverse("chat:conversation", args=[message.conversation_id])
    return f"{page}?message={message.pk}#m-{message.pk}"


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def give_feedback(request: Request, message_id: UUID) -> HttpResponse:
    """Show the form of the feedback on a reply, store it or remove it."""
    reply = feedback.reply(request.user, message_id)
    if request.method != "POST":
        found = feedback.find(request.user, reply)
        return _feedback_page(
            request,
            reply,
            rating=found.rating if found else "",
            reason=found.reason if found else "",
            text=found.text if found else "",
        )
    posted = {name: request.POST.get(name, "") for name in ("rating", "reason", "text")}
    try:
        if "remove" in request.POST:
            feedback.remove(user=request.user, message_id=message_id)
            done = _("Your feedback was removed.")
        else:
            feedback.rate(user=request.user, message_id=message_id, **posted)
            done = _("Thank you. Your feedback is saved.")
    except ChatError as error:
        raise_unless_page(request, error)
        return with_status(_feedback_page(request, reply, error=error.message, **posted), error)
    if wants_json(request):
        return JsonResponse({"message": done})
    notices.success(request, done)
    return redirect(_place(reply))


def _feedback_page(request: Request, reply: Message, **fields: Any) -> HttpResponse:
    context = {
        "message": reply,
        "ratings": MessageFeedback.Rating.choices,
        "reasons": MessageFeedback.Reason.choices,
        "text_length": TEXT_LENGTH,
        "has_feedback": feedback.find(request.user, reply) is not None,
    }
    return render(request, "chat/feedback.html", page_context(request) | context | fields)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def report(request: Request, message_id: UUID) -> HttpResponse:
    """Show the form that reports a reply to the staff; store a report."""
    reply = feedback.reply(request.user, message_id)
    posted = {name: request.POST.get(name, "") for name in ("reason", "text")}
    context = {
        "message": reply,
        "reasons": Report.Reason.choices,
        "text_length": REPORT_LENGTH,
        "report": reports.find(request.user, reply),
        **posted,
    }
    if request.method != "POST":
        return render(request, "chat/report.html", page_context(request) | context)
    try:
        reports.report(user=request.user, message_id=message_id, **posted)
    except ChatError as error:
        raise_unless_page(request, error)
        context |= page_context(request) | {"error": error.message}
        return with_status(render(request, "chat/report.html", context), error)
    done = _("Thank you. The staff will look at this reply.")
    if wants_json(request):
        return JsonResponse({"message": done})
    notices.success(request, done)
    return redirect(_place(reply))


def _again(
    request: Request, begin: Callable[..., describe.Started], message_id: UUID, client_id: str
) -> HttpResponse:
    """Start a run for another reply, or for the rest of one."""
    reply = access.message(request.user, message_id, write=True)
    try:
        started = begin(user=request.user, message_id=message_id, client_id=client_id)
    except ChatError as error:
        return refused_page(request, error, reply.conversation_id)
    return started_response(request, started)


def _fork(request: Request, message_id: UUID, client_id: str) -> HttpResponse:
    """Copy the chat up to a message, and open the copy."""
    rate_limits.hit("copies", request.user.pk)
    message = access.message(request.user, message_id, write=True)
    try:
        copy = branches.fork(user=request.user, message_id=message_id, client_id=client_id)
    except ChatError as error:
        return refused_page(request, error, message.conversation_id)
    return redirect(copy)
