"""Admin of documents: their state and size. The name needs the permission to read conversations; content is on no page."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from chat.admin.conversations import LoggedLook, TextGuard, log
from chat.documents import lifecycle, reasons, tracking
from chat.documents.models import Document
from chat.errors import ChatError
from chatproject.lib.admin import LargeTable, column, values_filter


@admin.register(Document)
class DocumentAdmin(LargeTable, LoggedLook, TextGuard):
    text_fields = ("name",)
    # Not its file, with whose name staff could read it, and neither details nor statistics, which have texts.
    fields = [
        *("owner", "name", "format", "kind", "shown_size", "language", "status", "reason"),
        *("shown_reason", "percent", "attempt", "index_status", "created_at", "parsed_at"),
        *("beat_at", "deleted_at"),
    ]
    readonly_fields = ["shown_size", "shown_reason", "created_at", "beat_at"]
    list_display = [
        *("created_at", "name", "owner", "format"),
        column("size", filesizeformat, "size"),
        *("status", "reason", "percent", "index_status", "deleted_at"),
    ]
    list_filter = [
        *("status", "format", "index_status"),
        ("reason", values_filter(*sorted(reasons.REASONS))),
        *("created_at", "deleted_at"),
    ]
    list_select_related = ["owner"]
    list_per_page = 50
    search_fields = ["owner__email", "id__exact"]
    view_on_site = False  # the site shows it to its owner alone
    actions = ["retry", "delete_chosen"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Document]:
        """Return deleted documents, too, until they are purged."""
        found: QuerySet[Document] = Document.all_objects.order_by("-pk")
        return found.defer("details", "statistics")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        hidden = self.get_exclude(request, obj)
        return [name for name in self.fields if name not in hidden]

    @admin.display(description=gettext_lazy("size"))
    def shown_size(self, one: Document) -> str:
        return filesizeformat(one.size)

    @admin.display(description=gettext_lazy("what its owner reads"))
    def shown_reason(self, one: Document) -> str:
        return reasons.sentence(one.reason) if one.reason else ""

    @admin.action(description=gettext_lazy("Read again those that failed"), permissions=["retry"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Read documents again whose reading failed, each with an entry in the admin's log."""
        again = [one for one in queryset.filter(deleted_at=None) if tracking.retry(one)]
        for one in again:
            log(request, one, "Read again")
        messages.success(request, _("Being read again: %(count)d.") % {"count": len(again)})

    @admin.action(
        description=gettext_lazy("Delete, as their owners would"), permissions=["delete_chosen"]
    )
    def delete_chosen(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Delete documents, which are purged some days later, each with an entry in the admin's log."""
        chosen = list(queryset.filter(deleted_at=None))
        self.log_deletions(request, Document.all_objects.filter(pk__in=[one.pk for one in chosen]))
        deleted = 0
        for one in chosen:
            try:
                lifecycle.delete_by_staff(one.pk)
            except ChatError:  # its owner was faster
                continue
            deleted += 1
        messages.success(request, _("Deleted: %(count)d.") % {"count": deleted})

    def has_retry_permission(self, request: HttpRequest) -> bool:
        """Return whether its user may change documents."""
        return request.user.has_perm("documents.change_document")

    def has_delete_chosen_permission(self, request: HttpRequest) -> bool:
        """Return whether its user may delete documents."""
        return request.user.has_perm("documents.delete_document")
