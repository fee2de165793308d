"""Admin of conversations, messages and runs: read-only, as they are records.

Staff with the permission to see messages read a conversation on a page of its own. Each page with text of
messages is in the admin's log. Runs are stopped and asked again with the permission to change runs.
"""

from __future__ import annotations

import json
from typing import Any, get_args
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE as CHANGED
from django.contrib.admin.models import LogEntry
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing import credits
from chat.access import decide, reads_texts
from chat.conversations.transcript import excerpt
from chat.errors import ERRORS, ChatError
from chat.llm.errors import Cause
from chat.models import (
    ApiCall,
    ChatExport,
    ChatImport,
    Conversation,
    IdempotencyKey,
    Message,
    MessagePart,
    Run,
)
from chat.runs import start
from chat.runs.stop import stop_run_by_staff
from chatproject.lib.admin import (
    LargeTable,
    ReadOnlyAdmin,
    choices_filter,
    column,
    require_permission,
    row_pages,
    staff_id,
    values_filter,
)

CHANGE_RUN = "chat.change_run"


def log(request: HttpRequest, row: Model, message: str) -> None:
    """Store in the admin's log what a member of staff did with a row."""
    LogEntry.objects.log_actions(
        staff_id(request), [row], CHANGED, change_message=message, single_object=True
    )


class TextGuard(ReadOnlyAdmin):
    """Shows the text of messages, in `text_fields`, only to staff who may view messages.

    Without that right the fields are neither shown nor searched; SeenColumns refuses filters by them.
    """

    text_fields: tuple[str, ...] = ()

    def get_exclude(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return () if reads_texts(request.user) else self.text_fields

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        shown = super().get_list_display(request)
        if reads_texts(request.user):
            return [*shown]
        return [name for name in shown if name not in self.text_fields]

    def get_search_fields(self, request: HttpRequest) -> list[str]:
        searched = super().get_search_fields(request)
        if reads_texts(request.user):
            return [*searched]
        return [name for name in searched if name not in self.text_fields]


class LoggedLook(ReadOnlyAdmin):
    """Logs each look at a page that shows the text of a conversation."""

    def change_view(
        self, request: HttpRequest, object_id: str, *args: Any, **options: Any
    ) -> HttpResponse:
        response = super().change_view(request, object_id, *args, **options)
        row = self.get_object(request, object_id)
        if row is not None and response.status_code == 200 and reads_texts(request.user):
            log(request, row, "Looked at the text")
        return response


@admin.register(Conversation)
class ConversationAdmin(LargeTable, LoggedLook, TextGuard):
    text_fields = ("title", "system_prompt")
    list_display = ["updated_at", "title", "owner", "assistant", "deleted_at"]
    # Personal assistants are many, and as private as messages.
    list_filter = [("assistant", choices_filter(personal=False)), "updated_at", "created_at"]
    list_select_related = ["owner", "assistant"]
    search_fields = ["title", "owner__email", "id__exact"]
    view_on_site = False  # the site shows it to its owner alone

    def get_urls(self) -> list[URLPattern]:
        pages = {"messages": self.messages_view}
        return [*row_pages(self, "uuid:conversation_id", pages), *super().get_urls()]

    def messages_view(self, request: HttpRequest, conversation_id: UUID) -> HttpResponse:
        """Show the messages, as many as a page of the site has; the look is logged before."""
        conversation = get_object_or_404(
            Conversation.objects.select_related("owner"), pk=conversation_id
        )
        is_shown = self.has_view_permission(request, conversation)
        if not (is_shown and decide(request.user, conversation, in_admin=True)):
            raise PermissionDenied
        log(request, conversation, "Looked at the messages")
        context = {
            **self.admin_site.each_context(request),
            "title": (_("Messages of %(conversation)s") % {"conversation": conversation}),
            "opts": self.opts,
            "original": conversation,
            "part": excerpt(conversation, request.GET.get("before", "")),
        }
        return TemplateResponse(request, "admin/chat/conversation/messages.html", context)


class PartInline(admin.TabularInline):  # type: ignore[type-arg]
    model = MessagePart
    extra = 0
    can_delete = False
    readonly_fields = ["position", "kind", "data"]


@admin.register(Message)
class MessageAdmin(LargeTable, LoggedLook):
    list_display = ["created_at", "conversation", "role", "status"]
    list_filter = ["role", "status"]
    list_select_related = ["conversation"]
    search_fields = ["id__exact", "conversation__id__exact"]
    inlines = [PartInline]

    def has_view_permission(self, request: HttpRequest, obj: Message | None = None) -> bool:
        # The permission to change messages, which nothing uses, opens no list either: a filter probes texts.
        if obj is None:
            return reads_texts(request.user)
        return bool(decide(request.user, obj, in_admin=True))


@admin.register(MessagePart)
class MessagePartAdmin(LargeTable, LoggedLook):
    """Parts are text of messages, so that their own permission is not enough."""

    list_display = ["message", "position", "kind"]
    list_filter = ["kind"]
    search_fields = ["message__id__exact"]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return reads_texts(request.user) and super().has_view_permission(request, obj)


@admin.register(ChatImport)
class ChatImportAdmin(ReadOnlyAdmin):
    # Not its file's name and its notes, which have titles of chats.
    fields = [
        *("owner", "status", "attempt", "size", "percent", "added", "updated", "known", "skipped"),
        "stored",
        *("error", "created_at", "beat_at", "ended_at"),
    ]
    list_display = ["created_at", "owner", "status", "percent", "added", "updated", "skipped"]
    list_filter = ["status"]
    list_select_related = ["owner"]
    search_fields = ["owner__email"]


@admin.register(ChatExport)
class ChatExportAdmin(ReadOnlyAdmin):
    # Not the name of its file, with which staff could read it.
    fields = [
        *("owner", "status", "attempt", "size", "percent", "chats", "error"),
        *("created_at", "beat_at", "ended_at"),
    ]
    list_display = ["created_at", "owner", "status", "percent", "chats", "size"]
    list_filter = ["status"]
    list_select_related = ["owner"]
    search_fields = ["owner__email"]


@admin.register(Run)
class RunAdmin(LargeTable, LoggedLook, TextGuard):
    # A provider's error may quote the prompt.
    text_fields = ("prefix", "prefix_reasoning", "error_message")
    exclude = ("model_snapshot",)  # has the assistant's name, which may be a user's own
    readonly_fields = ["terms"]
    list_display = [
        "queued_at",
        "user",
        "model",
        "status",
        "attempt",
        "seconds",
        "prompt_tokens",
        "completion_tokens",
        column("charged", credits.show, "credits"),
        "error_code",
        "error_cause",
    ]
    list_filter = [
        "status",
        ("error_code", values_filter(*sorted({*ERRORS, *Run.STOPPED_BY_OTHERS}))),
        ("error_cause", values_filter(*sorted(get_args(Cause)))),
        *("provider", "model", "queued_at"),
    ]
    search_fields = ["id__exact", "user__email", "conversation__id__exact"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        return super().get_queryset(request).select_related("user", "model")

    def get_urls(self) -> list[URLPattern]:
        pages = {"stop": self.stop_view, "again": self.again_view}
        return [*row_pages(self, "uuid:run_id", pages), *super().get_urls()]

    def stop_view(self, request: HttpRequest, run_id: UUID) -> HttpResponse:
        """Stop a run, after a confirmation."""
        run = self._changed_run(request, run_id)
        if request.method != "POST":
            return self._confirmation(request, run, _("Stop"), is_stop=True)
        try:
            is_stopped = stop_run_by_staff(run.pk)
        except ChatError as error:
            messages.error(request, error.message)
        else:
            if is_stopped:
                log(request, run, "Stopped")
                messages.success(request, _("The run is being stopped."))
            else:
                messages.warning(request, _("The run had ended before."))
        return redirect("admin:chat_run_change", run.pk)

    def again_view(self, request: HttpRequest, run_id: UUID) -> HttpResponse:
        """Ask for the reply of a failed run again, as its user would, after a confirmation."""
        run = self._changed_run(request, run_id)
        if not can_be_asked_again(run):
            messages.error(
                request, _("Only the last run of a conversation, if it failed, can be asked again.")
            )
            return redirect("admin:chat_run_change", run.pk)
        if request.method != "POST":
            return self._confirmation(request, run, _("Ask again"))
        try:
            started = start.regenerate(
                user=run.user, message_id=run.message_id, client_id=f"again-{run.pk}"
            )
        except ChatError as error:
            messages.error(
                request,
                (_("Not asked again. To the user: %(message)s") % {"message": error.message}),
            )
            return redirect("admin:chat_run_change", run.pk)
        log(request, run, f"Asked again: {started.run}")
        messages.success(request, _("The model is asked again. This is the new run."))
        return redirect("admin:chat_run_change", started.run.pk)

    def _changed_run(self, request: HttpRequest, run_id: UUID) -> Run:
        require_permission(request, CHANGE_RUN)
        run: Run = get_object_or_404(self.get_queryset(request), pk=run_id)
        if not self.has_view_permission(request, run):
            raise PermissionDenied
        return run

    def _confirmation(
        self, request: HttpRequest, run: Run, verb: str, *, is_stop: bool = False
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": f"{verb}: {run}",
            "opts": self.opts,
            "original": run,
            "verb": verb,
            "is_stop": is_stop,
        }
        return TemplateResponse(request, "admin/chat/run/confirm.html", context)

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **options: Any
    ) -> HttpResponse:
        run = options.get("obj")
        if run is not None and request.user.has_perm(CHANGE_RUN):
            context |= {"can_stop": not run.has_ended, "can_ask_again": can_be_asked_again(run)}
        return super().render_change_form(request, context, *args, **options)

    def get_exclude(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return (*self.exclude, *super().get_exclude(request, obj))

    @admin.display(description=gettext_lazy("model and settings at the request"))
    def terms(self, run: Run) -> str:
        """Return what was fixed at the request, without the name of the assistant."""
        kept = {name: value for name, value in run.model_snapshot.items() if name != "assistant"}
        return json.dumps(kept, indent=2, ensure_ascii=False)

    @admin.display(description=gettext_lazy("seconds"))
    def seconds(self, run: Run) -> str:
        """Return the time from queueing to the end."""
        if run.ended_at is None:
            return ""
        return f"{max(0.0, (run.ended_at - run.queued_at).total_seconds()):.1f}"


def can_be_asked_again(run: Run) -> bool:
    """Return whether a run failed and no other followed, so that asking again replaces nothing newer."""
    newer = Run.objects.filter(conversation=run.conversation_id, pk__gt=run.pk)
    return run.status == Run.Status.FAILED and not newer.exists()


@admin.register(IdempotencyKey)
class IdempotencyKeyAdmin(LargeTable, ReadOnlyAdmin):
    """Keys of requests of the REST API."""

    sortable_by = ["created_at"]
    list_display = ["key", "user", "created_at"]
    list_select_related = ["user"]
    fields = ["key", "user", "created_at"]
    ordering = ["-created_at"]
    search_fields = ["user__email"]
    search_help_text = gettext_lazy("E-mail address of the user")


@admin.register(ApiCall)
class ApiCallAdmin(LargeTable, ReadOnlyAdmin):
    """Calls of the API, without their requests, which are texts of users."""

    sortable_by = ["created_at"]
    list_display = ["run", "created_at"]
    fields = ["run", "conversation", "created_at"]
    ordering = ["-created_at"]
    search_fields = ["run__user__email"]
    search_help_text = gettext_lazy("E-mail address of the user")
