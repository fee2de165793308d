"""Admin of moderation: the queue of reports, and the rules that messages are checked by.

Each step of a report is in the admin's log: looks at its text, assignment, decision and note.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from chat.access import decide
from chat.admin.conversations import log
from chat.conversations import sharing
from chat.models import ModerationRule, Report
from chat.moderation.words import tokens
from chatproject.lib.admin import NOTHING, BaseAdmin, staff_id

Status = Report.Status
# Of an action: the states in which it can be done, and the one after it.
STEPS: dict[str, tuple[tuple[str, ...], str]] = {
    "assign": ((Status.OPEN, Status.REVIEW), Status.REVIEW),
    "uphold": ((Status.OPEN, Status.REVIEW), Status.UPHELD),
    "dismiss": ((Status.OPEN, Status.REVIEW), Status.DISMISSED),
    "reopen": ((Status.UPHELD, Status.DISMISSED), Status.OPEN),
}


class StateFilter(admin.SimpleListFilter):
    """Shows the reports that need work, unless another state is chosen."""

    title = gettext_lazy("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        mine = ("mine", gettext_lazy("Assigned to me"))
        return [mine, *Status.choices, ("all", gettext_lazy("All"))]

    def choices(self, changelist: Any) -> Any:
        first, *others = super().choices(changelist)
        yield first | {"display": gettext_lazy("Open or in review")}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet[Report]) -> QuerySet[Report]:
        match self.value():
            case None:
                return queryset.filter(status__in=[Status.OPEN, Status.REVIEW])
            case "mine":
                return queryset.filter(assignee=staff_id(request), status=Status.REVIEW)
            case "all":
                return queryset
            case value:
                return queryset.filter(status=value)


FIELDS: list[Any] = [
    *("kind", "status", "assignee", "reason", "text", "question", "reply", "model"),
    *("chat", "link_state", "reporter", "created_at", "closed_at", "note"),
]
OF_REPLIES = {"question", "reply", "model"}
OF_LINKS = {"chat", "link_state"}
END_LINK = "chat.delete_publiclink"


@admin.register(Report)
class ReportAdmin(BaseAdmin):
    fields = FIELDS
    readonly_fields = [name for name in FIELDS if name != "note"]
    list_display = ["created_at", "kind", "status", "reason", "model", "reporter", "assignee"]
    list_filter = [StateFilter, "reason", "created_at", "model"]
    list_select_related = ["model", "user", "assignee"]
    search_fields = ["user__email", "assignee__email"]
    actions = ["assign", "uphold", "dismiss", "end_links", "reopen"]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Leave out fields of other kinds of reports, and texts of messages for staff without the permission to read them."""
        if obj is not None and obj.conversation_id is not None:
            return [name for name in FIELDS if name not in OF_REPLIES]
        hidden = OF_LINKS
        if (
            obj is None
            or obj.message is None
            or not decide(request.user, obj.message, in_admin=True)
        ):
            hidden = hidden | {"question", "reply"}
        return [name for name in FIELDS if name not in hidden]

    @admin.display(description=gettext_lazy("reported"))
    def kind(self, one: Report) -> str:
        return _("Shared link") if one.conversation_id else _("Reply")

    @admin.display(description=gettext_lazy("by"), ordering="user__email")
    def reporter(self, one: Report) -> str:
        return str(one.user or _("a visitor"))

    @admin.display(description=gettext_lazy("chat"))
    def chat(self, one: Report) -> str:
        """Return a link to the page with the messages, which asks for its permission and is logged."""
        page = reverse("admin:chat_conversation_messages", args=[one.conversation_id])
        return format_html('<a href="{}">{}</a>', page, one.conversation)

    @admin.display(description=gettext_lazy("link"))
    def link_state(self, one: Report) -> str:
        if one.link is None:
            return _("Ended")
        return (
            _("Expired") if one.link.has_expired else _("Open: the action “End the link” ends it.")
        )

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.display(description=gettext_lazy("reported reply"))
    def reply(self, one: Report) -> str:
        return one.message.text if one.message else NOTHING

    @admin.display(description=gettext_lazy("message before it"))
    def question(self, one: Report) -> str:
        parent = one.message.parent if one.message else None
        return parent.text if parent else NOTHING

    def change_view(
        self, request: HttpRequest, object_id: str, *args: Any, **options: Any
    ) -> HttpResponse:
        """Show a report with its texts, which is logged."""
        response = super().change_view(request, object_id, *args, **options)
        row = self.get_object(request, object_id)
        is_shown = request.method == "GET" and response.status_code == 200
        if row is not None and is_shown and "reply" in self.get_fields(request, row):
            log(request, row, "Looked at the text")
        return response

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **options: Any
    ) -> HttpResponse:
        """Show a report with the buttons of the steps that its state allows."""
        report = context["original"]
        names = [name for name, (before, _after) in STEPS.items() if report.status in before]
        if report.link is not None and self.has_end_link_permission(request):
            names.append("end_links")
        steps = [(name, getattr(self, name).short_description) for name in names]
        return super().render_change_form(request, context | {"steps": steps}, *args, **options)

    def response_change(self, request: HttpRequest, obj: Report) -> HttpResponse:
        """Take the step of a button after the note was stored; a closed report leads back to the queue."""
        step = request.POST.get("step", "")
        may_end = step == "end_links" and self.has_end_link_permission(request)
        if step not in STEPS and not may_end:
            return super().response_change(request, obj)
        getattr(self, step)(request, Report.objects.filter(pk=obj.pk))
        is_closing = step in ("uphold", "dismiss")
        return redirect("admin:chat_report_changelist" if is_closing else request.path)

    @admin.action(description=gettext_lazy("Assign to me"), permissions=["change"])
    def assign(self, request: HttpRequest, chosen: QuerySet[Report]) -> None:
        self._step(request, chosen, "assign", assignee=staff_id(request))

    @admin.action(description=gettext_lazy("Uphold"), permissions=["change"])
    def uphold(self, request: HttpRequest, chosen: QuerySet[Report]) -> None:
        self._step(request, chosen, "uphold", closed_at=timezone.now())

    @admin.action(description=gettext_lazy("Dismiss"), permissions=["change"])
    def dismiss(self, request: HttpRequest, chosen: QuerySet[Report]) -> None:
        self._step(request, chosen, "dismiss", closed_at=timezone.now())

    @admin.action(description=gettext_lazy("End the link at once"), permissions=["end_link"])
    def end_links(self, request: HttpRequest, chosen: QuerySet[Report]) -> None:
        """End the reported links, each with an entry in the admin's log; the reports stay as they are."""
        links = []
        for one in chosen.select_related("link"):
            if one.link is not None:
                log(request, one, f"Ended the {one.link}")
                links.append(one.link)
        sharing.end(links)
        if links:
            messages.success(request, _("The reported links no longer work."))
        else:
            messages.warning(request, _("None of these reports is about a link that still works."))

    def has_end_link_permission(self, request: HttpRequest) -> bool:
        """Return whether a member of staff may end public links."""
        return request.user.has_perm(END_LINK)

    @admin.action(description=gettext_lazy("Open again"), permissions=["change"])
    def reopen(self, request: HttpRequest, chosen: QuerySet[Report]) -> None:
        self._step(request, chosen, "reopen", closed_at=None, assignee=None)

    def _step(
        self, request: HttpRequest, chosen: QuerySet[Report], name: str, **fields: Any
    ) -> None:
        """Change the state of reports by compare-and-set; one that another member of staff changed stays."""
        before, after = STEPS[name]
        done = left = 0
        for one in chosen.order_by("pk"):
            same = Report.objects.filter(pk=one.pk, status=one.status, assignee=one.assignee_id)
            if one.status in before and same.update(status=after, **fields):
                log(request, one, f"Status: {one.status} → {after}")
                done += 1
            else:
                left += 1
        if done:
            messages.success(request, _("Reports changed: %(count)d.") % {"count": done})
        if left:
            sentence = _(
                "Some reports were closed or changed meanwhile. They were left as they are."
            )
            messages.warning(request, sentence)


class RuleForm(forms.ModelForm):  # type: ignore[type-arg]
    def clean_words(self) -> str:
        words: str = self.cleaned_data["words"]
        for line in words.splitlines():
            if line.strip() and not tokens(line):
                sentence = _("“%(line)s” has no letter or digit.") % {"line": line.strip()[:50]}
                raise forms.ValidationError(sentence)
        return words


@admin.register(ModerationRule)
class ModerationRuleAdmin(BaseAdmin):
    form = RuleForm
    fields = ["name", "is_enabled", "kind", "words", "provider", "provider_model", "on_failure"]
    list_display = ["name", "kind", "is_enabled", "provider", "on_failure"]
    list_filter = ["kind", "is_enabled"]
    list_select_related = ["provider"]
    search_fields = ["name"]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the rules, with a warning while moderation is off."""
        if not settings.MODERATION:
            sentence = _(
                "Moderation is off: no rule has an effect. The operator sets MODERATION=1."
            )
            messages.warning(request, sentence)
        return super().changelist_view(request, extra_context)
