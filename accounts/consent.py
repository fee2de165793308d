"""Consent to the published documents: the terms, and the privacy notice if staff ask for it.

A document is a row of LegalDocument for each language; users agree to its version. Each process keeps the
published rows without their texts in memory for REFRESH seconds, and the user's row holds the publication that
the user has agreed to, so that a page compares two times and makes no query.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.db import DatabaseError, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from accounts.access import PUBLIC_VIEWS
from accounts.models import Consent, LegalDocument, User
from chatproject.lib import languages

logger = logging.getLogger(__name__)

REFRESH = 5.0  # seconds

# Pages for users who have not agreed: to leave, with their data. All others lead to the consent page.
OPEN_VIEWS = frozenset(
    {
        "chat:consent",
        "chat:data",
        "chat:export",
        "chat:export_all",
        "chat:export_file",
        "chat:print",
        "billing:history_csv",
        "billing:receipt",
    }
)
OPEN_PREFIXES = ("account_", "admin:", "mfa_", "usersessions_", "socialaccount_")


class _Memory:
    """The published documents, without their texts, as they were last read: the newest first."""

    def __init__(self) -> None:
        self.found: list[LegalDocument] = []
        self.due = 0.0  # time.monotonic() of the next reading

    def read(self) -> list[LegalDocument]:
        if time.monotonic() >= self.due:
            published = LegalDocument.objects.exclude(published_at=None).defer("text", "html")
            self.found = list(published.order_by("-version", "published_at"))
            self.due = time.monotonic() + REFRESH
        return self.found

    def forget(self) -> None:
        """Read the rows at the next use."""
        self.due = 0.0


memory = _Memory()


class ConsentMiddleware:
    """Leads the pages of a user who has to agree to a document to the page that asks for it.

    Forms and requests of scripts are answered, so that nothing that was typed is lost.
    """

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_view(
        self, request: HttpRequest, view: Any, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> HttpResponse | None:
        name = request.resolver_match.view_name if request.resolver_match else ""
        if name in PUBLIC_VIEWS or name in OPEN_VIEWS or name.startswith(OPEN_PREFIXES):
            return None
        if request.method not in ("GET", "HEAD") or not request.accepts("text/html"):
            return None
        if isinstance(request.user, User) and is_due(request.user):
            query = urlencode({"next": request.get_full_path()})
            return redirect(f"{reverse('chat:consent')}?{query}")
        return None


def is_due(user: User) -> bool:
    """Return whether a user has to agree to a document."""
    since = _required_since(memory.read())
    return since is not None and (user.consented_at is None or user.consented_at < since)


def pending(user: User) -> list[LegalDocument]:
    """Return the documents that a user has to agree to, in the language of the page."""
    agreed = set(user.consents.values_list("kind", "version"))
    return [one for one in required() if (one.kind, one.version) not in agreed]


def required() -> list[LegalDocument]:
    """Return the documents that each user has to agree to, in the language of the page."""
    rows = memory.read()
    return [_in_language(versions) for versions in _required_versions(rows)]


def key_of(documents: Iterable[LegalDocument]) -> str:
    """Return the text by which a form names the documents that it showed."""
    return ".".join(str(one.pk) for one in documents)


def question(documents: Iterable[LegalDocument]) -> SafeString:
    """Return the label of a box by which one agrees to documents: a sentence with links to them."""
    links = format_html_join(
        ", ",
        '<a href="{}" target="_blank">{}</a>',
        ((reverse(f"chat:{one.kind}"), one.get_kind_display()) for one in documents),
    )
    return format_html(_("I have read and agree to: {links}"), links=links)


@transaction.atomic
def record(user: User, documents: Iterable[LegalDocument]) -> None:
    """Store that a user has agreed to documents; once for each version."""
    rows = [
        Consent(user=user, kind=one.kind, version=one.version, document=one) for one in documents
    ]
    Consent.objects.bulk_create(rows, ignore_conflicts=True)
    since = _required_since(memory.read())
    if since is not None and not pending(user):
        # `save` would send `access_changed`, which closes sockets.
        User.objects.filter(pk=user.pk).update(consented_at=since)
        user.consented_at = since


def newest(kind: str, version: int | None = None) -> LegalDocument | None:
    """Return the newest or a given version of a document, in the language of the page; None without one."""
    rows = LegalDocument.objects.filter(kind=kind).exclude(published_at=None)
    last = rows.order_by("-version").first() if version is None else None
    number = last.version if last else version
    found = list(rows.filter(version=number)) if number is not None else []
    return _in_language(found) if found else None


def kinds() -> list[str]:
    """Return the kinds of documents that exist, in the order of the model.

    Error pages call this too: while the database cannot be read, it returns none.
    """
    try:
        published = {one.kind for one in memory.read()}
    except DatabaseError as error:
        logger.warning("a page has no links to the legal documents: %s", error)
        return []
    return [kind for kind in LegalDocument.Kind.values if kind in published]


def _required_versions(rows: list[LegalDocument]) -> list[list[LegalDocument]]:
    """The rows of the newest version of each kind that needs consent."""
    found = []
    for kind in LegalDocument.Kind.values:
        version = next(
            (one.version for one in rows if one.kind == kind and one.needs_consent), None
        )
        if version is not None:
            found.append([one for one in rows if (one.kind, one.version) == (kind, version)])
    return found


def _required_since(rows: list[LegalDocument]) -> datetime | None:
    """The publication of the newest version that needs consent, in its first language."""
    return max(
        (
            min(one.published_at for one in versions if one.published_at and one.needs_consent)
            for versions in _required_versions(rows)
        ),
        default=None,
    )


def _in_language(rows: list[LegalDocument]) -> LegalDocument:
    """The row in the language of the page, else in the site's, else any."""
    order = [languages.active(), settings.LANGUAGE_CODE]
    return min(
        rows, key=lambda one: order.index(one.language) if one.language in order else len(order)
    )
