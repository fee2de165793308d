"""Providers: added by staff in the admin, replaced by a fallback, and waited for at their limit."""

from __future__ import annotations

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

KEY = "sk-of-the-second-provider-wxyz"


def test_new_provider_answers_after_one_walk(site: Site, browser: Browser, email: str):
    """Staff add, test and discover a provider and make its model the default; users get its replies.

    Then it answers as the fallback of the first provider.
    """
    site.execute(
        "UPDATE accounts_user SET is_staff = true, is_superuser = true WHERE email = %s", email
    )
    [(first,)] = site.rows("SELECT provider_model FROM chat_languagemodel ORDER BY id LIMIT 1")
    site.provider.list_models("openrouter")
    browser.open("/admin/chat/provider/")
    browser.click(".object-tools .addlink")
    browser.find("[name=name]").send_keys("Second")
    browser.find("[name=base_url]").send_keys(site.provider.url)
    browser.find("[name=new_key]").send_keys(KEY)
    browser.find("[name=header_lines]").send_keys("X-Team: research")
    browser.click("input[name=_save]")
    browser.wait_for_text(".messagelist", "was added successfully")
    assert "set, ends in …wxyz" in browser.find("#provider_form").text
    assert KEY not in browser.driver.page_source
    browser.click("form[action$='/test/'] button")
    browser.wait_for_text(".provider-result h2", "The provider answers")
    busy = browser.run(
        "const button = document.querySelector('.provider-result button');"
        "button.click(); return button.textContent"
    )
    assert busy == "Asking the provider…"
    browser.wait_for_text(".provider-models", "openai/gpt-4o")
    browser.click("[data-choose=all]")
    browser.wait_for_text("[data-chosen]", "3 chosen")
    browser.click("[data-choose=none]")
    browser.click("[name='0-chosen']")
    browser.wait_for_text("[data-chosen]", "1 chosen")
    browser.click("[name=default]")
    browser.click("button[name=add]")
    browser.wait_for_text(
        ".messagelist", "1 model added, 1 with a new price. New chats now use it."
    )
    assert browser.texts(".provider-mark") == ["added"]

    try:
        browser.open("/")
        browser.send("[[tokens=5 rate=0]] Hello")
        browser.wait_for_status("done")
        assert site.provider.requests[-1]["model"] == "openai/gpt-4o"
        sent = site.provider.headers[-1]
        assert (sent["Authorization"], sent["X-Team"]) == (f"Bearer {KEY}", "research")
        [(run,)] = site.rows(
            "SELECT id FROM chat_run WHERE conversation_id = %s", browser.conversation
        )
        browser.open(f"/admin/chat/run/{run}/change/")
        browser.wait_for_text(".field-provider", "Second")
        browser.wait_for_text(".field-model", "OpenAI: GPT-4o")

        site.execute("UPDATE chat_assistant SET enabled = false WHERE name = 'OpenAI: GPT-4o'")
        site.execute(
            "UPDATE chat_languagemodel SET fallback_id = spare.id FROM chat_languagemodel spare"
            " WHERE spare.name = 'OpenAI: GPT-4o' AND chat_languagemodel.provider_model = %s",
            first,
        )
        browser.open("/")
        browser.send(f"[[tokens=5 rate=0 status=401 only={first}]] Hello")
        browser.wait_for_status("done")
        browser.wait_for_text(".action-model", f"OpenAI: GPT-4o, as {first} was unavailable")
        assert browser.complaints == []
    finally:
        site.execute("UPDATE chat_languagemodel SET fallback_id = NULL")
        site.execute("UPDATE chat_assistant SET enabled = (name <> 'OpenAI: GPT-4o')")


def test_busy_provider_shows_the_position(site: Site, browser: Browser):
    site.execute("UPDATE chat_provider SET concurrency = 1 WHERE base_url = ''")
    try:
        browser.send("[[tokens=5 rate=0 hold=1 key=busy]] First")
        wait_until(lambda: site.provider.counts["held"] == 1, "the first reply")
        first = browser.tab
        browser.new_tab("/")
        browser.send("[[tokens=5 rate=0]] Second")
        browser.wait_for_text(".progress", "The model is busy: next in line")
        site.provider.release("busy")
        browser.wait_for_status("done")
        browser.go_to_tab(first)
        browser.wait_for_status("done")
        assert browser.complaints == []
    finally:
        site.execute("UPDATE chat_provider SET concurrency = NULL")
