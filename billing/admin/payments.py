"""Admin of orders, webhooks, refunds and disputes: read, synced, processed again, refunded."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import redis
from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing import credits, queue
from billing.admin.accounts import ReasonForm
from billing.admin.base import RecordAdmin, amount, money
from billing.admin.fields import minor
from billing.ledger import staff_actions
from billing.models import (
    AutoTopUp,
    Dispute,
    Invoice,
    InvoiceAddress,
    Order,
    PackagePrice,
    ProviderEvent,
    ProviderRequest,
    Refund,
    SandboxPayment,
)
from billing.payments import checkout, refunds, webhook_events
from billing.payments.packages import in_review
from billing.payments.providers.base import ProviderError
from chatproject.lib.admin import (
    LargeTable,
    client_ip,
    require_permission,
    row_pages,
    staff_id,
    values_filter,
)

CHANGE_ORDER = "billing.change_order"
AT_ONCE = 5  # orders synced within the request; more are enqueued


class RefundForm(ReasonForm):
    """The amount to refund; the nonce makes a double click one refund."""

    amount = forms.DecimalField(
        required=False,
        min_value=Decimal(0),
        max_digits=15,
        help_text=gettext_lazy("Empty: the full worth of the unused credits."),
    )
    nonce = forms.UUIDField(widget=forms.HiddenInput())

    field_order = ("amount", "reason", "nonce")

    def __init__(self, *args: Any, currency: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.currency = currency
        self.fields["amount"].label = _("Amount in %(currency)s") % {"currency": currency}

    def clean_amount(self) -> int | None:
        """Return the amount in minor units; None for all."""
        amount = self.cleaned_data["amount"]
        if amount is None:
            return None
        minor_units = minor(amount, self.currency)
        if minor_units == 0:
            raise ValidationError(_("Enter an amount above zero, or leave it empty for all."))
        return minor_units


BY_PROVIDER = ("provider", values_filter("razorpay", "sandbox", "stripe"))


class CurrencyFilter(admin.SimpleListFilter):
    """The currencies of packages: reading those of all rows would be slow."""

    title = "currency"
    parameter_name = "currency"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        sold = PackagePrice.objects.order_by("currency").values_list("currency", flat=True)
        return [(currency, currency) for currency in sold.distinct()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        return queryset.filter(currency=chosen) if chosen else queryset


class NeedsReview(admin.SimpleListFilter):
    """Orders in review, and paid ones with a problem."""

    title = "needs review"
    parameter_name = "review"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", _("Yes"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Order]) -> QuerySet[Order]:
        return queryset.filter(in_review()) if self.value() else queryset


@admin.register(Order)
class OrderAdmin(RecordAdmin):
    list_display = [
        "created_at",
        "status",
        money("amount_minor"),
        money("amount_refunded_minor", "refunded"),
        money("lost_minor", "lost"),
        amount("credits"),
        "user",
        "provider",
        "invoice_no",
        "problem",
    ]
    list_filter = [
        NeedsReview,
        "status",
        BY_PROVIDER,
        "kind",
        "livemode",
        CurrencyFilter,
        "created_at",
    ]
    list_select_related = ["user"]
    search_fields = [
        "user__email", "id__exact", "provider_order_id__exact", "provider_payment_id__exact", "invoice_no__exact",
    ]  # fmt: skip
    search_help_text = gettext_lazy(
        "E-mail address, number of the receipt, or an id of ours or the provider's"
    )
    credit_fields = ("credits", "bonus")
    money_fields = {
        "amount_minor": "currency",
        "tax_minor": "currency",
        "amount_refunded_minor": "currency",
        "lost_minor": "currency",
    }
    actions = ["ask_again"]

    def has_manage_permission(self, request: HttpRequest) -> bool:
        """Return whether the member of staff may sync and refund orders."""
        return request.user.has_perm(CHANGE_ORDER)

    def get_urls(self) -> list[URLPattern]:
        pages = {"refund": self.refund_view, "ask": self.ask_view}
        return [*row_pages(self, "uuid:order_id", pages), *super().get_urls()]

    @admin.action(description=gettext_lazy("Sync with provider"), permissions=["manage"])
    def ask_again(self, request: HttpRequest, chosen: QuerySet[Order]) -> None:
        """Sync the orders with their providers: a few at once, many through the queue."""
        orders = list(chosen)
        if len(orders) <= AT_ONCE:
            for order in orders:
                _ask(request, order.pk)
            return
        try:
            for order in orders:
                queue.enqueue_sync(order.pk)
                _record_ask(request, order, _("through the queue"))
        except redis.RedisError:
            messages.error(request, _("The queue is not responding. Try again in a minute."))
        else:
            messages.success(
                request,
                (
                    _("The provider is being asked about %(orders)s orders.")
                    % {"orders": len(orders)}
                ),
            )

    def ask_view(self, request: HttpRequest, order_id: UUID) -> HttpResponse:
        """Sync an order with its provider; by POST only."""
        require_permission(request, CHANGE_ORDER)
        order = get_object_or_404(Order, pk=order_id)
        if request.method == "POST":
            _ask(request, order.pk)
        return redirect("admin:billing_order_change", order.pk)

    def refund_view(self, request: HttpRequest, order_id: UUID) -> HttpResponse:
        """Refund unused credits of an order."""
        require_permission(request, CHANGE_ORDER)
        order = get_object_or_404(Order.objects.select_related("user"), pk=order_id)
        form = RefundForm(request.POST or None, initial={"nonce": uuid4()}, currency=order.currency)
        if request.method == "POST" and form.is_valid():
            try:
                refund = refunds.request_refund(
                    order_id=order.pk,
                    amount_minor=form.cleaned_data["amount"],
                    actor_id=staff_id(request),
                    reason=form.cleaned_data["reason"],
                    initiated_by=Refund.Initiator.STAFF,
                    nonce=str(form.cleaned_data["nonce"]),
                    ip=client_ip(request),
                )
            except refunds.RefundRefused as refused:
                form.add_error(None, refused.message)
            else:
                _report_refund(request, refund, order)
                return redirect("admin:billing_order_change", order.pk)
        refundable = refunds.refundable_minor(order)
        context = {
            **self.admin_site.each_context(request),
            "title": _("Refund a purchase"),
            "subtitle": f"{order.user}, {order.package_name}",
            "opts": self.opts,
            "order": order,
            "form": form,
            "refundable": credits.show_money(refundable, order.currency),
            "is_possible": refundable > 0,
            "media": self.media,
        }
        return TemplateResponse(request, "admin/billing/order/refund.html", context)


def _ask(request: HttpRequest, order_id: UUID) -> None:
    before = Order.objects.get(pk=order_id).status
    try:
        order = checkout.sync_order(order_id)
    except ProviderError as error:
        messages.error(
            request,
            (
                _("Order %(order_id)s could not be synced: %(error)s")
                % {"order_id": order_id, "error": error}
            ),
        )
        return
    _record_ask(request, order, f"{before} → {order.status}")
    level = messages.WARNING if order.status == Order.Status.REVIEW else messages.SUCCESS
    problem = f" {order.problem}" if order.problem else ""
    status = Order.Status(order.status).label.lower()
    messages.add_message(
        request,
        level,
        (
            _("Order %(order_id)s is %(status)s.%(problem)s")
            % {"order_id": order_id, "status": status, "problem": problem}
        ),
    )


def _record_ask(request: HttpRequest, order: Order, change: str) -> None:
    staff_actions.record(
        actor_id=staff_id(request),
        action="ask provider",
        target=str(order),
        after={"status": order.status},
        ip=client_ip(request),
        row=order,
        change=change,
    )


def _report_refund(request: HttpRequest, refund: Refund, order: Order) -> None:
    money_back = credits.show_money(refund.amount_minor, order.currency)
    if refund.status == Refund.Status.FAILED:
        messages.error(
            request,
            (
                _(
                    "The provider refused to send %(money_back)s back, so the credits were returned: %(reason)s."
                )
                % {"money_back": money_back, "reason": refund.error or "it gave no reason"}
            ),
        )
    elif refund.status == Refund.Status.SUCCEEDED:
        messages.success(request, f"{money_back} were sent back.")
    else:
        messages.success(
            request, f"{money_back} is on its way back. The status is checked regularly."
        )


@admin.register(ProviderEvent)
class ProviderEventAdmin(LargeTable, RecordAdmin):
    list_display = [
        "received_at",
        "provider",
        "event_type",
        "status",
        "attempts",
        "next_attempt_at",
        "order",
        "short_error",
    ]
    list_filter = ["status", BY_PROVIDER, "received_at"]
    search_fields = ["event_id__exact", "event_type", "order__id__exact"]
    hidden = ("body",)
    extra_fields = ("raw_body",)
    actions = ["process_again"]

    def has_manage_permission(self, request: HttpRequest) -> bool:
        """Return whether the member of staff may have events processed."""
        return request.user.has_perm("billing.change_providerevent")

    @admin.action(description=gettext_lazy("Process again"), permissions=["manage"])
    def process_again(self, request: HttpRequest, chosen: QuerySet[ProviderEvent]) -> None:
        """Enqueue events once more, whatever their status."""
        events = list(chosen.defer("body"))
        for event in events:
            # While Redis is unreachable the poller enqueues it: it is due at once.
            with suppress(redis.RedisError):
                webhook_events.retry(event.pk)
            staff_actions.record(
                actor_id=staff_id(request),
                action="process event",
                target=f"event {event.pk}",
                ip=client_ip(request),
                row=event,
            )
        messages.success(
            request,
            f"{len(events)} event{'' if len(events) == 1 else 's'} will be processed again. "
            "Reload this page in a moment.",
        )

    @admin.display(description=gettext_lazy("error"))
    def short_error(self, event: ProviderEvent) -> str:
        """Return the beginning of the error."""
        return event.error[:100]

    @admin.display(description=gettext_lazy("body"))
    def raw_body(self, event: ProviderEvent) -> str:
        """Return the webhook as text, indented if it is JSON."""
        text = bytes(event.body).decode("utf-8", errors="replace")
        with suppress(ValueError):  # other text is shown unchanged
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        return format_html('<pre class="billing-body">{}</pre>', text)


@admin.register(Invoice)
class InvoiceAdmin(RecordAdmin):
    list_display = [
        "number",
        "kind",
        "issued_on",
        money("amount_minor"),
        money("tax_minor"),
        "tax_rate",
        "order",
    ]
    list_filter = ["kind", CurrencyFilter, "issued_on"]
    list_select_related = ["order"]
    search_fields = ["number__exact", "order__id__exact", "order__user__email"]
    money_fields = {"amount_minor": "currency", "tax_minor": "currency"}


@admin.register(InvoiceAddress)
class InvoiceAddressAdmin(RecordAdmin):
    list_display = ["user", "name", "tax_id"]
    list_select_related = ["user"]
    search_fields = ["user__email", "name"]


@admin.register(ProviderRequest)
class ProviderRequestAdmin(LargeTable, RecordAdmin):
    list_display = ["created_at", "provider", "subject", "number", "closed_at"]
    list_filter = [BY_PROVIDER, "created_at"]
    search_fields = ["subject__exact"]


@admin.register(Refund)
class RefundAdmin(RecordAdmin):
    list_display = [
        "created_at",
        "order",
        money("amount_minor", currency="order__currency"),
        amount("credits"),
        amount("debt"),
        "status",
        "initiated_by",
        "actor",
        "reason",
        "error",
    ]
    list_filter = ["status", "initiated_by", "created_at"]
    list_select_related = ["order", "actor"]
    search_fields = [
        "order__user__email",
        "id__exact",
        "provider_refund_id__exact",
        "order__id__exact",
    ]
    credit_fields = ("credits", "debt")
    money_fields = {"amount_minor": "order__currency"}


@admin.register(Dispute)
class DisputeAdmin(RecordAdmin):
    list_display = [
        "created_at",
        "order",
        money("amount_minor", currency="order__currency"),
        "status",
        "funds_withdrawn",
        amount("credits"),
        amount("debt"),
        "returned",
    ]
    list_filter = ["status", BY_PROVIDER, "created_at"]
    list_select_related = ["order"]
    search_fields = ["order__user__email", "provider_dispute_id__exact", "order__id__exact"]
    credit_fields = ("credits", "debt")
    money_fields = {"amount_minor": "order__currency"}


@admin.register(AutoTopUp)
class AutoTopUpAdmin(RecordAdmin):
    list_display = [
        "user",
        "enabled",
        amount("threshold"),
        "package",
        money("monthly_cap_minor", "cap a month"),
        money("charged_this_month_minor", "charged"),
        "failures",
        "last_failure",
    ]
    list_filter = ["enabled", BY_PROVIDER]
    list_select_related = ["user", "package"]
    search_fields = ["user__email"]
    credit_fields = ("threshold",)
    money_fields = {"monthly_cap_minor": "currency", "charged_this_month_minor": "currency"}


@admin.register(SandboxPayment)
class SandboxPaymentAdmin(RecordAdmin):
    list_display = ["created_at", "id", money("amount_minor"), "status", money("refunded_minor")]
    money_fields = {"amount_minor": "currency", "refunded_minor": "currency"}
    list_filter = ["status"]
    search_fields = ["id__exact", "payment_id__exact"]
