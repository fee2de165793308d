"""Admin of insights: categories with their figures of sale, their types, and the jobs that were bought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, Q, QuerySet, Sum
from django.http import HttpRequest
from django.utils.translation import gettext_lazy

from billing.credits import CreditsFormField, in_column
from chat.insights.models import Category, InsightJob, InsightType
from chatproject.lib.admin import ReadOnlyAdmin


class CategoryForm(forms.ModelForm):  # type: ignore[type-arg] # generic in the stubs alone
    price = CreditsFormField(min_value=0, help_text=Category._meta.get_field("price").help_text)

    class Meta:
        model = Category
        fields = ["slug", "name", "description", "kind", "price", "model", "position", "active"]


@admin.register(Category)
class CategoryAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    form = CategoryForm
    list_display = [
        "name", "kind", "shown_price", "active", "sold", "delivered", "failed", "revenue",
    ]  # fmt: skip
    prepopulated_fields = {"slug": ["name"]}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Category]:
        """Return the categories with what was sold, delivered and charged of each."""
        jobs = InsightJob.objects.values("category").order_by()
        figures = {row["category"]: row for row in jobs.annotate(
            sold=Count("pk"),
            failed=Count("pk", filter=Q(status__in=["failed", "partial"])),
            delivered=Sum("delivered"),
            revenue=Sum("charged", default=0),
        )}  # fmt: skip
        self._figures: Mapping[int, Mapping[str, Any]] = figures
        return super().get_queryset(request)

    @admin.display(description=gettext_lazy("price"))
    def shown_price(self, one: Category) -> str:
        return in_column(one.price)

    @admin.display(description=gettext_lazy("jobs sold"))
    def sold(self, one: Category) -> int:
        return int(self._figure(one, "sold"))

    @admin.display(description=gettext_lazy("insights delivered"))
    def delivered(self, one: Category) -> int:
        return int(self._figure(one, "delivered"))

    @admin.display(description=gettext_lazy("jobs with failures"))
    def failed(self, one: Category) -> int:
        return int(self._figure(one, "failed"))

    @admin.display(description=gettext_lazy("revenue"))
    def revenue(self, one: Category) -> str:
        return in_column(self._figure(one, "revenue"))

    def _figure(self, one: Category, name: str) -> int:
        return int(self._figures.get(one.pk, {}).get(name) or 0)

    def has_delete_permission(self, request: HttpRequest, obj: Category | None = None) -> bool:
        """Return whether it was never sold: a sold one is made inactive instead."""
        is_sold = obj is not None and obj.jobs.exists()
        return not is_sold and super().has_delete_permission(request, obj)


@admin.register(InsightType)
class InsightTypeAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["name", "category", "key", "groups", "position", "active"]
    list_filter = ["category", "active"]
    list_select_related = ["category"]


@admin.register(InsightJob)
class InsightJobAdmin(ReadOnlyAdmin):
    """Purchases of insights with their money, and without the texts."""

    fields = [
        "owner", "category", "model", "language", "status", "price", "is_held", "total", "delivered",
        "charged", "created_at", "ended_at",
    ]  # fmt: skip
    list_display = [
        "created_at",
        "category",
        "owner",
        "status",
        "total",
        "delivered",
        "shown_charge",
    ]
    list_filter = ["status", "category", "created_at"]
    list_select_related = ["category", "owner"]
    list_per_page = 50
    show_full_result_count = False
    search_fields = ["owner__email"]

    @admin.display(description=gettext_lazy("charged"))
    def shown_charge(self, one: InsightJob) -> str:
        return "" if one.charged is None else in_column(one.charged)
