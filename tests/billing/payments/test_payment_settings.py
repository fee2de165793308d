"""The payment settings as a process reads them when it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

READ = """
import json, sys
from chatproject import settings
print(json.dumps({
    "forms": settings.CONTENT_SECURITY_POLICY["DIRECTIVES"]["form-action"],
    "live": settings.STRIPE_LIVEMODE,
    "secrets": settings.STRIPE_WEBHOOK_SECRETS,
    "libraries": sorted({"stripe", "razorpay", "requests"} & set(sys.modules)),
}))
"""


def read(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", READ],
        env={**os.environ, "SECRET_KEY": "x", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_forms_stay_on_site_without_a_provider():
    settings = json.loads(read().stdout)
    assert settings == {"forms": ["'self'"], "live": False, "secrets": [], "libraries": []}


def test_forms_may_lead_to_configured_providers():
    settings = json.loads(
        read(
            STRIPE_SECRET_KEY="rk_live_x",
            STRIPE_WEBHOOK_SECRETS="whsec_new, whsec_old",
            RAZORPAY_KEY_ID="rzp_test_x",
            RAZORPAY_KEY_SECRET="x",
        ).stdout
    )
    assert settings == {
        "forms": ["'self'", "https://checkout.stripe.com", "https://api.razorpay.com"],
        "live": True,
        "secrets": ["whsec_new", "whsec_old"],
        "libraries": [],
    }


@pytest.mark.parametrize(
    ("variables", "hint"),
    [
        ({"RAZORPAY_KEY_ID": "rzp_test_x"}, "RAZORPAY_KEY_SECRET"),
        ({"CURRENCIES": "USD,dollars"}, "three letters"),
        ({"PAYMENTS_SANDBOX": "1", "DEBUG": "0"}, "PAYMENTS_SANDBOX is for development"),
    ],
)
def test_wrong_setting_stops_the_start_with_hint(variables, hint):
    ended = read(**variables)
    assert ended.returncode != 0
    assert hint in ended.stderr.splitlines()[-1]


def test_sandbox_starts_in_debug_mode():
    assert read(PAYMENTS_SANDBOX="1", DEBUG="1").returncode == 0
