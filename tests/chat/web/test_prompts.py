"""The prompt library: own, shared and the staff's prompts, their variables, and who may use them."""

from __future__ import annotations

from html import unescape

import pytest

from chat.conversations import prompts
from chat.models import Draft, Prompt
from tests.support.threads import race

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url"),
]

TEXT = "Translate into {{ language }}:\n{{text}} ({{language}})"


@pytest.fixture
def page(client, owner):
    client.force_login(owner)
    return client


def test_prompt_is_made_used_changed_and_deleted(page, owner, conversation):
    made = page.post("/prompts/", {"title": "Translate", "text": TEXT})
    assert made["Location"] == "/prompts/"
    [prompt] = Prompt.objects.all()
    assert (prompt.owner, prompt.shared) == (owner, False)
    address = f"/prompts/{prompt.pk}/"
    assert "Translate" in page.get("/prompts/").content.decode()
    asked = page.get(f"{address}use/", {"conversation": conversation.pk}).content.decode()
    assert asked.count('name="variable-') == 2
    values = {"conversation": conversation.pk, "variable-1": "Latin", "variable-2": ""}
    used = page.post(f"{address}use/", values)
    assert used["Location"] == f"/c/{conversation.pk}/#end"
    filled = "Translate into Latin:\n{{text}} (Latin)"
    assert Draft.objects.get().text == filled
    assert filled in unescape(page.get(f"/c/{conversation.pk}/").content.decode())
    page.post(address, {"title": "Plain", "text": "Hello", "shared": "on"})
    assert page.post(f"{address}use/", {"conversation": ""})["Location"] == "/"
    assert "Hello</textarea>" in page.get("/").content.decode()
    page.post(f"{address}delete/")
    assert not Prompt.objects.exists()


def test_library_keeps_its_chat_on_all_ways(page, owner, conversation):
    """From the form of a new prompt, a refused one, an edited one and a deleted one a prompt still goes to the chat."""
    query = f"?conversation={conversation.pk}"
    library = f"/prompts/{query}"
    assert f'action="{library}"' in page.get(library).content.decode()
    assert f'action="{library}"' in page.post(library, {"title": ""}).content.decode()
    assert page.post(library, {"title": "Plain", "text": "Hello"})["Location"] == library
    [prompt] = Prompt.objects.all()
    address = f"/prompts/{prompt.pk}/"
    shown = page.get(library).content.decode()
    assert f'href="{address}{query}#edit-prompt"' in shown
    assert f'action="{address}delete/{query}"' in shown
    edited = page.get(f"{address}{query}").content.decode()
    assert f'action="{address}{query}"' in edited
    assert f'class="button" href="{library}"' in edited
    changed = page.post(f"{address}{query}", {"title": "Plain", "text": "Hello"})
    assert changed["Location"] == library
    assert page.get(f"{address}use/", {"conversation": conversation.pk})["Location"] == library
    long = {"conversation": conversation.pk}
    prompts.save(user=owner, prompt_id=prompt.pk, title="Long", text="{{a}}" * 100, shared=False)
    refused = page.post(f"{address}use/", {**long, "variable-1": "x" * 2_000})
    assert refused["Location"] == library
    assert page.post(f"{address}delete/{query}")["Location"] == library
    assert page.get("/prompts/?conversation=x").status_code == 404


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"title": "", "text": "x"}, 400),
        ({"title": "x" * 81, "text": "x"}, 400),
        ({"title": "x", "text": " "}, 400),
        ({"title": "x", "text": "x" * 20_001}, 400),
    ],
)
def test_bad_prompt_is_refused_with_words(page, fields, status):
    response = page.post("/prompts/", fields)
    assert response.status_code == status
    assert 'class="errors"' in response.content.decode()
    assert not Prompt.objects.exists()


def test_prompts_of_others_are_private_unless_shared(
    page, owner, stranger, conversation, settings, django_assert_num_queries
):
    theirs = Prompt.objects.create(owner=stranger, title="Theirs", text="x")
    shared = Prompt.objects.create(owner=stranger, title="Shared", text="x", shared=True)
    staffs = Prompt.objects.create(title="Staff's", text="x")
    titles = [one["title"] for one in page.get("/prompts/list/").json()["prompts"]]
    assert titles == ["Staff's", "Shared"]
    for path in ("", "delete/", "use/"):
        assert page.post(f"/prompts/{theirs.pk}/{path}", {"title": "x"}).status_code == 404
    for one in (shared, staffs):
        assert page.get(f"/prompts/{one.pk}/").status_code == 404
        assert page.post(f"/prompts/{one.pk}/delete/").status_code == 404
        assert page.post(f"/prompts/{one.pk}/use/").status_code == 302
    conversation.owner = stranger
    conversation.save()
    other = {"conversation": conversation.pk}
    assert page.post(f"/prompts/{staffs.pk}/use/", other).status_code == 404
    stranger.is_active = False
    stranger.save()
    assert prompts.offered(owner) == [staffs]
    stranger.is_active = True
    stranger.save()
    settings.SHARED_PROMPTS = False
    with django_assert_num_queries(1):
        assert prompts.offered(owner) == [staffs]
    page.post("/prompts/", {"title": "Mine", "text": "x", "shared": "on"})
    assert not Prompt.objects.get(title="Mine").shared
    assert Prompt.objects.count() == 4


def test_shared_prompts_crowd_out_no_others(owner, stranger, monkeypatch):
    monkeypatch.setattr(prompts, "MAX_OFFERED", 12)
    monkeypatch.setattr(prompts, "OTHERS_CHARACTERS", 50)
    for number in range(20):
        Prompt.objects.create(owner=stranger, title=f"!{number}", text="x" * 20, shared=True)
    mine = Prompt.objects.create(owner=owner, title="Mine", text="x" * 60)
    staffs = Prompt.objects.create(title="Staff's", text="x" * 60)
    found = prompts.offered(owner)
    assert found[:2] == [mine, staffs]
    assert len(found) == 4


def test_prompt_that_is_posted_twice_is_one(page, owner, monkeypatch):
    fields = {"title": "A", "text": "x", "user": owner, "prompt_id": None, "shared": False}
    race([lambda: prompts.save(**fields)] * 4)
    assert Prompt.objects.count() == 1
    monkeypatch.setattr(prompts, "MAX_OWN", 1)
    assert page.post("/prompts/", {"title": "A", "text": "x"}).status_code == 302
    assert page.post("/prompts/", {"title": "B", "text": "x"}).status_code == 400


def test_variables_are_bounded():
    text = "".join(f"{{{{v{number}}}}}" for number in range(1_000)) + "{{" * 10_000
    assert prompts.variables(text) == [f"v{number}" for number in range(20)]
    assert prompts.fill("{{a}} {{ a }} {{b}} {{}}", {"a": "{{b}}"}) == "{{b}} {{b}} {{b}} {{}}"
