"""Waiting for a run by the REST API: who lost access meanwhile gets an error."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from asgiref.sync import sync_to_async

from accounts import api_keys
from accounts.models import User
from accounts.session_store import SessionStore
from chat.models import ConversationShare
from chat.web import run_follower
from chatproject.asgi import application
from tests.support.conversations import begin, send
from tests.support.people import assistant, owner, session_key, stranger

__all__ = ["assistant", "owner", "stranger"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


@pytest.mark.asyncio
async def test_access_is_checked_after_waiting(
    owner: User, stranger: User, assistant: Any, settings
):
    settings.SHARE_WITH_USERS = True

    def prepare() -> tuple[str, dict[str, dict[str, str]]]:
        run = send(owner, begin(owner, assistant), "What is a lake?")
        ConversationShare.objects.create(
            conversation=run.conversation, owner=owner, email=stranger.email, user=stranger
        )
        users = {"stays": owner, "revoked": owner, "reader": stranger}
        keys = {who: api_keys.create(user, api_keys.Terms(who))[1] for who, user in users.items()}
        headers = {who: {"authorization": f"Bearer {secret}"} for who, secret in keys.items()}
        return str(run.pk), headers | {"page": {"cookie": f"sessionid={session_key(owner)}"}}

    run, headers = await sync_to_async(prepare)()
    transport = httpx2.ASGITransport(app=application)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as client:

        async def wait(who: str) -> tuple[int, str]:
            path = f"/api/v1/runs/{run}/wait?seconds=2"
            answer = await client.get(path, headers=headers[who])
            found = answer.json()
            return answer.status_code, found.get("status") or found["code"]

        waiting = [asyncio.create_task(wait(who)) for who in headers]
        await asyncio.sleep(0.7)  # all wait; none looks again before five seconds are over

        def end() -> None:
            ConversationShare.objects.all().delete()
            api_keys.revoke(owner.api_keys.get(name="revoked"), by=owner)
            SessionStore(headers["page"]["cookie"].partition("=")[2]).delete()

        await sync_to_async(end)()
        assert await asyncio.gather(*waiting) == [
            (200, "queued"),
            (401, "invalid_api_key"),
            (404, "not_found"),
            (401, "missing_api_key"),
        ]
    await run_follower.close_clients()
