"""Admin of users."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from allauth.account.adapter import get_adapter
from allauth.account.admin import EmailAddressAdmin as AllauthEmailAddressAdmin
from allauth.account.forms import default_token_generator
from allauth.account.models import EmailAddress, EmailConfirmationHMAC
from allauth.account.utils import user_pk_to_url_str
from allauth.mfa import admin as _allauth_mfa  # noqa: F401 # registers what is unregistered below
from allauth.mfa.models import Authenticator
from allauth.socialaccount import admin as _allauth_social  # noqa: F401 # the same
from allauth.socialaccount.models import SocialAccount, SocialApp, SocialToken
from allauth.usersessions import admin as _allauth_sessions  # noqa: F401 # the same
from allauth.usersessions.models import UserSession
from django import forms
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
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from accounts import api_keys, invitations, joining, signup
from accounts.forms import AdminPasswordForm
from accounts.mfa import factors
from accounts.models import (
    AccountDeletion,
    ApiKey,
    Invitation,
    InvitationUse,
    SignupGrant,
    User,
)
from accounts.privacy import leaving
from billing import credits
from billing.models import Plan
from chatproject.lib import db
from chatproject.lib.admin import (
    BaseAdmin,
    LargeTable,
    LoggedValues,
    ReadOnlyAdmin,
    choices_filter,
    require_permission,
    row_pages,
    staff_id,
)
from chatproject.lib.mail import outbox

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
admin.site.unregister([SocialAccount, SocialApp, SocialToken])


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
            context |= {"link": request.build_absolute_uri(link), "action": action}
        return TemplateResponse(request, "admin/accounts/user/access.html", context)


@admin.register(AccountDeletion)
class AccountDeletionAdmin(ReadOnlyAdmin, BaseAdmin):
    """Accounts in deletion, and the tombstones of purged ones."""

    list_display = ["user", "by", "requested_at", "due_at", "purged_at"]
    list_select_related = ["user", "by"]
    list_filter = ["requested_at", ("purged_at", admin.EmptyFieldListFilter)]
    search_fields = ["user__email"]
    fields = ["user", "by", "requested_at", "due_at", "reminded_at", "started_at", "purged_at"]


class InvitationTerms(forms.Form):
    """The plan and group of invitations: staff give only rights that they may give."""

    days = forms.IntegerField(
        min_value=1, max_value=365, initial=14, label=gettext_lazy("Valid for so many days")
    )
    plan = forms.ModelChoiceField(
        Plan.objects.all(), required=False, empty_label=gettext_lazy("The default plan")
    )
    plan_days = forms.IntegerField(
        min_value=1,
        max_value=3650,
        required=False,
        label=gettext_lazy("Days of the plan"),
        help_text=gettext_lazy("From the sign-up on. Empty: no end."),
    )
    group = forms.ModelChoiceField(Group.objects.all(), required=False)
    note = forms.CharField(max_length=100, required=False, help_text=gettext_lazy("For staff."))

    def __init__(self, *args: Any, request: HttpRequest, **options: Any) -> None:
        super().__init__(*args, **options)
        if not request.user.has_perm("billing.change_account"):
            del self.fields["plan"], self.fields["plan_days"]
        if not request.user.is_superuser:
            # A group with permissions would give rights, which only superusers give.
            harmless = Group.objects.filter(permissions=None)
            self.fields["group"].queryset = harmless  # type: ignore[attr-defined]

    @property
    def terms(self) -> invitations.Terms:
        """The terms that the form's valid values make."""
        given: dict[str, Any] = self.cleaned_data
        return invitations.Terms(
            expires_at=timezone.now() + timedelta(days=given["days"]),
            group=given.get("group"),
            plan=given.get("plan"),
            plan_days=given.get("plan_days") if given.get("plan") else None,
            note=given["note"],
        )


class LinkForm(InvitationTerms):
    """A link: for one address or any, and for a number of people."""

    email = forms.EmailField(
        required=False,
        label=gettext_lazy("Address"),
        help_text=gettext_lazy("Empty: for any address."),
    )
    max_uses = forms.IntegerField(
        min_value=1, max_value=10_000, initial=1, label=gettext_lazy("Number of uses")
    )
    field_order = ("email", "max_uses", "days", "plan", "plan_days", "group", "note")

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or {}
        if given.get("email") and given.get("max_uses", 1) != 1:
            self.add_error("max_uses", _("An invitation of one address has one use."))
        return given


class ListForm(InvitationTerms):
    """A file with addresses."""

    file = forms.FileField(
        label=gettext_lazy("File"),
        help_text=gettext_lazy(
            "CSV in UTF-8: the column “email”, or the first one. At most 10,000 addresses."
        ),
    )
    field_order = ("file", "days", "plan", "plan_days", "group", "note")


@admin.register(Invitation)
class InvitationAdmin(BaseAdmin):
    list_display = ["__str__", "state", "uses", "max_uses", "plan", "group", "expires_at"]
    list_select_related = ["plan", "group"]
    list_filter = ["is_mailed", "created_at"]
    search_fields = ["email", "note"]
    actions = ["revoke"]
    change_list_template = "admin/accounts/invitation/change_list.html"

    @admin.display(description=gettext_lazy("state"))
    def state(self, one: Invitation) -> str:
        if one.revoked_at is not None:
            return _("Revoked")
        if one.uses >= one.max_uses:
            return _("Used")
        if one.expires_at <= timezone.now():
            return _("Expired")
        return _("Mail is due") if one.is_mailed and one.mailed_at is None else _("Open")

    def get_readonly_fields(self, request: HttpRequest, obj: Invitation | None = None) -> list[str]:
        return [field.name for field in self.opts.fields if field.name not in ("id", "hash")]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        upload = self.admin_site.admin_view(self.upload_view)
        return [
            path("upload/", upload, name="accounts_invitation_upload"),
            *super().get_urls(),
        ]

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Create a link, which the answer shows once."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = LinkForm(request.POST or None, request=request)
        if request.method != "POST" or not form.is_valid():
            return self._page(request, form, _("New invitation"), _("Create link"))
        token, digest = invitations.new_token()
        terms = form.terms
        with transaction.atomic():
            one = Invitation.objects.create(
                hash=digest,
                email=form.cleaned_data["email"].lower(),
                max_uses=form.cleaned_data["max_uses"],
                expires_at=terms.expires_at,
                group=terms.group,
                plan=terms.plan,
                plan_days=terms.plan_days,
                note=terms.note,
                created_by_id=staff_id(request),
            )
            self.log_addition(request, one, _("Created a link"))
        link = request.build_absolute_uri(reverse("account_invitation", args=[token]))
        return self._page(request, None, _("The new invitation"), "", link=link)

    def upload_view(self, request: HttpRequest) -> HttpResponse:
        """Invite the addresses of a file by mail; a file with a wrong row changes nothing."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = ListForm(request.POST or None, request.FILES or None, request=request)
        wrong: list[str] = []
        if request.method == "POST" and form.is_valid():
            data = form.cleaned_data["file"].read(invitations.MOST_BYTES + 1)
            found = invitations.parse(data)
            wrong = found.wrong
            if not outbox.is_configured() or not settings.SITE_URL:
                wrong = [_("Invitations are mailed: set EMAIL_URL and SITE_URL first.")]
            if not wrong:
                by = User.objects.get(pk=staff_id(request))
                result = invitations.invite(found.addresses, form.terms, by=by)
                messages.success(
                    request,
                    _(
                        "%(added)s addresses are invited; left out: %(members)s with an account,"
                        " %(already)s invited before, %(repeated)s repeated."
                    )
                    % {
                        "added": result.added,
                        "members": result.members,
                        "already": result.already,
                        "repeated": found.repeated,
                    },
                )
                return redirect("admin:accounts_invitation_changelist")
        return self._page(request, form, _("Invite a list of addresses"), _("Invite"), wrong=wrong)

    def _page(
        self, request: HttpRequest, form: forms.Form | None, title: str, verb: str, **more: Any
    ) -> HttpResponse:
        wrong: list[str] = more.pop("wrong", [])
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "form": form,
            "verb": verb,
            "wrong": wrong[: invitations.MOST_SHOWN],
            "more_wrong": len(wrong[invitations.MOST_SHOWN :]),
            **more,
        }
        is_wrong = bool(wrong) or (form is not None and form.is_bound)
        return TemplateResponse(
            request, "admin/accounts/invitation/form.html", context, status=400 if is_wrong else 200
        )

    @admin.action(description=gettext_lazy("Revoke selected invitations"), permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Invitation]) -> None:
        """End the selected invitations; their links no longer work."""
        with transaction.atomic():
            rows = Invitation.objects.select_for_update().filter(revoked_at=None)
            open_ones = list(rows.filter(pk__in=queryset.values("pk")))
            keys = [one.pk for one in open_ones]
            Invitation.objects.filter(pk__in=keys).update(revoked_at=timezone.now())
            LogEntry.objects.log_actions(
                staff_id(request), open_ones, CHANGE, change_message=_("Revoked")
            )
        messages.success(request, _("%(count)s invitations are revoked.") % {"count": len(keys)})


@admin.register(InvitationUse)
class InvitationUseAdmin(ReadOnlyAdmin, BaseAdmin):
    list_display = ["invitation", "user", "used_at", "applied_at"]
    list_select_related = ["invitation", "user"]
    search_fields = ["user__email"]


@admin.register(SignupGrant)
class SignupGrantAdmin(ReadOnlyAdmin, BaseAdmin):
    list_display = ["user", "created_at", "granted_at"]
    list_select_related = ["user"]
    search_fields = ["user__email"]
    ordering = ["-created_at"]
    fields = ["user", "created_at", "granted_at"]


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
