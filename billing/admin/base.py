"""Base classes and columns of the admin pages of billing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from django.contrib import admin
from django.forms.models import model_to_dict
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy

from billing import credits
from billing.ledger import staff_actions
from chatproject.lib.admin import NOTHING, BaseAdmin, ReadOnlyAdmin, client_ip, column, staff_id

show_signed = partial(credits.show, signed=True)


def amount(field: str, title: str = "", *, signed: bool = False) -> Callable[[Any], str]:
    """Return a column that shows micro-credits in credits."""
    return column(field, show_signed if signed else credits.show, title)


@cache
def money(field: str, title: str = "", currency: str = "currency") -> Callable[[Any], str]:
    """Return a column that shows minor units; `currency` is the path to their currency."""

    @admin.display(description=title or field.removesuffix("_minor").replace("_", " "))
    def shown(row: Any) -> str:
        unit: Any = row
        for name in currency.split("__"):
            unit = getattr(unit, name)
        return credits.show_money(getattr(row, field), unit) if unit else NOTHING

    shown.__name__ = f"{field}_money"
    return shown


@admin.display(description=gettext_lazy("user"), ordering="account__user__email")
def owner(row: Any) -> SafeString:
    """Return the user of a row's account, as a link to the account."""
    url = reverse("admin:billing_account_change", args=[row.account_id])
    return format_html('<a href="{}">{}</a>', url, row.account.user)


class RecordAdmin(ReadOnlyAdmin, BaseAdmin):
    """Shows records of billing, which only the program writes.

    A row's page shows all fields but those in `hidden`, and `extra_fields` (columns) below.
    `credit_fields` are micro-credits, `money_fields` minor units with the path to their currency.
    """

    hidden: tuple[str, ...] = ()
    credit_fields: tuple[str, ...] = ()
    money_fields: Mapping[str, str] = {}
    extra_fields: tuple[Any, ...] = ()

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        names = [field.name for field in self.model._meta.fields if field.name not in self.hidden]
        return [*map(self._line, names), *self.extra_fields]

    def seen_columns(self, request: HttpRequest) -> set[str]:
        names = {field.name for field in self.model._meta.fields}
        return super().seen_columns(request) | (names - {*self.hidden})

    def _line(self, name: str) -> Any:
        if name in self.credit_fields:
            return column(name, credits.exact)
        if name in self.money_fields:
            return money(name, currency=self.money_fields[name])
        return name

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return self.get_fields(request, obj)


class AuditedAdmin(BaseAdmin):
    """Takes changes by staff, and records each one in the audit with the values before it.

    Fields in `counted_elsewhere` are never saved: their value in the form may be outdated.
    """

    counted_elsewhere: tuple[str, ...] = ()

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        before: dict[str, Any] = {}
        if change:
            before = _values(type(obj)._default_manager.get(pk=obj.pk))
            fields = {field.name for field in obj._meta.concrete_fields if not field.primary_key}
            obj.save(update_fields=fields - {*self.counted_elsewhere})
        else:
            obj.save()
        after = _values(obj)
        if change:
            after = {name: value for name, value in after.items() if before.get(name) != value}
            before = {name: before[name] for name in after if name in before}
        if after:
            self._record(request, "change" if change else "add", obj, before, after)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        before = _values(obj)
        target = str(obj)
        super().delete_model(request, obj)
        self._record(request, "delete", target, before, {})

    def delete_queryset(self, request: HttpRequest, queryset: Any) -> None:
        for obj in queryset:
            self.delete_model(request, obj)

    def _record(
        self,
        request: HttpRequest,
        verb: str,
        target: Any,
        before: dict[str, Any],
        after: dict[str, Any],
        change: str = "",
    ) -> None:
        """Store the audit record; `change` is one in words that the admin's log lacks."""
        staff_actions.record(
            actor_id=staff_id(request),
            action=f"{verb} {self.model._meta.verbose_name}"[:40],
            target=str(target),
            before=before,
            after=after,
            ip=client_ip(request),
            row=target if change else None,
            change=change,
        )


def _values(obj: Any) -> dict[str, Any]:
    """Return the row in values that JSON can represent."""
    plain = (str, int, bool, type(None), list, dict)
    return {
        name: value if isinstance(value, plain) else str(value)
        for name, value in model_to_dict(obj).items()
    }
