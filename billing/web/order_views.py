"""Pages about purchases: packages, an order from its button to its receipt, automatic top-up."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import cache_control, never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import (
    require_http_methods,
    require_POST,
    require_safe,
)

from billing import credits
from billing.models import AutoTopUp, InvoiceAddress, Order, Refund
from billing.payments import (
    auto_top_up,
    checkout,
    invoices,
    packages,
    providers,
    refunds,
)
from billing.payments.auto_top_up import TopUpRefused
from billing.payments.checkout import CheckoutRefused
from billing.payments.invoices import NotPaid
from billing.payments.providers.base import ProviderError
from billing.payments.refunds import RefundRefused
from billing.web.forms import BuyForm, InvoiceAddressForm, TopUpForm
from chatproject.lib import languages, origins
from chatproject.lib.db import MoneyBusy, streamed_response

if TYPE_CHECKING:
    from chatproject.lib.http import Request


P = ParamSpec("P")

logger = logging.getLogger(__name__)

BUSY = gettext_lazy("Your account is busy with another request. Try again in a moment.")

# Reloads of an open order's page: frequent at first, and none in the end.
REFRESH = ((120, 4), (900, 15), (7200, 60))  # (up to this age, every so many), in seconds


def of_owner(
    view: Callable[Concatenate[Request, Order, P], HttpResponseBase],
) -> Callable[Concatenate[Request, UUID, P], HttpResponseBase]:
    """Pass the order of a URL to a view; a 404 for everyone but its owner."""

    @wraps(view)
    def open_order(
        request: Request, order_id: UUID, *args: P.args, **kwargs: P.kwargs
    ) -> HttpResponseBase:
        try:
            found = packages.order(request.user.pk, order_id)
        except Order.DoesNotExist as error:
            raise Http404(_("Order not found.")) from error
        return view(request, found, *args, **kwargs)

    return open_order  # type: ignore[return-value] # wraps() forgets that it is called by position


# --- Packages ---------------------------------------------------------------------------------


@require_safe
@never_cache
def packages_page(request: Request) -> HttpResponse:
    """Show the packages in one currency; ?next= is the page to return to afterwards."""
    if request.accepts("application/json") and not request.accepts("text/html"):
        return packages_json(request)
    return _packages(request, InvoiceAddressForm(instance=_invoice_address(request)))


def _packages(request: Request, address_form: InvoiceAddressForm) -> HttpResponse:
    offers = packages.offers()
    currencies = packages.currencies(offers)
    wanted = request.GET.get("currency", "").upper()
    currency = wanted if wanted in currencies else (currencies or [""])[0]
    return render(
        request,
        "billing/packages.html",
        {
            "page": "packages",
            "currencies": currencies,
            "currency": currency,
            "offers": [offer for offer in offers if offer.currency == currency],
            "providers": providers.enabled(),
            "return_to": checkout.own_path(request.GET.get("next", "")),
            "nonce": secrets.token_urlsafe(9),
            "address_form": address_form,
        },
        status=400 if address_form.errors else 200,
    )


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def invoice_address(request: Request) -> HttpResponse:
    """Store the buyer's name and address for the invoices of later purchases."""
    if request.method != "POST":
        return redirect("billing:packages")
    form = InvoiceAddressForm(request.POST, instance=_invoice_address(request))
    if not form.is_valid():
        return _packages(request, form)
    form.save()
    messages.success(request, _("Invoice details saved. They apply to your next purchases."))
    return redirect("billing:packages")


def _invoice_address(request: Request) -> InvoiceAddress:
    found = InvoiceAddress.objects.filter(user_id=request.user.pk).first()
    return found or InvoiceAddress(user_id=request.user.pk)


@require_safe
@cache_control(public=True, max_age=60)
def packages_json(request: HttpRequest) -> JsonResponse:
    """Return the packages as JSON, without signing in; credits are decimal numbers as text."""
    with languages.use(settings.LANGUAGE_CODE):  # the same for all
        return JsonResponse(
            {
                "packages": [
                    {
                        "id": offer.package.pk,
                        "slug": offer.package.slug,
                        "name": offer.package.name,
                        "credits": credits.exact(offer.package.credits),
                        "bonus": credits.exact(offer.package.bonus),
                        "valid_days": offer.package.valid_days,
                        "popular": offer.package.popular,
                        "currency": offer.currency,
                        "amount_minor": offer.amount_minor,
                        "price": credits.show_money(offer.amount_minor, offer.currency),
                    }
                    for offer in packages.offers()
                ]
            }
        )


# --- One order --------------------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def buy(request: Request) -> HttpResponse:
    """Make an order, and send its buyer to the provider."""
    if request.method != "POST":
        return redirect("billing:packages")
    form = BuyForm(request.POST)
    if not form.is_valid():
        messages.error(
            request, _("The order was incomplete. Nothing was bought. Choose a package again.")
        )
        return redirect("billing:packages")
    given = form.cleaned_data
    try:
        order = checkout.create_order(
            user_id=request.user.pk,
            package_id=given["package"],
            currency=given["currency"],
            provider=given["provider"],
            client_key=form.client_key,
            return_to=given["next"],
        )
    except CheckoutRefused as error:
        messages.error(request, error.message)
        return redirect("billing:packages")
    except MoneyBusy:
        messages.error(request, BUSY)
        return redirect("billing:packages")
    return _to_provider(request, order)


@require_POST
@never_cache
@of_owner
def pay(request: Request, order: Order) -> HttpResponse:
    """Send the buyer of an open order to the provider."""
    return _to_provider(request, order)


def _to_provider(request: Request, order: Order) -> HttpResponse:
    if not order.is_paid:
        try:
            begun = checkout.begin(
                order.pk,
                return_url=origins.public_address(
                    request, reverse("billing:order_return", args=[order.pk])
                ),
                cancel_url=origins.public_address(
                    request, reverse("billing:order", args=[order.pk])
                ),
            )
        except CheckoutRefused as error:
            messages.error(request, error.message)
        except MoneyBusy:
            messages.error(request, BUSY)
        else:
            if not begun.fields:
                return redirect(begun.url)
            return render(
                request,
                "billing/handoff.html",
                {
                    "page": "packages",
                    "order": order,
                    "checkout": begun,
                    "fields": begun.fields.items(),
                    "provider_label": providers.label(order.provider),
                },
            )
    return redirect("billing:order", order.pk)


# The provider's page may return with a POST: from another site, so without our token and without the
# session's cookie. Such a request is redirected to the sign-in page, as any without a session, and
# returns from there by a GET with the cookie. The posted data are not read: the provider is asked.
@csrf_exempt
@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@of_owner
def order_return(request: Request, order: Order) -> HttpResponse:
    """Sync the order of a buyer who returns from the provider, and show it."""
    if not order.is_paid and request.method != "HEAD":
        try:
            checkout.sync_order(order.pk)
        except ProviderError as error:
            logger.warning("%s could not be asked about %s: %s", order.provider, order, error)
            messages.warning(
                request,
                f"{providers.label(order.provider)} is not responding. Your order will update automatically.",
            )
        except MoneyBusy:
            messages.warning(request, BUSY)
    return redirect("billing:order", order.pk)


@csrf_exempt  # as above: a canceled payment may return with a POST
@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@of_owner
def order(request: Request, order: Order) -> HttpResponse:
    """Show an order's state and next steps; the page reloads automatically while it is open."""
    if request.method == "POST":
        return redirect("billing:order", order.pk)
    why_not = refunds.eligible(order) if order.is_paid else ""
    return render(
        request,
        "billing/order.html",
        {
            "page": "packages",
            "order": order,
            "status_words": packages.STATUS_WORDS[Order.Status(order.status)],
            "sentence": packages.sentence(order),
            "provider_label": providers.label(order.provider),
            "invoice": invoices.number(order),
            "is_open": order.status in Order.OPEN,
            "refresh": _refresh(order),
            "refunds": packages.refunds(order) if order.is_paid else [],
            "may_refund": order.is_paid and not why_not,
            "refund_minor": (
                refunds.refundable_minor(order) if order.is_paid and not why_not else 0
            ),
            "refund_days": settings.REFUND_DAYS,
            "nonce": secrets.token_urlsafe(9),
        },
    )


def _refresh(order: Order) -> int:
    """Return the seconds until the page reloads; 0 for never."""
    if order.status not in Order.OPEN:
        return 0
    age = (timezone.now() - order.updated_at).total_seconds()
    return next((every for until, every in REFRESH if age < until), 0)


@require_safe
@never_cache
@of_owner
def receipt(request: Request, order: Order) -> HttpResponseBase:
    """Return the receipt as a PDF; an answer to HEAD makes none."""
    response: HttpResponseBase
    try:
        if request.method == "HEAD":
            invoices.of_order(order)
            response = StreamingHttpResponse(streamed_response.no_part())
        else:
            # Here, as the library of PDF files would be a third of the start of every process with URLs.
            from billing.payments import receipts

            response = HttpResponse(receipts.pdf(order))
    except NotPaid as error:
        raise Http404(_("An unpaid order has no receipt.")) from error
    name = f"invoice-{invoices.number(order)}.pdf"
    response["Content-Type"] = "application/pdf"
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


@require_POST
@never_cache
@of_owner
def refund(request: Request, order: Order) -> HttpResponse:
    """Request a refund of a purchase for its buyer."""
    nonce = request.POST.get("nonce", "")
    if not 8 <= len(nonce) <= 64:
        messages.error(request, _("This form is out of date. Nothing was refunded. Try again."))
        return redirect("billing:order", order.pk)
    try:
        made = refunds.request_refund(
            order_id=order.pk,
            amount_minor=None,
            actor_id=request.user.pk,
            reason=request.POST.get("reason", "").replace("\0", "")[:300],
            initiated_by=Refund.Initiator.USER,
            nonce=nonce,
        )
    except RefundRefused as error:
        messages.error(request, error.message)
    except MoneyBusy:
        messages.error(request, BUSY)
    else:
        if made.status == Refund.Status.FAILED:
            messages.error(
                request,
                f"{providers.label(order.provider)} declined the refund. Your credits were returned. Contact us.",
            )
        else:
            amount = credits.show_money(made.amount_minor, order.currency)
            messages.success(request, f"{amount} is on its way back to you. Banks take a few days.")
    return redirect("billing:order", order.pk)


# --- Automatic top-up -------------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def top_up_page(request: Request) -> HttpResponse:
    """Show automatic purchases, and let the user agree to them, change them or turn them off."""
    if not settings.AUTO_TOP_UP:
        raise Http404(_("Automatic purchases are not offered here."))
    if "withdraw" in request.POST:
        auto_top_up.withdraw(request.user.pk)
        messages.success(request, _("Automatic top-up is off."))
        return redirect("billing:top_up")
    found = AutoTopUp.objects.filter(user=request.user.pk).first()
    offers = packages.offers()
    if request.method == "POST":
        form = TopUpForm(request.POST, offers=offers)
        if form.is_valid():
            try:
                auto_top_up.consent(user_id=request.user.pk, **form.terms)
            except TopUpRefused as error:
                form.add_error(None, error.message)
            else:
                messages.success(request, _("Automatic top-up is on."))
                return redirect("billing:top_up")
    else:
        form = TopUpForm(offers=offers, initial=TopUpForm.initial_of(found))
    return render(
        request,
        "billing/top_up.html",
        {"page": "limits", "form": form, "top_up": found},
        status=400 if form.is_bound else 200,
    )
