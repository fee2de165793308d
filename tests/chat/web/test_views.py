from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import User
from chat.conversations import transcript
from chat.errors import ERRORS
from chat.models import Assistant, Conversation, Message, Run
from chat.runs import start
from chat.web import responses
from chatproject.local.servers import BASE_DIR
from tests.support.conversations import begin, send, talk

pytestmark = pytest.mark.usefixtures("valkey_url")

JSON = {"Accept": "application/json"}


@pytest.fixture
def page(owner: User, assistant: Assistant) -> Client:
    client = Client(raise_request_exception=True)
    client.force_login(owner)
    return client


@pytest.fixture
def strange_page(stranger: User) -> Client:
    client = Client()
    client.force_login(stranger)
    return client


def typed(html: bytes) -> str:
    """What stands in the composer."""
    [found] = re.findall(rb"<textarea[^>]*>\r?\n(.*?)</textarea>", html, re.DOTALL)
    return unescape(found.decode())


def field(html: bytes, name: str) -> str:
    """The value of a hidden field of the composer."""
    found: str
    [found] = re.findall(rf'<input type="hidden" name="{name}" value="([^"]+)" id=', html.decode())
    return found


# --- A new chat -------------------------------------------------------------------------------


def test_a_new_chat_offers_three_prompts(page: Client, assistant: Assistant):
    assistant.suggestions = ["One?", "Two & three", "Four", "Five"]
    assistant.save()
    html = page.get("/").content.decode()
    assert re.findall(r'name="text" value="([^"]*)"', html) == ["One?", "Two &amp; three", "Four"]
    assert "You are chatting with Parley." in html
    assert "Your chats appear here, newest first." in html


def test_a_new_chat_opens_also_when_there_is_nobody_to_talk_to(page: Client, assistant: Assistant):
    assistant.enabled = False
    assistant.save()
    response = page.get("/")
    assert response.status_code == 200
    assert b"data-prompts" not in response.content


def test_the_first_message_begins_a_conversation(page: Client, owner: User):
    response = page.post("/c/new/", {"text": "On tides\r\nand ebbs", "client_id": "a"})
    conversation = Conversation.objects.get()
    assert (response.status_code, response["Location"]) == (302, f"/c/{conversation.pk}/#end")
    assert conversation.owner == owner
    assert [each.text for each in conversation.messages.filter(role="user")] == [
        "On tides\nand ebbs"
    ]
    assert Run.objects.get().client_id == "a"


def test_the_same_form_twice_has_one_effect(page: Client):
    first = page.post("/c/new/", {"text": "Once", "client_id": "a"})
    second = page.post("/c/new/", {"text": "Once", "client_id": "a"})
    assert first["Location"] == second["Location"]
    assert Run.objects.count() == 1


def test_a_form_without_a_client_id_is_taken(page: Client):
    assert page.post("/c/new/", {"text": "Hello"}).status_code == 302
    assert Run.objects.count() == 1


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("", 400, "The message is empty."),
        (" \r\n ", 400, "The message is empty."),
        ("x" * 20_001, 413, "longer than 20,000 characters"),
    ],
)
def test_what_cannot_be_sent_comes_back_with_the_reason(
    page: Client, text: str, status: int, words: str
):
    response = page.post("/c/new/", {"text": text, "client_id": "a"})
    assert response.status_code == status
    assert words in response.content.decode()
    assert typed(response.content) == text.replace("\r\n", "\n")
    assert field(response.content, "client_id") != "a"
    assert Conversation.objects.count() == 0


def test_a_text_of_just_the_longest_length_is_taken_however_browsers_end_lines(page: Client):
    text = ("x" * 99 + "\n") * 200
    response = page.post("/c/new/", {"text": text.replace("\n", "\r\n"), "client_id": "a"})
    assert response.status_code == 302
    assert Message.objects.get(role="user").text == text.strip()


def test_while_nobody_can_answer_the_text_is_kept(page: Client, assistant: Assistant):
    assistant.enabled = False
    assistant.save()
    response = page.post("/c/new/", {"text": "Hello?", "client_id": "a"})
    assert response.status_code == 503
    assert start.NO_ASSISTANT in unescape(response.content.decode())
    assert typed(response.content) == "Hello?"


def test_reloading_a_page_with_an_error_leads_back(page: Client, conversation: Conversation):
    assert page.get("/c/new/")["Location"] == "/"
    address = conversation.get_absolute_url()
    assert page.get(f"{address}send/")["Location"] == address


# --- A conversation ---------------------------------------------------------------------------


def test_a_conversation_shows_its_path_and_its_name(
    page: Client, owner: User, conversation: Conversation
):
    conversation.title = "Tides & <ebbs>"
    talk(owner, conversation, 2)
    html = page.get(conversation.get_absolute_url()).content.decode()
    assert re.findall(r'<div class="own-text">(.+?)</div>', html) == ["Question 0", "Question 1"]
    assert re.findall(r'<div class="prose"><p>(.*?)</p></div>', html) == ["Answer 0", "Answer 1"]
    assert "<title>Tides &amp; &lt;ebbs&gt; · Parley</title>" in html
    assert "http-equiv" not in html
    assert "data-run=" not in html.split("<ol")[0]


def test_an_active_run_is_named_for_the_script_and_reloads_without_one(
    page: Client, owner: User, conversation: Conversation
):
    run = send(owner, conversation)
    html = page.get(conversation.get_absolute_url()).content.decode()
    transcript = re.search(r"<chat-transcript[^>]*>", html)
    assert transcript is not None
    assert f'data-run="{run.pk}"' in transcript[0]
    assert (
        f'<noscript><meta http-equiv="refresh" content="3; url={conversation.get_absolute_url()}">'
        "</noscript>"
    ) in html
    assert re.search(r"data-send-button hidden", html)
    assert f'formaction="/runs/{run.pk}/stop/"' in html


def test_messages_go_to_the_end_of_the_conversation(
    page: Client, owner: User, conversation: Conversation
):
    talk(owner, conversation, 1)
    address = conversation.get_absolute_url()
    response = page.post(f"{address}send/", {"text": "More", "client_id": "a"})
    assert response["Location"] == f"{address}#end"
    conversation.refresh_from_db()
    assert conversation.leaf is not None
    assert conversation.leaf.parent is not None
    assert conversation.leaf.parent.text == "More"


def test_a_second_message_while_a_reply_is_written_comes_back_with_its_text(
    page: Client, owner: User, conversation: Conversation
):
    send(owner, conversation)
    response = page.post(
        f"{conversation.get_absolute_url()}send/", {"text": "Too early", "client_id": "b"}
    )
    assert response.status_code == 409
    assert "A reply is still being written." in response.content.decode()
    assert typed(response.content) == "Too early"
    assert Run.objects.count() == 1


def test_a_long_conversation_is_shown_in_parts(
    page: Client, owner: User, conversation: Conversation
):
    made = talk(owner, conversation, 120)
    address = conversation.get_absolute_url()

    end = page.get(address).content.decode()
    assert end.count(' id="m-') == transcript.MESSAGES_SHOWN
    assert f'href="{address}?before={made[140].id}"' in end
    assert f'id="m-{made[-1].id}"' in end

    middle = page.get(f"{address}?before={made[140].id}").content.decode()
    assert f'id="m-{made[139].id}"' in middle
    assert f'id="m-{made[140].id}"' not in middle
    assert f'href="{address}?before={made[40].id}"' in middle
    assert "<chat-composer" not in middle
    assert "data-past" in middle

    begin_ = page.get(f"{address}?before={made[40].id}").content.decode()
    assert begin_.count(' id="m-') == 40
    assert "?before=" not in begin_


def test_an_unknown_message_to_begin_before_is_the_end(
    page: Client, owner: User, conversation: Conversation
):
    [_, last] = talk(owner, conversation, 1)
    for before in (uuid4(), "x"):
        html = page.get(f"{conversation.get_absolute_url()}?before={before}").content.decode()
        assert f'id="m-{last.id}"' in html
        assert "<chat-composer" in html


def test_queries_do_not_grow_with_messages_or_conversations(
    page: Client, owner: User, assistant: Assistant, conversation: Conversation
):
    def count(address: str) -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert page.get(address).status_code == 200
        return len(queries)

    addresses = ("/", "/chats/", conversation.get_absolute_url())
    talk(owner, conversation, 2)
    begin(owner, assistant)
    few = [count(address) for address in addresses]
    talk(owner, conversation, 10)
    for _ in range(10):
        send(owner, begin(owner, assistant))
    many = [count(address) for address in addresses]
    assert few == many
    assert max(many) <= 9


# --- Editing, regenerating, stopping ----------------------------------------------------------


def test_editing_fills_the_composer_with_ones_own_message(
    page: Client, owner: User, conversation: Conversation
):
    sent, reply = talk(owner, conversation, 1)
    response = page.get(f"{conversation.get_absolute_url()}?edit={sent.id}")
    assert typed(response.content) == "Question 0"
    assert f'action="/messages/{sent.id}/edit/"' in response.content.decode()
    for other in (reply.id, uuid4(), "x"):
        response = page.get(f"{conversation.get_absolute_url()}?edit={other}")
        assert typed(response.content) == ""


def test_an_edit_is_another_branch(page: Client, owner: User, conversation: Conversation):
    sent, _ = talk(owner, conversation, 1)
    response = page.post(f"/messages/{sent.id}/edit/", {"text": "Better", "client_id": "a"})
    assert response["Location"] == f"{conversation.get_absolute_url()}#end"
    html = page.get(conversation.get_absolute_url()).content.decode()
    assert re.findall(r'<div class="own-text">(.+?)</div>', html) == ["Better"]
    assert Message.objects.filter(pk=sent.pk).exists()


def test_an_edit_that_is_refused_stays_an_edit(
    page: Client, owner: User, conversation: Conversation
):
    sent, _ = talk(owner, conversation, 1)
    response = page.post(f"/messages/{sent.id}/edit/", {"text": " ", "client_id": "a"})
    assert response.status_code == 400
    assert f'action="/messages/{sent.id}/edit/"' in response.content.decode()


def test_another_reply_takes_the_place_of_one(
    page: Client, owner: User, conversation: Conversation
):
    _, reply = talk(owner, conversation, 1)
    response = page.post(f"/messages/{reply.id}/regenerate/", {"client_id": "a"})
    assert response["Location"] == f"{conversation.get_absolute_url()}#end"
    html = page.get(conversation.get_absolute_url()).content.decode()
    assert f'id="m-{reply.id}"' not in html
    assert html.count('data-status="pending"') == 1
    refused = page.post(f"/messages/{reply.id}/regenerate/", {"client_id": "b"})
    assert refused.status_code == 409
    assert "A reply is still being written." in refused.content.decode()


def test_stopping_a_waiting_reply(page: Client, owner: User, conversation: Conversation):
    run = send(owner, conversation)
    response = page.post(f"/runs/{run.pk}/stop/")
    assert response["Location"] == f"{conversation.get_absolute_url()}#end"
    run.refresh_from_db()
    assert run.status == "stopped"


def test_a_reload_after_an_action_leads_to_the_conversation(
    page: Client, owner: User, conversation: Conversation
):
    sent, reply = talk(owner, conversation, 1)
    for address in (
        f"/messages/{sent.id}/edit/",
        f"/messages/{reply.id}/regenerate/",
        f"/runs/{reply.run.pk}/stop/",
    ):
        assert page.get(address)["Location"] == conversation.get_absolute_url()


# --- Renaming, deleting, the list -------------------------------------------------------------


def test_renaming(page: Client, conversation: Conversation):
    address = conversation.get_absolute_url()
    assert page.post(f"{address}rename/", {"title": " Two \n words "})["Location"] == address
    conversation.refresh_from_db()
    assert conversation.title == "Two words"
    response = page.post(f"{address}rename/", {"title": "Third", "from": "list"})
    assert response["Location"] == "/chats/"


@pytest.mark.parametrize("title", ["", "  ", "x" * 101])
def test_a_name_that_is_none_is_refused(page: Client, conversation: Conversation, title: str):
    response = page.post(f"{conversation.get_absolute_url()}rename/", {"title": title}, follow=True)
    assert "It was not renamed." in response.content.decode()
    conversation.refresh_from_db()
    assert conversation.title == ""


def test_deleting_stops_what_is_being_written(
    page: Client, owner: User, conversation: Conversation
):
    run = send(owner, conversation, "On tides")
    response = page.post(f"{conversation.get_absolute_url()}delete/", follow=True)
    assert response.redirect_chain == [("/chats/", 302)]
    assert "“On tides” is deleted." in response.content.decode()
    run.refresh_from_db()
    assert run.status == "stopped"
    assert page.get(conversation.get_absolute_url()).status_code == 404


def test_the_list_goes_back_part_by_part(page: Client, owner: User, assistant: Assistant):
    for _ in range(60):
        begin(owner, assistant)
    first = page.get("/chats/").content.decode()
    assert first.count('<li class="chats-row"') == 50
    [following] = re.findall(r'href="\?before=([^"]+)">Earlier chats', first)
    second = page.get(f"/chats/?before={following}").content.decode()
    assert second.count('<li class="chats-row"') == 10
    assert "Earlier chats" not in second
    assert page.get("/chats/?before=nonsense").status_code == 404


def test_an_empty_list_says_what_will_stand_there(page: Client):
    assert "Your chats appear here by day" in page.get("/chats/").content.decode()


# --- For programs -----------------------------------------------------------------------------


def test_a_run_can_be_asked_for(page: Client, owner: User, conversation: Conversation):
    run = send(owner, conversation)
    assert page.get(f"/runs/{run.pk}/").json() == {
        "id": str(run.pk),
        "conversation": str(conversation.pk),
        "message": str(run.message_id),
        "status": "queued",
        "attempt": 0,
        "text": "",
        "error": None,
    }
    Run.objects.filter(pk=run.pk).update(
        status="failed", ended_at=timezone.now(), error_code="internal", error_message="It broke."
    )
    found = page.get(f"/runs/{run.pk}/").json()
    assert (found["status"], found["error"]) == (
        "failed",
        {"code": "internal", "message": "It broke."},
    )


def test_the_active_run_and_the_end_of_the_page_can_be_asked_for(
    page: Client, owner: User, conversation: Conversation
):
    address = f"{conversation.get_absolute_url()}active-run/"
    assert page.get(address).json() == {"run": None, "leaf": None}
    [_, reply] = talk(owner, conversation, 1)
    assert page.get(address).json() == {"run": None, "leaf": str(reply.pk)}
    run = start.regenerate(user=owner, message_id=reply.pk, client_id="a").run
    found = page.get(address).json()
    assert (found["run"]["id"], found["leaf"]) == (str(run.pk), str(run.message_id))


def test_programs_may_send_stop_and_ask_again(
    page: Client, owner: User, conversation: Conversation
):
    response = page.post("/c/new/", {"text": "Hello", "client_id": "a"}, headers=JSON)
    assert response.status_code == 202
    run = response.json()
    assert run["status"] == "queued"
    stopped = page.post(f"/runs/{run['id']}/stop/", headers=JSON)
    assert (stopped.status_code, stopped.json()["status"]) == (200, "stopped")
    again = page.post(f"/messages/{run['message']}/regenerate/", {"client_id": "b"}, headers=JSON)
    assert (again.status_code, again.json()["conversation"]) == (202, run["conversation"])


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        ({"text": "", "client_id": "a"}, 400, "empty_text"),
        ({"text": "x" * 20_001, "client_id": "a"}, 413, "text_too_long"),
        ({"text": "Hello", "client_id": "no spaces"}, 400, "bad_json"),
        ({"text": "Hello", "client_id": "a"}, 409, "run_active"),
    ],
)
def test_programs_are_told_errors_by_code(
    page: Client, owner: User, conversation: Conversation, data, status: int, code: str
):
    send(owner, conversation)
    response = page.post(f"{conversation.get_absolute_url()}send/", data, headers=JSON)
    assert response.status_code == status
    found = response.json()
    assert found.keys() == {"code", "message"}
    assert found["code"] == code
    assert found["message"].endswith((".", ")"))


def test_every_status_belongs_to_a_code_that_exists():
    assert responses.STATUS.keys() <= ERRORS.keys()


# --- What is not there, and what is not one's own ---------------------------------------------


def actions(owner: User, conversation: Conversation) -> list[tuple[str, str]]:
    """Method and path of everything that one can do with a conversation."""
    sent, reply = talk(owner, conversation, 1)
    address = conversation.get_absolute_url()
    return [
        ("get", address),
        ("get", f"{address}?edit={sent.pk}"),
        ("get", f"{address}active-run/"),
        ("get", f"/runs/{reply.run.pk}/"),
        ("post", f"{address}send/"),
        ("post", f"{address}rename/"),
        ("post", f"{address}delete/"),
        ("post", f"/runs/{reply.run.pk}/stop/"),
        ("post", f"/messages/{reply.pk}/regenerate/"),
        ("post", f"/messages/{sent.pk}/edit/"),
    ]


def outcomes(
    client: Client, wanted: list[tuple[str, str]], headers: dict[str, str] | None = None
) -> set[int]:
    data = {"text": "Mine", "title": "Mine", "client_id": "mine"}
    return {
        getattr(client, method)(path, data if method == "post" else {}, headers=headers).status_code
        for method, path in wanted
    }


def test_for_a_stranger_nothing_of_it_is_there(
    strange_page: Client, owner: User, conversation: Conversation
):
    everything = actions(owner, conversation)
    before = Message.objects.count(), Run.objects.count()
    assert outcomes(strange_page, everything) == {404}
    assert outcomes(strange_page, everything, headers=JSON) == {404}
    assert (Message.objects.count(), Run.objects.count()) == before
    conversation.refresh_from_db()
    assert (conversation.title, conversation.deleted_at) == ("", None)


def test_a_deleted_conversation_is_there_for_nobody(
    page: Client, owner: User, conversation: Conversation
):
    everything = actions(owner, conversation)
    conversation.deleted_at = timezone.now()
    conversation.save()
    assert outcomes(page, everything) == {404}


def test_ids_that_nothing_has_are_not_there(page: Client):
    nothing = uuid4()
    wanted = [
        ("get", f"/c/{nothing}/"),
        ("get", f"/runs/{nothing}/"),
        ("post", f"/c/{nothing}/send/"),
        ("post", f"/messages/{nothing}/edit/"),
        ("get", "/c/not-an-id/"),
    ]
    assert outcomes(page, wanted) == {404}


def test_what_changes_something_is_not_done_by_a_link(
    page: Client, owner: User, conversation: Conversation
):
    address = conversation.get_absolute_url()
    assert page.get(f"{address}rename/").status_code == 405
    assert page.get(f"{address}delete/").status_code == 405
    assert page.post(address).status_code == 405


def test_a_form_without_its_token_is_refused_in_words(owner: User, conversation: Conversation):
    client = Client(enforce_csrf_checks=True)
    client.force_login(owner)
    response = client.post(f"{conversation.get_absolute_url()}send/", {"text": "Hello"})
    assert response.status_code == 403
    assert "Page expired" in response.content.decode()
    assert Run.objects.count() == 0


def test_a_form_of_a_megabyte_is_refused_in_words(page: Client):
    page.raise_request_exception = False
    response = page.post("/c/new/", {"text": "x" * 1_100_000})
    assert response.status_code == 400
    assert "incomplete or too large" in response.content.decode()


# --- All pages --------------------------------------------------------------------------------


def test_pages_are_kept_by_no_cache(page: Client, conversation: Conversation):
    for address in ("/", "/chats/", conversation.get_absolute_url()):
        assert "no-store" in page.get(address)["Cache-Control"]


def test_pages_run_no_inline_script_or_style(page: Client, owner: User, conversation: Conversation):
    talk(owner, conversation, 1)
    send(owner, conversation)
    for address in ("/", "/chats/", conversation.get_absolute_url()):
        response = page.get(address)
        html = response.content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)", html), address
        assert not re.search(r"\son\w+=|\sstyle=|<style", html), address
        policy = response["Content-Security-Policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy


def test_every_module_of_the_app_is_fetched_in_advance(page: Client):
    html = page.get("/").content.decode()
    wanted: set[Path] = set()
    waiting = [BASE_DIR / "static/js/app.js"]
    while waiting:
        module = waiting.pop()
        found = re.findall(
            r'^import .*?from "(.*?)";$', module.read_text(), re.MULTILINE | re.DOTALL
        )
        imported = {(module.parent / target).resolve() for target in found} - wanted
        wanted |= imported
        waiting += imported
    assert set(re.findall(r'rel="modulepreload" href="/(static/js/[^"]+)"', html)) == {
        path.relative_to(BASE_DIR).as_posix() for path in wanted
    }


def test_the_colour_of_the_browsers_bar_is_the_pages(page: Client):
    html = page.get("/").content.decode()
    tokens = (BASE_DIR / "static/css/tokens.css").read_text()
    named = re.findall(r'name="theme-color" content="(#\w+)"', html)
    assert named == re.findall(r"--bg: (#\w+);", tokens)
    manifest = json.loads((BASE_DIR / "static/manifest.webmanifest").read_text())
    assert manifest["background_color"] == named[0]


def test_colours_are_named_in_the_tokens_and_nowhere_else():
    for path in (BASE_DIR / "static/css").glob("*.css"):
        if path.name != "tokens.css":
            assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsla?\(", path.read_text()), path
