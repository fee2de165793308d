"""The bytes over the wire of a page, with its style sheets and scripts as a browser gets them."""

from __future__ import annotations

import gzip
import random
import re

from django.test import Client

from chat.models import Message
from chatproject.local.servers import BASE_DIR
from tests.support.conversations import add_turns

WORDS = (BASE_DIR / "docs/glossary.md").read_text().split()


def test_conversation_of_200_messages_fits_60_kilobytes(owner, conversation, valkey_url):
    chance = random.Random(7)  # text, no secret
    made = add_turns(owner, conversation, 100)
    for message in made:
        message.text = " ".join(chance.choices(WORDS, k=12))
        if message.role == "assistant":
            message.html = "<p>" + message.text.replace("<", "&lt;") + "</p>"
    Message.objects.bulk_update(made, ["text", "html"])
    client = Client()
    client.force_login(owner)
    response = client.get(conversation.get_absolute_url(), headers={"Accept-Encoding": "gzip"})
    assert len(response.content) <= 60_000
    html = gzip.decompress(response.content).decode()
    assert 'data-role="assistant"' in html
    # Fetched once for all pages; the bound keeps them from growing unnoticed.
    files = set(re.findall(r'(?:href|src)="/(static/[^"]+\.(?:css|js))"', html))
    total = sum(len(gzip.compress((BASE_DIR / name).read_bytes())) for name in files)
    assert total <= 128_000
