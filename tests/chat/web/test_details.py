"""The details of a reply, as a page."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from chat.models import Run
from tests.support.conversations import add_turns

pytestmark = pytest.mark.usefixtures("valkey_url")


def test_page_shows_details_and_the_way_back(owner, stranger, conversation):
    [_, reply] = add_turns(owner, conversation, 1)
    now = timezone.now()
    Run.objects.update(
        queued_at=now,
        first_token_at=now + timedelta(seconds=1.25),
        ended_at=now + timedelta(seconds=4),
        prompt_tokens=1_234,
        cached_tokens=200,
        completion_tokens=56,
        reasoning_tokens=7,
        usage_estimated=True,
        charged=20_000,
    )
    client = Client()
    client.force_login(owner)
    html = client.get(f"/messages/details/?message={reply.pk}").content.decode()
    for words in ("Stub", "1,234", "200", "56", "7", "0.02 credits", "1.3 s", "4.0 s", "estimate"):
        assert words in html
    assert f"?message={reply.pk}#m-{reply.pk}" in html
    for address in ("", "?message=x", f"?message={conversation.pk}"):
        assert client.get(f"/messages/details/{address}").status_code == 404
    client.force_login(stranger)
    assert client.get(f"/messages/details/?message={reply.pk}").status_code == 404
