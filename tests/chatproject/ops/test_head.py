"""HEAD answers as GET does, without the body."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import User
from tests.accounts.test_pages import ROUTES
from tests.support.conversations import begin
from tests.support.visitor import Visitor, without_limits


@pytest.mark.django_db(transaction=True)
def test_pages_answer_head_as_get(client: Client, owner, assistant):
    conversation = begin(owner, assistant)
    client.force_login(owner)
    chat, billing = f"/c/{conversation.pk}/", "/billing/"
    for path in (
        "/",
        chat,
        "/chats/",
        billing,
        f"{billing}history/",
        f"{billing}packages.json",
        "/api/v1/balance",
    ):
        page, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (page.status_code, b"")
        assert head["Content-Type"] == page["Content-Type"]
        assert page.status_code == 200


@pytest.mark.django_db
@pytest.mark.usefixtures("valkey_url")
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("who", ["visitor", "staff"])
def test_every_page_answers_head_as_get(who, step, settings):
    without_limits(settings)
    visitor = Visitor(
        User.objects.create_superuser("s@example.org", "x") if who == "staff" else None
    )
    differing = []
    for name, address in ROUTES[::step]:
        page, head = (visitor.request(method, address) for method in ("get", "head"))
        if head.status_code != page.status_code or head.getvalue():
            differing.append((name, page.status_code, head.status_code))
    assert differing == []
