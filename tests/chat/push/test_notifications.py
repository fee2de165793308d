"""Notifications of ended replies, from the settings page to the push service."""

from __future__ import annotations

import pytest
from django.test import Client

from chat.models import Conversation, PushSubscription, Run
from chat.push import notifications
from chat.runs import finish, queue, stop
from chatproject.lib import db
from tests.support.conversations import send
from tests.support.push_service import PushService, push_service
from tests.support.runs import fresh, mark_running

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@pytest.fixture
def service(settings, monkeypatch):
    monkeypatch.setattr(notifications, "DELAY", 0.0)
    with push_service() as service:
        settings.PUSH_HOSTS = [service.address]
        yield service


@pytest.fixture
def page(client: Client, owner) -> Client:
    client.force_login(owner)
    return client


def subscribe(page: Client, service: PushService, **changes: str):
    return page.post(
        "/settings/devices/add/",
        {**service.subscription, **changes},
        headers={"accept": "application/json", "user-agent": AGENT},
    )


def end(owner, conversation: Conversation, **outcome) -> Run:
    """End a reply as its worker does."""
    run = send(owner, conversation, "A secret question")
    mark_running(run)
    values = {"status": Run.Status.DONE, "text": "A secret reply", **outcome}
    ended = finish.end(
        run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=9, outcome=finish.Outcome(**values)
    )
    assert ended is not None
    return fresh(run.pk)


def waiting() -> list[str]:
    jobs = queue.rq_queue("low").get_jobs()
    return [job.kwargs["run_id"] for job in jobs if job.func_name == "chat.push.jobs.notify"]


async def notify(run: Run) -> None:
    """Run the job that the end of a run has enqueued."""
    assert await db.run(waiting) == [str(run.pk)]
    await db.run(queue.rq_queue("low").empty)
    await notifications.notify(run.pk)


async def test_finished_reply_notifies_each_device(owner, conversation, page, service):
    await db.run(end, owner, conversation)
    assert await db.run(waiting) == []  # without a device
    assert (await db.run(subscribe, page, service)).status_code == 201
    html = (await db.run(page.get, "/settings/notifications/")).content.decode()
    assert "Firefox, Linux" in html
    assert "this device" in html

    await notify(await db.run(end, owner, conversation))
    chat = f"/c/{conversation.pk}/"
    [message] = service.messages
    assert message == {
        "title": "Parley",
        "body": "Your reply is ready.",
        "url": chat,
        "tag": conversation.pk.hex,
    }

    device = await db.run(PushSubscription.objects.get)
    changed = {"device": device.pk, "shows_title": "on"}
    assert (await db.run(page.post, "/settings/devices/", changed)).status_code == 302
    await db.run(Conversation.objects.update, title="On tides")
    await notify(
        await db.run(
            lambda: end(owner, conversation, status="failed", code="provider_error", text="")
        )
    )
    assert (service.messages[1]["title"], service.messages[1]["body"]) == (
        "On tides",
        "A reply could not be finished.",
    )


async def test_seen_or_stopped_reply_sends_nothing(owner, conversation, page, service):
    await db.run(subscribe, page, service)
    run = await db.run(end, owner, conversation)
    # A visible page reads it at once.
    await db.run(Conversation.objects.update, unread=False)
    await notify(run)
    queued = await db.run(send, owner, conversation)
    await db.run(lambda: stop.stop_run(user=owner, run_id=queued.pk))
    assert await db.run(lambda: fresh(queued.pk).status) == "stopped"
    assert await db.run(waiting) == []
    assert service.requests == []


@pytest.mark.parametrize("reason", ["ended by the service", "signed out", "removed"])
async def test_ended_subscription_is_removed(owner, conversation, page, service, reason):
    await db.run(subscribe, page, service)
    # The session gets another key, and the device goes on with it.
    session = page.session
    old = session.session_key
    await db.run(session.cycle_key)
    device = await db.run(PushSubscription.objects.get)
    assert device.session_key == session.session_key != old
    run = await db.run(end, owner, conversation)
    if reason == "ended by the service":
        service.statuses = [410]
    elif reason == "signed out":
        await db.run(session.flush)
    else:
        page.cookies["sessionid"] = session.session_key
        await db.run(page.post, "/settings/devices/", {"device": device.pk, "remove": "1"})
    await notify(run)
    assert len(service.requests) == (reason == "ended by the service")
    assert not await db.run(PushSubscription.objects.exists)


def test_rotated_subscription_replaces_the_old_one(owner, stranger, service):
    """As the service worker asks for it (tests/js/service_worker.test.js): with a token, and the title as it was."""
    page = Client(enforce_csrf_checks=True)
    page.force_login(owner)
    fields = service.subscription
    address = "/settings/devices/renew/"
    answer = page.get(address)
    found = answer.json()
    assert "no-store" in answer["Cache-Control"]
    of_stranger = PushSubscription.objects.create(
        user=stranger, endpoint="https://push.example/other", shows_title=True
    )
    PushSubscription.objects.create(
        user=owner, endpoint="https://push.example/old", shows_title=True
    )
    posted = {**fields, "old": "https://push.example/old"}
    assert page.post(address, posted).status_code == 403
    posted["csrfmiddlewaretoken"] = found["token"]
    assert page.post(address, posted).status_code == 201
    [device] = owner.push_subscriptions.all()
    assert (device.endpoint, device.shows_title) == (fields["endpoint"], True)
    assert (device.server_key, device.session_key) == (found["key"], page.session.session_key)
    posted |= {"endpoint": fields["endpoint"] + "2", "old": of_stranger.endpoint}
    assert page.post(address, posted).status_code == 201
    assert not owner.push_subscriptions.latest("pk").shows_title
    assert PushSubscription.objects.filter(pk=of_stranger.pk).exists()
    assert page.post(address, {**posted, "auth": "none"}).status_code == 400
    page.logout()
    assert page.get(address).status_code == 302


def test_devices_are_bounded_and_their_users_own(page, owner, stranger, service, settings):
    assert subscribe(page, service, endpoint="https://10.0.0.1/x").status_code == 400
    assert subscribe(page, service, auth="none").status_code == 400
    base = service.subscription["endpoint"]
    for number in range(12):
        assert subscribe(page, service, endpoint=f"{base}{number}").status_code == 201
    assert owner.push_subscriptions.count() == 10
    other = Client()
    other.force_login(stranger)
    device = owner.push_subscriptions.latest("pk").pk
    for wrong in (device, "x", "", "9" * 19, "-1"):
        response = other.post("/settings/devices/", {"device": wrong, "remove": "1"})
        assert response.status_code == 404
    assert owner.push_subscriptions.count() == 10
    settings.WEB_PUSH = False
    assert subscribe(page, service).status_code == 404
    assert page.get("/settings/devices/renew/").status_code == 404
    assert "data-turn-on" not in page.get("/settings/notifications/").content.decode()
