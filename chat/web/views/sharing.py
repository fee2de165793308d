"""Sharing: the page of a chat's shares, the pages of readers and of public links, copies, and lists."""

from __future__ import annotations

import re
from functools import wraps
from typing import Any, ParamSpec
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from chat import access
from chat.conversations import reports, sharing
from chat.documents import links
from chat.errors import ChatError
from chat.models import Conversation, Report
from chat.models.moderation import REPORT_LENGTH
from chat.web.forms import new_client_id
from chat.web.pages import page_context
from chat.web.responses import (
    View,
    handles_chat_errors,
    raise_unless_page,
    wants_json,
    with_status,
)
from chat.web.views.attachments import file_response, thumbnail_response
from chatproject.lib import origins
from chatproject.lib.http import Request

P = ParamSpec("P")

DAYS = (7, 30, 90)  # of a link, besides a link without an end
CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")

# --- The shares of a chat ---------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def share(request: Request, conversation_id: UUID) -> HttpResponse:
    """Show with whom a chat is shared; add or end a share or a link."""
    found = access.conversation(request.user, conversation_id, write=True)
    error = None
    if request.method == "POST":
        try:
            done = _change(request, conversation_id)
        except ChatError as refusal:
            raise_unless_page(request, refusal)
            error = refusal
        else:
            if wants_json(request):
                return JsonResponse({"message": done})
            messages.success(request, done)
            return redirect("chat:share", conversation_id)
    context = {
        "conversation": found,
        "shares": found.shares.all(),
        "links": [
            {"link": one, "address": origins.public_address(request, one.get_absolute_url())}
            for one in found.links.all()
        ],
        "with_users": settings.SHARE_WITH_USERS,
        "by_link": settings.SHARE_BY_LINK,
        "days": DAYS,
        "posted": request.POST,
        "name_length": sharing.NAME_LENGTH,
        "error": error.message if error else "",
    }
    response = render(request, "chat/share.html", page_context(request) | context)
    return with_status(response, error) if error else response


def _change(request: Request, conversation_id: UUID) -> str:
    posted, user = request.POST, request.user
    action = posted.get("action", "")
    if action == "share":
        made = sharing.share(
            user=user, conversation_id=conversation_id, email=posted.get("email", "")
        )
        return _("%(email)s can read this chat now.") % {"email": f"\u2068{made.email}\u2069"}
    if action == "publish":
        days = posted.get("days", "")
        if days not in ("", *map(str, DAYS)):
            raise ChatError("bad_setting", _("Choose one of the options."))
        sharing.publish(
            user=user,
            conversation_id=conversation_id,
            live="live" in posted,
            days=int(days) if days else None,
            shown_name=posted.get("name", ""),
            shows_reasoning="reasoning" in posted,
        )
        return _("The link is ready.")
    return end_posted(request)


def end_posted(request: Request) -> str:
    """End the share or link of a form by its `action`; return the sentence about it. Raises ChatError `not_found`."""
    action = request.POST.get("action", "")
    try:
        id = UUID(request.POST.get("id", ""))
    except ValueError as error:
        raise ChatError("not_found") from error
    if action == "unshare":
        ended = sharing.unshare(user=request.user, share_id=id)
        return _("%(email)s can no longer read the chat.") % {"email": f"\u2068{ended.email}\u2069"}
    if action == "end":
        sharing.end_link(user=request.user, link_id=id)
        return _("The link no longer works.")
    if action == "end_statistics":
        links.end_link(user=request.user, link_id=id)
        return _("The link no longer works.")
    raise ChatError("not_found")


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def shared_by_me(request: Request) -> HttpResponse:
    """List all that the user shares; end a share or a link."""
    if request.method == "POST":
        try:
            done = end_posted(request)
        except ChatError as error:
            if wants_json(request):
                raise
            messages.error(request, error.message)
        else:
            if wants_json(request):
                return JsonResponse({"message": done})
            messages.success(request, done)
        return redirect("chat:shared_by_me")
    shares, next_shares = sharing.shares_of(request.user, request.GET.get("shares", ""))
    chat_links, next_links = sharing.links_of(request.user, request.GET.get("links", ""))
    statistics, next_statistics = links.links_of(request.user, request.GET.get("statistics", ""))
    context = {
        "page": "settings",
        "shares": shares,
        "next_shares": next_shares,
        "links": chat_links,
        "next_links": next_links,
        "statistics": statistics,
        "next_statistics": next_statistics,
    }
    return render(request, "chat/shared_by_me.html", page_context(request) | context)


# --- Readers ----------------------------------------------------------------------------------


@require_safe
@never_cache
@handles_chat_errors
def shared_with_me(request: Request) -> HttpResponse:
    """List the chats that others share with the user."""
    shares, next = sharing.shared_with(request.user, request.GET.get("before", ""))
    context = {
        "page": "shared",
        "shares": shares,
        "next": next,
        "is_first": "before" not in request.GET,
        "has_ended": "ended" in request.GET,
    }
    return render(request, "chat/shared_with_me.html", page_context(request) | context)


def shared_page(request: Request, conversation: Conversation) -> HttpResponse:
    """Return the page of a chat for a reader: no form but that of a copy."""
    part = sharing.for_reader(conversation, request.GET.get("page", ""))
    context = {
        "shared": conversation,
        "owner": conversation.owner.signature,
        "part": part,
        "client_id": new_client_id(),
    }
    return render(request, "chat/shared.html", page_context(request) | context)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def copy_shared(request: Request, conversation_id: UUID) -> HttpResponse:
    """Copy a chat that is shared with the user, and open the copy."""
    access.conversation(request.user, conversation_id)
    if request.method != "POST":
        return redirect("chat:conversation", conversation_id)
    return redirect(
        sharing.copy_shared(
            user=request.user, conversation_id=conversation_id, client_id=_client_id(request)
        )
    )


def _client_id(request: Request) -> str:
    posted = request.POST.get("client_id", "")
    return posted if CLIENT_ID.match(posted) else new_client_id()


# --- Public links -----------------------------------------------------------------------------


def not_indexed(view: View[P]) -> View[P]:
    """Keep a page or file of a link out of search engines, and its address out of requests to other sites.

    Also the answer that it does not exist: a link that ended must leave an index as well.
    """

    @wraps(view)
    def respond(request: Request, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        try:
            response = view(request, *args, **kwargs)
        except Http404:
            response = render(request, "chat/link_ended.html", status=404)
        response["X-Robots-Tag"] = "noindex, nofollow, noarchive"
        # Without any referrer, browsers send forms with `Origin: null`, and they are refused.
        response["Referrer-Policy"] = "same-origin"
        return response

    return respond


@require_safe
@never_cache
@not_indexed
@handles_chat_errors
def public(request: Request, token: str) -> HttpResponse:
    """Show what a public link shows, to any visitor."""
    link = access.public_link(token)
    part = sharing.for_link(link, request.GET.get("page", ""))
    context: dict[str, Any] = {
        "link": link,
        "part": part,
        "client_id": new_client_id(),
        "address": origins.public_address(request, link.get_absolute_url()),
        "image": request.build_absolute_uri(static("icons/parley-512.png")),
        "sign_in": f"{reverse('account_login')}?next={link.get_absolute_url()}",
    }
    return render(request, "chat/public.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@not_indexed
@handles_chat_errors
def report_public(request: Request, token: str) -> HttpResponse:
    """Show any visitor of a public link the form that reports it to the staff; store a report."""
    link = access.public_link(token)
    posted = {name: request.POST.get(name, "") for name in ("reason", "text")}
    context: dict[str, Any] = {
        "link": link,
        "reasons": Report.Reason.choices,
        "text_length": REPORT_LENGTH,
        "is_sent": "sent" in request.GET,
        **posted,
    }
    if request.method != "POST":
        return render(request, "chat/report_link.html", context)
    try:
        reports.report_link(user=request.user, link=link, **posted)
    except ChatError as error:
        raise_unless_page(request, error)
        context |= {"error": error.message}
        return with_status(render(request, "chat/report_link.html", context), error)
    return redirect(f"{reverse('chat:report_public', args=[token])}?sent")


@require_safe
@never_cache
@not_indexed
@handles_chat_errors
def public_file(request: Request, token: str, attachment_id: UUID) -> HttpResponse:
    """Return a file of the messages that a public link shows."""
    found = access.public_attachment(access.public_link(token), attachment_id)
    return file_response(found, as_download="download" in request.GET)


@require_safe
@never_cache
@not_indexed
@handles_chat_errors
def public_thumbnail(request: Request, token: str, attachment_id: UUID) -> HttpResponse:
    """Return the thumbnail of an image of the messages that a public link shows."""
    found = access.public_attachment(access.public_link(token), attachment_id)
    return thumbnail_response(found)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def copy_public(request: Request, token: str) -> HttpResponse:
    """Copy what a public link shows into a chat of the signed-in user, and open the copy."""
    link = access.public_link(token)
    if request.method != "POST":
        return redirect(link)
    return redirect(
        sharing.copy_public(user=request.user, link=link, client_id=_client_id(request))
    )
