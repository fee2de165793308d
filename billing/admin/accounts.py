"""Admin of accounts and their ledger: search, read, and give or take credits with a reason."""

from __future__ import annotations

import logging
from datetime import date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import redis
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.widgets import AdminDateWidget
from django.db import transaction
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from billing import credits, queue
from billing.admin.base import AuditedAdmin, RecordAdmin, amount, money, owner
from billing.credits import CreditsFormField
from billing.ledger import plans, staff_actions
from billing.models import (
    Account,
    CreditLot,
    DebtEntry,
    ExpiryNotice,
    Hold,
    LedgerEntry,
    LotMove,
    Membership,
    Plan,
    PlanGroup,
)
from chatproject.lib.admin import (
    NOTHING,
    LargeTable,
    client_ip,
    require_permission,
    row_pages,
    staff_id,
)

logger = logging.getLogger(__name__)

CHANGE = "billing.change_account"

STATUS_VERBS = {
    Account.Status.FROZEN: gettext_lazy("Freeze"),
    Account.Status.ACTIVE: gettext_lazy("Unfreeze"),
}
NOTES = {
    Account.Status.FROZEN: gettext_lazy(
        "Frozen accounts keep their credits, but cannot spend them."
    ),
    Account.Status.ACTIVE: gettext_lazy("Credits of these accounts can be used again."),
}


class ReasonForm(forms.Form):
    """The reason of an action, for the audit."""

    reason = forms.CharField(
        max_length=300,
        widget=forms.TextInput(attrs={"class": "vTextField"}),
        help_text=gettext_lazy("Shown in the audit record with your name."),
    )


def end_of(day: date | None) -> datetime | None:
    """Return the end of a last day by the site's time zone."""
    if day is None:
        return None
    return timezone.make_aware(datetime.combine(day + timedelta(days=1), time.min))


class GiveOrTakeForm(ReasonForm):
    """Credits to give to an account or take from it; the nonce makes a double click one action."""

    amount = CreditsFormField(
        label=gettext_lazy("Credits"),
        min_value=None,
        help_text=gettext_lazy("For example 50 to give, or -50 to take."),
    )
    expires_on = forms.DateField(
        required=False,
        label=gettext_lazy("Last day"),
        widget=AdminDateWidget(),
        help_text=gettext_lazy("For gifts only: the rest expires after this day. Empty: never."),
    )
    nonce = forms.UUIDField(widget=forms.HiddenInput())
    confirmed = forms.IntegerField(required=False, widget=forms.HiddenInput())

    field_order = ("amount", "reason", "expires_on", "nonce", "confirmed")

    def clean_amount(self) -> int:
        amount: int = self.cleaned_data["amount"]
        if amount == 0:
            raise forms.ValidationError(_("Enter an amount other than zero."))
        return amount

    def clean(self) -> dict[str, Any] | None:
        day = self.cleaned_data.get("expires_on")
        if day is not None:
            if day < timezone.localdate():
                self.add_error("expires_on", _("This day has passed."))
            if (self.cleaned_data.get("amount") or 1) < 0:
                self.add_error(
                    "expires_on", _("Credits that are taken do not expire: leave this empty.")
                )
        return super().clean()


class PlanForm(ReasonForm):
    """A new plan for an account."""

    plan = forms.ModelChoiceField(
        Plan.objects.all(),
        required=False,
        empty_label=gettext_lazy("The default plan"),
        help_text=gettext_lazy(
            "Limits and group change at once, credits with the next month: only a month's first grant counts."
        ),
    )
    last_day = forms.DateField(
        required=False,
        label=gettext_lazy("Last day"),
        widget=AdminDateWidget(),
        help_text=gettext_lazy("After it the account has the default plan. Empty: no end."),
    )

    field_order = ("plan", "last_day", "reason")

    def clean(self) -> dict[str, Any] | None:
        day = self.cleaned_data.get("last_day")
        if day is not None:
            if day < timezone.localdate():
                self.add_error("last_day", _("This day has passed."))
            if self.cleaned_data.get("plan") is None and "plan" not in self.errors:
                self.add_error("last_day", _("The default plan has no end: leave this empty."))
        return super().clean()


@admin.register(Account)
class AccountAdmin(RecordAdmin):
    list_display = ["user", "status", amount("balance"), amount("held"), amount("debt"), "plan"]
    list_filter = ["status", "plan"]
    list_select_related = ["user", "plan"]
    search_fields = ["user__email"]
    search_help_text = gettext_lazy("E-mail address")
    credit_fields = ("balance", "held", "debt")
    actions = ["freeze", "unfreeze", "change_plan"]

    def has_manage_permission(self, request: HttpRequest) -> bool:
        """Return whether the member of staff may change accounts, by billing.ledger.staff_actions."""
        return request.user.has_perm(CHANGE)

    def get_urls(self) -> list[URLPattern]:
        pages = {
            "give": self.give_view,
            "plan": self.plan_view,
            "messages": self.messages_view,
            "freeze": self.freeze_view,
            "unfreeze": self.unfreeze_view,
        }
        return [*row_pages(self, "int:account_id", pages), *super().get_urls()]

    def give_view(self, request: HttpRequest, account_id: int) -> HttpResponse:
        """Give or take credits; a large gift is confirmed on a second page."""
        account = self._account(request, account_id)
        form = GiveOrTakeForm(request.POST or None, initial={"nonce": uuid4()})
        if request.method == "POST" and form.is_valid():
            try:
                change = staff_actions.give_or_take(
                    actor_id=staff_id(request),
                    account_id=account.pk,
                    amount=form.cleaned_data["amount"],
                    reason=form.cleaned_data["reason"],
                    nonce=str(form.cleaned_data["nonce"]),
                    ip=client_ip(request),
                    expires_at=end_of(form.cleaned_data["expires_on"]),
                    confirmed=form.cleaned_data["confirmed"],
                )
            except staff_actions.Unconfirmed as unconfirmed:
                return self._confirm_page(request, account, form, unconfirmed)
            except staff_actions.StaffRefused as refused:
                form.add_error(None, refused.message)
            else:
                entry = change.entry
                verb = "given to" if entry.amount > 0 else "taken from"
                once = "" if change.is_new else _("The form was sent twice and counted once. ")
                messages.success(
                    request,
                    f"{once}{credits.show(abs(entry.amount))} credits were {verb} {account.user}: "
                    f"{credits.show(entry.balance_before)} before, "
                    f"{credits.show(entry.balance_after)} after.",
                )
                return self._to(account)
        return self._page(request, account, form, _("Give or take credits"), _("Give or take"))

    def _confirm_page(
        self,
        request: HttpRequest,
        account: Account,
        form: GiveOrTakeForm,
        unconfirmed: staff_actions.Unconfirmed,
    ) -> HttpResponse:
        """Ask once more, with the same form in hidden fields and the amount as confirmed."""
        values = {**request.POST.dict(), "confirmed": str(unconfirmed.amount)}
        context = {
            **self.admin_site.each_context(request),
            "title": _("Confirm the gift"),
            "subtitle": str(account.user),
            "opts": self.opts,
            "account": account,
            "amount": unconfirmed.amount,
            "balance_after": unconfirmed.balance_after,
            "reason": form.cleaned_data["reason"],
            "last_day": form.cleaned_data["expires_on"],
            "values": {name: values[name] for name in form.fields if name in values},
        }
        return TemplateResponse(request, "admin/billing/account/confirm.html", context)

    def plan_view(self, request: HttpRequest, account_id: int) -> HttpResponse:
        """Change the plan of an account."""
        account = self._account(request, account_id)
        present = plans.membership_of(account)
        until = present.until if present is not None else None
        last_day = timezone.localdate(until - timedelta(seconds=1)) if until is not None else None
        initial = {"plan": account.plan_id, "last_day": last_day}
        form = PlanForm(request.POST or None, initial=initial)
        if request.method == "POST" and form.is_valid():
            changed = self._set_plan(request, [account], form)
            messages.success(
                request,
                _("The plan was changed.") if changed else _("The account has this plan already."),
            )
            return self._to(account)
        return self._page(request, account, form, _("Change the plan"), _("Change"))

    @admin.action(
        description=gettext_lazy("Change the plan of the selected accounts"),
        permissions=["manage"],
    )
    def change_plan(self, request: HttpRequest, chosen: QuerySet[Account]) -> HttpResponse | None:
        """Ask for a plan and a reason, then change the plans."""
        form = PlanForm(request.POST if "reason" in request.POST else None)
        if form.is_valid():
            changed = self._set_plan(request, list(chosen), form)
            messages.success(
                request,
                ngettext(
                    "The plan of %(count)s account was changed.",
                    "The plans of %(count)s accounts were changed.",
                    changed,
                )
                % {"count": changed},
            )
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": _("Change the plan of %(count)s accounts") % {"count": chosen.count()},
            "opts": self.opts,
            "form": form,
            "accounts": chosen.select_related("user"),
            "action": "change_plan",
            "note": _("Their present plans end now."),
            "button": _("Change"),
            "media": self.media + form.media,
        }
        return TemplateResponse(request, "admin/billing/account/bulk.html", context)

    def _set_plan(self, request: HttpRequest, accounts: list[Account], form: PlanForm) -> int:
        plan: Plan | None = form.cleaned_data["plan"]
        return sum(
            staff_actions.set_plan(
                actor_id=staff_id(request),
                account_id=account.pk,
                plan_id=plan.pk if plan else None,
                until=end_of(form.cleaned_data["last_day"]),
                reason=form.cleaned_data["reason"],
                ip=client_ip(request),
            )
            for account in accounts
        )

    def messages_view(self, request: HttpRequest, account_id: int) -> HttpResponse:
        """Restart the count of the month's messages."""
        account = self._account(request, account_id)
        form = ReasonForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            staff_actions.reset_messages(
                actor_id=staff_id(request),
                account_id=account.pk,
                reason=form.cleaned_data["reason"],
                ip=client_ip(request),
            )
            messages.success(request, _("This month's messages count from now on."))
            return self._to(account)
        return self._page(
            request, account, form, _("Count messages from now on"), _("Count from now")
        )

    def freeze_view(self, request: HttpRequest, account_id: int) -> HttpResponse:
        """Freeze an account: nothing new can be spent from it."""
        return self._status_page(request, account_id, Account.Status.FROZEN)

    def unfreeze_view(self, request: HttpRequest, account_id: int) -> HttpResponse:
        """Unfreeze an account."""
        return self._status_page(request, account_id, Account.Status.ACTIVE)

    def _status_page(
        self, request: HttpRequest, account_id: int, status: Account.Status
    ) -> HttpResponse:
        account = self._account(request, account_id)
        form = ReasonForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            self._set_status(request, [account], status, form.cleaned_data["reason"])
            return self._to(account)
        verb = STATUS_VERBS[status]
        is_frozen = status == Account.Status.FROZEN
        title = _("Freeze the account") if is_frozen else _("Unfreeze the account")
        return self._page(request, account, form, title, str(verb))

    @admin.action(description=gettext_lazy("Freeze the selected accounts"), permissions=["manage"])
    def freeze(self, request: HttpRequest, chosen: QuerySet[Account]) -> HttpResponse | None:
        """Ask for a reason, then freeze."""
        return self._status_action(request, chosen, Account.Status.FROZEN)

    @admin.action(
        description=gettext_lazy("Unfreeze the selected accounts"), permissions=["manage"]
    )
    def unfreeze(self, request: HttpRequest, chosen: QuerySet[Account]) -> HttpResponse | None:
        """Ask for a reason, then unfreeze."""
        return self._status_action(request, chosen, Account.Status.ACTIVE)

    def _status_action(
        self, request: HttpRequest, chosen: QuerySet[Account], status: Account.Status
    ) -> HttpResponse | None:
        form = ReasonForm(request.POST if "reason" in request.POST else None)
        if form.is_valid():
            self._set_status(request, list(chosen), status, form.cleaned_data["reason"])
            return None
        verb = STATUS_VERBS[status]
        context = {
            **self.admin_site.each_context(request),
            "title": f"{verb} {chosen.count()} accounts",
            "opts": self.opts,
            "form": form,
            "accounts": chosen.select_related("user"),
            "action": "freeze" if status == Account.Status.FROZEN else "unfreeze",
            "note": NOTES[status],
            "button": verb,
        }
        return TemplateResponse(request, "admin/billing/account/bulk.html", context)

    def _set_status(
        self, request: HttpRequest, accounts: list[Account], status: Account.Status, reason: str
    ) -> None:
        changed = 0
        for account in accounts:
            changed += staff_actions.set_status(
                actor_id=staff_id(request),
                account_id=account.pk,
                status=status,
                reason=reason,
                ip=client_ip(request),
            )
        done = "frozen" if status == Account.Status.FROZEN else "unfrozen"
        messages.success(request, f"{changed} account{'' if changed == 1 else 's'} {done}.")

    def _account(self, request: HttpRequest, account_id: int) -> Account:
        require_permission(request, CHANGE)
        return get_object_or_404(Account.objects.select_related("user", "plan"), pk=account_id)

    def _page(
        self, request: HttpRequest, account: Account, form: forms.Form, title: str, button: str
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "subtitle": str(account.user),
            "opts": self.opts,
            "account": account,
            "form": form,
            "button": button,
            "media": self.media + form.media,
        }
        return TemplateResponse(request, "admin/billing/account/form.html", context)

    def _to(self, account: Account) -> HttpResponseRedirect:
        return HttpResponseRedirect(reverse("admin:billing_account_change", args=[account.pk]))


@admin.register(Plan)
class PlanAdmin(AuditedAdmin):
    list_display = [
        "name",
        amount("monthly_credits"),
        "monthly_messages",
        "group",
        "members",
        "is_default",
        "is_shown",
        "position",
    ]
    list_select_related = ["group"]
    search_fields = ["name", "slug"]
    prepopulated_fields = {"slug": ["name"]}
    form_fields = {"monthly_credits": CreditsFormField}
    readonly_fields = ["members", "ending", "credits_a_month"]
    fieldsets = [
        (None, {"fields": ["name", "slug", "is_default", "is_shown", "position"]}),
        (
            gettext_lazy("What it gives"),
            {"fields": ["group", "monthly_credits", "monthly_messages"]},
        ),
        (
            gettext_lazy("Limits"),
            {
                "fields": list(Plan.LIMITS),
                "description": gettext_lazy("In place of the limits of the site, within seconds."),
            },
        ),
        (gettext_lazy("Members"), {"fields": ["members", "ending", "credits_a_month"]}),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Plan]:
        """Return the plans, each with the number of its accounts."""
        own = Account.objects.filter(plan=OuterRef("pk")).order_by().values("plan")
        without = Account.objects.filter(plan=None).order_by().values("plan")

        def number(rows: QuerySet[Any]) -> Subquery:
            return Subquery(rows.annotate(number=Count("*")).values("number"))

        found: QuerySet[Plan] = super().get_queryset(request)
        return found.annotate(own=number(own), without=number(without))

    def save_model(self, request: HttpRequest, obj: Plan, form: Any, change: bool) -> None:
        """Store a plan, and let the groups of its members follow it."""
        super().save_model(request, obj, form, change)
        if {"group", "is_default"} & set(form.changed_data):
            transaction.on_commit(self._follow_soon)

    def _follow_soon(self) -> None:
        try:
            queue.enqueue_task("follow plans")
        except redis.RedisError as error:  # the clock enqueues it within minutes
            logger.warning("the groups of members follow their plan later: %s", error)

    @admin.display(description=gettext_lazy("members"))
    def members(self, plan: Plan) -> SafeString | str:
        """Return the number of accounts, as a link to them."""
        if plan._state.adding:
            return NOTHING
        url = reverse("admin:billing_account_changelist")
        own = format_html(
            '<a href="{}?plan__id__exact={}">{}</a>', url, plan.pk, getattr(plan, "own", 0) or 0
        )
        if not plan.is_default:
            return own
        without = getattr(plan, "without", 0) or 0
        return format_html(
            '{} and <a href="{}?plan__isnull=True">{} without a plan</a>', own, url, without
        )

    @admin.display(description=gettext_lazy("memberships that end within 30 days"))
    def ending(self, plan: Plan) -> SafeString | str:
        """Return the number of memberships that end soon, as a link to all open ones."""
        if plan._state.adding:
            return NOTHING
        soon = timezone.now() + timedelta(days=30)
        number = plan.memberships.filter(ended_at=None, until__lte=soon).count()
        url = reverse("admin:billing_membership_changelist")
        query = urlencode({"plan__id__exact": plan.pk, "ended_at__isempty": 1})
        return format_html('<a href="{}?{}">{}</a>', url, query, number)

    @admin.display(description=gettext_lazy("credits a month for all members"))
    def credits_a_month(self, plan: Plan) -> str:
        """Return the credits that all members get each month."""
        without = (getattr(plan, "without", 0) or 0) if plan.is_default else 0
        return credits.show(plan.monthly_credits * ((getattr(plan, "own", 0) or 0) + without))


@admin.register(Membership)
class MembershipAdmin(RecordAdmin):
    list_display = [owner, "plan", "since", "until", "ended_at", "source", "actor", "reason"]
    list_filter = ["plan", "source", ("ended_at", admin.EmptyFieldListFilter)]
    list_select_related = ["account__user", "plan", "actor"]
    search_fields = ["account__user__email"]
    search_help_text = gettext_lazy("E-mail address")


@admin.register(PlanGroup)
class PlanGroupAdmin(RecordAdmin):
    list_display = ["user", "group"]
    list_filter = ["group"]
    list_select_related = ["user", "group"]
    search_fields = ["user__email"]


@admin.register(LedgerEntry)
class LedgerEntryAdmin(LargeTable, RecordAdmin):
    sortable_by = ["created_at"]
    list_display = [
        "created_at",
        "kind",
        amount("amount", signed=True),
        amount("balance_after", "balance"),
        owner,
        "note",
        "actor",
    ]
    list_filter = ["kind", "counter_account", "created_at"]
    list_select_related = ["account__user", "actor"]
    search_fields = ["account__user__email", "idempotency_key__exact", "note"]
    search_help_text = gettext_lazy("E-mail address, key, or a word of the note")
    credit_fields = ("amount", "balance_before", "balance_after")


@admin.register(CreditLot)
class CreditLotAdmin(LargeTable, RecordAdmin):
    list_display = [
        "effective_at",
        "kind",
        amount("granted"),
        amount("remaining"),
        money("paid_minor", "paid"),
        "expires_at",
        owner,
        "priority",
    ]
    list_filter = ["kind", "expires_at"]
    list_select_related = ["account__user"]
    search_fields = ["account__user__email", "source_key__exact"]
    credit_fields = ("granted", "remaining")
    money_fields = {"paid_minor": "currency"}


@admin.register(LotMove)
class LotMoveAdmin(LargeTable, RecordAdmin):
    list_display = ["entry", "lot", amount("amount", signed=True)]
    list_select_related = ["entry", "lot"]
    search_fields = ["entry__idempotency_key__exact", "lot__source_key__exact"]
    credit_fields = ("amount",)


@admin.register(Hold)
class HoldAdmin(LargeTable, RecordAdmin):
    list_display = [
        "created_at",
        "status",
        amount("amount"),
        amount("settled"),
        amount("shortfall"),
        owner,
        "model",
        "expires_at",
        "resolved_by",
    ]
    list_filter = ["status", "resolved_by", "expires_at"]
    list_select_related = ["account__user"]
    search_fields = ["account__user__email", "key__exact", "model__exact"]
    credit_fields = ("amount", "settled", "shortfall")


@admin.register(DebtEntry)
class DebtEntryAdmin(RecordAdmin):
    list_display = ["created_at", amount("amount", signed=True), owner, "idempotency_key"]
    list_select_related = ["account__user"]
    search_fields = ["account__user__email", "idempotency_key__exact"]
    credit_fields = ("amount",)


@admin.register(ExpiryNotice)
class ExpiryNoticeAdmin(RecordAdmin):
    list_display = ["created_at", "days", "lot", "whose"]
    list_select_related = ["lot__account__user"]
    search_fields = ["lot__account__user__email"]

    @admin.display(description=gettext_lazy("user"))
    def whose(self, notice: ExpiryNotice) -> str:
        """Return the user whose credits expire."""
        return owner(notice.lot)
