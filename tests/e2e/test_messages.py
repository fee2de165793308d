"""Parts of messages that need the script: footnotes, previews, images, details, copies and reading aloud."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site

pytestmark = pytest.mark.e2e

HTML = """
<p dir="auto">A claim<sup class="note-ref">1</sup>, <a class="image" href="https://images.example/a.png">a picture</a></p>
<figure class="code" dir="ltr"><figcaption>svg</figcaption><pre tabindex="0"><code class="language-svg">\
&lt;svg viewBox="0 0 10 10"&gt;&lt;script&gt;top.hacked = 1&lt;/script&gt;&lt;circle r="4"/&gt;&lt;/svg&gt;</code></pre></figure>
<div class="note"><sup class="note-label">1</sup><p dir="auto">The source.</p></div>
"""


def test_notes_previews_and_images_wait_for_a_click(site: Site, browser: Browser):
    browser.ask("Hi")
    site.execute(
        "UPDATE chat_message SET html = %s WHERE conversation_id = %s AND role = 'assistant'",
        HTML,
        browser.conversation,
    )
    browser.driver.refresh()
    browser.run(
        "window.requests = []; new PerformanceObserver((list) =>"
        " window.requests.push(...list.getEntries().map((one) => one.name))).observe({ type: 'resource', buffered: true })"
    )
    wait_until(lambda: browser.shown(".note-ref button"), "the script has prepared the reply")
    browser.find(".note-ref button").send_keys(Keys.ENTER)
    focused = "return document.activeElement.parentElement.className"
    assert browser.run(focused) == "note-label"
    browser.find(".note-label button").send_keys(Keys.ENTER)
    assert browser.run(focused) == "note-ref"

    assert browser.texts("[data-show-image]") == ["Show image from images.example"]
    assert not any("images.example" in one for one in browser.run("return window.requests"))
    browser.click("[data-preview]")
    wait_until(lambda: browser.shown(".code iframe.preview"), "the preview opens")
    frame = browser.find(".code iframe.preview")
    assert frame.get_attribute("sandbox") == ""
    browser.driver.switch_to.frame(frame)
    wait_until(lambda: browser.find("circle"), "the picture is shown")
    browser.driver.switch_to.default_content()
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.querySelector('iframe').contentDocument") is None
    browser.click("[data-preview]")
    assert browser.shown("iframe") == []
    browser.click("[data-show-image]")
    wait_until(lambda: browser.shown("p iframe.preview"), "the image has a frame")
    blocked = [
        one for one in browser.complaints if "script" not in one and "images.example" not in one
    ]
    assert blocked == []


def test_menu_shows_details_and_copies(browser: Browser):
    browser.run(
        "Object.defineProperty(window, 'speechSynthesis', { value: { speaking: false, said: [],"
        "  getVoices: () => [{ lang: 'en-US', localService: false }, { lang: 'en-GB', localService: true, name: 'here' }],"
        "  speak(one) { this.speaking = true; this.said.push([one.text, one.lang]); }, cancel() { this.speaking = false; } } });"
        "window.SpeechSynthesisUtterance = class { constructor(text) { this.text = text; } };"
        "window.copied = []; navigator.clipboard.write = async ([item]) => window.copied.push("
        "  Object.fromEntries(await Promise.all(item.types.map(async (type) => [type, await (await item.getType(type)).text()]))))"
    )
    browser.ask("[[tokens=12 rate=0 reasoning=4]] Hi")
    copied = "return window.copied.length"

    def choose(selector: str) -> None:
        browser.click(".reply [form=details]")
        wait_until(lambda: browser.shown("chat-message-menu .details"), "the details are shown")
        browser.click(f"chat-message-menu {selector}")

    browser.click(".reply [form=details]")
    wait_until(lambda: browser.shown("chat-message-menu .details"), "the details are shown")
    shown = browser.texts("chat-message-menu .details")[0]
    for word in (
        "Model",
        "Time",
        "Until the first word",
        "Tokens in",
        "Tokens out",
        "reasoning",
        "Cost",
    ):
        assert word in shown
    browser.find("body").send_keys(Keys.ESCAPE)
    wait_until(lambda: not browser.shown("chat-message-menu"), "Escape closes the menu")

    for number, kind in enumerate(("markdown", "rich", "link"), 1):
        choose(f"[data-copy-as={kind}]")
        wait_until(lambda number=number: browser.run(copied) == number, kind)  # type: ignore[misc]
    browser.click(".reply [data-copy]")
    wait_until(lambda: browser.run(copied) == 4, "both are copied")
    markdown, rich, link, both = browser.run("return window.copied")
    assert list(markdown) == ["text/plain"]
    assert rich["text/html"].startswith("<p")
    assert "button" not in rich["text/html"]
    assert both["text/plain"] == markdown["text/plain"]
    assert both["text/html"] == rich["text/html"]

    choose("[data-read-aloud]")
    assert browser.run("return speechSynthesis.said.every(([, language]) => language === 'en-GB')")
    browser.click(".reply [form=details]")
    assert browser.texts("[data-read-aloud]") == ["Stop reading"]
    browser.click("[data-read-aloud]")
    assert browser.run("return speechSynthesis.speaking") is False
    assert browser.complaints == []

    browser.driver.get(link["text/plain"])
    wait_until(lambda: browser.shown(".message.reply:target"), "the link leads to the reply")
