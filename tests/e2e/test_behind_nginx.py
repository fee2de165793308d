"""The site behind a real nginx with TLS, whose file is the one of deploy/."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator

import pytest
from selenium import webdriver

from chatproject.ops import health
from tests.e2e.browser import Browser
from tests.e2e.conftest import DESKTOP, Site, running_site, second_redis
from tests.support import nginx
from tests.support.fake_llm import reply_text

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(nginx.PROGRAM is None, reason="nginx is missing: install nginx-light"),
]


@pytest.fixture(scope="module")
def secure_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, int, int]]:
    """A site of two web processes behind nginx, and nginx's ports of http and https."""
    folder = tmp_path_factory.mktemp("secure")
    variables = {
        "HTTPS": "1",
        "TRUST_PROXY": "1",
        "ALLOWED_HOSTS": nginx.HOST,
        "REDIS_URL": second_redis(),
    }
    with running_site(folder, **variables) as site:
        site.stack.start("web-2")
        addresses = [site.stack.address(name) for name in ("web", "web-2")]
        ports = [int(address.rpartition(":")[2]) for address in addresses]
        with nginx.running_nginx(folder, web=ports) as (http_port, https_port):
            yield site, http_port, https_port


@pytest.fixture
def secure_browser(
    secure_site: tuple[Site, int, int], driver: webdriver.Chrome, email: str
) -> Browser:
    """A browser that accepts the certificate, signed up as `email`."""
    browser = Browser(driver, f"https://{nginx.HOST}:{secure_site[2]}", DESKTOP)
    driver.execute_cdp_cmd("Security.setIgnoreCertificateErrors", {"ignore": True})
    browser.sign_up(email)
    return browser


def test_chat_streams_over_tls(secure_site: tuple[Site, int, int], secure_browser: Browser):
    site = secure_site[0]
    text = "[[tokens=60 rate=30]] Over TLS"
    secure_browser.write(text)
    secure_browser.click("[data-send-button]")
    secure_browser.wait_for_status("done")
    assert site.reply(secure_browser.conversation) == (reply_text(60, text), "done")
    [cookie] = [one for one in secure_browser.driver.get_cookies() if one["name"] == "sessionid"]
    assert cookie["secure"]
    # nginx spreads requests over both processes.
    assert all("GET /" in site.stack.log(name) for name in ("web", "web-2"))


def get(
    port: int, path: str, headers: dict[str, str] | None = None, *, tls: bool = True
) -> tuple[int, str, str]:
    """Status, Location and body of nginx's answer."""
    connection: http.client.HTTPConnection
    if tls:
        unchecked = ssl._create_unverified_context()  # noqa: S323 # its own certificate
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=unchecked)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Host": f"{nginx.HOST}:{port}", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Location", ""), answer.read().decode()


def test_http_leads_to_https_once(secure_site: tuple[Site, int, int]):
    _, http_port, https_port = secure_site
    status, location, _ = get(http_port, "/accounts/login/?next=/", tls=False)
    expected = f"https://{nginx.HOST}:{https_port}/accounts/login/?next=/"
    assert (status, location) == (301, expected)
    assert get(https_port, "/accounts/login/?next=/")[0] == 200


def test_address_is_the_one_that_nginx_appended(secure_site: tuple[Site, int, int]):
    forged = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "http"}
    status, _, body = get(secure_site[2], "/health/seen", {**forged, **health.doctor_header()})
    seen = json.loads(body)
    assert (status, seen["scheme"], seen["client"]) == (200, "https", "127.0.0.1")


def test_metrics_are_not_passed_on(secure_site: tuple[Site, int, int]):
    assert get(secure_site[2], "/metrics")[0] == 404
