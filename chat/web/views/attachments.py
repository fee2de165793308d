"""Attachments: their upload, the files themselves, and the page of all files of a user."""

from __future__ import annotations

import re
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import content_disposition_header
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from chat import access
from chat.attachments import overview, uploads
from chat.documents.uploads import stored_bytes
from chat.errors import ChatError
from chat.models import Attachment
from chat.web.pages import page_context
from chat.web.responses import error_json, handles_chat_errors
from chatproject.lib import private_files
from chatproject.lib.http import Request

UUID_FORM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
# A browser that shows a file, of any type, runs nothing of it and loads nothing for it.
SANDBOX = "default-src 'none'; sandbox"


@require_POST
def upload(request: Request) -> HttpResponse:
    """Store the posted `file` for a message to come; the answer is JSON."""
    file = request.FILES.get("file")
    try:
        if file is None or isinstance(file, list) or file.file is None:
            raise ChatError("bad_file", _("Choose a file first."))
        made = uploads.add(
            user=request.user, name=file.name or "", size=file.size or 0, file=file.file
        )
    except ChatError as error:
        return error_json(error)
    return JsonResponse(attachment_json(made), status=201)


def attachment_json(one: Attachment) -> dict[str, object]:
    """Return an attachment for the composer."""
    fields: dict[str, object] = dict(one.snapshot)
    fields["url"] = reverse("chat:attachment", args=[one.pk])
    fields["thumbnail"] = reverse("chat:thumbnail", args=[one.pk]) if one.thumbnail else ""
    return fields


@require_safe
@never_cache
@handles_chat_errors
def attachment(request: Request, attachment_id: UUID) -> HttpResponse:
    """Return the content of an attachment; with ?download it is saved as a file."""
    found = access.attachment(request.user, attachment_id)
    return file_response(found, as_download="download" in request.GET)


def file_response(found: Attachment, *, as_download: bool) -> HttpResponse:
    """Return the content of an attachment. Raises ChatError `not_found` without it."""
    content_type = found.content_type
    if found.kind == Attachment.Kind.TEXT:
        content_type = "text/plain; charset=utf-8"
    response = _file(found.file, content_type)
    disposition = content_disposition_header(as_download, _file_name(found))
    response["Content-Disposition"] = disposition or "inline"
    return response


@require_safe
@never_cache
@handles_chat_errors
def thumbnail(request: Request, attachment_id: UUID) -> HttpResponse:
    """Return the thumbnail of an image."""
    return thumbnail_response(access.attachment(request.user, attachment_id))


def thumbnail_response(found: Attachment) -> HttpResponse:
    """Return the thumbnail of an image. Raises ChatError `not_found` without one."""
    if not found.thumbnail:
        raise ChatError("not_found")
    return _file(found.thumbnail, "")


def _file(name: str, content_type: str) -> HttpResponse:
    try:
        content = private_files.path(name).read_bytes()
    except FileNotFoundError as error:
        raise ChatError("not_found") from error
    if not content_type:
        content_type = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
    response = HttpResponse(content, content_type=content_type)
    response["Content-Security-Policy"] = SANDBOX
    response["X-Content-Type-Options"] = "nosniff"
    response["Cross-Origin-Resource-Policy"] = "same-origin"
    return response


def _file_name(found: Attachment) -> str:
    """Return the name with the ending of the stored type, or a page could be saved as a program."""
    if found.kind == Attachment.Kind.TEXT:
        return found.name
    ending = ".png" if found.content_type == "image/png" else ".jpg"
    stem = found.name.rpartition(".")[0] or found.name
    return f"{stem}{ending}"


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def files(request: Request) -> HttpResponse:
    """Show all files of the user, one page at a time; delete the posted ones."""
    if request.method == "POST":
        ids = [UUID(one) for one in request.POST.getlist("file") if UUID_FORM.fullmatch(one)]
        count = overview.delete(user=request.user, ids=ids)
        deleted = ngettext("%(count)d file is deleted.", "%(count)d files are deleted.", count)
        messages.success(
            request, deleted % {"count": count} if count else _("Select the files to delete.")
        )
        return redirect("chat:files")
    before = request.GET.get("before", "")
    listed = overview.page(request.user, before, uploads.used_bytes(request.user))
    context = {
        "listed": listed,
        "is_first": not before,
        "page": "settings",
        "document_bytes": stored_bytes(request.user),
    }
    return render(request, "chat/files.html", page_context(request) | context)


@require_POST
@handles_chat_errors
def remove(request: Request, attachment_id: UUID) -> HttpResponse:
    """Delete an attachment that is in no message."""
    uploads.discard(user=request.user, attachment_id=attachment_id)
    return HttpResponse(status=204)
