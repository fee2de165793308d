"""The pages of webhooks, without scripts: create, change, secret, log, and the admin."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from django.contrib.admin.models import LogEntry
from django.core import mail
from django.test import Client
from django.utils import timezone

from accounts.models import User
from chat.models import Webhook, WebhookDelivery
from chat.webhooks import editing, signing

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

PASSWORD = "correct horse battery"
SECRET = re.compile(r"whsec_[\w+/=]{44}")
DOCS = Path(__file__).parents[3] / "docs/webhooks.md"
FORM = {"name": "Build", "url": "https://example.org/hook?key=1", "events": ["run.done"]}


@pytest.fixture
def page(client: Client, owner) -> Client:
    client.force_login(owner)
    return client


def add(user: User, **terms) -> Webhook:
    values = {"name": "Build", "url": "https://example.org/hook", "events": ["run.done"], **terms}
    return editing.create(user, editing.Terms(**values))


def test_webhook_is_made_and_changed_by_forms(page, owner):
    asked = page.post("/settings/webhooks/", FORM | {"active": "on"})
    assert asked["Location"].startswith("/accounts/reauthenticate/")  # a session is not enough
    assert not Webhook.objects.exists()
    html = page.post(asked["Location"], {"password": PASSWORD}, follow=True).content.decode()
    [secret] = set(SECRET.findall(html))
    made = Webhook.objects.get()
    assert (made.owner, made.host, made.events) == (owner, "example.org", ["run.done"])
    assert secret == editing.secret_of(made)
    assert secret not in str(Webhook.objects.values().get())
    assert [message.to for message in mail.outbox] == [[owner.email]]
    assert "example.org" in mail.outbox[0].body
    address = f"/settings/webhooks/{made.pk}/"
    assert not SECRET.search(page.get(address).content.decode())  # shown once, unless asked for
    assert secret in page.post(f"{address}secret/", follow=True).content.decode()
    html = page.post(f"{address}secret/", {"rotate": "1"}, follow=True).content.decode()
    assert {secret} != set(SECRET.findall(html))
    page.post(address, FORM | {"name": "Other", "events": ["credits.low"]})
    made.refresh_from_db()
    assert (made.name, made.active, made.events) == ("Other", False, ["credits.low"])
    assert "Other" in page.get("/settings/webhooks/").content.decode()
    assert page.post(f"{address}test/").status_code == 403  # it is off
    page.post(f"{address}delete/")
    assert not Webhook.objects.exists()


def test_account_without_password_confirms_first(client, owner):
    """allauth would ask it for nothing, and a webhook outlives a borrowed session."""
    made = add(owner)
    owner.set_unusable_password()
    owner.save()
    client.force_login(owner)
    address = f"/settings/webhooks/{made.pk}/"
    for page, form in (
        ("/settings/webhooks/", FORM),
        (address, FORM | {"includes_text": "on"}),
        (f"{address}secret/", {}),
    ):
        assert client.post(page, form)["Location"] == "/accounts/password/set/"
    assert Webhook.objects.get().url == made.url


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "This field is required."),
        ({"events": []}, "Choose at least one."),
        ({"events": ["all"]}, "all is not one of the available choices"),
        ({"url": "https://127.0.0.1/"}, "Enter a host name"),
        ({"url": "http://example.org/"}, "must begin with https://"),
        ({"url": "https://a:b@example.org/"}, "Leave out the user name"),
        ({"url": "https://localhost/"}, "that is on the internet"),
    ],
)
def test_wrong_settings_are_shown_beside_their_field(page, change, words):
    response = page.post("/settings/webhooks/", FORM | change)
    assert response.status_code == 400
    assert words in response.content.decode()


def test_most_webhooks_of_a_user(page, owner, settings):
    settings.WEBHOOKS_PER_USER = 1
    made = add(owner)
    with pytest.raises(editing.TooManyWebhooks):
        add(owner)
    assert "the most that are possible" in page.get("/settings/webhooks/").content.decode()
    editing.delete(made)
    add(owner)


def test_log_is_paged_and_resends(page, owner, django_assert_max_num_queries):
    made = add(owner)
    sent = [editing.send_test(made) for _ in range(2 * editing.LOG_PAGE + 1)]
    WebhookDelivery.objects.filter(pk=sent[0].pk).update(
        status="failed", attempts=3, response_status=500, response_body="<b>no</b>", error=""
    )
    address = f"/settings/webhooks/{made.pk}/"
    seen: list[str] = []
    query = ""
    for _ in range(3):
        html = page.get(address + query).content.decode()
        seen += re.findall(r'href="/settings/webhooks/log/([\w-]+)/"', html)
        older = re.search(r'href="(\?before=\w+)"', html)
        query = older[1] if older else ""
    assert not query
    assert seen == [str(one.pk) for one in reversed(sent)]
    entry = f"/settings/webhooks/log/{sent[0].pk}/"
    html = page.get(entry).content.decode()
    for words in (
        "Failed",
        "3 of 10",
        "status 500",
        "&lt;b&gt;no&lt;/b&gt;",
        "msg_",
        "&quot;ping&quot;",
    ):
        assert words in html
    assert page.post(f"{entry}resend/")["Location"] == entry
    again = WebhookDelivery.objects.get(pk=sent[0].pk)
    assert (again.status, again.attempts) == ("waiting", 0)
    assert page.get(f"{address}?before=x").status_code == 404


def test_staff_switch_a_webhook_off(page, client, owner, settings):
    made = add(owner, url="https://example.org/hook?key=verysecret")
    editing.send_test(made)
    boss = User.objects.create_superuser("boss@example.org", PASSWORD)
    client.force_login(boss)
    for path in ("", f"{made.pk}/change/"):
        html = client.get(f"/admin/chat/webhook/{path}").content.decode()
        assert "example.org" in html
        assert "verysecret" not in html
    form = {"action": "switch_off", "_selected_action": [str(made.pk)]}
    client.post("/admin/chat/webhook/", form)
    made.refresh_from_db()
    assert (made.active, made.disabled) == (False, "staff")
    assert WebhookDelivery.objects.get().status == "failed"
    assert LogEntry.objects.filter(object_id=str(made.pk)).exists()
    assert [message.to for message in mail.outbox] == [[owner.email]]
    client.force_login(owner)
    refused = client.post(
        f"/settings/webhooks/{made.pk}/", FORM | {"active": "on", "url": made.url}
    )
    assert refused.status_code == 400
    assert "operators of this site" in refused.content.decode()


def test_verification_of_the_documentation_works(tmp_path):
    text = DOCS.read_text()
    [script] = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    body = '{"type": "ping", "text": "é"}'
    secret = signing.new_secret()
    now = int(timezone.now().timestamp())
    sent = [
        signing.headers([secret], message_id="msg_1", timestamp=when, body=body.encode())
        for when in (now, now - 301)
    ]
    wrong = sent[0] | {"webhook-signature": "v1,AAAA"}
    import json

    (tmp_path / "verify.mjs").write_text(script)
    (tmp_path / "try.mjs").write_text(
        'import { verify } from "./verify.mjs";\n'
        f"for (const headers of {json.dumps([*sent, wrong])}) {{\n"
        f"  try {{ console.log(verify({json.dumps(secret)}, headers, {json.dumps(body)}).type); }}\n"
        "  catch (error) { console.log(error.message); }\n}\n"
    )
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is missing")
    done = subprocess.run([node, tmp_path / "try.mjs"], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["ping", "too old", "wrong signature"]
