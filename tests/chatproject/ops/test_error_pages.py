"""The error pages: the way back, and a site whose templates cannot be rendered."""

from __future__ import annotations

import pytest
from django.http import HttpResponse
from django.test import Client, RequestFactory
from redis import RedisError

from chatproject.lib.rate_limits import RateLimited
from chatproject.ops.error_pages import server_error
from chatproject.ops.rate_limits import too_many_requests


def test_site_before_collectstatic_has_an_error_page(settings, tmp_path, caplog):
    settings.STATIC_ROOT = tmp_path
    settings.STORAGES = settings.STORAGES | {
        "staticfiles": {"BACKEND": "chatproject.lib.staticfiles.ManifestStorage"}
    }
    response = Client(raise_request_exception=False).get("/accounts/login/")
    assert response.status_code == 500
    assert "Something went wrong on our side" in response.content.decode()
    assert "the error page cannot be rendered" in caplog.text


def answers(path: str, method: str) -> list[HttpResponse]:
    """Return the pages of a limit, of an unreachable service and of a bug."""
    request = RequestFactory().generic(method, path)
    pages = [too_many_requests(request, RateLimited("messages", 40))]
    for error in (RedisError("no answer"), ValueError("a bug")):
        try:
            raise error
        except (RedisError, ValueError):
            pages.append(server_error(request))
    return pages


@pytest.mark.parametrize(("method", "offers"), [("GET", True), ("POST", False)])
def test_error_page_offers_the_page_again(method, offers):
    pages = answers("/search/?q=a&b=<x>", method)
    assert [page.status_code for page in pages] == [429, 503, 500]
    for page, seconds in zip(pages, (40, 5, 0), strict=True):
        html = page.content.decode()
        # A form that was posted is not sent again by a link.
        assert ('href="/search/?q=a&amp;b=%3Cx%3E"' in html) is offers
        assert (f'<wait-link data-seconds="{seconds}"' in html) is offers
        assert 'href="/"' in html
