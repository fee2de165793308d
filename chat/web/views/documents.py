"""The pages of documents: the list with its upload, one document with its content, and the choice for a chat."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import content_disposition_header
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from chat import access
from chat.attachments.uploads import used_bytes
from chat.documents import binding, lifecycle, queries, reasons, storage, tracking, uploads
from chat.documents.models import Dataset, Document
from chat.errors import ChatError
from chat.insights import offers
from chat.web.forms import posted_id
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors, wants_json
from chat.web.views.attachments import UUID_FORM
from chat.web.views.chats import undoable_response
from chatproject.lib.db import streamed_response
from chatproject.lib.http import Request

MOST_FILES = 20  # of one form


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def documents(request: Request) -> HttpResponseBase:
    """List the user's documents, from the cursor ?before=; store the posted `file`s, into a `project`."""
    if request.method == "POST":
        return _upload(request)
    before = request.GET.get("before", "")
    page = queries.page(request.user, before)
    if wants_json(request):
        return JsonResponse({"documents": [document_json(one) for one in page.documents]})
    ready = offers.counts(page.documents)
    context = {
        "page": "documents",
        "documents": [(one, _reason(one), ready.get(one.pk)) for one in page.documents],
        "next": page.next,
        "is_first": not before,
        "max_bytes": settings.DOCUMENT_MAX_BYTES,
        "too_large": reasons.sentence("too_large"),
        "used": used_bytes(request.user),
    }
    return render(request, "chat/documents.html", page_context(request) | context)


def _upload(request: Request) -> HttpResponseBase:
    project_id = posted_id(request.POST.get("project", ""))
    project = None if project_id is None else access.project(request.user, project_id)
    made: list[uploads.Upload] = []
    try:
        files = [one for one in request.FILES.getlist("file") if one.file is not None]
        if not files:
            raise ChatError("bad_file", _("Choose a file first."))
        if len(files) > MOST_FILES:
            raise ChatError(
                "too_many", _("Choose at most %(most)d files at once.") % {"most": MOST_FILES}
            )
        for file in files:
            added = uploads.add(
                user=request.user,
                name=file.name or "",
                size=file.size or 0,
                chunks=file.chunks(),
                project=project,
            )
            made.append(added)
    except ChatError as error:
        if wants_json(request):
            raise
        messages.error(request, error.message)
        return redirect("chat:documents")
    for one in made:
        if not one.is_new:
            name = f"\u2068{one.document.name}\u2069"
            messages.info(
                request, _("You had uploaded this file before, as “%(name)s”.") % {"name": name}
            )
    if wants_json(request):
        return JsonResponse(
            document_json(made[0].document) | {"is_new": made[0].is_new}, status=201
        )
    return redirect(made[0].document) if len(made) == 1 else redirect("chat:documents")


def document_json(one: Document) -> dict[str, object]:
    """Return a document for the scripts of pages."""
    names = ("id", "name", "format", "kind", "size", "status", "reason", "percent")
    fields: dict[str, object] = {name: getattr(one, name) for name in names}
    return fields | {"url": one.get_absolute_url(), "message": _reason(one)}


def _reason(one: Document) -> str:
    return reasons.sentence(one.reason) if one.reason else ""


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def document(request: Request, document_id: UUID) -> HttpResponseBase:
    """Show a document with its content from ?at=, of a ?page= or a ?day=, or where ?q= is found; rename it."""
    if request.method == "POST":
        try:
            lifecycle.rename(
                user=request.user, document_id=document_id, name=request.POST.get("name", "")
            )
        except ChatError as error:
            if wants_json(request) or error.code == "not_found":
                raise
            messages.error(request, error.message)
        return redirect("chat:document", document_id)
    found = access.owned(request.user, Document, document_id)
    if wants_json(request):
        return JsonResponse(document_json(found))
    words = request.GET.get("q", "").strip()[:200]
    context: dict[str, Any] = {
        "page": "document",
        "document": found,
        "reason": _reason(found),
        "words": words,
        "projects_of_user": page_projects(request),
    }
    if found.status == Document.Status.READY:
        context["offers"] = offers.of_document(request.user, found)
        context |= _content(request, found, words)
    return render(request, "chat/document.html", page_context(request) | context)


def _content(request: Request, found: Document, words: str) -> dict[str, Any]:
    if found.kind == Document.Kind.TABLE:
        return {"dataset": Dataset.objects.filter(document=found).first()}
    if words:
        return {"blocks": queries.search(found, words), "is_search": True}
    page = queries.blocks(found, _start(request, found))
    context: dict[str, Any] = {"blocks": page.blocks, "before": page.before, "after": page.after}
    if found.kind == Document.Kind.CHAT:
        context["months"] = queries.months(found)
    elif found.format in (Document.Format.MARKDOWN, Document.Format.DOCX):
        context["outline"] = queries.headings(found)
    return context


def _start(request: Request, found: Document) -> int:
    """Return the position that the parameters of a URL name, 0 for wrong ones."""
    for name, look, read in (
        ("page", queries.position_of_page, int),
        ("day", queries.position_of_day, date.fromisoformat),
    ):
        if value := request.GET.get(name, "")[:20]:
            return _position(found, look, read, value)
    at = request.GET.get("at", "")
    return int(at) if at.isascii() and at.isdigit() and len(at) < 10 else 0


def _position(found: Document, look: Any, read: Callable[[str], Any], value: str) -> int:
    try:
        wanted = read(value)
    except ValueError:
        return 0
    if isinstance(wanted, int) and not 0 < wanted < 10**9:
        return 0
    return look(found, wanted) or 0


def page_projects(request: Request) -> list[Any]:
    """Return the user's projects for a choice."""
    return list(page_context(request)["projects"])


@require_POST
@handles_chat_errors
def delete(request: Request, document_id: UUID) -> HttpResponse:
    """Delete a document; the answer can undo it."""
    found, at = lifecycle.delete(user=request.user, document_id=document_id)
    sentence = _("“%(name)s” was deleted. It is removed for good after %(days)d days.") % {
        "name": f"\u2068{found.name}\u2069",
        "days": settings.DELETED_CHAT_DAYS,
    }
    return undoable_response(request, sentence, f"document {at.isoformat()}", "chat:documents")


@require_POST
@handles_chat_errors
def retry(request: Request, document_id: UUID) -> HttpResponse:
    """Read a document again; `chat` chooses one of an export with several."""
    found = access.owned(request.user, Document, document_id)
    try:
        if chat := request.POST.get("chat", ""):
            lifecycle.choose_chat(user=request.user, document_id=document_id, chat=chat[:100])
        else:
            tracking.retry(found)
    except ChatError as error:
        if wants_json(request):
            raise
        messages.error(request, error.message)
    return redirect("chat:document", document_id)


@require_POST
@handles_chat_errors
def move(request: Request, document_id: UUID) -> HttpResponse:
    """Put a document into a `project`, or into none."""
    found = access.owned(request.user, Document, document_id)
    project_id = posted_id(request.POST.get("project", ""))
    project = None if project_id is None else access.project(request.user, project_id)
    binding.set_project(found, project)
    messages.success(request, _("The document is saved."))
    return redirect("chat:document", document_id)


@require_POST
@handles_chat_errors
def ask(request: Request, document_id: UUID) -> HttpResponse:
    """Begin a conversation that is bound to a document."""
    return redirect(binding.begin(user=request.user, document_ids=[document_id]))


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def of_new_conversation(request: Request) -> HttpResponse:
    """Choose the documents of a new conversation, and begin it with the posted `document`s; ?project= is its project."""
    project_id = posted_id(request.GET.get("project", ""))
    project = None if project_id is None else access.project(request.user, project_id)
    if request.method == "POST":
        try:
            if not (chosen := _posted(request)):
                raise ChatError("empty_text", _("Choose a document first."))
            begun = binding.begin(user=request.user, document_ids=chosen, project=project)
        except ChatError as error:
            if wants_json(request) or error.code == "not_found":
                raise
            messages.error(request, error.message)
            return redirect(request.get_full_path())
        return redirect(begun)
    context = {
        "page": "conversation_documents",
        "back": project.get_absolute_url() if project is not None else reverse("chat:new"),
        "title": _("New chat"),
        "choices": queries.choices(request.user),
        "is_project": project is not None,
        "is_new": True,
    }
    return render(request, "chat/choose_documents.html", page_context(request) | context)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def of_conversation(request: Request, conversation_id: UUID) -> HttpResponse:
    """Choose the documents that a conversation is bound to: the posted `document`s."""
    conversation = access.conversation(request.user, conversation_id, write=True)
    if request.method == "POST":
        try:
            binding.choose(
                user=request.user, conversation_id=conversation_id, document_ids=_posted(request)
            )
        except ChatError as error:
            if wants_json(request) or error.code in ("not_found", "not_allowed"):
                raise
            messages.error(request, error.message)
            return redirect("chat:conversation_documents", conversation_id)
        return redirect(conversation)
    bound = binding.of_conversation(conversation)
    context = {
        "page": "conversation_documents",
        "back": conversation.get_absolute_url(),
        "title": conversation.name,
        "bound": {one.pk for one in bound},
        "of_project": [one for one in bound if one.project_id is not None],
        "choices": queries.choices(request.user),
    }
    return render(request, "chat/choose_documents.html", page_context(request) | context)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def of_project(request: Request, project_id: UUID) -> HttpResponse:
    """Choose the documents of a project: the posted `document`s."""
    project = access.project(request.user, project_id)
    if request.method == "POST":
        binding.choose_of_project(
            user=request.user, project_id=project_id, document_ids=_posted(request)
        )
        messages.success(request, _("The project is saved."))
        return redirect(project)
    context = {
        "page": "project_documents",
        "back": project.get_absolute_url(),
        "title": project.name,
        "bound": set(project.documents.values_list("pk", flat=True)),
        "choices": queries.choices(request.user),
        "is_project": True,
    }
    return render(request, "chat/choose_documents.html", page_context(request) | context)


def _posted(request: Request) -> list[UUID]:
    return [UUID(one) for one in request.POST.getlist("document") if UUID_FORM.fullmatch(one)]


@require_safe
@never_cache
@handles_chat_errors
def file(request: Request, document_id: UUID) -> HttpResponseBase:
    """Return the uploaded file of a document, to be saved."""
    found = access.owned(request.user, Document, document_id)
    if not storage.exists(found.file):
        raise ChatError("not_found", reasons.sentence("file_missing"))
    response = StreamingHttpResponse(
        streamed_response.no_part()
        if request.method == "HEAD"
        else streamed_response.in_parts(partial(storage.read_part, found.file), 0),
        content_type="application/octet-stream",
    )
    response["Content-Disposition"] = content_disposition_header(True, found.name) or "attachment"
    return response
