"""No page is kept by a cache, except those that are the same for all."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import User
from chatproject.ops.private_pages import PUBLIC_VIEWS
from tests.accounts.test_pages import ROUTES
from tests.support.visitor import Visitor, without_limits

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey_url")]


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("who", ["visitor", "user", "staff"])
def test_pages_are_kept_by_no_cache(who, step, settings):
    """Each kind of user takes another third of the pages, and all of them in `make ci-long`."""
    without_limits(settings)
    user = None
    if who == "user":
        user = User.objects.create_user("reader@example.org", "x")
    elif who == "staff":
        user = User.objects.create_superuser("staff@example.org", "x")
    visitor = Visitor(user)
    kept = []
    start = {"visitor": 0, "user": 1, "staff": 2}[who] % step
    routes = ROUTES[start::step]
    for name, address in routes:
        for method in ("get", "post"):
            response = visitor.request(method, address)
            if response.headers.get("Cache-Control") != "private, no-store":
                kept.append((name, method, response.headers.get("Cache-Control")))
    assert kept == [
        (name, "get", "public, max-age=60") for name, _ in routes if name in PUBLIC_VIEWS
    ]


def test_unknown_page_is_kept_by_no_cache(client: Client):
    assert client.get("/nowhere/")["Cache-Control"] == "private, no-store"
