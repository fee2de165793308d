"""Invitations by links and lists of addresses, and the sign-ups that used them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from accounts import invitations
from accounts.models import (
    Invitation,
    InvitationUse,
    SignupGrant,
    User,
)
from billing.models import Plan
from chatproject.lib import origins
from chatproject.lib.admin import (
    BaseAdmin,
    ReadOnlyAdmin,
    staff_id,
)
from chatproject.lib.mail import outbox


def _needs_mail() -> bool:
    return not outbox.is_configured() or not settings.SITE_URL


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
    by_mail = forms.BooleanField(
        required=False,
        label=gettext_lazy("Mail the link to the address"),
        help_text=gettext_lazy("Its use confirms the address. The link is not shown here."),
    )
    field_order = ("email", "by_mail", "max_uses", "days", "plan", "plan_days", "group", "note")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if _needs_mail():
            del self.fields["by_mail"]

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or {}
        if given.get("by_mail") and not given.get("email") and "email" not in self.errors:
            self.add_error("email", _("Enter the address that gets the mail."))
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
        """Create a link, which is mailed to its address, or which the answer shows once."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = LinkForm(request.POST or None, request=request)
        if request.method != "POST" or not form.is_valid():
            return self._page(request, form, _("New invitation"), _("Create link"))
        if form.cleaned_data.get("by_mail"):
            return self._mail(request, form)
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
        link = origins.public_address(request, reverse("account_invitation", args=[token]))
        return self._page(request, None, _("The new invitation"), "", link=link, invitation=one)

    def _mail(self, request: HttpRequest, form: LinkForm) -> HttpResponse:
        email = form.cleaned_data["email"].lower()
        with transaction.atomic():
            by = User.objects.get(pk=staff_id(request))
            result = invitations.invite([email], form.terms, by=by)
            if result.added:
                one = Invitation.objects.filter(email=email).latest("pk")
                self.log_addition(request, one, _("Invited by mail"))
        if result.added:
            messages.success(
                request, _("The invitation of %(email)s is mailed.") % {"email": email}
            )
            return redirect("admin:accounts_invitation_changelist")
        if result.members:
            form.add_error("email", _("There is already an account with this e-mail address."))
        else:
            form.add_error("email", _("This address has an invitation already. Revoke it first."))
        return self._page(request, form, _("New invitation"), _("Create link"))

    def upload_view(self, request: HttpRequest) -> HttpResponse:
        """Invite the addresses of a file by mail; a file with a wrong row changes nothing."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = ListForm(request.POST or None, request.FILES or None, request=request)
        wrong: list[str] = []
        needs_mail = _needs_mail()
        if request.method == "POST" and form.is_valid() and not needs_mail:
            data = form.cleaned_data["file"].read(invitations.MOST_BYTES + 1)
            found = invitations.parse(data)
            wrong = found.wrong
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
        title = _("Invite a list of addresses")
        return self._page(request, form, title, _("Invite"), wrong=wrong, needs_mail=needs_mail)

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
