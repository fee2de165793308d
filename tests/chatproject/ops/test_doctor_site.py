"""`manage.py doctor` on the way through a proxy: requests to real web processes behind real TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from chatproject.ops import doctor
from chatproject.ops.doctor import Check, Finding, Level, site
from tests.support.stack import Stack
from tests.support.tls_proxy import TlsProxy, make_certificate

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

# What nginx adds with the lines of the documentation.
GOOD = {
    "X-Forwarded-Proto": "https",
    "X-Forwarded-For": "198.51.100.77, 203.0.113.9",
}


@pytest.fixture
def certificate(tmp_path, monkeypatch) -> Path:
    """A certificate for localhost that this process trusts."""
    path = make_certificate(tmp_path / "localhost.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


@pytest.fixture
def start(tmp_path, settings, certificate) -> Iterator[Any]:
    """Start a web process; the settings of this process are the same."""
    stacks = []

    def start_web(**variables: str) -> Stack:
        call_command("collectstatic", interactive=False, verbosity=0)
        environment = {"HTTPS": "1", "TRUST_PROXY": "1", **variables}
        settings.HTTPS = environment["HTTPS"] == "1"
        settings.TRUST_PROXY = int(environment["TRUST_PROXY"])
        stack = Stack(tmp_path, provider_url="http://127.0.0.1:9/v1", environment=environment)
        stacks.append(stack)
        stack.start("web")
        return stack

    yield start_web
    for stack in stacks:
        stack.__exit__()


def found_at(url: str, settings: Any) -> dict[str, Finding]:
    """The last finding about each part that is no OK, or else the OK."""
    settings.SITE_URL = url
    found: dict[str, Finding] = {}
    for finding in doctor.examine([Check("site", site.check, seconds=60.0)]):
        if finding.part not in found or finding.level is not Level.OK:
            found[finding.part] = finding
    return found


def problems(found: dict[str, Finding]) -> set[str]:
    return {part for part, finding in found.items() if finding.level is Level.PROBLEM}


def test_site_behind_a_right_proxy_is_ok(start, certificate, settings):
    with TlsProxy(start().port, certificate, sets=GOOD) as proxy:
        found = found_at(proxy.url, settings)
    assert {finding.level for finding in found.values()} == {Level.OK}, found
    assert {*found} == {"site", "certificate", "proxy", "socket"}
    assert "from 203.0.113.9" in found["proxy"].found


def test_endless_redirect_names_the_setting(start, certificate, settings):
    with TlsProxy(start(TRUST_PROXY="0").port, certificate, sets=GOOD) as proxy:
        found = found_at(proxy.url, settings)
    assert f"an endless redirect: {proxy.url}/ leads to {proxy.url}/" in found["site"].found
    assert "TRUST_PROXY=1" in found["site"].advice


def test_endless_redirect_names_the_header(start, certificate, settings):
    sets = {"X-Forwarded-For": "203.0.113.9"}
    with TlsProxy(start().port, certificate, sets=sets) as proxy:
        found = found_at(proxy.url, settings)
    assert "an endless redirect" in found["site"].found
    assert "X-Forwarded-Proto" in found["site"].advice
    assert "TRUST_PROXY" not in found["site"].advice
    assert {"site", "proxy", "socket"} == problems(found)


@pytest.mark.parametrize(
    ("host", "allowed", "words"),
    [
        ("127.0.0.1:8000", "localhost,127.0.0.1", "receives the Host “127.0.0.1:8000”"),
        ("parley_web", "localhost", "receives the Host “parley_web”"),
    ],
)
def test_host_that_the_proxy_replaces_is_a_problem(
    start, certificate, settings, host, allowed, words
):
    port = start(ALLOWED_HOSTS=allowed).port
    with TlsProxy(port, certificate, sets=GOOD | {"Host": host}) as proxy:
        found = found_at(proxy.url, settings)
    assert words in found["proxy"].found
    assert "proxy_set_header Host" in found["proxy"].advice
    assert "socket" in problems(found)


def test_host_missing_in_allowed_hosts_is_named(start, certificate, settings):
    settings.ALLOWED_HOSTS = ["chat.example.org"]
    port = start(ALLOWED_HOSTS="chat.example.org").port
    with TlsProxy(port, certificate, sets=GOOD) as proxy:
        found = found_at(proxy.url, settings)
    assert "ALLOWED_HOSTS" in found["site"].advice
    assert "ALLOWED_HOSTS" in found["proxy"].advice


def test_proxy_without_websockets_is_a_problem(start, certificate, settings):
    drops = ("Upgrade", "Connection")
    with TlsProxy(start().port, certificate, sets=GOOD, drops=drops) as proxy:
        found = found_at(proxy.url, settings)
    assert problems(found) == {"socket"}
    assert "proxy_set_header Upgrade" in found["socket"].advice


def test_forged_client_address_is_a_problem(start, certificate, settings):
    """The proxy passes X-Forwarded-For on as the client sends it."""
    sets = {"X-Forwarded-Proto": "https"}
    with TlsProxy(start().port, certificate, sets=sets) as proxy:
        found = found_at(proxy.url, settings)
    assert problems(found) == {"proxy"}
    assert "can choose its address" in found["proxy"].found


def test_shared_client_address_is_a_warning(start, certificate, settings):
    with TlsProxy(start(TRUST_PROXY="0", HTTPS="0").port, certificate, sets=GOOD) as proxy:
        found = found_at(proxy.url, settings)
    assert "all visitors share the address 127.0.0.1" in found["proxy"].found
    assert "Set TRUST_PROXY=1" in found["proxy"].advice


def test_uncounted_proxy_is_a_warning(start, certificate, settings):
    sets = GOOD | {"X-Forwarded-For": "198.51.100.77, 203.0.113.9, 10.0.0.1"}
    with TlsProxy(start().port, certificate, sets=sets) as proxy:
        found = found_at(proxy.url, settings)
    assert "all visitors share the address 10.0.0.1" in found["proxy"].found
    assert "Set TRUST_PROXY=2" in found["proxy"].advice


@pytest.mark.parametrize(
    ("certificate_of", "level", "words"),
    [
        ({"name": "other.example"}, Level.PROBLEM, "ostname mismatch"),
        ({"days": -1}, Level.PROBLEM, "expired"),
        ({"days": 5}, Level.WARNING, "4 more days"),
    ],
    ids=["other name", "expired", "expires soon"],
)
def test_bad_certificate_does_not_hide_the_rest(
    start, tmp_path, monkeypatch, settings, certificate_of, level, words
):
    path = make_certificate(tmp_path / "bad.pem", **certificate_of)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with TlsProxy(start().port, path, sets=GOOD) as proxy:
        found = found_at(proxy.url, settings)
    assert found["certificate"].level is level
    assert (
        words in found["certificate"].found or words.replace("4", "5") in found["certificate"].found
    )
    assert found["site"].level is Level.OK
    assert found["socket"].level is Level.OK


def test_unknown_authority_is_a_problem(start, certificate, monkeypatch, settings):
    monkeypatch.delenv("SSL_CERT_FILE")
    with TlsProxy(start().port, certificate, sets=GOOD) as proxy:
        found = found_at(proxy.url, settings)
    assert problems(found) == {"certificate"}


def test_dead_web_process_is_named(start, certificate, settings):
    stack = start()
    stack.kill("web")
    with TlsProxy(stack.port, certificate, sets=GOOD) as proxy:
        found = found_at(proxy.url, settings)
    assert "the proxy answers 502" in found["site"].found
    assert "HOST and PORT" in found["site"].advice


def test_other_program_at_the_address_is_named(start, certificate, settings):
    settings.SECRET_KEY = "another-key-0123456789-abcdefghijklmnopqrstuvwxyz"
    with TlsProxy(start().port, certificate, sets=GOOD) as proxy:
        found = [f for f in [*found_at(proxy.url, settings).values()] if f.part == "site"]
    assert "SECRET_KEY" in found[0].advice


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "SITE_URL is not set"),
        ("https://no-such-host.invalid", "is not found"),
        ("http://localhost:9", "refused"),
    ],
)
def test_unreachable_address_is_named(settings, url, words):
    settings.ALLOWED_HOSTS = ["*"]
    assert words in found_at(url, settings)["site"].found
