"""The settings page of the notes about a user: list, add, change and delete them, and switch them off."""

from __future__ import annotations

from uuid import UUID

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from chat import access
from chat.conversations import notes as domain
from chat.errors import ChatError
from chat.models import UserNote
from chat.web.pages import page_context
from chat.web.responses import handles_chat_errors, raise_unless_page
from chatproject.lib.http import Request


class NoteForm(forms.Form):
    """The text of a note. conversations.notes validates it further."""

    text = forms.CharField(
        label=gettext_lazy("Note"),
        max_length=UserNote.MAX_CHARACTERS,
        widget=forms.Textarea(attrs={"class": "input", "rows": 2, "dir": "auto"}),
        help_text=gettext_lazy("For example: I live in Lisbon and cook without meat."),
    )


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def notes(request: Request) -> HttpResponse:
    """Show the notes about the user; switch them on or off, or store the new one of a form."""
    if not settings.USER_NOTES:
        raise Http404
    if request.method == "POST" and "switch" in request.POST:
        is_on = request.POST["switch"] == "on"
        domain.switch(request.user, on=is_on)
        words = _("Notes are switched on.") if is_on else _("Notes are switched off.")
        messages.success(request, words)
        return redirect("chat:notes")
    return _edited(request, None)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@handles_chat_errors
def note(request: Request, note_id: UUID) -> HttpResponse:
    """Show a note in a form, and store its changes."""
    return _edited(request, access.note(request.user, note_id))


def _edited(request: Request, note: UserNote | None) -> HttpResponse:
    if request.method != "POST":
        return _page(request, NoteForm(initial={"text": note.text} if note else None), note)
    form = NoteForm(request.POST)
    if not form.is_valid():
        return _page(request, form, note, status=400)
    try:
        domain.save(
            user=request.user,
            note_id=note.pk if note else None,
            text=form.cleaned_data["text"],
        )
    except ChatError as error:
        raise_unless_page(request, error)
        form.add_error("text", error.message)
        return _page(request, form, note, status=400)
    messages.success(request, _("The note is saved."))
    return redirect("chat:notes")


def _page(
    request: Request, form: NoteForm, edited: UserNote | None, status: int = 200
) -> HttpResponse:
    found = UserNote.objects.filter(user=request.user).select_related("message__conversation")
    context = {
        "page": "settings",
        "form": form,
        "edited": edited,
        "notes": list(found.order_by("-id")),
        "are_on": domain.are_on(request.user.pk),
        "most": domain.MAX_NOTES,
    }
    return render(request, "chat/notes.html", page_context(request) | context, status=status)


@require_POST
@handles_chat_errors
def delete(request: Request, note_id: UUID) -> HttpResponse:
    """Delete a note about the user; the button at a reply leads back to it."""
    deleted = domain.delete(user=request.user, note_id=note_id)
    messages.success(request, _("The note is deleted."))
    if "back" in request.POST and deleted.message_id:
        reply = access.message(request.user, deleted.message_id)
        return redirect(f"{reply.conversation.get_absolute_url()}#m-{reply.pk}")
    return redirect("chat:notes")


@require_POST
def delete_all(request: Request) -> HttpResponse:
    """Delete all notes about the user."""
    domain.delete_all(request.user)
    messages.success(request, _("All notes are deleted."))
    return redirect("chat:notes")
