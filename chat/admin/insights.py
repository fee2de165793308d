"""Admin of insights: categories with their figures of sale, their types, and the jobs that were bought."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Count, Q, QuerySet, Sum
from django.forms.fields import InvalidJSONInput
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.credits import CreditsFormField, in_column
from chat.insights.models import Category, InsightJob, InsightType
from chatproject.lib.admin import ReadOnlyAdmin

MOST_CHARACTERS = 40_000  # of a field with JSON


class JsonFormField(forms.JSONField):
    """JSON as indented text. A fault is refused with its place; so is what the database cannot store."""

    def __init__(self, *, rows: int = 8, **options: Any) -> None:
        attributes = {"rows": rows, "class": "vLargeTextField json-field", "spellcheck": "false"}
        super().__init__(**options | {"widget": forms.Textarea(attrs=attributes)})

    def prepare_value(self, value: Any) -> Any:
        """Return the stored value as indented text; what was typed is shown again as it is."""
        if isinstance(value, InvalidJSONInput):
            return value
        return "" if value is None else json.dumps(value, indent=2, ensure_ascii=False)

    def bound_data(self, data: Any, initial: Any) -> Any:
        """Return what is shown again: the text, unless it can be indented."""
        try:
            return super().bound_data(data, initial)
        except RecursionError:
            return InvalidJSONInput(data)

    def to_python(self, value: Any) -> Any:
        """Return the value of a text. Raises ValidationError with a sentence."""
        if not isinstance(value, str):
            return super().to_python(value)
        if len(value) > MOST_CHARACTERS:
            raise ValidationError(
                _("This has %(size)d characters; at most %(most)d are allowed.")
                % {"size": len(value), "most": MOST_CHARACTERS}
            )
        try:
            found = json.loads(value, parse_constant=_refuse) if value.strip() else None
            text = json.dumps(found, ensure_ascii=False)
        except json.JSONDecodeError as error:
            raise ValidationError(
                _("This is not JSON: line %(line)d, column %(column)d: %(problem)s.")
                % {"line": error.lineno, "column": error.colno, "problem": error.msg}
            ) from error
        except RecursionError as error:
            raise ValidationError(_("This is nested too deep.")) from error
        except ValueError as error:
            raise ValidationError(
                _("This is not JSON: %(problem)s") % {"problem": error}
            ) from error
        if "\\u0000" in text or any("\ud800" <= one <= "\udfff" for one in text):
            raise ValidationError(_("A text has a character that cannot be stored."))
        return found


def _refuse(name: str) -> None:
    raise ValueError(name)


class LinesFormField(forms.CharField):
    """A list of texts, one a line."""

    widget = forms.Textarea(attrs={"rows": 6, "class": "vLargeTextField"})

    def prepare_value(self, value: Any) -> Any:
        """Return the stored texts as lines; what was typed is shown again as it is."""
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        """Return the list to store."""
        lines = value if isinstance(value, list) else str(value or "").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(self.to_python(initial) != self.to_python(data))


class TypeForm(forms.ModelForm):  # type: ignore[type-arg] # generic in the stubs alone
    keywords = LinesFormField(
        required=False, help_text=InsightType._meta.get_field("keywords").help_text
    )
    schema = JsonFormField(rows=20, help_text=InsightType._meta.get_field("schema").help_text)
    example = JsonFormField(
        required=False, help_text=InsightType._meta.get_field("example").help_text
    )

    class Meta:
        model = InsightType
        fields = [
            "category", "key", "name", "prompt", "keywords", "schema", "example", "groups",
            "position", "active",
        ]  # fmt: skip


class TypeInline(admin.TabularInline):  # type: ignore[type-arg]
    """The types of a category in their order; each has a page of its own."""

    model = InsightType
    fields = ["key", "groups", "position", "active"]
    readonly_fields = ["key"]
    extra = 0
    can_delete = False
    show_change_link = True

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


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
    inlines = [TypeInline]
    change_form_template = "admin/insights/category/change_form.html"

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
    form = TypeForm
    prepopulated_fields = {"key": ["name"]}
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
