"""Payment providers by name. Only this package makes HTTP requests to the outside for billing."""

from __future__ import annotations

from django.conf import settings

from billing.payments.providers.base import PaymentProvider, ProviderNotConfigured

# The providers' libraries cost 20 to 35 MB and up to half a second: each adapter imports its own at
# its top, and is itself imported only when it is configured.


def get(name: str) -> PaymentProvider:
    """Return the provider of that name. Raises ProviderNotConfigured."""
    for provider in enabled():
        if provider.name == name:
            return provider
    raise ProviderNotConfigured(f"The payment provider {name} is not configured.")


def label(name: str) -> str:
    """Return a provider's name as buyers read it, also when it is no longer configured."""
    labels = {provider.name: provider.label for provider in enabled()}
    return str(labels.get(name, name.capitalize()))


def enabled() -> list[PaymentProvider]:
    """Return the configured providers, in the order in which buyers see them."""
    found: list[PaymentProvider] = []
    if settings.STRIPE_SECRET_KEY:
        from billing.payments.providers.stripe import StripeProvider

        found.append(StripeProvider())
    if settings.RAZORPAY_KEY_ID:
        from billing.payments.providers.razorpay import RazorpayProvider

        found.append(RazorpayProvider())
    if settings.PAYMENTS_SANDBOX and settings.DEBUG:
        from billing.payments.providers.sandbox import SandboxProvider

        found.append(SandboxProvider())
    return found
