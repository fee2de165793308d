"""Previews of code and images of other sites: isolated documents."""

from __future__ import annotations

import re

import pytest
from django.test import Client


@pytest.fixture
def page(owner, valkey_url) -> Client:
    client = Client()
    client.force_login(owner)
    return client


def test_preview_is_isolated_and_requests_nothing(page, conversation):
    code = '<LINK rel=preconnect href=//x.org><meta http-equiv=refresh content="0;//x.org"><b>Hi</b><base href=//x.org>'
    for frame in ("iframe", "FRAME", "frameset", "fencedframe", "object", "embed"):
        code += f'<{frame} srcdoc="&lt;link rel=preconnect href=//x.org&gt;">'
    response = page.post("/preview/", {"code": code})
    html = response.content.decode()
    assert "<b>Hi</b>" in html
    assert "<LINK" not in html
    assert html.count("<meta") == 1  # its own
    assert "<base" not in html
    assert not re.search("<[^>]* srcdoc", html)
    policy = dict(
        part.strip().partition(" ")[::2] for part in response["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "data:"
    assert policy["frame-ancestors"] == "'self'"
    assert policy["sandbox"] == ""
    assert "script-src" not in policy
    assert response["X-DNS-Prefetch-Control"] == "off"
    assert response["X-Frame-Options"] == "SAMEORIGIN"
    # The page itself may frame its own site alone, and load no image of another one.
    own = page.get(conversation.get_absolute_url())["Content-Security-Policy"].split("; ")
    assert "frame-src 'self'" in own
    assert "img-src 'self' data:" in own


def test_image_document_may_request_its_host_alone(page):
    address = 'https://img.example.org:8443/a.png?x="><script>'
    response = page.post("/preview/", {"image": address})
    assert "img-src https://img.example.org:8443;" in f"{response['Content-Security-Policy']};"
    html = response.content.decode()
    assert 'referrerpolicy="no-referrer"' in html
    assert "<script" not in html


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "http://example.org/a.png"},
        {"image": "javascript:alert(1)"},
        {"image": "data:image/svg+xml,<svg/>"},
        {"image": "https://example.org;script-src *"},
        {"image": "https://user:name@example.org/a"},
        {"image": "https://[::1"},
        {"image": "https:///a.png"},
        {"image": f"https://example.org/{'a' * 2_000}"},
        {"code": "x" * 200_001},
    ],
)
def test_other_documents_are_refused(page, fields):
    assert page.post("/preview/", fields).status_code == 400


def test_preview_needs_a_form_of_a_user(owner, page):
    assert page.get("/preview/").status_code == 405
    assert Client().post("/preview/", {"code": "x"}).status_code == 302
    client = Client(enforce_csrf_checks=True)
    client.force_login(owner)
    assert client.post("/preview/", {"code": "x"}).status_code == 403
