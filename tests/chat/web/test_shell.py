"""The frame of all signed-in pages: the sidebar with its chats, also on pages of other apps."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from chat.models import Project
from tests.support.conversations import begin

pytestmark = pytest.mark.usefixtures("valkey_url")

PAGES = ("/billing/", "/billing/usage/", "/accounts/email/", "/accounts/password/change/")


@pytest.fixture
def page(owner) -> Client:
    client = Client()
    client.force_login(owner)
    return client


@pytest.mark.parametrize("path", PAGES)
def test_pages_of_other_apps_have_the_sidebar(page, owner, assistant, path):
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            html = page.get(path).content.decode()
        assert "Ebb and flow" in html
        assert "Tides" in html
        assert html.count("<chat-sidebar") == 1
        return len(captured)

    def add() -> None:
        for _number in range(3):
            made = Project.objects.create(owner=owner, name="Tides")
            begin(owner, assistant, title="Ebb and flow", project=made)

    add()
    page.get(path)  # allauth stores the address at the first visit
    few = queries()
    add()
    assert queries() == few
    part = page.get(path, headers={"X-Swap": "1"}).content.decode()
    assert "<chat-app" in part
    assert "<chat-sidebar" not in part


def test_pages_without_sidebar_read_none(page, owner, assistant):
    begin(owner, assistant, title="Ebb and flow")
    with CaptureQueriesContext(connection) as captured:
        assert page.get("/nowhere/").status_code == 404
    assert not [one for one in captured if "chat_conversation" in one["sql"]]
