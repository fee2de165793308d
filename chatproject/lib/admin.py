"""Base classes, columns and checks of the admin that the apps share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.admin.views.main import ChangeList
from django.contrib.admin.widgets import AutocompleteSelect
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connection, models
from django.db.models.constants import LOOKUP_SEP
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _

from chatproject.lib.http import client_address

NOTHING = "\N{EN DASH}"


def values_filter(*values: str) -> type[admin.FieldListFilter]:
    """Return a list filter that offers these values of a text field.

    Django's own offers the values of all rows, which it reads by SELECT DISTINCT for each page of the list.
    """

    class ValuesFilter(admin.FieldListFilter):
        def __init__(
            self,
            field: Any,
            request: HttpRequest,
            params: Any,
            model: Any,
            model_admin: Any,
            field_path: str,
        ) -> None:
            self._chosen = params.get(field_path, [""])[-1]
            super().__init__(field, request, params, model, model_admin, field_path)

        def expected_parameters(self) -> list[str | None]:
            return [self.field_path]

        def choices(self, changelist: Any) -> Iterator[Any]:
            yield {
                "selected": not self._chosen,
                "query_string": changelist.get_query_string(remove=[self.field_path]),
                "display": _("All"),
            }
            for value in values:
                yield {
                    "selected": value == self._chosen,
                    "query_string": changelist.get_query_string({self.field_path: value}),
                    "display": value,
                }

    return ValuesFilter


def choices_filter(**limits: object) -> type[admin.FieldListFilter]:
    """Return a list filter of a foreign key that offers the rows with these field values alone.

    Django's own offer all rows, or read those in use by SELECT DISTINCT for each page of the list.
    """

    class ChoicesFilter(admin.RelatedFieldListFilter):
        def field_choices(self, field: Any, request: HttpRequest, model_admin: Any) -> Any:
            ordering = self.field_admin_ordering(field, request, model_admin)
            return field.get_choices(
                include_blank=False, ordering=ordering, limit_choices_to=limits
            )

    return ChoicesFilter


class SeenColumns(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    """Refuses filters in an address by columns that its user does not see.

    Django allows any column of the table, so that `?token__startswith=a` would find a secret out letter by letter.
    """

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        name = lookup.split(LOOKUP_SEP)[0]
        return name in self.seen_columns(request) and super().lookup_allowed(lookup, value, request)

    def seen_columns(self, request: HttpRequest) -> set[str]:
        """Return the names of the columns that the lists, filters, searches and forms for a user show."""
        names: set[str] = {"pk", self.opts.pk.name, self.date_hierarchy or "pk"}
        shown = [
            *self.get_list_display(request),
            *flatten_fieldsets(self.get_fieldsets(request)),
            *self.get_readonly_fields(request),
            *(one[0] if isinstance(one, tuple) else one for one in self.get_list_filter(request)),
            # A search for a whole value finds nothing out.
            *(one for one in self.get_search_fields(request) if not one.endswith("exact")),
        ]
        for one in shown:
            path = one
            if not isinstance(one, str):  # a list filter of a parameter, or a method
                path = getattr(one, "parameter_name", getattr(one, "admin_order_field", ""))
            names.add(str(path or "pk").lstrip("-").split(LOOKUP_SEP)[0])
        return names


LONGEST_VALUE = 200  # characters of a value in the admin's log


class LoggedValues(SeenColumns):
    """Stores in the admin's log the old and new values of changed fields.

    A field that only the form has, such as a key or a password, is named without its values.
    """

    def construct_change_message(
        self, request: HttpRequest, form: Any, formsets: Any, add: bool = False
    ) -> Any:
        if not form.changed_data:
            return super().construct_change_message(request, form, formsets, add)
        columns = {field.name for field in self.model._meta.get_fields()}
        parts = []
        for name in form.changed_data:
            # Django's form of a password names the column, which is none of its fields.
            field = form.fields.get(name)
            part = str((field and field.label) or name)
            if field is not None and name in columns and name != "password":
                old = "" if add else f"{_shown(field, form.initial.get(name))} → "
                part = f"{part}: {old}{_shown(field, form.cleaned_data.get(name))}"
            parts.append(part)
        return f"{'Added' if add else 'Changed'}. {'; '.join(parts)}."


def _shown(field: forms.Field, value: Any) -> str:
    """Return a value as the admin's log shows it; of a related row, its name."""
    if isinstance(field, forms.ModelMultipleChoiceField):
        value = ", ".join(sorted(map(str, value or [])))
    elif isinstance(field, forms.ModelChoiceField) and not isinstance(value, models.Model):
        assert field.queryset is not None
        value = field.queryset.model._default_manager.filter(pk=value).first()
    if not isinstance(value, models.Model):
        # As the form shows it: credits, for example, not the micro-credits that are stored.
        value = field.prepare_value(value)
    text = NOTHING if value in (None, "") else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


class BaseAdmin(LoggedValues):
    """An admin of a table that may be large.

    `form_fields` names form fields to use in place of Django's, by the name of the model field.
    """

    form_fields: Mapping[str, type[forms.Field]] = {}
    list_per_page = 50
    # Counting all rows once more for "N in total" is slow on large tables.
    show_full_result_count = False

    def formfield_for_foreignkey(
        self, db_field: models.ForeignKey[Any, Any], request: HttpRequest, **options: Any
    ) -> Any:
        if db_field.name in self.get_autocomplete_fields(request):
            options["widget"] = UsableChoices(db_field, self.admin_site)
        return super().formfield_for_foreignkey(db_field, request, **options)

    def formfield_for_dbfield(
        self, db_field: models.Field[Any, Any], request: HttpRequest, **options: Any
    ) -> forms.Field | None:
        if db_field.name not in self.form_fields:
            return super().formfield_for_dbfield(db_field, request, **options)
        return self.form_fields[db_field.name](
            required=not (db_field.blank or db_field.has_default()),
            label=str(db_field.verbose_name).capitalize(),
            initial=db_field.get_default() if db_field.has_default() else None,
            help_text=str(db_field.help_text),
        )


class MergedForm(forms.ModelForm):  # type: ignore[type-arg]
    """A form of a row that others may change while it is open: stores what its user has changed.

    A three-way merge: the form carries the values that it was opened with. A field that its user left
    keeps the row's present value. A field that both changed is refused with the present value, and
    replaces it when the form is sent again. A form field may have a method `merge(opened, sent, present)`
    that returns the value to store, or None where both changes exclude each other. `merged_fields` are
    fields of the form alone, which stores them if they were changed. The caller locks the row.
    """

    merged_fields: tuple[str, ...] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.instance.pk is None:
            return
        for name, field in self.fields.items():
            if isinstance(field, (forms.ModelMultipleChoiceField, forms.MultipleChoiceField)):
                continue  # a relation of its own, or a list, which is replaced as a whole
            if name in self.initial or name in self.merged_fields:
                opened = self.add_initial_prefix(name)
                field.show_hidden_initial = not self.is_bound or opened in self.data

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        data = self.cleaned_data
        for name, field in self.fields.items():
            if not field.show_hidden_initial:
                continue
            if name in self.changed_data:
                self._merge(name, field)
            elif name in data and name not in self.merged_fields:
                data[name] = getattr(self.instance, name)
        return cleaned

    def _merge(self, name: str, field: forms.Field) -> None:
        present, opened_name = self.initial.get(name), self.add_initial_prefix(name)
        try:
            opened = field.to_python(self.data[opened_name])
        except ValidationError:
            opened = None  # of a choice that was deleted meanwhile
        prepared = field.prepare_value(present)
        if not _differ(field, opened, prepared):
            return
        if name in self.cleaned_data:
            if not _differ(field, present, self[name].data):
                return  # both made the same change
            if (merge := getattr(field, "merge", None)) is not None:
                merged = merge(opened, self.cleaned_data[name], present)
                if merged is not None:
                    self.cleaned_data[name] = merged
                    return
        data: Any = self.data  # a QueryDict
        self.data = data = data.copy()
        data[opened_name] = "" if prepared is None else str(prepared)
        shown = _shown(field, prepared)
        self.add_error(
            name,
            (
                _(
                    "Changed meanwhile by others, to: %(shown)s. Save again to replace that by your value."
                )
                % {"shown": shown}
            ),
        )


def _differ(field: forms.Field, value: Any, data: Any) -> bool:
    """Return whether a form's data stands for another value, whatever the line breaks."""
    if isinstance(value, str) and isinstance(data, str):
        value, data = ("\n".join(text.splitlines()) for text in (value, data))
    return field.has_changed(value, data)


class MergingAdmin(BaseAdmin):
    """An admin whose forms are merged with changes of others: see MergedForm."""

    form = MergedForm

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        """Return a row; for a POST, locked until the end of the page's transaction."""
        row = super().get_object(request, object_id, from_field)
        # The page of the history has no transaction; a form posted to it must not fail.
        if row is not None and request.method == "POST" and connection.in_atomic_block:
            try:
                row.refresh_from_db(
                    from_queryset=self.model._default_manager.select_for_update(no_key=True)
                )
            except self.model.DoesNotExist:
                return None
        return row


class IndexedChangeList(ChangeList):
    """A list that is sorted by its `sortable_by` alone; Django's hides the links of others, but takes `?o=3`."""

    def get_ordering_field(self, field_name: Any) -> Any:
        is_sortable = self.sortable_by is None or field_name in self.sortable_by
        return super().get_ordering_field(field_name) if is_sortable else None


class LargeTable(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    """The list of a table that grows with each message or request: newest first, by its key.

    It is sorted only by columns in `sortable_by` that have an index: a sort of a million rows takes seconds.
    """

    ordering = ["-pk"]
    sortable_by: ClassVar[list[str]] = []
    show_full_result_count = False

    def get_changelist(self, request: HttpRequest, **options: Any) -> type[ChangeList]:
        return IndexedChangeList


class UsableChoices(AutocompleteSelect):
    """The field that searches a table, when its form is shown again with a key that is none.

    Django's queries whatever was posted, and fails before the form can show its error.
    """

    def optgroups(self, name: str, value: Sequence[str], attr: Any = None) -> Any:
        return super().optgroups(name, [key for key in value if self._is_key(key)], attr)

    def _is_key(self, text: str) -> bool:
        with suppress(ValidationError):
            self.field.remote_field.model._meta.pk.to_python(text)
            return True
        return False


class ReadOnlyAdmin(SeenColumns):
    """Shows rows that only the program writes: neither GET nor POST changes them."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def row_pages(
    model_admin: admin.ModelAdmin[Any], key: str, views: Mapping[str, Callable[..., HttpResponse]]
) -> list[URLPattern]:
    """Return the addresses of pages of one row, by their names; `key` is a converter, as `int:user_id`."""
    opts = model_admin.opts
    return [
        path(
            f"<{key}>/{name}/",
            model_admin.admin_site.admin_view(view),
            name=f"{opts.app_label}_{opts.model_name}_{name}",
        )
        for name, view in views.items()
    ]


@cache
def column(field: str, show: Callable[[Any], str], title: str = "") -> Callable[[Any], str]:
    """Return a column that formats a field with `show`, and None as a dash.

    Cached, as the admin compares the columns of a row's page by identity.
    """

    @admin.display(description=title or field.replace("_", " "), ordering=field)
    def shown(row: Any) -> str:
        value = getattr(row, field)
        return NOTHING if value is None else show(value)

    shown.__name__ = f"{field}_number"  # its class in admin.css
    return shown


def require_permission(request: HttpRequest, permission: str) -> None:
    """Raise PermissionDenied for staff without a permission, such as `billing.change_account`."""
    if not request.user.has_perm(permission):
        raise PermissionDenied


def staff_id(request: HttpRequest) -> int:
    """Return the id of the signed-in member of staff."""
    return int(request.user.pk)  # type: ignore[arg-type] # the admin requires a session


def client_ip(request: HttpRequest) -> str | None:
    """Return the address that a request came from, for the audit."""
    return client_address(request) or None
