"""Admin of shares: readers by e-mail address, public links of chats and of statistics, which staff may end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from chat.conversations import sharing
from chat.documents import links
from chat.documents.models import StatisticsLink
from chat.models import ConversationShare, PublicLink
from chatproject.lib.admin import ReadOnlyAdmin

if TYPE_CHECKING:
    Base = admin.ModelAdmin[ConversationShare | PublicLink | StatisticsLink]
else:
    Base = admin.ModelAdmin


class SharingAdmin(ReadOnlyAdmin, Base):
    """A table of shares, without titles and texts, which belong to the pages of conversations."""

    list_filter = ["created_at"]
    list_per_page = 50
    show_full_result_count = False
    actions = ["end"]

    @admin.action(description=gettext_lazy("End at once"), permissions=["end"])
    def end(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """End shares or links, each with an entry in the admin's log; open pages close."""
        self.log_deletions(request, queryset)
        chosen = list(queryset)
        self.end_rows(chosen)
        messages.success(request, _("Ended: %(count)d.") % {"count": len(chosen)})

    def end_rows(self, chosen: list[Any]) -> None:
        sharing.end(chosen)

    def has_end_permission(self, request: HttpRequest) -> bool:
        """Return whether a member of staff may end shares."""
        return request.user.has_perm(f"{self.opts.app_label}.delete_{self.opts.model_name}")


@admin.register(ConversationShare)
class ConversationShareAdmin(SharingAdmin):
    fields = ["conversation", "owner", "email", "user", "created_at"]
    list_display = ["created_at", "owner", "email", "user", "conversation_id"]
    list_select_related = ["owner", "user"]
    search_fields = ["owner__email", "email__exact", "conversation__id__exact"]


@admin.register(PublicLink)
class PublicLinkAdmin(SharingAdmin):
    # Neither the token, which opens the page to staff without the permission to read, nor the title.
    fields = ["conversation", "owner", "shows_reasoning", "created_at", "expires_at"]
    list_display = ["created_at", "owner", "expires_at", "conversation_id"]
    view_on_site = False  # the button's address would be the link
    list_select_related = ["owner"]
    search_fields = ["owner__email", "token__exact", "conversation__id__exact"]


@admin.register(StatisticsLink)
class StatisticsLinkAdmin(SharingAdmin):
    # Neither the token nor the title, as of links of chats.
    fields = ["document", "owner", "names", "sections", "created_at", "expires_at"]
    list_display = ["created_at", "owner", "names", "expires_at", "document_id"]
    view_on_site = False
    list_select_related = ["owner"]
    search_fields = ["owner__email", "token__exact", "document__id__exact"]

    def end_rows(self, chosen: list[Any]) -> None:
        links.end(chosen)
