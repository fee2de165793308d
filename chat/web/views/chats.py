"""The lists of conversations, and the forms that pin, archive and delete several at a time."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from chat.conversations import lifecycle, listing, projects
from chat.documents import lifecycle as documents
from chat.errors import ChatError
from chat.models import Conversation
from chat.runs.delete import delete
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors, raise_unless_page, wants_json
from chatproject.lib.http import Request

# `project` and `document`: the deletion of one.
UNDOABLE = ("archive", "delete", "document", "move", "project")
BACK = {"list": "chat:list", "archive": "chat:archive"}  # the field `from` of the forms

# --- Pages ------------------------------------------------------------------------------------


@require_safe
@never_cache
@handles_chat_errors
def chats(request: Request) -> HttpResponse:
    """List all conversations by day, one page at a time."""
    before = request.GET.get("before", "")
    return _list(request, listing.page(request.user, before), "list", is_first=not before)


@require_safe
@never_cache
@handles_chat_errors
def archive(request: Request) -> HttpResponse:
    """List the archived conversations, one page at a time."""
    before = request.GET.get("before", "")
    return _list(request, listing.archive(request.user, before), "archive", is_first=not before)


def _list(request: Request, page: listing.Page, name: str, *, is_first: bool) -> HttpResponse:
    context = {
        "page": name,
        "origin": name,
        "days": page.days,
        "next": page.next,
        "is_first": is_first,
    }
    return render(request, "chat/list.html", page_context(request) | context)


@require_safe
@never_cache
@handles_chat_errors
def sidebar(request: Request) -> HttpResponse:
    """Return the sidebar's list as a part of a page: up to ?rows=, from the cursor ?before=."""
    before, rows = request.GET.get("before", ""), request.GET.get("rows", "")
    length = int(rows[:4]) if rows.isascii() and rows.isdigit() else listing.SIDEBAR_LENGTH
    found = listing.sidebar(request.user, before, length)
    return render(request, "chat/_sidebar_list.html", {"sidebar": found, "is_later": bool(before)})


# --- Changes ----------------------------------------------------------------------------------


@require_POST
@handles_chat_errors
def change(request: Request) -> HttpResponse:
    """Pin, archive or delete the conversations `chat`; `action` is one of lifecycle.ACTIONS."""
    action = request.POST.get("action", "")
    if action not in lifecycle.ACTIONS:
        raise ChatError("not_found")
    ids, back = posted_chats(request)
    if not ids and not wants_json(request):
        messages.error(request, _("Select the chats first. Nothing was changed."))
        return redirect(back)
    try:
        if action == "delete":
            found, at = delete(user=request.user, conversation_ids=ids)
        else:
            found, at = lifecycle.change(user=request.user, conversation_ids=ids, action=action)
    except ChatError as error:
        raise_unless_page(request, error)
        messages.error(request, error.message)
        return redirect(back)
    return changed_response(request, action, found, at, back)


def posted_chats(request: Request) -> tuple[list[UUID], str]:
    """Return the ids `chat` of a form, and the address of the page `from` which it was posted.

    Raises ChatError `not_found`.
    """
    origin = request.POST.get("from", "")
    try:
        ids = [UUID(each) for each in request.POST.getlist("chat")]
        if origin and origin not in BACK:  # the page of a project or a chat
            name, _space, id = origin.partition(" ")
            if name not in ("project", "conversation"):
                raise ValueError(f"no page is named {name}")
            return ids, reverse(f"chat:{name}", args=[UUID(id)])
    except ValueError as error:
        raise ChatError("not_found") from error
    return ids, reverse(BACK.get(origin, "chat:list"))


def changed_response(
    request: Request, action: str, found: list[Conversation], at: datetime, back: str
) -> HttpResponse:
    """Answer a form that has changed conversations by one of lifecycle.ACTIONS."""
    undo = f"{action} {at.isoformat()}" if action in UNDOABLE else ""
    return undoable_response(request, _sentence(action, found), undo, back)


def undoable_response(request: Request, sentence: str, undo: str, back: str) -> HttpResponse:
    """Return the sentence about a change and the value that undoes it: JSON, or a redirect with a notice."""
    if wants_json(request):
        return JsonResponse({"message": sentence, "undo": undo})
    if undo:
        # Its form is in chat/_row_menu.html.
        button = format_html(
            '<button class="button button-quiet" form="undo" name="undo" value="{}">{}</button>',
            undo,
            _("Undo"),
        )
        messages.success(request, format_html("{} {}", sentence, button))
    elif sentence:
        messages.success(request, sentence)
    return redirect(back)


def _sentence(action: str, found: list[Conversation]) -> str:
    """Return the sentence about a change, with the name of a single chat.

    That one is a text of its own: some languages have the singular form for 21, too.
    """
    count = len(found)
    # Isolated (U+2068, U+2069), as it may be written from right to left.
    name = f"\u2068{found[0].name}\u2069"
    if action == "delete":
        days = settings.DELETED_CHAT_DAYS
        what = (
            _("“%(name)s” was deleted.")
            if count == 1
            else ngettext("%(count)d chat was deleted.", "%(count)d chats were deleted.", count)
        )
        then = ngettext(
            "Removed for good after %(days)d day.", "Removed for good after %(days)d days.", days
        )
        return f"{what} {then}" % {"name": name, "count": count, "days": days}
    if action == "archive":
        sentence = (
            _("“%(name)s” was archived.")
            if count == 1
            else ngettext("%(count)d chat was archived.", "%(count)d chats were archived.", count)
        )
    elif action == "unarchive":
        sentence = (
            _("“%(name)s” is back in your chats.")
            if count == 1
            else ngettext(
                "%(count)d chat is back in your chats.",
                "%(count)d chats are back in your chats.",
                count,
            )
        )
    else:
        return ""  # pinning is seen
    return sentence % {"name": name, "count": count}


@require_POST
@handles_chat_errors
def undo(request: Request) -> HttpResponse:
    """Undo the change that the value `undo` names, as `changed_response` made it."""
    action, _space, at = request.POST.get("undo", "").partition(" ")
    try:
        moment = datetime.fromisoformat(at)
    except ValueError as error:
        raise ChatError("not_found") from error
    if action not in UNDOABLE or moment.tzinfo is None:
        raise ChatError("not_found")
    back = "chat:list"
    if action == "document":
        count = documents.undo_delete(user=request.user, at=moment)
        sentence = ngettext(
            "The document was restored.", "%(count)d documents were restored.", count
        )
        back = "chat:documents"
    elif action == "move":
        count = projects.undo_move(user=request.user, at=moment)
        sentence = ngettext(
            "%(count)d chat is back where it was.",
            "%(count)d chats are back where they were.",
            count,
        )
    elif action == "project":
        count = projects.undo_delete(user=request.user, at=moment)
        sentence = ngettext(
            "The project was restored, with %(count)d chat.",
            "The project was restored, with %(count)d chats.",
            count,
        )
    else:
        count = lifecycle.undo(user=request.user, action=action, at=moment)
        sentence = ngettext("%(count)d chat was restored.", "%(count)d chats were restored.", count)
    sentence %= {"count": count}
    if wants_json(request):
        return JsonResponse({"message": sentence, "undo": ""})
    messages.success(request, sentence)
    return redirect(back)
