"""The pages of a chat's statistics: the owner's, that of its public links, and the public page with its card."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from chat import access
from chat.documents import links
from chat.documents.figures import names, page
from chat.documents.models import Document, StatisticsLink
from chat.errors import ChatError
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors, raise_unless_page, wants_json, with_status
from chat.web.views.sharing import DAYS, end_posted, not_indexed
from chatproject.lib import origins
from chatproject.lib.http import Request

# Words and addresses can name people: they are shown if their owner chooses so.
UNCHOSEN = {"words", "links"}


@require_safe
@never_cache
@handles_chat_errors
def document_statistics(request: Request, document_id: UUID) -> HttpResponse:
    """Show the statistics of a chat, with names, first names, initials or letters."""
    document = access.owned(request.user, Document, document_id)
    mode = request.GET.get("names", "")
    mode = mode if mode in names.MODES else names.MODES[0]
    context = {
        "page": "documents",
        "document": document,
        "figures": page.of_chat(document.statistics, mode=mode) if document.statistics else None,
        "mode": mode,
        "by_link": settings.SHARE_BY_LINK,
    }
    return render(request, "chat/document_statistics.html", page_context(request) | context)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def share_statistics(request: Request, document_id: UUID) -> HttpResponse:
    """Show the public links to the statistics of a chat; make or end one."""
    document = access.owned(request.user, Document, document_id)
    error = None
    if request.method == "POST":
        try:
            done = _change(request, document_id)
        except ChatError as refusal:
            raise_unless_page(request, refusal)
            error = refusal
        else:
            if wants_json(request):
                return JsonResponse({"message": done})
            messages.success(request, done)
            return redirect("chat:share_statistics", document_id)
    posted = request.POST
    chosen = posted.getlist("sections") if error else set(page.SECTIONS) - UNCHOSEN
    context = {
        "page": "documents",
        "document": document,
        "links": [
            {"link": one, "address": origins.public_address(request, one.get_absolute_url())}
            for one in document.statistics_links.defer("card")
        ],
        "by_link": settings.SHARE_BY_LINK,
        "sections": [(name, label, name in chosen) for name, label in _sections()],
        "names": StatisticsLink.Names.choices,
        "mode": posted.get("names") or StatisticsLink.Names.LETTERS,
        "days": DAYS,
        "posted": posted,
        "title_length": links.TITLE_LENGTH,
        "error": error.message if error else "",
    }
    response = render(request, "chat/share_statistics.html", page_context(request) | context)
    return with_status(response, error) if error else response


def _sections() -> list[tuple[str, str]]:
    """Return the figures that a link can show, with their headings."""
    labels = {
        "totals": _("Totals"),
        "records": _("Records"),
        "time": _("Messages over time"),
        "hours": _("Hours and weekdays"),
        "people": _("People"),
        "emojis": _("Emojis"),
        "words": _("Words"),
        "links": _("Websites"),
    }
    assert labels.keys() == set(page.SECTIONS)
    return list(labels.items())


def _change(request: Request, document_id: UUID) -> str:
    posted = request.POST
    if posted.get("action") != "publish":
        return end_posted(request)
    days = posted.get("days", "")
    if days not in ("", *map(str, DAYS)):
        raise ChatError("bad_setting", _("Choose one of the options."))
    links.publish(
        user=request.user,
        document_id=document_id,
        sections=posted.getlist("sections"),
        names=posted.get("names", ""),
        title=posted.get("title", ""),
        days=int(days) if days else None,
    )
    return _("The link is ready.")


# --- For any visitor ----------------------------------------------------------------------------


@require_safe
@never_cache
@not_indexed
@handles_chat_errors
def public_statistics(request: Request, statistics_token: str) -> HttpResponse:
    """Show the chosen figures of a chat to any visitor with the address."""
    link = links.opened(statistics_token)
    assert link.document.statistics is not None
    card = ""
    if link.card:
        address = reverse("chat:statistics_card", args=[link.token])
        card = origins.public_address(request, address)
    context: dict[str, Any] = {
        "link": link,
        "figures": page.of_chat(link.document.statistics, mode=link.names, sections=link.sections),
        "address": origins.public_address(request, link.get_absolute_url()),
        "card": card,
        "image": request.build_absolute_uri(static("icons/parley-512.png")),
    }
    return render(request, "chat/public_statistics.html", context)


@require_safe
@never_cache
@not_indexed
@handles_chat_errors
def statistics_card(request: Request, statistics_token: str) -> HttpResponse:
    """Return the picture that other sites show beside a link."""
    link = links.opened(statistics_token)
    if not link.card:
        raise ChatError("not_found")
    response = HttpResponse(bytes(link.card), content_type="image/png")
    response["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response["X-Content-Type-Options"] = "nosniff"
    return response
