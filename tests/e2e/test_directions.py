"""Right-to-left text: every block has its own direction, while it streams, finished and typed."""

from __future__ import annotations

import pytest

from chat.rendering.document import to_html
from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site

pytestmark = pytest.mark.e2e

ARABIC = "مرحبا بالعالم، كيف الحال؟"
MARKDOWN = f"""{ARABIC}

English follows.

- {ARABIC}

> {ARABIC}

| {ARABIC} | two |
|---|---|
| واحد | x |

```
code = 1
```
"""

# Where the first text of an element begins: "left" or "right".
SIDE = """
const element = [...document.querySelectorAll(arguments[0])].at(-1);
const range = document.createRange();
range.selectNodeContents(element);
const line = range.getClientRects()[0];
const box = element.getBoundingClientRect();
return line.left - box.left < box.right - line.right ? "left" : "right";
"""
DIRECTION = "return getComputedStyle([...document.querySelectorAll(arguments[0])].at(-1)).direction"


def test_finished_blocks_run_in_their_direction(site: Site, browser: Browser):
    browser.ask("[[tokens=3 rate=0]] Hello")
    site.execute(
        "UPDATE chat_message SET html = %s WHERE conversation_id = %s AND role = 'assistant'",
        to_html(MARKDOWN),
        browser.conversation,
    )
    browser.driver.refresh()
    sides = {
        block: browser.run(SIDE, f".prose {block}")
        for block in ("p:nth-of-type(1)", "p:nth-of-type(2)", "li", "blockquote p", "pre")
    }
    assert sides == {
        "p:nth-of-type(1)": "right",
        "p:nth-of-type(2)": "left",
        "li": "right",
        "blockquote p": "right",
        "pre": "left",
    }
    for block, direction in (
        ("li", "rtl"),
        ("blockquote", "rtl"),
        ("table", "rtl"),
        ("pre", "ltr"),
    ):
        assert browser.run(DIRECTION, f".prose {block}") == direction, block
    # The space for the marker and the border are at the beginning of the text.
    item, quote = (
        browser.run(
            "const {marginRight, borderRightWidth} ="
            " getComputedStyle(document.querySelector(arguments[0]));"
            "return [marginRight, borderRightWidth]",
            f".prose {block}",
        )
        for block in ("li", "blockquote")
    )
    assert item[0] == "24px"
    assert quote[1] == "3px"


def test_streamed_and_typed_text_run_in_their_direction(browser: Browser):
    browser.write(ARABIC)
    assert browser.run(DIRECTION, "chat-composer textarea") == "rtl"
    browser.find("chat-composer textarea").clear()
    browser.send(f"{ARABIC} [[tokens=400 rate=30 reasoning=5]]")
    wait_until(lambda: browser.reply, "text comes")
    for block in ("h1", ".sidebar-title", ".own-text"):
        assert browser.run(DIRECTION, block) == "rtl", block
    browser.run(
        "const text = arguments[0];"
        "document.querySelector('chat-app').connection.dispatchEvent(new CustomEvent('message',"
        "  {detail: {type: 'run.restarted', run: document.querySelector('.reply').dataset.run,"
        "    attempt: 2, seq: 10000001, text, reasoning: text}}))",
        ARABIC,
    )
    wait_until(lambda: ARABIC in browser.reply, "the text is shown")
    assert browser.run(DIRECTION, ".stream p") == "rtl"
    assert browser.run(DIRECTION, ".reasoning-text") == "rtl"
    assert browser.run(SIDE, ".stream p") == "right"
    browser.click("[data-stop]")
    browser.wait_for_status("stopped")
    browser.open("/chats/")
    assert browser.run(DIRECTION, ".chats-title") == "rtl"
