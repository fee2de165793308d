"""Admin of the feedback on replies: a list with filters, and the ratings of each model."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from chat.models import MessageFeedback
from chatproject.lib.admin import ReadOnlyAdmin

COUNTED = timedelta(days=30)


@admin.register(MessageFeedback)
class MessageFeedbackAdmin(ReadOnlyAdmin):
    # Its text was written for the staff; that of the message is on the message's own page.
    fields = ["message", "user", "model", "rating", "reason", "text", "created_at", "updated_at"]
    list_display = ["updated_at", "rating", "reason", "model", "text", "user"]
    list_filter = ["rating", "reason", "updated_at", "model"]
    list_select_related = ["model", "user"]
    list_per_page = 50
    show_full_result_count = False
    search_fields = ["text", "user__email"]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the list, with the ratings of each model in the last 30 days above it."""
        recent = MessageFeedback.objects.filter(updated_at__gt=timezone.now() - COUNTED)
        counts = (
            recent.values("model_id", "model__name")
            .annotate(
                good=Count("pk", filter=Q(rating="good")), bad=Count("pk", filter=Q(rating="bad"))
            )
            .order_by("-bad", "-good", "model__name")
        )
        return super().changelist_view(request, {"counts": counts} | (extra_context or {}))
