"""Users and the rows that give them rights: what staff change, and superusers alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from allauth.account.adapter import get_adapter
from allauth.account.admin import EmailAddressAdmin as AllauthEmailAddressAdmin
from allauth.account.forms import default_token_generator
from allauth.account.models import EmailAddress, EmailConfirmationHMAC
from allauth.account.utils import user_pk_to_url_str
from allauth.mfa import admin as _allauth_mfa  # noqa: F401 # registers what is unregistered below
from allauth.mfa.models import Authenticator
from allauth.usersessions import admin as _allauth_sessions  # noqa: F401 # the same
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from accounts import joining, signup
from accounts.forms import AdminPasswordForm
from accounts.mfa import factors
from accounts.models import (
    AccountDeletion,
    SignupGrant,
    User,
)
from accounts.privacy import leaving
from billing import credits
from chatproject.lib import db, origins
from chatproject.lib.admin import (
    BaseAdmin,
    LoggedValues,
    ReadOnlyAdmin,
    require_permission,
    row_pages,
    staff_id,
)

APPROVE, LINK = "accounts.approve_user", "accounts.link_user"
RESET_FACTORS = "accounts.reset_factors"

RIGHTS = (
    "is_staff",
    "is_superuser",
    "groups",
    "user_permissions",
)  # only superusers give and take them
SHOWN = 100  # users that the page to confirm names

admin.site.unregister([Group, EmailAddress, Authenticator, UserSession])


def may_change(request: HttpRequest, user: User | None) -> bool:
    """Return whether a member of staff may change a user; None stands for users in general.

    Staff are changed by superusers alone: another password or e-mail address of a member of staff gives
    all of that person's rights.
    """
    return request.user.is_superuser or user is None or not (user.is_staff or user.is_superuser)


class ChangedBySuperusers(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    """An admin of rows that give rights: others with a permission only read them."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.is_superuser

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.is_superuser

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        return super().get_actions(request) if request.user.is_superuser else {}


@admin.register(Group)
class GroupAdmin(ChangedBySuperusers, LoggedValues, DjangoGroupAdmin):
    pass


@admin.register(EmailAddress)
class EmailAddressAdmin(ChangedBySuperusers, LoggedValues, AllauthEmailAddressAdmin):
    """Addresses beside the primary one: a confirmed one receives links to a new password."""

    @admin.action(description=gettext_lazy("Mark selected email addresses as verified"))
    def make_verified(self, request: HttpRequest, queryset: QuerySet[EmailAddress]) -> None:
        """Verify addresses, each with an entry in the admin's log."""
        keys = [address.pk for address in queryset.filter(verified=False)]
        super().make_verified(request, queryset)
        verified = EmailAddress.objects.filter(pk__in=keys, verified=True)
        LogEntry.objects.log_actions(
            staff_id(request), verified, CHANGE, change_message=_("Marked as verified")
        )


@admin.register(User)
class UserAdmin(LoggedValues, DjangoUserAdmin):  # type: ignore[type-arg] # not generic at run time
    change_password_form = AdminPasswordForm
    ordering = ["email"]
    list_display = ["email", "is_active", "is_staff", "credits", "date_joined", "last_login"]
    list_select_related = ["account"]
    list_filter = ["awaits_approval", "is_active", "is_staff", "date_joined"]
    search_fields = ["email", "first_name", "last_name"]
    readonly_fields = ["date_joined", "last_login"]
    fieldsets = [
        (None, {"fields": ["email", "password"]}),
        (gettext_lazy("Person"), {"fields": ["first_name", "last_name"]}),
        (
            gettext_lazy("Rights"),
            {"fields": ["is_active", "is_staff", "is_superuser", "groups", "user_permissions"]},
        ),
        (gettext_lazy("Dates"), {"fields": ["date_joined", "last_login"]}),
    ]
    add_fieldsets = [(None, {"classes": ["wide"], "fields": ["email", "password1", "password2"]})]
    actions = [
        "approve_accounts",
        "refuse_accounts",
        "deactivate",
        "reactivate",
        "delete_accounts",
    ]

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return super().has_change_permission(request, obj) and may_change(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Return False: a user's runs, orders and ledger must outlive the access."""
        return False

    def get_fieldsets(self, request: HttpRequest, obj: User | None = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None or self.has_change_permission(request, obj):
            return fieldsets
        # Django would offer "Reset password" on a page that cannot change the user.
        return [(None, {"fields": ["email"]}), *fieldsets[1:]]

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> list[str]:
        fixed = [*super().get_readonly_fields(request, obj)]
        return fixed if request.user.is_superuser else [*fixed, *RIGHTS]

    @admin.display(description=gettext_lazy("credits"))
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
        pages = {
            "access": self.access_view,
            "deactivate": self.deactivate_view,
            "reactivate": self.reactivate_view,
            "leave": self.leave_view,
        }
        return [*row_pages(self, "int:user_id", pages), *super().get_urls()]

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Redirect to the page that deactivates."""
        user = self.get_object(request, object_id)
        if user is None:
            return redirect("admin:accounts_user_changelist")
        return redirect("admin:accounts_user_deactivate", user.pk)

    def deactivate_view(self, request: HttpRequest, user_id: int) -> HttpResponse:
        """Deactivate a user, after a confirmation."""
        return self._active_page(request, User.objects.filter(pk=user_id), is_active=False)

    def reactivate_view(self, request: HttpRequest, user_id: int) -> HttpResponse:
        """Reactivate a user, after a confirmation."""
        return self._active_page(request, User.objects.filter(pk=user_id), is_active=True)

    def has_approve_permission(self, request: HttpRequest) -> bool:
        """Return whether a member of staff may approve accounts: for the actions."""
        return request.user.has_perm(APPROVE)

    @admin.action(
        description=gettext_lazy("Approve selected new accounts"), permissions=["approve"]
    )
    def approve_accounts(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """Approve the selected accounts that wait, and write to them."""
        self._decide(request, queryset, is_approved=True)

    @admin.action(description=gettext_lazy("Refuse selected new accounts"), permissions=["approve"])
    def refuse_accounts(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """Refuse the selected accounts that wait, and write to them."""
        self._decide(request, queryset, is_approved=False)

    def _decide(self, request: HttpRequest, queryset: QuerySet[User], *, is_approved: bool) -> None:
        count = 0
        for user in queryset.filter(awaits_approval=True):
            with transaction.atomic():
                if joining.decide(user, is_approved=is_approved):
                    log(request, user, "Approved" if is_approved else "Refused")
                    count += 1
        word = _("approved") if is_approved else _("refused")
        messages.success(
            request,
            _("%(count)s new accounts are %(word)s.") % {"count": count, "word": word},
        )

    @admin.action(description=gettext_lazy("Deactivate selected users"), permissions=["change"])
    def deactivate(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponse:
        """Deactivate the selected users, after a confirmation."""
        return self._active_page(request, queryset, is_active=False)

    @admin.action(description=gettext_lazy("Reactivate selected users"), permissions=["change"])
    def reactivate(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponse:
        """Reactivate the selected users, after a confirmation."""
        return self._active_page(request, queryset, is_active=True)

    def leave_view(self, request: HttpRequest, user_id: int) -> HttpResponse:
        """Delete a user's account, after a confirmation."""
        return self._leave_page(request, User.objects.filter(pk=user_id))

    @admin.action(description=gettext_lazy("Delete selected accounts"), permissions=["leave"])
    def delete_accounts(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponse:
        """Delete the accounts of the selected users, after a confirmation."""
        return self._leave_page(request, queryset)

    def has_leave_permission(self, request: HttpRequest) -> bool:
        """Return whether a member of staff may delete accounts: the permission to delete users."""
        return request.user.has_perm("accounts.delete_user")

    def _leave_page(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponse:
        require_permission(request, "accounts.delete_user")
        # Accounts that their users delete, too: these could restore them.
        open_ones = queryset.filter(deletion__by=None, deletion__started_at=None)
        users = list(open_ones.order_by("email"))
        left = [user for user in users if may_change(request, user) and user.pk != request.user.pk]
        if not left:
            raise PermissionDenied
        if request.POST.get("confirmed"):
            assert isinstance(request.user, User)
            for user in left:
                leaving.request(user, by=request.user)
                log(request, user, "Deleted the account")
            whom = str(left[0]) if len(left) == 1 else f"{len(left)} accounts"
            messages.success(
                request,
                _("%(whom)s will be purged in %(days)s days.")
                % {"whom": whom, "days": settings.ACCOUNT_DELETION_DAYS},
            )
            if skipped := len(users) - len(left):
                messages.warning(
                    request,
                    _("%(count)d skipped: staff are deleted by superusers, and not by themselves.")
                    % {"count": skipped},
                )
            return redirect("admin:accounts_user_changelist")
        context = {
            **self.admin_site.each_context(request),
            "title": _("Delete accounts"),
            "opts": self.opts,
            "users": left[:SHOWN],
            "more": len(left[SHOWN:]),
            "days": settings.ACCOUNT_DELETION_DAYS,
            "selected": [user.pk for user in left] if request.POST.get("action") else [],
            "action": request.POST.get("action", ""),
        }
        return TemplateResponse(request, "admin/accounts/user/leave.html", context)

    def _active_page(
        self, request: HttpRequest, queryset: QuerySet[User], *, is_active: bool
    ) -> HttpResponse:
        # The tombstone of a purged account stays as it is.
        users = list(queryset.filter(deletion__purged_at=None).order_by("email"))
        changed = [
            user
            for user in users
            if self.has_change_permission(request, user) and user.pk != request.user.pk
        ]
        if not changed:
            raise PermissionDenied
        if request.POST.get("confirmed"):
            try:
                set_active(request, changed, is_active=is_active)
            except leaving.NotRestorable:
                messages.error(
                    request, _("The purge of an account has begun. Nothing was changed.")
                )
                return redirect("admin:accounts_user_changelist")
            word = _("Reactivated") if is_active else _("Deactivated")
            whom = str(changed[0]) if len(changed) == 1 else f"{len(changed)} users"
            messages.success(request, f"{word} {whom}.")
            if skipped := len(users) - len(changed):
                messages.warning(
                    request,
                    f"{skipped} skipped: staff are changed by superusers, and not by themselves.",
                )
            if request.POST.get("action") or len(users) > 1:
                return redirect("admin:accounts_user_changelist")
            return redirect("admin:accounts_user_change", changed[0].pk)
        verb = _("Reactivate") if is_active else _("Deactivate")
        context = {
            **self.admin_site.each_context(request),
            "title": f"{verb} {changed[0]}" if len(changed) == 1 else f"{verb} users",
            "opts": self.opts,
            "verb": verb,
            "is_active": is_active,
            "users": changed[:SHOWN],
            "more": len(changed[SHOWN:]),
            "selected": [user.pk for user in users] if request.POST.get("action") else [],
            "action": request.POST.get("action", ""),
        }
        return TemplateResponse(request, "admin/accounts/user/active.html", context)

    def access_view(self, request: HttpRequest, user_id: int) -> HttpResponse:
        """Approve a user, or create a link for one who gets no mail."""
        user = get_object_or_404(User, pk=user_id)
        is_permitted = [request.user.has_perm(name) for name in (APPROVE, LINK, RESET_FACTORS)]
        if not any(is_permitted) or not self.has_view_permission(request, user):
            raise PermissionDenied
        address = EmailAddress.objects.filter(user=user, email=user.email).first()
        context = {
            **self.admin_site.each_context(request),
            "title": (_("Access of %(user)s") % {"user": user}),
            "opts": self.opts,
            "original": user,
            "is_verified": address is not None and address.verified,
            "factors": [str(factor) for factor in factors.own_factors(user)],
        }
        action = request.POST.get("action")
        # The link of a member of staff would give its creator all of that person's rights.
        if action and not may_change(request, user):
            raise PermissionDenied
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
        if action == "factors":
            require_permission(request, RESET_FACTORS)
            with transaction.atomic():
                is_removed = factors.remove_all(user)
                if is_removed:
                    log(request, user, "Removed the second factors")
            if is_removed:
                text = _("The second factors of %(user)s are removed.")
                messages.success(request, text % {"user": user})
            return redirect("admin:accounts_user_access", user.pk)
        if action in ("password", "confirm"):
            require_permission(request, LINK)
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
            context |= {"link": origins.public_address(request, link), "action": action}
        return TemplateResponse(request, "admin/accounts/user/access.html", context)


@admin.register(AccountDeletion)
class AccountDeletionAdmin(ReadOnlyAdmin, BaseAdmin):
    """Accounts in deletion, and the tombstones of purged ones."""

    list_display = ["user", "by", "requested_at", "due_at", "purged_at"]
    list_select_related = ["user", "by"]
    list_filter = ["requested_at", ("purged_at", admin.EmptyFieldListFilter)]
    search_fields = ["user__email"]
    fields = ["user", "by", "requested_at", "due_at", "reminded_at", "started_at", "purged_at"]


def set_active(request: HttpRequest, users: Iterable[User], *, is_active: bool) -> None:
    """Give users their access again, or end it; saving each ends its sockets.

    Users that another member of staff has changed so meanwhile are left as they are. An account that is being
    deleted is restored. Raises NotRestorable once its purge has begun.
    """
    keys = [user.pk for user in users]
    with transaction.atomic():
        rows = User.objects.select_for_update(no_key=True).order_by("pk")
        for user in rows.filter(pk__in=keys, is_active=not is_active):
            if is_active and AccountDeletion.objects.filter(user=user).exists():
                leaving.restore(user)
            user.is_active = is_active
            user.awaits_approval = False
            user.save(update_fields=["is_active", "awaits_approval"])
            log(request, user, "Reactivated" if is_active else "Deactivated")


def log(request: HttpRequest, user: User, change: str) -> None:
    """Store in the audit log of the admin what a member of staff did to a user."""
    LogEntry.objects.log_actions(
        staff_id(request), [user], CHANGE, change_message=change, single_object=True
    )
