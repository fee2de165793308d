"""The application under another ASGI server, without the extensions of `chatproject.lib.server`."""

from __future__ import annotations

import asyncio
from urllib.request import ProxyHandler, build_opener

import pytest

from chatproject.lib import db
from tests.support import stack as processes
from tests.support.fake_llm import reply_text
from tests.support.people import session_key
from tests.support.reconnecting_client import LiveTab
from tests.support.stack import Stack


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("assistant", "valkey_url")
async def test_uvicorn_serves_a_page_and_a_chat(owner, provider, server_folder, monkeypatch):
    text = "[[tokens=60 rate=200]]"
    with Stack(server_folder, provider_url=provider.url) as stack:
        uvicorn = ["-m", "uvicorn", "chatproject.asgi:application", "--port", str(stack.port)]
        monkeypatch.setitem(processes.PROCESSES, "web", uvicorn)
        await asyncio.to_thread(stack.start, "web", "worker")
        page = build_opener(ProxyHandler({})).open(f"{stack.base}/accounts/signup/").read()
        assert b'name="password1"' in page
        tab = LiveTab(stack, await db.run(session_key, owner))
        async with asyncio.timeout(60):
            end = await tab.chat(text)
    assert (end["type"], tab.text, tab.connections) == ("run.done", reply_text(60, text), 1)
    assert "Uvicorn running" in stack.log("web")
