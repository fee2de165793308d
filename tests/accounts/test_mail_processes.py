"""Mail by the real processes: a sign-up while the mail server is unreachable, and after it returned."""

from __future__ import annotations

import re
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, build_opener

import pytest
from django.utils import timezone

from accounts.models import User
from chatproject.lib.mail.models import OutgoingMail
from chatproject.local.servers import free_port
from tests.support.fake_mail import mail_server
from tests.support.programs import wait_until
from tests.support.stack import Stack

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


class Browser:
    """Pages and forms over HTTP, with cookies."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._cookies = CookieJar()
        self._opener = build_opener(HTTPCookieProcessor(self._cookies))

    def get(self, path: str) -> str:
        with self._opener.open(self._base + path, timeout=20) as response:
            return str(response.read().decode())

    def post(self, path: str, **fields: str) -> str:
        [token] = {cookie.value for cookie in self._cookies if cookie.name == "csrftoken"}
        body = urlencode({**fields, "csrfmiddlewaretoken": token}).encode()
        with self._opener.open(self._base + path, body, timeout=20) as response:
            return str(response.read().decode())


def test_sign_up_survives_an_unreachable_mail_server(tmp_path: Path):
    port = free_port()
    environment = {
        "EMAIL_URL": f"smtp://127.0.0.1:{port}?tls=0",
        "VERIFY_EMAIL": "1",
        "ALLOW_UNVERIFIED_CREDITS": "0",
    }
    with Stack(tmp_path, provider_url="http://127.0.0.1:9/v1", environment=environment) as stack:
        stack.start("web", "low", "clock")
        browser = Browser(stack.base)
        browser.get("/accounts/signup/")
        page = browser.post(
            "/accounts/signup/", email="reader@example.org", password1="a-long-password-17"
        )
        assert "Check your inbox" in page
        mails = OutgoingMail.objects.filter(status="queued", is_delayed=True)
        wait_until(mails.exists, "the first attempt has failed")
        assert "Mail is delayed" in browser.get("/accounts/confirm-email/")

        with mail_server(port) as server:
            mails.update(due_at=timezone.now())  # instead of a wait of half a minute
            wait_until(lambda: server.received, "the mail has arrived")
        text = server.received[0].get_payload()
        [link] = re.findall(r"https?://[^/]+(/accounts/confirm-email/\S+)", str(text))
        browser.get(link)
        browser.post(link)
        user = User.objects.get()
        wait_until(lambda: user.account.lots.exists(), "the sign-up credits are granted")

        log = stack.log("web") + stack.log("low") + stack.log("clock")
    key = link.split("/")[3]
    assert key not in log
    assert "confirm-email/[key]" in log
    assert "reader@example.org" not in log
    assert OutgoingMail.objects.values_list("status", "content").get() == ("sent", None)
