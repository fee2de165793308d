"""The page of a chat, new or stored; views return it, and refused forms return it with an error."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.staticfiles.storage import staticfiles_storage
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _

from billing.metering import plan_limits
from chat import access
from chat.attachments import names, uploads
from chat.conversations import assistants, drafts, lifecycle, listing, projects, transcript
from chat.conversations import context as context_gauge
from chat.documents import binding
from chat.errors import ChatError
from chat.models import Assistant, Conversation, Draft, Project
from chat.rendering.message import message_html
from chat.runs import cost, describe, next_message
from chat.web.forms import MessageForm, new_client_id, posted_attachments, posted_id
from chat.web.picker import picker
from chat.web.responses import raise_unless_page, run_json, wants_json, with_status
from chat.web.shortcuts import SHORTCUTS
from chatproject.lib import languages, rate_limits
from chatproject.lib.http import Request

# Placeholder in addresses of objects that do not exist yet when a page is rendered; the script
# replaces it with the id.
NO_ID = UUID(int=0)

# Modules that only pages with another entry point than static/js/app.js import, such as static/js/documents.js.
OTHER_MODULES = {
    *("chat_documents", "chat_insights", "chat_shared"),
    *("passkey_form", "passkeys", "password_field", "wait_link"),
}
# The modules that static/js/app.js imports, so that a browser fetches all of them at once.
MODULES = sorted(
    path.relative_to(folder).as_posix()
    for folder in map(Path, settings.STATICFILES_DIRS)
    for path in folder.glob("js/*/*.js")
    if path.stem not in OTHER_MODULES
)


def new_page(
    request: Request,
    *,
    assistant: Assistant | None = None,
    form: MessageForm | None = None,
    error: ChatError | None = None,
    project: Project | None = None,
) -> HttpResponse:
    """Return the page of a new chat, in a project or in none.

    It has an assistant that is named, that of a refused form, that of the project, or the default one.
    """
    if form is not None and project is None:
        project = _posted_project(request, form)
    is_temporary = "temporary" in request.GET
    draft = None if form or is_temporary else drafts.shown(request.user, None)
    form = form or new_form(draft=draft)
    named = assistant or _posted_assistant(request, form)
    assistant = named or lifecycle.default_assistant(request.user, project)
    shown = picker(request.user, form, assistant=assistant)
    model = shown.chosen if shown else None
    context = {
        "conversation": None,
        "conversation_id": NO_ID,
        "temporary": is_temporary or bool(form.initial.get("temporary")),
        "project": project,
        "assistant": assistant,
        "named_assistant": named,
        "picker": shown,
        "usual_cost": cost.usual_cost(
            user=request.user, assistant=assistant, model=model, project=project
        ),
        "form": form,
        "draft": draft,
        "form_action": reverse("chat:create"),
    }
    return chat_page(request, context, error)


def _posted_assistant(request: Request, form: MessageForm) -> Assistant | None:
    """Return the assistant of a refused form; None if it is no longer available."""
    posted = form.initial.get("assistant", "")
    if not re.fullmatch(r"[0-9]{1,18}", posted):
        return None
    return assistants.offered(request.user).filter(pk=int(posted)).first()


def _posted_project(request: Request, form: MessageForm) -> Project | None:
    """Return the project of a refused form; None if it does not exist any longer."""
    try:
        project_id = posted_id(form.initial.get("project", ""))
        return None if project_id is None else access.project(request.user, project_id)
    except ChatError:
        return None


def conversation_page(
    request: Request,
    conversation: Conversation,
    *,
    before: str = "",
    message: str = "",
    editing: str = "",
    form: MessageForm | None = None,
    error: ChatError | None = None,
) -> HttpResponse:
    """Return the page of a conversation, up to the message `before`, or with the message `message`.

    `editing` is edited on it.
    """
    part = transcript.excerpt(conversation, before, message)
    edited = transcript.own_message(conversation, editing)
    has_form = form is not None or edited is not None or part.is_past
    draft = None if has_form else drafts.shown(request.user, conversation)
    form = form or new_form(
        edited.text if edited else "",
        draft=draft,
        attached=edited.attached if edited else None,
    )
    shown_picker = None
    if not part.is_past:
        shown_picker = picker(request.user, form, conversation=conversation)
    model = shown_picker.chosen if shown_picker else conversation.chosen_model
    # The newest messages of the branch are at hand, unless the page has another part, or compared replies.
    is_newest = not (part.is_past or conversation.compared)
    gauge = context_gauge.measure(conversation, model, part.messages if is_newest else None)
    context = {
        "conversation": conversation,
        "conversation_id": conversation.id,
        "context_gauge": gauge,
        "temporary": conversation.temporary,
        "project": conversation.project,
        "bound_documents": binding.of_conversation(conversation),
        "part": part,
        "messages_html": mark_safe(  # noqa: S308 # rendered by a template
            "".join(
                message_html(message, editing=edited, is_first_sent=message.pk == gauge.first)
                for message in part.messages
            )
        ),
        "editing": edited,
        "form": form,
        "named_assistant": conversation.assistant if conversation.assistant.icon else None,
        "standing": ""
        if part.is_past
        else assistants.standing(request.user, conversation.assistant),
        "draft": draft,
        "next_message": next_message.shown(conversation),
        # Without a script the page does not load again while the next message is written.
        "writes_next": "write" in request.GET,
        "picker": shown_picker,
        "form_action": (
            reverse("chat:edit", args=[edited.id])
            if edited
            else reverse("chat:send", args=[conversation.id])
        ),
    }
    return chat_page(request, context, error)


def chat_page(
    request: Request, context: dict[str, Any], error: ChatError | None = None
) -> HttpResponse:
    """Render a chat, with the error's sentence and status if there is one."""
    shown = context.get("picker")
    models = [one.model for group in shown.providers for one in group.offers] if shown else []
    context |= {
        "compared_models": models if len(models) > 1 else [],
        "error": error.message if error else "",
        "error_code": error.code if error else "",
    }
    response = render(request, "chat/conversation.html", page_context(request) | context)
    return with_status(response, error) if error else response


def page_context(request: Request) -> dict[str, Any]:
    """Return the context of every page with a sidebar."""
    # A script that replaces parts of its page, and keeps the sidebar, sends this header.
    is_part = "X-Swap" in request.headers
    return {
        "sidebar": None if is_part else listing.sidebar(request.user),
        "projects": projects.own(request.user),
        "projects_closed": request.COOKIES.get("projects") == "closed",
        # A script loads the whole page when its files or its language are others.
        "assets": f"{getattr(staticfiles_storage, 'manifest_hash', '')}.{languages.active()}",
        "modules": MODULES,
        "no_id": NO_ID,
        "shortcuts": SHORTCUTS,
        "sharing_allowed": settings.SHARE_WITH_USERS or settings.SHARE_BY_LINK,
        "shared_with_users": settings.SHARE_WITH_USERS,
    }


def new_form(
    text: str = "",
    refused: MessageForm | None = None,
    draft: Draft | None = None,
    attached: Sequence[dict[str, Any]] | None = None,
) -> MessageForm:
    """Return a form with a new client_id: with a text or a draft and files, or with all of a refused form."""
    initial: dict[str, Any] = {
        "text": draft.text if draft else text,
        "draft": draft is not None and draft.text != "",
    }
    if refused is not None:
        names = [
            name
            for name in (
                "text",
                "model",
                "effort",
                "temperature",
                "assistant",
                "project",
                "temporary",
                "draft",
            )
            if name in refused.data
        ]
        initial |= {name: refused.cleaned_data[name] for name in names}
    form = MessageForm(initial=initial | {"client_id": new_client_id()})
    form.attached = [
        one for one in (refused.attached if refused else attached) or () if not one.get("deleted")
    ]
    return form


def posted_form(request: Request) -> MessageForm:
    """Return the form as posted, with `cleaned_data`."""
    form = MessageForm(request.POST, request.FILES)
    form.full_clean()
    return form


def _store_files(request: Request, form: MessageForm) -> list[UUID]:
    """Return the ids of a posted form's attachments, with its files, which are stored now.

    Raises ChatError; the form has in `attached` those that were stored before.
    """
    ids = posted_attachments(request)
    form.attached = uploads.described(request.user, ids)
    files = [one for one in request.FILES.getlist("files") if one.file is not None and one.name]
    if len(ids) + len(files) > settings.ATTACHMENTS_PER_MESSAGE:
        raise uploads.too_many()
    for one in files:
        assert one.file is not None
        try:
            limit = plan_limits.limit_of("uploads", request.user.plan_id)
            rate_limits.hit("uploads", request.user.pk, limit=limit)
        except rate_limits.RateLimited as error:
            raise ChatError(
                "rate_limited",
                _("You attached too many files. Wait a while, then attach the next one."),
                retry_after=error.retry_after,
            ) from error
        try:
            made = uploads.add(
                user=request.user, name=one.name or "", size=one.size or 0, file=one.file
            )
        except ChatError as error:
            error.message = f"{names.clean(one.name or '')}: {error.message}"
            raise
        form.attached.append(made.snapshot)
        ids.append(made.pk)
    return ids


def start_posted(
    request: Request, form: MessageForm, begin: Callable[..., describe.Started]
) -> describe.Started:
    """Store the files of a posted form, and start its run with `begin`. Raises what `begin` raises.

    A form that the browser shows again, by Back or after an error page, keeps its client_id. If its
    text was changed meanwhile, the text is a message of its own.
    """
    text, client_id = form.cleaned_data["text"], form.cleaned_data["client_id"]
    begin = partial(begin, choice=form.choice)
    if request.FILES or "attachments_shown" in request.POST:
        # Without the mark it is a form of the previous release, whose edits keep all files.
        begin = partial(begin, attachment_ids=_store_files(request, form))
    started = begin(text=text, client_id=client_id)
    prompt = started.run.message.parent
    if started.is_new or prompt is None:
        return started
    # A repetition has stored its files again, with the same names.
    files = [one["name"] for one in form.attached]
    if prompt.text == text.strip() and [one["name"] for one in prompt.attached or ()] == files:
        return started
    digest = hashlib.blake2b(f"{text}{files}".encode(), digest_size=8).hexdigest()
    return begin(text=text, client_id=f"{client_id[:40]}.{digest}")


def refused_page(
    request: Request,
    error: ChatError,
    conversation_id: UUID,
    form: MessageForm | None = None,
    editing: str = "",
) -> HttpResponse:
    """Return the page of a refused form, with the error and the text on it."""
    raise_unless_page(request, error)
    return conversation_page(
        request,
        access.conversation(request.user, conversation_id, write=True),
        editing=editing,
        form=new_form(refused=form) if form else None,
        error=error,
    )


def started_response(request: Request, started: describe.Started) -> HttpResponse:
    """Return a run that was just asked for: JSON for programs, a redirect for people."""
    if wants_json(request):
        return JsonResponse(run_json(started.run), status=202)
    return redirect_to_end(started.run.conversation_id)


def redirect_to_end(conversation_id: UUID) -> HttpResponse:
    """Redirect to the end of a conversation."""
    # The script takes this anchor as the sign that the typed text has arrived.
    return redirect(f"{reverse('chat:conversation', args=[conversation_id])}#end")
