"""Providers: added by staff in the admin, replaced by a fallback, and waited for at their limit."""

from __future__ import annotations

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

KEY = "sk-of-the-second-provider-wxyz"


def test_staff_add_provider_that_answers_as_fallback(site: Site, browser: Browser, email: str):
    site.execute(
        "UPDATE accounts_user SET is_staff = true, is_superuser = true WHERE email = %s", email
    )
    browser.open("/admin/chat/provider/add/")
    browser.find("[name=name]").send_keys("Second")
    browser.find("[name=base_url]").send_keys(site.provider.url)
    browser.find("[name=new_key]").send_keys(KEY)
    browser.find("[name=header_lines]").send_keys("X-Team: research")
    browser.click("input[name=_continue]")
    browser.wait_for_text(".messagelist", "was added successfully")
    assert "set, ends in …wxyz" in browser.find("#provider_form").text
    assert KEY not in browser.driver.page_source
    browser.open("/admin/chat/provider/")
    browser.wait_for_text("#result_list", "set, ends in …wxyz")

    browser.open("/admin/chat/languagemodel/add/")
    browser.find("[name=name]").send_keys("Spare")
    browser.find("[name=provider_model]").send_keys("spare-model")
    browser.run(
        "const list = document.querySelector('[name=provider]');"
        "list.value = [...list.options].find((one) => one.text === 'Second').value"
    )
    browser.click("input[name=_save]")
    browser.wait_for_text("#result_list", "Spare")
    site.execute(
        "UPDATE chat_languagemodel SET fallback_id = spare.id FROM chat_languagemodel spare"
        " WHERE spare.name = 'Spare' AND chat_languagemodel.name <> 'Spare'"
    )
    try:
        [(model,)] = site.rows(
            "SELECT provider_model FROM chat_languagemodel WHERE name <> 'Spare'"
        )
        browser.open("/")
        browser.send(f"[[tokens=5 rate=0 status=401 only={model}]] Hello")
        browser.wait_for_status("done")
        browser.wait_for_text(".action-model", f"Spare, as {model} was unavailable")
        assert site.provider.headers[-1]["X-Team"] == "research"
    finally:
        site.execute("UPDATE chat_languagemodel SET fallback_id = NULL")


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
