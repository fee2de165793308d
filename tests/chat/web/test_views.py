from __future__ import annotations

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
from chat.web.pages import NO_ID
from chatproject.local.servers import BASE_DIR
from tests.support.conversations import add_turns, begin, send
from tests.support.runs import mark_done, send_many

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


@pytest.fixture
def address(conversation: Conversation) -> str:
    """The path of `conversation`."""
    return conversation.get_absolute_url()


def typed(html: bytes) -> str:
    """Return the text in the composer."""
    [found] = re.findall(rb'<textarea[^>]* name="text"[^>]*>\r?\n(.*?)</textarea>', html, re.DOTALL)
    return unescape(found.decode())


def field(html: bytes, name: str) -> str:
    """Return the value of a hidden field of the composer."""
    found: str
    [found] = re.findall(rf'<input type="hidden" name="{name}" value="([^"]+)" id=', html.decode())
    return found


# --- A new chat -------------------------------------------------------------------------------


def test_new_chat_offers_three_prompts(page, assistant):
    assistant.suggestions = ["One?", "Two & three", "Four", "Five"]
    assistant.save()
    html = page.get("/").content.decode()
    assert re.findall(r'name="text" value="([^"]*)"', html) == ["One?", "Two &amp; three", "Four"]
    assert "You are chatting with Parley." in html
    assert "Your chats appear here, newest first." in html


def test_new_chat_opens_without_assistant(page, assistant):
    assistant.enabled = False
    assistant.save()
    response = page.get("/")
    assert response.status_code == 200
    assert b"data-prompts" not in response.content


def test_first_message_begins_conversation(page, owner):
    response = page.post("/c/new/", {"text": "On tides\r\nand ebbs", "client_id": "a"})
    conversation = Conversation.objects.get()
    assert (response.status_code, response["Location"]) == (302, f"/c/{conversation.pk}/#end")
    assert conversation.owner == owner
    assert [each.text for each in conversation.messages.filter(role="user")] == [
        "On tides\nand ebbs"
    ]
    assert Run.objects.get().client_id == "a"


def test_repeated_form_has_one_effect(page):
    first = page.post("/c/new/", {"text": "Once", "client_id": "a"})
    second = page.post("/c/new/", {"text": "Once", "client_id": "a"})
    assert first["Location"] == second["Location"]
    assert Run.objects.count() == 1


def test_changed_text_of_repeated_form_is_sent(page, owner, conversation, address):
    """As after Back, or an error page: the browser shows the form again, with its client_id."""
    page.post("/c/new/", {"text": "Once", "client_id": "a" * 64})
    for _ in range(2):
        page.post("/c/new/", {"text": "Changed\r\n", "client_id": "a" * 64})
    texts = (
        Message.objects.filter(role="user").order_by("created_at").values_list("text", flat=True)
    )
    assert list(texts) == ["Once", "Changed"]
    Run.objects.update(status="done", ended_at=timezone.now())
    for text in ("Third", "Fourth", "Fourth"):
        page.post(f"{address}send/", {"text": text, "client_id": "b"})
        Run.objects.update(status="done", ended_at=timezone.now())
    assert list(texts.all()) == ["Once", "Changed", "Third", "Fourth"]


def test_form_without_client_id_is_accepted(page):
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
def test_refused_text_is_returned_with_reason(page, text, status, words):
    response = page.post("/c/new/", {"text": text, "client_id": "a"})
    assert response.status_code == status
    assert words in response.content.decode()
    assert typed(response.content) == text.replace("\r\n", "\n")
    assert field(response.content, "client_id") != "a"
    assert Conversation.objects.count() == 0


def test_crlf_counts_as_one_character(page):
    text = ("x" * 99 + "\n") * 200
    response = page.post("/c/new/", {"text": text.replace("\n", "\r\n"), "client_id": "a"})
    assert response.status_code == 302
    assert Message.objects.get(role="user").text == text.strip()


def test_text_is_kept_without_assistant(page, assistant):
    assistant.enabled = False
    assistant.save()
    response = page.post("/c/new/", {"text": "Hello?", "client_id": "a"})
    assert response.status_code == 503
    assert str(start.NO_ASSISTANT) in unescape(response.content.decode())
    assert typed(response.content) == "Hello?"


# --- A conversation ---------------------------------------------------------------------------


def test_conversation_shows_path_and_title(page, owner, conversation, address):
    conversation.title = "Tides & <ebbs>"
    add_turns(owner, conversation, 2)
    html = page.get(address).content.decode()
    assert re.findall(r'<div class="own-text" dir="auto">(.+?)</div>', html) == [
        "Question 0",
        "Question 1",
    ]
    assert re.findall(r'<div class="prose"><p>(.*?)</p></div>', html) == ["Answer 0", "Answer 1"]
    assert "<title>Tides &amp; &lt;ebbs&gt; · Parley</title>" in html
    assert "http-equiv" not in html
    assert "data-runs=" not in html.split("<ol")[0]


def test_active_run_is_followed_with_or_without_script(page, owner, conversation, address):
    run = send(owner, conversation)
    html = page.get(address).content.decode()
    transcript = re.search(r"<chat-transcript[^>]*>", html)
    assert transcript is not None
    assert f'data-runs="{run.pk}"' in transcript[0]
    assert f'<noscript><meta http-equiv="refresh" content="3; url={address}"></noscript>' in html
    assert "data-send-button hidden" in html
    assert f'formaction="/runs/{run.pk}/stop/"' in html


def test_message_follows_leaf_of_conversation(page, owner, conversation, address):
    add_turns(owner, conversation, 1)
    response = page.post(f"{address}send/", {"text": "More", "client_id": "a"})
    assert response["Location"] == f"{address}#end"
    conversation.refresh_from_db()
    assert conversation.leaf.parent.text == "More"


def test_message_during_active_run_is_sent_next(page, owner, conversation, address):
    run = send(owner, conversation)
    program = page.post(
        f"{address}send/", {"text": "Program"}, headers={"Accept": "application/json"}
    )
    assert (program.status_code, program.json()["code"]) == (409, "run_active")
    for text in ("Too early", "Too early", "And this"):
        response = page.post(f"{address}send/", {"text": text, "client_id": "b"})
        assert response["Location"] == f"{address}#end"
    html = page.get(address).content.decode()
    assert "Too early\n\nAnd this</p>" in html
    assert 'http-equiv="refresh"' in html
    assert 'http-equiv="refresh"' not in page.get(f"{address}?write=1").content.decode()
    assert page.post(f"{address}next/", {"action": "other"}).status_code == 404
    page.post(f"{address}next/", {"action": "edit"})
    response = page.get(address)
    assert typed(response.content) == "Too early\n\nAnd this"
    assert page.post(f"{address}next/", {"action": "remove"}).status_code == 400
    # Its text was a draft, which the message empties.
    mark_done(run)
    page.post(f"{address}send/", {"text": "Too early", "client_id": "c", "draft": "True"})
    assert typed(page.get(address).content) == ""
    assert Run.objects.count() == 2


def test_long_conversation_is_shown_in_parts(page, owner, conversation, address):
    made = add_turns(owner, conversation, 120)

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

    first = page.get(f"{address}?before={made[40].id}").content.decode()
    assert first.count(' id="m-') == 40
    assert "?before=" not in first


def test_unknown_before_shows_end(page, owner, conversation, address):
    [_, last] = add_turns(owner, conversation, 1)
    for before in (uuid4(), "x"):
        html = page.get(f"{address}?before={before}").content.decode()
        assert f'id="m-{last.id}"' in html
        assert "<chat-composer" in html


def test_queries_do_not_grow_with_rows(page, owner, assistant, conversation, address):
    def count() -> list[int]:
        counts = []
        for path in ("/", "/chats/", address):
            with CaptureQueriesContext(connection) as queries:
                assert page.get(path).status_code == 200
            counts.append(len(queries))
        return counts

    add_turns(owner, conversation, 2)
    begin(owner, assistant)
    few = count()
    add_turns(owner, conversation, 10)
    send_many(owner, assistant, 10)
    assert count() == few
    assert max(few) <= 11


# --- Editing, regenerating, stopping ----------------------------------------------------------


def test_edit_fills_composer_with_own_message(page, owner, conversation, address):
    sent, reply = add_turns(owner, conversation, 1)
    response = page.get(f"{address}?edit={sent.id}")
    assert typed(response.content) == "Question 0"
    assert f'action="/messages/{sent.id}/edit/"' in response.content.decode()
    for other in (reply.id, uuid4(), "x"):
        response = page.get(f"{address}?edit={other}")
        assert typed(response.content) == ""


def test_edit_begins_another_branch(page, owner, conversation, address):
    sent, _ = add_turns(owner, conversation, 1)
    response = page.post(f"/messages/{sent.id}/edit/", {"text": "Better", "client_id": "a"})
    assert response["Location"] == f"{address}#end"
    html = page.get(address).content.decode()
    assert re.findall(r'<div class="own-text" dir="auto">(.+?)</div>', html) == ["Better"]
    assert Message.objects.filter(pk=sent.pk).exists()


def test_refused_edit_stays_an_edit(page, owner, conversation):
    sent, _ = add_turns(owner, conversation, 1)
    response = page.post(f"/messages/{sent.id}/edit/", {"text": " ", "client_id": "a"})
    assert response.status_code == 400
    assert f'action="/messages/{sent.id}/edit/"' in response.content.decode()


def test_regenerated_reply_replaces_old_one(page, owner, conversation, address):
    _, reply = add_turns(owner, conversation, 1)
    response = page.post(f"/messages/{reply.id}/regenerate/", {"client_id": "a"})
    assert response["Location"] == f"{address}#end"
    html = page.get(address).content.decode()
    assert f'id="m-{reply.id}"' not in html
    assert html.count('data-status="pending"') == 1
    refused = page.post(f"/messages/{reply.id}/regenerate/", {"client_id": "b"})
    assert refused.status_code == 409
    assert "A reply is still being written." in refused.content.decode()


def test_form_shows_other_branch(page, owner, conversation, address):
    [_, reply] = add_turns(owner, conversation, 1)
    response = page.post(f"{address}actions/", {"regenerate": str(reply.pk)})
    assert response["Location"] == f"{address}#end"
    other = mark_done(Run.objects.get(status="queued"), "Another")
    response = page.post(f"{address}actions/", {"branch": str(other.message_id)})
    assert response["Location"] == f"{address}#m-{other.message_id}"
    html = page.get(address).content.decode()
    assert "2 / 2" in html
    assert f'name="branch" value="{reply.pk}"' in html
    # A link to the other branch shows it, and changes nothing.
    linked = page.get(f"{address}?message={reply.pk}").content.decode()
    assert "1 / 2" in linked
    assert "data-past" in linked
    conversation.refresh_from_db()
    assert conversation.leaf_id == other.message_id
    # A double click on the button of a copy makes one.
    data = {"fork": str(reply.pk), "client_id": "page"}
    copies = {page.post(f"{address}actions/", data)["Location"] for _ in range(2)}
    assert len(copies) == 1
    assert "(copy)" in page.get(*copies).content.decode()
    for data in ({"branch": "x"}, {"branch": str(uuid4())}, {}, {"fork": str(uuid4())}):
        assert page.post(f"{address}actions/", data).status_code == 404


def test_comparison_without_two_models_keeps_text(page, owner, assistant, conversation, address):
    data = {"text": "Which?", "client_id": "a", "models": [str(assistant.model_id)]}
    for path in (f"{address}compare/", f"/c/{NO_ID}/compare/"):
        response = page.post(path, data)
        assert response.status_code == 400
        assert "Choose two or three models" in response.content.decode()
        assert typed(response.content) == "Which?"
    assert not Run.objects.exists()


def test_malformed_form_gets_a_page(page, address):
    many = "9" * 5_000
    response = page.post("/c/estimate/", {"text": "Hi", "attachments": "x"})
    assert response.status_code == 409
    assert "no longer stored" in response.content.decode()
    assert page.post(f"{address}compare/", {"text": "Hi", "models": many}).status_code == 409
    assert page.get("/chats/sidebar/", {"rows": many}).status_code == 200


def test_stop_form_stops_queued_run(page, owner, conversation, address):
    run = send(owner, conversation)
    response = page.post(f"/runs/{run.pk}/stop/")
    assert response["Location"] == f"{address}#end"
    run.refresh_from_db()
    assert run.status == "stopped"


def test_reload_after_action_leads_to_conversation(page, owner, conversation, address):
    """Browsers that reload a page with an error ask for the address of the action."""
    assert page.get("/c/new/")["Location"] == "/"
    sent, reply = add_turns(owner, conversation, 1)
    for path in (
        f"{address}send/",
        f"/messages/{sent.id}/edit/",
        f"/messages/{reply.id}/regenerate/",
        f"/runs/{reply.run.pk}/stop/",
    ):
        assert page.get(path)["Location"] == address


# --- Renaming, deleting, the list -------------------------------------------------------------


def test_rename_normalizes_title(page, conversation, address):
    assert page.post(f"{address}rename/", {"title": " Two \n words "})["Location"] == address
    conversation.refresh_from_db()
    assert conversation.title == "Two words"


@pytest.mark.parametrize("title", ["", "  ", "x" * 101])
def test_invalid_title_is_refused(page, conversation, title, address):
    response = page.post(f"{address}rename/", {"title": title}, follow=True)
    assert "It was not renamed." in response.content.decode()
    conversation.refresh_from_db()
    assert conversation.title == ""


def test_delete_stops_active_run(page, owner, conversation, address):
    run = send(owner, conversation, "On tides")
    response = page.post(f"{address}delete/", follow=True)
    assert response.redirect_chain == [("/chats/", 302)]
    assert "“\u2068On tides\u2069” was deleted." in response.content.decode()
    run.refresh_from_db()
    assert run.status == "stopped"
    assert page.get(address).status_code == 404
    [undo] = re.findall(r'name="undo" value="([^"]+)"', response.content.decode())
    assert "1 chat was restored." in page.post("/chats/undo/", {"undo": undo}, follow=True).text
    assert page.get(address).status_code == 200


def test_list_is_paged(page, owner, assistant):
    for _ in range(60):
        begin(owner, assistant)
    first = page.get("/chats/").content.decode()
    assert first.count('<li class="chats-row"') == 50
    [following] = re.findall(r'href="\?before=([^"]+)">Earlier chats', first)
    second = page.get(f"/chats/?before={following}").content.decode()
    assert second.count('<li class="chats-row"') == 10
    assert "Earlier chats" not in second
    assert page.get("/chats/?before=nonsense").status_code == 404


def test_selected_chats_are_changed_by_one_form(page, owner, assistant, stranger):
    first, second, third = (begin(owner, assistant, title=f"Chat {each}") for each in range(3))
    strange = begin(stranger, assistant)
    form = {"chat": [first.pk, second.pk, strange.pk], "action": "archive", "from": "list"}
    response = page.post("/chats/change/", form, follow=True)
    assert response.redirect_chain == [("/chats/", 302)]
    assert "2 chats were archived." in response.text
    assert response.text.count('<li class="chats-row"') == 1
    archive = page.get("/chats/archive/").text
    assert archive.count('<li class="chats-row"') == 2
    form = {"chat": str(first.pk), "action": "unarchive", "from": "archive"}
    assert "“\u2068Chat 0\u2069” is back" in page.post("/chats/change/", form, follow=True).text

    answer = page.post(
        "/chats/change/", {"chat": third.pk, "action": "delete"}, headers=JSON
    ).json()
    assert answer["undo"].startswith("delete 20")
    assert "“\u2068Chat 2\u2069” was deleted." in answer["message"]
    assert page.post("/chats/undo/", {"undo": answer["undo"]}, headers=JSON).status_code == 200
    third.refresh_from_db()
    assert third.deleted_at is None


@pytest.mark.parametrize(
    "form",
    [
        {"action": "purge"},
        {"action": "pin", "chat": "x"},
        {"action": "pin", "chat": str(uuid4())},
    ],
)
def test_wrong_change_is_refused(page, form):
    assert page.post("/chats/change/", form, headers=JSON).status_code == 404
    for undo in ("", "pin 2026-01-01T00:00:00+00:00", "delete 2026-01-01", "delete x"):
        assert page.post("/chats/undo/", {"undo": undo}).status_code == 404


def test_change_of_nothing_is_explained(page, conversation):
    response = page.post("/chats/change/", {"action": "delete", "from": "list"}, follow=True)
    assert "Select the chats first." in response.text


def test_sidebar_part_continues_the_list(page, owner, assistant):
    for _ in range(60):
        begin(owner, assistant)
    first = page.get("/").text
    assert first.count("data-row-menu") == 41  # with that of the template
    [more] = re.findall(r'data-more="([^"]+)"', first)
    part = page.get(unescape(more)).text
    assert part.count("<li data-id=") == 20
    assert "<html" not in part
    assert page.get("/chats/sidebar/?rows=55").text.count("<li data-id=") == 55
    for rows in ("x", "-1", "9" * 30, "²"):
        assert page.get("/chats/sidebar/", {"rows": rows}).status_code == 200


def test_opened_chat_is_read_unless_a_script_asks(page, owner, conversation, address):
    Conversation.objects.filter(pk=conversation.pk).update(unread=True)
    for name in ("X-Swap", "X-Sync"):
        page.get(address, headers={name: "1"})
        assert Conversation.objects.get(pk=conversation.pk).unread
    page.get(address)
    assert not Conversation.objects.get(pk=conversation.pk).unread


def test_empty_list_explains_itself(page):
    assert "Your chats appear here by day" in page.get("/chats/").content.decode()


# --- For programs -----------------------------------------------------------------------------


def test_run_is_returned_as_json(page, owner, conversation):
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
    assert found["status"] == "failed"
    assert found["error"] == {"code": "internal", "message": "It broke."}


def test_active_run_and_leaf_are_returned(page, owner, conversation, address):
    path = f"{address}active-run/"
    assert page.get(path).json() == {"run": None, "runs": [], "leaf": None}
    [_, reply] = add_turns(owner, conversation, 1)
    assert page.get(path).json() == {"run": None, "runs": [], "leaf": str(reply.pk)}
    run = start.regenerate(user=owner, message_id=reply.pk, client_id="a").run
    found = page.get(path).json()
    assert (found["run"]["id"], found["leaf"]) == (str(run.pk), str(run.message_id))


def test_programs_send_stop_and_regenerate(page, owner, conversation):
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
def test_programs_get_errors_by_code(page, owner, conversation, data, status, code, address):
    send(owner, conversation)
    response = page.post(f"{address}send/", data, headers=JSON)
    assert response.status_code == status
    found = response.json()
    assert found.keys() == {"code", "message"}
    assert found["code"] == code
    assert found["message"].endswith((".", ")"))


def test_every_status_belongs_to_known_code():
    assert responses.STATUS.keys() <= ERRORS.keys()


# --- Access -----------------------------------------------------------------------------------


def actions(owner: User, conversation: Conversation) -> list[tuple[str, str]]:
    """Return method and path of each possible action on a conversation."""
    sent, reply = add_turns(owner, conversation, 1)
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


def test_other_users_conversation_is_not_found(strange_page, owner, conversation):
    everything = actions(owner, conversation)
    before = Message.objects.count(), Run.objects.count()
    assert outcomes(strange_page, everything) == {404}
    assert outcomes(strange_page, everything, headers=JSON) == {404}
    assert (Message.objects.count(), Run.objects.count()) == before
    conversation.refresh_from_db()
    assert (conversation.title, conversation.deleted_at) == ("", None)


def test_deleted_conversation_is_not_found(page, owner, conversation):
    everything = actions(owner, conversation)
    conversation.deleted_at = timezone.now()
    conversation.save()
    assert outcomes(page, everything) == {404}


def test_unknown_ids_are_not_found(page):
    unknown = uuid4()
    wanted = [
        ("get", f"/c/{unknown}/"),
        ("get", f"/runs/{unknown}/"),
        ("post", f"/c/{unknown}/send/"),
        ("post", f"/messages/{unknown}/edit/"),
        ("get", "/c/not-an-id/"),
    ]
    assert outcomes(page, wanted) == {404}


def test_changes_require_post(page, address):
    assert page.get(f"{address}rename/").status_code == 405
    assert page.get(f"{address}delete/").status_code == 405
    assert page.post(address).status_code == 405


def test_form_without_csrf_token_is_refused(owner, address):
    client = Client(enforce_csrf_checks=True)
    client.force_login(owner)
    response = client.post(f"{address}send/", {"text": "Hello"})
    assert response.status_code == 403
    assert "Page expired" in response.content.decode()
    assert Run.objects.count() == 0


def test_form_of_a_megabyte_is_refused(page):
    page.raise_request_exception = False
    response = page.post("/c/new/", {"text": "x" * 1_100_000})
    assert response.status_code == 400
    assert "incomplete or too large" in response.content.decode()


# --- All pages --------------------------------------------------------------------------------


def test_pages_are_uncached_without_inline_code(page, owner, conversation, address):
    add_turns(owner, conversation, 1)
    send(owner, conversation)
    for path in ("/", "/chats/", address):
        response = page.get(path)
        html = response.content.decode()
        assert "no-store" in response["Cache-Control"]
        assert not re.search(r"<script(?![^>]*\bsrc=)", html), path
        assert not re.search(r"\son\w+=|\sstyle=|<style", html), path
        policy = response["Content-Security-Policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy


def test_every_script_module_is_preloaded(page):
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


def test_theme_colours_equal_page_background(page):
    html = page.get("/").content.decode()
    tokens, _ = (BASE_DIR / "static/css/tokens.css").read_text().split("@media print")
    named = re.findall(r'name="theme-color"[^>]* content="(#\w+)"', html)
    assert [tuple(named)] == re.findall(r"--bg: light-dark\((#\w+), (#\w+)\);", tokens)
    manifest = page.get("/manifest.webmanifest").json()
    assert manifest["background_color"] == named[0]


def test_colours_are_defined_in_tokens_alone():
    for path in (BASE_DIR / "static/css").glob("*.css"):
        if path.name != "tokens.css":
            assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsla?\(", path.read_text()), path
