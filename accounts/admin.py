"""Admin of users."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.urls import reverse
from django.utils.html import format_html

from accounts.models import User
from billing import credits


@admin.register(User)
class UserAdmin(DjangoUserAdmin):  # type: ignore[type-arg] # not generic at run time
    ordering = ["email"]
    list_display = ["email", "is_active", "is_staff", "credits", "date_joined", "last_login"]
    list_select_related = ["account"]
    list_filter = ["is_active", "is_staff", "date_joined"]
    search_fields = ["email", "first_name", "last_name"]
    readonly_fields = ["date_joined", "last_login"]
    fieldsets = [
        (None, {"fields": ["email", "password"]}),
        ("Person", {"fields": ["first_name", "last_name"]}),
        (
            "Rights",
            {"fields": ["is_active", "is_staff", "is_superuser", "groups", "user_permissions"]},
        ),
        ("Dates", {"fields": ["date_joined", "last_login"]}),
    ]

    @admin.display(description="credits")
    def credits(self, user: User) -> str:
        """Return the available credits, as a link to the account."""
        account = getattr(user, "account", None)
        if account is None:
            return ""
        url = reverse("admin:billing_account_change", args=[account.pk])
        return format_html('<a href="{}">{}</a>', url, credits.show(account.available))

    add_fieldsets = [(None, {"classes": ["wide"], "fields": ["email", "password1", "password2"]})]
