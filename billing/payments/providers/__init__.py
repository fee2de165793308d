"""Payment providers by name. Only this package speaks HTTP to the outside on behalf of billing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings

if TYPE_CHECKING:
    from billing.payments.providers.base import Provider

# The providers' libraries cost 20 to 35 MB and up to half a second: each adapter imports its own at
# its top, and is itself imported only when it is configured.


def get(name: str) -> Provider:
    """The provider of that name. Raises LookupError when there is none or it is not configured."""
    for provider in enabled():
        if provider.name == name:
            return provider
    raise LookupError(f"The payment provider {name} is not configured.")


def enabled() -> list[Provider]:
    """The configured providers, in the order in which buyers see them."""
    providers: list[Provider] = []
    if settings.STRIPE_SECRET_KEY:
        from billing.payments.providers.stripe import StripeProvider

        providers.append(StripeProvider())
    if settings.RAZORPAY_KEY_ID:
        from billing.payments.providers.razorpay import RazorpayProvider

        providers.append(RazorpayProvider())
    if settings.PAYMENTS_SANDBOX and settings.DEBUG:
        from billing.payments.providers.sandbox import SandboxProvider

        providers.append(SandboxProvider())
    return providers
