"""A reply is formatted while it streams in, and nothing moves at its end."""

from __future__ import annotations

import re

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site
from tests.support.fake_llm.replies import SAMPLE

pytestmark = pytest.mark.e2e

ALL = len(SAMPLE)
PROSE = "return document.querySelector('.message.reply:last-child .prose')?.innerHTML"
TAGS = "return [...document.querySelector('.stream')?.children ?? []].map(({ tagName }) => tagName)"

# The largest move of the reply's first heading within the window, and of the page's end, from frame to frame.
WATCH = """
window.moves = [];
const heading = document.querySelector(".message.reply:last-child h3");
let before = null;
(function look() {
  const top = heading.getBoundingClientRect().top;
  const left = document.documentElement.scrollHeight - innerHeight - scrollY;
  if (before !== null) window.moves.push([Math.abs(top - before), left]);
  before = top;
  requestAnimationFrame(look);
})();
"""


def structure(html: str) -> str:
    """The HTML without the parts that the script adds, and without spaces between elements."""
    html = re.sub(r'<div class="(code|table)-actions">.*?</div>', "", html, flags=re.DOTALL)
    return re.sub(r">\s+<", "><", html.replace(' data-bare=""', "")).strip()


def test_code_and_tables_have_buttons_while_they_stream(site: Site, browser: Browser):
    browser.send(f"[[tokens={ALL} rate=0 sample=true hold={ALL - 3} key=buttons]]")
    wait_until(lambda: "That is all" in browser.reply, "the text is shown")
    buttons = ("[data-copy-csv]", "[data-copy-markdown]", "[data-copy-code]")
    wait_until(lambda: all(map(browser.shown, buttons)), "the blocks are formatted")
    browser.run(
        "window.copied = []; window.saved = [];"
        "navigator.clipboard.write = async ([item]) =>"
        "  window.copied.push(await (await item.getType('text/plain')).text());"
        "HTMLAnchorElement.prototype.click = function () { window.saved.push(this.download); };"
    )
    for selector in buttons:
        browser.run("document.querySelector(arguments[0]).click()", selector)
    wait_until(lambda: browser.run("return window.copied.length") == 3, "all are copied")
    csv, table, code = browser.run("return window.copied")
    assert csv.split("\r\n")[:2] == ["Place,Depth,Note", "North wall,3.2 m,calm"]
    assert table.splitlines()[:3] == [
        "| Place | Depth | Note |",
        "| --- | --- | --- |",
        "| North wall | 3.2 m | calm |",
    ]
    assert code.startswith("def depth(")
    assert code.endswith("len(rest)")
    browser.run("document.querySelector('[data-download-code]').click()")
    assert browser.run("return window.saved") == ["code.py"]
    browser.run("document.querySelector('[data-wrap-code]').click()")
    assert browser.shown(".code.wrapped [aria-pressed=true]")
    assert browser.run("return document.querySelectorAll('.stream math').length") >= 2
    site.provider.release("buttons")
    browser.wait_for_status("done")
    assert browser.shown(".code.wrapped [data-copy-code]"), "nothing is set back at the end"
    assert browser.complaints == []


@pytest.mark.parametrize("size", [(1280, 900), PHONE], ids=["desktop", "phone"])
def test_blocks_are_formatted_before_the_end(site: Site, open_browser, email, size):
    browser = open_browser(size)
    browser.sign_up(email)
    browser.write(f"[[tokens={ALL} rate=0 sample=true hold={ALL - 3} key={email}]]")
    browser.click("[data-send-button]")
    wait_until(lambda: "That is all" in browser.reply, "the text is shown")
    assert browser.status == "pending"
    kinds = {"H3", "P", "UL", "DIV", "FIGURE", "BLOCKQUOTE", "OL"}
    wait_until(lambda: kinds <= set(browser.run(TAGS)), "all blocks are formatted")
    assert browser.run("return document.querySelectorAll('.stream tbody tr').length") == 3
    assert browser.run("return document.querySelectorAll('.stream > ul > li').length") == 5
    assert browser.shown(".stream .code [data-copy-code]"), "its buttons work before the end"
    browser.run(WATCH)
    site.provider.release(email)
    browser.wait_for_status("done")
    wait_until(lambda: browser.run("return window.moves.length > 10"), "frames pass")
    moves = browser.run("return window.moves")
    assert max(move for move, _ in moves) < 30, "at most one line came"
    assert max(left for _, left in moves) < 2, "the end stays in view"
    assert browser.shown(".stream, .stream-tail") == []
    streamed = structure(browser.run(PROSE))
    browser.driver.refresh()
    wait_until(lambda: browser.run(PROSE), "the page is loaded again")
    assert structure(browser.run(PROSE)) == streamed
    assert browser.complaints == []


def test_selection_in_a_block_survives_the_end(site: Site, browser: Browser):
    browser.send(f"[[tokens={ALL} rate=0 sample=true hold={ALL // 2} key=select]]")
    wait_until(lambda: "Lighthouse" in browser.reply, "the first half is shown")
    wait_until(lambda: "H3" in browser.run(TAGS), "its heading is formatted")
    browser.run("getSelection().selectAllChildren(document.querySelector('.stream h3'))")
    site.provider.release("select")
    browser.wait_for_status("done")
    assert browser.run("return getSelection().toString()") == "A plan for the harbour"
    browser.run("getSelection().removeAllRanges()")
    assert browser.shown(".prose h3")
    assert browser.complaints == []


def test_end_repeats_no_text(site: Site, browser: Browser):
    browser.run(
        "window.ends = [];"
        "document.querySelector('chat-app').connection.addEventListener('message', ({ detail }) => {"
        "  if (detail.type === 'run.done') window.ends.push(detail);"
        "});"
    )
    browser.ask(f"[[tokens={ALL} rate=0 reasoning=20 sample=true]]")
    [end] = browser.run("return window.ends")
    assert "text" not in end
    assert "harbour" not in end["html"]
    browser.driver.refresh()
    wait_until(lambda: browser.shown(".prose h3"), "the page has all of it")


def test_long_message_is_folded_and_copied_whole(browser: Browser):
    text = "A line of a long message. " * 80
    browser.run("document.querySelector('chat-composer textarea').value = arguments[0]", text)
    browser.ask("[[tokens=5 rate=0]]")
    wait_until(lambda: browser.shown("[data-fold]"), "the message is folded")
    browser.driver.refresh()
    wait_until(lambda: browser.shown("[data-fold]"), "it is folded again")
    height = "return document.querySelector('.own-text').offsetHeight"
    folded = browser.run(height)
    browser.run("window.scrollTo(0, 0)")
    browser.click("[data-fold]")
    assert browser.run(height) > folded
    assert browser.find("[data-fold]").text == "Show less"
    browser.run(
        "navigator.clipboard.write = async ([item]) =>"
        "  { window.copied = await (await item.getType('text/plain')).text(); };"
        "document.querySelector('[data-copy-own]').click()"
    )
    copied = wait_until(lambda: browser.run("return window.copied"), "it is copied")
    assert copied.startswith("A line")
    assert len(copied) > 2_000
    assert browser.complaints == []
