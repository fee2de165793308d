"""Chats out and in: a conversation as a file or for printing, and the import of chats from a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.http import content_disposition_header
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from chat import access
from chat.errors import ChatError
from chat.models import ChatExport, ChatImport
from chat.transfer import archives, documents, imports, tracking
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors, wants_json
from chatproject.lib import private_files
from chatproject.lib.db import streamed_response
from chatproject.lib.http import Request

# Of the parameter `format`: the maker of the document, its type and its ending.
FORMATS = {
    "markdown": (documents.markdown, "text/markdown; charset=utf-8", "md"),
    "json": (documents.json, "application/json", "json"),
}


@require_safe
@never_cache
@handles_chat_errors
def export(request: Request, conversation_id: UUID) -> HttpResponseBase:
    """Return a conversation as a file: ?format= is one of FORMATS."""
    found = access.conversation(request.user, conversation_id, write=True)
    if request.GET.get("format") not in FORMATS:
        raise ChatError("not_found")
    make, content_type, ending = FORMATS[request.GET["format"]]
    response = _streamed(request, make(found), content_type)
    name = documents.file_name(found.name, timezone.now(), ending)
    response["Content-Disposition"] = content_disposition_header(True, name)
    return response


@require_safe
@never_cache
@handles_chat_errors
def print_page(request: Request, conversation_id: UUID) -> HttpResponseBase:
    """Show the whole shown branch of a conversation on one page, for printing."""
    found = access.conversation(request.user, conversation_id, write=True)
    context = {"conversation": found, "now": timezone.now()}
    page = render_to_string("chat/print.html", context, request)
    return _streamed(request, documents.html(found, page), "text/html; charset=utf-8")


def _streamed(
    request: Request, make: Callable[[int], documents.Part], content_type: str
) -> StreamingHttpResponse:
    language = translation.get_language()

    def part(at: int) -> documents.Part:
        with translation.override(language):  # it runs in another thread
            return make(at)

    return StreamingHttpResponse(
        streamed_response.no_part()
        if request.method == "HEAD"
        else streamed_response.in_parts(part, 0),
        content_type=content_type,
    )


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def export_all(request: Request) -> HttpResponse:
    """Show the state of the last export of all chats; begin one."""
    if request.method != "POST":
        newest = archives.newest(request.user)
        if wants_json(request):
            return JsonResponse(_export_json(newest) if newest else {})
        return render(request, "chat/export.html", page_context(request) | {"newest": newest})
    try:
        made = archives.start(request.user)
    except ChatError as error:
        if wants_json(request):
            raise
        messages.error(request, error.message)
        return redirect("chat:export_all")
    return (
        JsonResponse(_export_json(made), status=202)
        if wants_json(request)
        else redirect("chat:export_all")
    )


def _export_json(one: ChatExport) -> dict[str, object]:
    return {
        **{name: getattr(one, name) for name in ("id", "status", "percent", "chats", "error")},
        "size": one.size if one.is_ready else None,
        "url": reverse("chat:export_file", args=[one.pk]) if one.is_ready else None,
    }


@require_safe
@never_cache
@handles_chat_errors
def export_file(request: Request, export_id: UUID) -> HttpResponseBase:
    """Return the archive of an export."""
    one = access.own(request.user, ChatExport, export_id)
    if not one.is_ready or not private_files.path(one.file).is_file():
        raise ChatError("not_found", _("This archive was removed. Export your chats again."))
    response = StreamingHttpResponse(
        streamed_response.no_part()
        if request.method == "HEAD"
        else streamed_response.in_parts(partial(archives.read_part, one.file), 0),
        content_type="application/zip",
    )
    name = documents.file_name(_("Chats"), one.created_at, "zip")
    response["Content-Disposition"] = content_disposition_header(True, name)
    response["Content-Length"] = str(one.size)
    return response


@require_POST
@handles_chat_errors
def export_stop(request: Request, export_id: UUID) -> HttpResponse:
    """Stop an export."""
    one = access.own(request.user, ChatExport, export_id)
    return _stop(request, one, "chat:data" if one.everything else "chat:export_all")


@require_POST
@handles_chat_errors
def import_stop(request: Request, import_id: UUID) -> HttpResponse:
    """Stop an import; the chats so far are kept."""
    return _stop(request, access.own(request.user, ChatImport, import_id), "chat:import")


def _stop(request: Request, one: ChatImport | ChatExport, page: str) -> HttpResponse:
    try:
        tracking.stop(one)
    except ChatError as error:
        if wants_json(request):
            raise
        messages.error(request, error.message)
    return JsonResponse({"status": one.status}) if wants_json(request) else redirect(page)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def import_chats(request: Request) -> HttpResponse:
    """Show the state of the last import; import the uploaded `file`."""
    if request.method != "POST":
        newest = imports.newest(request.user)
        if wants_json(request):
            return JsonResponse(_import_json(newest) if newest else {})
        context = page_context(request) | {
            "newest": newest,
            "max_bytes": settings.IMPORT_MAX_BYTES,
            "too_large": imports.too_large(),
        }
        return render(request, "chat/import.html", context)
    try:
        file = request.FILES.get("file")
        if file is None or isinstance(file, list):
            raise ChatError("not_found", _("Choose a file first. Nothing was imported."))
        made = imports.start(
            user=request.user,
            file_name=file.name or "",
            size=file.size or 0,
            chunks=file.chunks(),
        )
    except ChatError as error:
        if wants_json(request):
            raise
        messages.error(request, error.message)
        return redirect("chat:import")
    return (
        JsonResponse(_import_json(made), status=202)
        if wants_json(request)
        else redirect("chat:import")
    )


def _import_json(one: ChatImport) -> dict[str, object]:
    names = ("id", "status", "percent", "added", "updated", "known", "skipped", "notes", "error")
    return {name: getattr(one, name) for name in names}
