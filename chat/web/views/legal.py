"""The terms, the privacy notice and the imprint; and the page that asks for consent to them."""

from __future__ import annotations

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from accounts import consent
from chatproject.lib.http import Request

MOST_VERSION = 2**31 - 1


@require_safe
def document(request: HttpRequest, kind: str, version: int | None = None) -> HttpResponse:
    """Show the newest version of a document, or an earlier one."""
    if version is not None and version > MOST_VERSION:
        raise Http404
    shown = consent.newest(kind, version)
    if shown is None:
        raise Http404
    current = shown if version is None else consent.newest(kind)
    assert current is not None
    context = {
        "document": shown,
        "current": reverse(f"chat:{kind}") if current.version != shown.version else "",
    }
    return render(request, "legal/document.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def agree(request: Request) -> HttpResponse:
    """Show the documents that the user has to agree to; store consent to the documents that were shown."""
    target = request.POST.get("next") or request.GET.get("next") or ""
    if not target.startswith("/") or not url_has_allowed_host_and_scheme(target, None):
        target = reverse("chat:new")
    documents = consent.pending(request.user)
    is_outdated = False
    if request.method == "POST":
        is_outdated = request.POST.get("documents") != consent.key_of(documents)
        if not is_outdated:
            consent.record(request.user, documents)
    if not documents or (request.method == "POST" and not is_outdated):
        if consent.is_due(request.user):
            consent.record(request.user, [])
        return redirect(target)
    context = {
        "documents": documents,
        "key": consent.key_of(documents),
        "is_outdated": is_outdated,
        "next": target,
        "is_renewal": request.user.consents.exists(),
    }
    return render(request, "legal/consent.html", context, status=409 if is_outdated else 200)
