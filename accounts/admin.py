"""Admin of users."""

from __future__ import annotations

from typing import Any

from allauth.account.adapter import get_adapter
from allauth.account.forms import default_token_generator
from allauth.account.models import EmailAddress, EmailConfirmationHMAC
from allauth.account.utils import user_pk_to_url_str
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from accounts import signup
from accounts.forms import AdminPasswordForm
from accounts.models import SignupGrant, User
from billing import credits
from chatproject.lib import db
from chatproject.lib.admin import BaseAdmin, ReadOnlyAdmin, require_permission, staff_id

APPROVE, LINK = "accounts.approve_user", "accounts.link_user"


@admin.register(User)
class UserAdmin(DjangoUserAdmin):  # type: ignore[type-arg] # not generic at run time
    change_password_form = AdminPasswordForm
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
    add_fieldsets = [(None, {"classes": ["wide"], "fields": ["email", "password1", "password2"]})]

    @admin.display(description="credits")
    def credits(self, user: User) -> str:
        """Return the available credits, as a link to the account."""
        account = getattr(user, "account", None)
        if account is None:
            return ""
        url = reverse("admin:billing_account_change", args=[account.pk])
        return format_html('<a href="{}">{}</a>', url, credits.show(account.available))

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        """Store a user; one created by staff has a right to the sign-up credits.

        A new e-mail address replaces the old one, which is notified and no longer resets the password.
        """
        super().save_model(request, obj, form, change)
        if not change:
            SignupGrant.objects.create(user=obj)
            db.after_commit(signup.grant, obj.pk)
        elif "email" in form.changed_data:
            old = form.initial["email"]
            EmailAddress.objects.filter(user=obj, email__iexact=old).delete()
            EmailAddress.objects.filter(user=obj).update(primary=False)
            EmailAddress.objects.update_or_create(
                user=obj, email=obj.email, defaults={"primary": True}
            )
            context = {"from_email": old, "to_email": obj.email}
            get_adapter(request).send_notification_mail(
                "account/email/email_changed", obj, context, email=old
            )

    def get_urls(self) -> list[URLPattern]:
        access = path(
            "<int:user_id>/access/",
            self.admin_site.admin_view(self.access_view),
            name="accounts_user_access",
        )
        return [access, *super().get_urls()]

    def access_view(self, request: HttpRequest, user_id: int) -> HttpResponse:
        """Approve a user, or create a link for one who gets no mail."""
        user = get_object_or_404(User, pk=user_id)
        is_permitted = [request.user.has_perm(APPROVE), request.user.has_perm(LINK)]
        if not any(is_permitted) or not self.has_view_permission(request, user):
            raise PermissionDenied
        address = EmailAddress.objects.filter(user=user, email=user.email).first()
        context = {
            **self.admin_site.each_context(request),
            "title": f"Access of {user}",
            "opts": self.opts,
            "original": user,
            "is_verified": address is not None and address.verified,
        }
        action = request.POST.get("action")
        if action == "approve":
            require_permission(request, APPROVE)
            with transaction.atomic():
                is_approved = signup.approve(user)
                if is_approved:
                    log(request, user, "Approved")
            if is_approved:
                messages.success(request, f"{user} is approved.")
            else:
                messages.error(request, f"{user.email} is confirmed for another account.")
            return redirect("admin:accounts_user_access", user.pk)
        if action in ("password", "confirm"):
            require_permission(request, LINK)
            # The link of a member of staff would give its creator all of that person's rights.
            if (user.is_staff or user.is_superuser) and not request.user.is_superuser:
                raise PermissionDenied
            if action == "password":
                key = f"{user_pk_to_url_str(user)}-{default_token_generator.make_token(user)}"
                names = dict(zip(["uidb36", "key"], key.split("-", 1), strict=True))
                link = reverse("account_reset_password_from_key", kwargs=names)
                log(request, user, "Created a link to set the password")
            else:
                if address is None:
                    address = EmailAddress.objects.create(user=user, email=user.email)
                if address.verified:
                    return redirect("admin:accounts_user_access", user.pk)
                link = reverse("account_confirm_email", args=[EmailConfirmationHMAC(address).key])
                log(request, user, "Created a link to confirm the address")
            context |= {"link": request.build_absolute_uri(link), "action": action}
        return TemplateResponse(request, "admin/accounts/user/access.html", context)


@admin.register(SignupGrant)
class SignupGrantAdmin(ReadOnlyAdmin, BaseAdmin):
    list_display = ["user", "created_at", "granted_at"]
    list_select_related = ["user"]
    search_fields = ["user__email"]
    ordering = ["-created_at"]
    fields = ["user", "created_at", "granted_at"]


def log(request: HttpRequest, user: User, change: str) -> None:
    """Store in the audit log of the admin what a member of staff did to a user."""
    LogEntry.objects.log_actions(
        staff_id(request), [user], CHANGE, change_message=change, single_object=True
    )
