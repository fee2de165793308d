"""The pages of projects, and the forms that create, change and delete them and move chats."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from chat import access
from chat.conversations import assistants, listing, offers
from chat.conversations import projects as domain
from chat.errors import ChatError
from chat.models import Project
from chat.web.forms import ProjectForm
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors, raise_unless_page, wants_json
from chat.web.views.chats import posted_chats, undoable_response
from chatproject.lib.http import Request


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def projects(request: Request) -> HttpResponse:
    """List the user's projects; create one from a posted form."""
    if request.method != "POST":
        return _projects_page(request, ProjectForm())
    form = ProjectForm(request.POST)
    if not form.is_valid():
        return _projects_page(request, form, status=400)
    try:
        made = domain.create(user=request.user, fields=form.fields_of_project)
    except ChatError as error:
        raise_unless_page(request, error)
        form.add_error(None, error.message)
        return _projects_page(request, form, status=409)
    return redirect(made)


def _projects_page(request: Request, form: ProjectForm, status: int = 200) -> HttpResponse:
    context = page_context(request) | {"page": "projects", "form": form}
    return render(request, "chat/projects.html", context, status=status)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def project(request: Request, project_id: UUID) -> HttpResponse:
    """Show a project with its chats, from the cursor ?before=; change it by a posted form."""
    found = access.project(request.user, project_id)
    if request.method != "POST":
        stored = {
            "name": found.name,
            "instructions": found.instructions,
            "model": found.model_id or "",
            "assistant": found.assistant_id or "",
        }
        return _project_page(request, found, ProjectForm(initial=stored))
    form = ProjectForm(request.POST)
    if not form.is_valid():
        return _project_page(request, found, form, status=400)
    try:
        fields = form.fields_of_project
        domain.change(user=request.user, project_id=project_id, fields=fields)
    except ChatError as error:
        raise_unless_page(request, error)
        form.add_error(None, error.message)
        return _project_page(request, found, form, status=409)
    messages.success(request, _("The project is saved."))
    return redirect("chat:project", project_id)


def _project_page(
    request: Request, found: Project, form: ProjectForm, status: int = 200
) -> HttpResponse:
    before = request.GET.get("before", "")
    page = listing.in_project(found, before)
    context: dict[str, Any] = {
        "page": "project",
        "origin": f"project {found.pk}",
        "project": found,
        "form": form,
        "providers": offers.by_provider(offers.offered(request.user)),
        "assistants": assistants.offered(request.user),
        "days": page.days,
        "next": page.next,
        "is_first": not before,
    }
    return render(request, "chat/project.html", page_context(request) | context, status=status)


@require_POST
@handles_chat_errors
def delete(request: Request, project_id: UUID) -> HttpResponse:
    """Delete a project, and keep its chats."""
    found, at = domain.delete(user=request.user, project_id=project_id)
    sentence = _("The project “%(name)s” was deleted. Its chats are kept.") % {
        "name": f"\u2068{found.name}\u2069"  # isolated: it may be written from right to left
    }
    return undoable_response(request, sentence, f"project {at.isoformat()}", "chat:projects")


@require_POST
@handles_chat_errors
def move(request: Request, project_id: UUID | None) -> HttpResponse:
    """Move the chats `chat` into a project; None moves them out of any."""
    ids, back = posted_chats(request)
    if not ids and not wants_json(request):
        messages.error(request, _("Select the chats first. Nothing was changed."))
        return redirect(back)
    try:
        found, into, at = domain.move(
            user=request.user, conversation_ids=ids, project_id=project_id
        )
    except ChatError as error:
        raise_unless_page(request, error)
        messages.error(request, error.message)
        return redirect(back)
    if into is None:
        sentence = (
            _("“%(name)s” is in no project now.")
            if len(found) == 1
            else ngettext(
                "%(count)d chat is in no project now.",
                "%(count)d chats are in no project now.",
                len(found),
            )
        )
    else:
        sentence = (
            _("“%(name)s” was moved to “%(project)s”.")
            if len(found) == 1
            else ngettext(
                "%(count)d chat was moved to “%(project)s”.",
                "%(count)d chats were moved to “%(project)s”.",
                len(found),
            )
        )
    sentence %= {
        "name": f"\u2068{found[0].name}\u2069",
        "count": len(found),
        "project": f"\u2068{into.name}\u2069" if into else "",
    }
    return undoable_response(request, sentence, f"move {at.isoformat()}", back)
