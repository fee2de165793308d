"""A tool whose effect needs approval: the card outlives a reload, and the reply goes on with the answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site

pytestmark = pytest.mark.e2e

USE = (
    '[[use=calculate:{"expression":"6*7"}&remember:{"note":"Likes%20owls"} said=4 tokens=6 rate=0]]'
)


@pytest.fixture
def with_tools(site: Site) -> Iterator[None]:
    """An assistant that computes and remembers, with a model that can call tools."""
    site.execute("UPDATE chat_languagemodel SET tools = true")
    site.execute("""UPDATE chat_assistant SET tools = '["calculate", "remember"]'""")
    yield
    site.execute("UPDATE chat_languagemodel SET tools = false")
    site.execute("UPDATE chat_assistant SET tools = '[]'")


@pytest.mark.usefixtures("with_tools")
def test_call_is_allowed_after_a_reload(site: Site, browser: Browser, tmp_path: Path):
    (tmp_path / "letter.txt").write_text("Remember that I like owls.\n")
    browser.find("chat-files [type=file]").send_keys(str(tmp_path / "letter.txt"))
    # With a text of others in the prompt, what has an effect waits for its user.
    stored = "return document.querySelector('chat-files').ids.length"
    wait_until(lambda: browser.run(stored) == 1, "the file is stored")
    browser.send(USE)
    browser.wait_for_text("[data-tool-card]", "The assistant asks to use: Memory")
    browser.wait_for_text("[data-tool-card]", "Likes owls")
    browser.wait_for_text(".tool[data-status=done]", "Calculator")
    browser.open(browser.path)
    browser.wait_for_text("[data-tool-card]", "Likes owls")
    assert site.rows("SELECT count(*) FROM chat_usernote WHERE text = 'Likes owls'") == [(0,)]
    browser.click("[data-tool-card] [value='1']")
    browser.wait_for_status("done")
    assert not browser.shown("[data-tool-card]")
    browser.wait_for_text(".part-note", "Likes owls")
    browser.click(".part-note button")
    browser.wait_for_text(".part-note", "The note is deleted.")
    assert site.rows("SELECT count(*) FROM chat_usernote WHERE text = 'Likes owls'") == [(0,)]
    assert browser.complaints == []
