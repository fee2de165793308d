"""What the admin pages of billing share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import models
from django.forms.models import model_to_dict
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from billing import credits
from billing.admin.fields import CreditsFormField
from billing.ledger import staff_actions

NOTHING = "\N{EN DASH}"


def amount(field: str, title: str = "", *, signed: bool = False) -> Callable[[Any], str]:
    """A column of a list that shows micro-credits as people read them."""

    @admin.display(description=title or field.replace("_", " "), ordering=field)
    def shown(row: Any) -> str:
        value = getattr(row, field)
        return NOTHING if value is None else credits.show(value, signed=signed)

    shown.__name__ = f"{field}_amount"
    return shown


@cache
def money(field: str, title: str = "", currency: str = "currency") -> Callable[[Any], str]:
    """A column that shows minor units with their currency, which `currency` leads to."""

    @admin.display(description=title or field.removesuffix("_minor").replace("_", " "))
    def shown(row: Any) -> str:
        unit: Any = row
        for name in currency.split("__"):
            unit = getattr(unit, name)
        return credits.show_money(getattr(row, field), unit) if unit else NOTHING

    shown.__name__ = f"{field}_money"
    return shown


@admin.display(description="user", ordering="account__user__email")
def owner(row: Any) -> SafeString:
    """A column that names the user of a row's account, and leads to the account."""
    url = reverse("admin:billing_account_change", args=[row.account_id])
    return format_html('<a href="{}">{}</a>', url, row.account.user)


def insist(request: HttpRequest, permission: str) -> None:
    """Raise PermissionDenied for staff without a right, such as `billing.change_account`."""
    if not request.user.has_perm(permission):
        raise PermissionDenied


def staff_id(request: HttpRequest) -> int:
    """Who asks."""
    return int(request.user.pk)  # type: ignore[arg-type] # the admin lets nobody in anonymously


def address(request: HttpRequest) -> str | None:
    """Where a request came from, for the audit."""
    return request.META.get("REMOTE_ADDR") or None


class BillingAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    """Shows and takes the fields named in `credit_fields` in credits."""

    credit_fields: tuple[str, ...] = ()
    list_per_page = 50
    # Counting everything once more for "N in all" is slow on large tables.
    show_full_result_count = False

    def formfield_for_dbfield(
        self, db_field: models.Field[Any, Any], request: HttpRequest, **options: Any
    ) -> forms.Field | None:
        if db_field.name not in self.credit_fields:
            return super().formfield_for_dbfield(db_field, request, **options)
        return CreditsFormField(
            required=not (db_field.blank or db_field.has_default()),
            least=0,
            label=str(db_field.verbose_name).capitalize(),
            initial=db_field.get_default() if db_field.has_default() else None,
            help_text=in_credits(str(db_field.help_text)),
        )


def in_credits(help_text: str) -> str:
    """A model's help text for a form that takes credits."""
    return help_text.replace("Micro-credits", "Credits")


class ReadOnlyAdmin(BillingAdmin):
    """Shows rows that only the program writes: neither GET nor POST changes them.

    A row's page shows all fields but those in `hidden`, and `extra_fields` (columns) below.
    `money_fields` are minor units, with the way to their currency.
    """

    hidden: tuple[str, ...] = ()
    money_fields: Mapping[str, str] = {}
    extra_fields: tuple[Any, ...] = ()

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        names = [field.name for field in self.model._meta.fields if field.name not in self.hidden]
        return [*map(self._line, names), *self.extra_fields]

    def _line(self, name: str) -> Any:
        if name in self.credit_fields:
            return exactly(name)
        if name in self.money_fields:
            return money(name, currency=self.money_fields[name])
        return name

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return self.get_fields(request, obj)


@cache
def exactly(field: str) -> Callable[[Any], str]:
    """A line of a row's page that shows micro-credits as credits without loss."""

    @admin.display(description=field.replace("_", " "))
    def shown(row: Any) -> str:
        value = getattr(row, field)
        return NOTHING if value is None else credits.exact(value)

    shown.__name__ = field
    return shown


class AuditedAdmin(BillingAdmin):
    """What staff may change; each change is written down with what was there before.

    Fields in `counted_elsewhere` are never saved: their value in the form may be old.
    """

    counted_elsewhere: tuple[str, ...] = ()

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        before = _stored(obj) if change else {}
        if change:
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
    ) -> None:
        staff_actions.record(
            actor_id=staff_id(request),
            action=f"{verb} {self.model._meta.verbose_name}"[:40],
            target=str(target),
            before=before,
            after=after,
            ip=address(request),
        )


def _stored(obj: Any) -> dict[str, Any]:
    return _values(type(obj)._default_manager.get(pk=obj.pk))


def _values(obj: Any) -> dict[str, Any]:
    """The row in values that JSON can hold."""
    plain = (str, int, bool, type(None), list, dict)
    return {
        name: value if isinstance(value, plain) else str(value)
        for name, value in model_to_dict(obj).items()
    }
