"""Both fake payment providers, by hand: python -m tests.support.fakepay --port 9100."""

from __future__ import annotations

import argparse
import threading
from contextlib import suppress

from tests.support.fakepay.postman import RAZORPAY_SECRET, STRIPE_SECRET
from tests.support.fakepay.razorpay_side import KEY_ID, KEY_SECRET
from tests.support.fakepay.server import FakePay
from tests.support.fakepay.stripe_side import KEY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9100)
    parser.add_argument("--site", default="http://127.0.0.1:8000", help="where webhooks are sent")
    parser.add_argument("--late", type=float, default=10, help="seconds until a late payment")
    options = parser.parse_args()
    with FakePay(options.port, settle_late_after=options.late) as pay:
        for provider in ("stripe", "razorpay"):
            pay.postman.urls[provider] = f"{options.site}/billing/webhooks/{provider}/"
        pay.postman.start()
        print(  # noqa: T201 # for the shell that started it
            f"STRIPE_SECRET_KEY={KEY}\n"
            f"STRIPE_WEBHOOK_SECRETS={STRIPE_SECRET}\n"
            f"STRIPE_API_BASE={pay.url}\n"
            f"STRIPE_CHECKOUT_ORIGIN={pay.url}\n"
            f"RAZORPAY_KEY_ID={KEY_ID}\n"
            f"RAZORPAY_KEY_SECRET={KEY_SECRET}\n"
            f"RAZORPAY_WEBHOOK_SECRETS={RAZORPAY_SECRET}\n"
            f"RAZORPAY_API_BASE={pay.url}",
            flush=True,
        )
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
