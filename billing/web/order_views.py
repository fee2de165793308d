"""The pages about buying: what is for sale, one order from its button to its receipt."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import cache_control, never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from billing import credits
from billing.models import AutoTopUp, Order, Refund
from billing.payments import auto_top_up, checkout, packages, providers, receipts, refunds
from billing.payments.auto_top_up import TopUpRefused
from billing.payments.checkout import CheckoutRefused
from billing.payments.providers.base import ProviderError
from billing.payments.receipts import NotPaid
from billing.payments.refunds import RefundRefused
from billing.web.forms import BuyForm, TopUpForm
from chatproject.lib.db import MoneyBusy

if TYPE_CHECKING:
    from chatproject.lib.http import Request


P = ParamSpec("P")

logger = logging.getLogger(__name__)

BUSY = "Something else happens on your account right now. Try again in a moment."

# How often an open order's page looks again: often at first, not for ever.
REFRESH = ((120, 4), (900, 15), (7200, 60))  # until so many seconds of its age, every so many


def of_owner(
    view: Callable[Concatenate[Request, Order, P], HttpResponse],
) -> Callable[Concatenate[Request, UUID, P], HttpResponse]:
    """Open an order for its owner; for everybody else there is none."""

    @wraps(view)
    def open_order(
        request: Request, order_id: UUID, *args: P.args, **kwargs: P.kwargs
    ) -> HttpResponse:
        try:
            found = packages.order(request.user.pk, order_id)
        except Order.DoesNotExist as error:
            raise Http404("There is no such order.") from error
        return view(request, found, *args, **kwargs)

    return open_order  # type: ignore[return-value] # wraps() forgets that it is called by position


# --- What is for sale -------------------------------------------------------------------------


@require_GET
@never_cache
def packages_page(request: Request) -> HttpResponse:
    """The packages in one currency; ?next= is the page to come back to afterwards."""
    if request.accepts("application/json") and not request.accepts("text/html"):
        return packages_json(request)
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
            "return_to": _own_path(request, request.GET.get("next", "")),
            "nonce": secrets.token_urlsafe(9),
        },
    )


@require_GET
@cache_control(public=True, max_age=60)
def packages_json(request: HttpRequest) -> JsonResponse:
    """What is for sale, for everybody; credits are decimal numbers as text."""
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


def _own_path(request: HttpRequest, path: str) -> str:
    """A path of this site, or nothing."""
    is_own = path.startswith("/") and url_has_allowed_host_and_scheme(
        path, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    )
    return path if is_own and len(path) <= 500 else ""


# --- One order --------------------------------------------------------------------------------


@require_http_methods(["GET", "POST"])
@never_cache
def buy(request: Request) -> HttpResponse:
    """Make an order, and send its buyer to the provider."""
    if request.method == "GET":
        return redirect("billing:packages")
    form = BuyForm(request.POST)
    if not form.is_valid():
        messages.error(request, "That order was not complete. Nothing was bought. Choose again.")
        return redirect("billing:packages")
    given = form.cleaned_data
    try:
        order = checkout.create_order(
            user_id=request.user.pk,
            package_id=given["package"],
            currency=given["currency"],
            provider=given["provider"],
            client_key=form.client_key,
            return_to=_own_path(request, given["next"]),
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
    """Go on to pay an order that is open."""
    return _to_provider(request, order)


def _to_provider(request: Request, order: Order) -> HttpResponse:
    if not order.is_paid:
        try:
            begun = checkout.begin(
                order.pk,
                return_url=request.build_absolute_uri(
                    reverse("billing:order_return", args=[order.pk])
                ),
                cancel_url=request.build_absolute_uri(reverse("billing:order", args=[order.pk])),
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
                    "provider_label": _label(order),
                },
            )
    return redirect("billing:order", order.pk)


# The provider's page may come back with a POST: from another site, so without our token and without
# the session's cookie. Such a request is sent on to sign in, as anybody without a session, and comes
# back from there with a GET that has the cookie. What it posts is not read: the provider is asked.
@csrf_exempt
@require_http_methods(["GET", "POST"])
@never_cache
@of_owner
def order_return(request: Request, order: Order) -> HttpResponse:
    """Where the provider sends the buyer back to: ask how the order stands, and show it."""
    if not order.is_paid:
        try:
            checkout.sync_order(order.pk)
        except ProviderError as error:
            logger.warning("%s could not be asked about %s: %s", order.provider, order, error)
            messages.warning(
                request,
                f"{_label(order)} does not answer just now. Your order goes on by itself when it does.",
            )
        except MoneyBusy:
            messages.warning(request, BUSY)
    return redirect("billing:order", order.pk)


@csrf_exempt  # as above: a canceled payment may come back with a POST
@require_http_methods(["GET", "POST"])
@never_cache
@of_owner
def order(request: Request, order: Order) -> HttpResponse:
    """An order: how it stands and what can be done; it looks again by itself while it is open."""
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
            "provider_label": _label(order),
            "invoice": receipts.number(order),
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


def _label(order: Order) -> str:
    """The provider as buyers read it, also one that is no longer configured."""
    labels = {provider.name: provider.label for provider in providers.enabled()}
    return labels.get(order.provider, order.provider.capitalize())


def _refresh(order: Order) -> int:
    """Seconds until the page looks again; 0: it does not."""
    if order.status not in Order.OPEN:
        return 0
    age = (timezone.now() - order.updated_at).total_seconds()
    return next((every for until, every in REFRESH if age < until), 0)


@require_GET
@never_cache
@of_owner
def receipt(request: Request, order: Order) -> HttpResponse:
    """The receipt as a PDF."""
    try:
        content = receipts.pdf(order)
    except NotPaid as error:
        raise Http404("There is no receipt, as nothing was paid.") from error
    response = HttpResponse(content, content_type="application/pdf")
    name = f"invoice-{receipts.number(order)}.pdf"
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


@require_POST
@never_cache
@of_owner
def refund(request: Request, order: Order) -> HttpResponse:
    """Take a purchase back, as far as its buyer may."""
    nonce = request.POST.get("nonce", "")
    if not 8 <= len(nonce) <= 64:
        messages.error(request, "This form is out of date. Nothing was taken back. Try again.")
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
                f"{_label(order)} did not take the refund. Your credits are back. Write to us.",
            )
        else:
            amount = credits.show_money(made.amount_minor, order.currency)
            messages.success(
                request, f"{amount} are on their way back to you. Banks take some days."
            )
    return redirect("billing:order", order.pk)


# --- Buying by itself -------------------------------------------------------------------------


@require_http_methods(["GET", "POST"])
@never_cache
def top_up_page(request: Request) -> HttpResponse:
    """Agree to automatic purchases, see how they go, or turn them off."""
    if not settings.AUTO_TOP_UP:
        raise Http404("Automatic purchases are not offered here.")
    if "withdraw" in request.POST:
        auto_top_up.withdraw(request.user.pk)
        messages.success(request, "Nothing is bought by itself any more.")
        return redirect("billing:top_up")
    found = AutoTopUp.objects.filter(user=request.user.pk).first()
    offers = packages.offers()
    if request.method == "POST":
        form = TopUpForm(request.POST, offers=offers)
        if form.is_valid() and _consent(request, form):
            messages.success(request, "From now on credits are bought by themselves.")
            return redirect("billing:top_up")
    else:
        form = TopUpForm(offers=offers, initial=TopUpForm.initial_of(found))
    return render(
        request,
        "billing/top_up.html",
        {"page": "limits", "form": form, "top_up": found},
        status=400 if form.is_bound else 200,
    )


def _consent(request: Request, form: TopUpForm) -> bool:
    try:
        auto_top_up.consent(user_id=request.user.pk, **form.terms)
    except TopUpRefused as error:
        form.add_error(None, error.message)
        return False
    return True
