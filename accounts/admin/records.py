"""Records of accounts, which staff read: connected accounts, API keys, and the admin's own log."""

from __future__ import annotations

from allauth.socialaccount import admin as _allauth_social  # noqa: F401 # registers what is unregistered below
from allauth.socialaccount.models import SocialAccount, SocialApp, SocialToken
from django.contrib import admin
from django.contrib.admin.models import CHANGE, LogEntry
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext_lazy

from accounts import api_keys
from accounts.models import (
    ApiKey,
    User,
)
from billing import credits
from chatproject.lib.admin import (
    BaseAdmin,
    LargeTable,
    ReadOnlyAdmin,
    choices_filter,
    staff_id,
)

admin.site.unregister([SocialAccount, SocialApp, SocialToken])


@admin.register(SocialAccount)
class SocialAccountAdmin(ReadOnlyAdmin, BaseAdmin):
    """The accounts at identity providers that users have connected."""

    list_display = ["user", "provider", "date_joined", "last_login"]
    list_select_related = ["user"]
    # A list filter would read the provider of all rows for each page.
    search_fields = ["user__email", "uid__exact", "provider__exact"]
    ordering = ["-pk"]
    fields = ["user", "provider", "uid", "date_joined", "last_login"]


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin, BaseAdmin):
    """The API keys of all users, which staff may revoke; a key itself is nowhere."""

    list_display = [
        "prefix",
        "user",
        "name",
        "created_at",
        "last_used_at",
        "expires_at",
        "revoked_at",
    ]
    list_select_related = ["user"]
    list_filter = ["created_at", ("revoked_at", admin.EmptyFieldListFilter)]
    search_fields = ["prefix", "user__email", "name"]
    search_help_text = gettext_lazy("First characters, name, or e-mail address of the user")
    readonly_fields = [
        *("user", "name", "prefix", "scopes", "created_at", "expires_at", "last_used_at"),
        *("revoked_at", "rate", "spent_credits", "limit_credits"),
    ]
    fields = (*readonly_fields,)
    actions = ["revoke"]

    @admin.display(description=gettext_lazy("spent"))
    def spent_credits(self, key: ApiKey) -> str:
        """Return the credits that the key has spent."""
        return credits.show(key.spent)

    @admin.display(description=gettext_lazy("limits in credits"))
    def limit_credits(self, key: ApiKey) -> str:
        """Return the spending limits of the key."""
        limits = [(key.limit_month, "per month"), (key.limit_total, "in all")]
        return ", ".join(
            f"{credits.show(one)} {period}" for one, period in limits if one is not None
        )

    @admin.action(description=gettext_lazy("Revoke selected API keys"), permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        """Revoke keys at once, each with an entry in the admin's log."""
        assert isinstance(request.user, User)
        for key in queryset.filter(revoked_at=None):
            with transaction.atomic():
                if api_keys.revoke(key, by=request.user):
                    LogEntry.objects.log_actions(
                        staff_id(request),
                        [key],
                        CHANGE,
                        change_message="Revoked",
                        single_object=True,
                    )

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Return whether a member of staff may revoke keys."""
        return request.user.has_perm("accounts.change_apikey")


@admin.register(LogEntry)
class LogEntryAdmin(LargeTable, ReadOnlyAdmin, BaseAdmin):
    """The record of the staff's actions in the admin; billing's audit records have actions on money."""

    list_display = ["action_time", "user", "content_type", "subject", "done"]
    list_display_links = ["action_time"]
    list_filter = [
        "action_time",
        "action_flag",
        ("user", choices_filter(is_staff=True)),
        "content_type",
    ]
    list_select_related = ["user", "content_type"]
    search_fields = ["object_repr", "change_message", "user__email", "object_id__exact"]
    search_help_text = gettext_lazy(
        "E-mail address of the member of staff, name or id of the object, or a word of the change"
    )
    fields = ["action_time", "user", "content_type", "subject", "done"]
    readonly_fields = ["action_time", "user", "content_type", "subject", "done"]

    @admin.display(description=gettext_lazy("object"))
    def subject(self, entry: LogEntry) -> str:
        """Return the changed object, as a link to its page if it has one."""
        url = None if entry.is_deletion() else entry.get_admin_url()
        return (
            format_html('<a href="{}">{}</a>', url, entry.object_repr) if url else entry.object_repr
        )

    @admin.display(description=gettext_lazy("action"))
    def done(self, entry: LogEntry) -> str:
        """Return what was done, with old and new values."""
        return entry.get_change_message() or entry.get_action_flag_display()
