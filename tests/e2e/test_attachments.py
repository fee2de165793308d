"""Files of a message: chosen, pasted, dropped, refused and removed, shown large, edited, and without scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site
from tests.e2e.test_screens import LOW_CONTRAST, NARROW, OVERFLOW, SMALL
from tests.support.axe import violations
from tests.support.files import picture

pytestmark = pytest.mark.e2e

# A paste or a drop of a file with a name, a type and bytes; or a paste of text.
PASTE = """
const [name, type, text, event] = arguments;
const data = new DataTransfer();
if (name) data.items.add(new File([Uint8Array.from(text, (one) => one.charCodeAt(0))], name, {type}));
else data.setData("text/plain", text);
const field = document.querySelector("chat-composer textarea");
const made = event === "drop"
  ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
  : new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true});
return field.dispatchEvent(made);
"""


@pytest.fixture
def seeing(site: Site) -> Iterator[None]:
    """Models that see images."""
    site.execute("UPDATE chat_languagemodel SET vision = true")
    yield
    site.execute("UPDATE chat_languagemodel SET vision = false")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "red and blue.png").write_bytes(picture(size=(600, 400)))
    (tmp_path / "portrait.jpg").write_bytes(picture("JPEG", (300, 500)))
    (tmp_path / "notes.txt").write_text("Line one\n" * 20)
    (tmp_path / "program.bin").write_bytes(bytes(range(256)))
    return tmp_path


def choose(browser: Browser, *files: Path) -> None:
    browser.find("chat-files [type=file]").send_keys("\n".join(map(str, files)))


def chips(browser: Browser) -> list[str]:
    return browser.texts(".chip .chip-name")


def stored(browser: Browser, count: int) -> None:
    wait_until(
        lambda: len(browser.run("return document.querySelector('chat-files').ids")) == count,
        f"{count} files are stored",
    )


def last_content(site: Site) -> object:
    return site.provider.requests[-1]["messages"][-1]["content"]


def test_files_are_attached_sent_and_shown(
    site: Site, seeing: None, browser: Browser, folder: Path
):
    browser.write("[[tokens=3 rate=0]] Look")
    choose(browser, folder / "red and blue.png", folder / "notes.txt")
    stored(browser, 2)
    assert chips(browser) == ["red and blue.png", "notes.txt"]
    assert "tokens" in browser.texts(".chip-detail")[1]
    # The same file again, and one of another type: a sentence, and nothing is lost.
    choose(browser, folder / "program.bin")
    browser.wait_for_text(".chip[data-failed] .chip-detail", "cannot be attached")
    assert browser.draft == "[[tokens=3 rate=0]] Look"
    browser.find("chat-composer textarea").send_keys(Keys.ENTER)
    browser.wait_for_text("[data-error-text]", "was not uploaded")
    browser.click(".chip[data-failed] [data-remove]")
    wait_until(lambda: len(chips(browser)) == 2, "the chip is removed")
    assert not browser.shown("[data-error]")

    # A reload keeps the text and the files; a long paste becomes a file, and text again.
    browser.driver.refresh()
    stored(browser, 2)
    assert browser.draft == "[[tokens=3 rate=0]] Look"
    assert browser.run(PASTE, "", "", "word " * 1_500, "paste") is False
    stored(browser, 3)
    assert chips(browser)[2] == "Pasted text.txt"
    browser.click(".chip:last-child [data-put-back]")
    wait_until(lambda: len(browser.draft) > 7_000, "the text is back")
    field = browser.find("chat-composer textarea")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(" ")
    field.send_keys(Keys.BACKSPACE)

    # Dropped and pasted files, and a removed one.
    image = (folder / "portrait.jpg").read_bytes().decode("latin-1")
    browser.run(PASTE, "portrait.jpg", "image/jpeg", image, "drop")
    browser.run(PASTE, "pasted.jpg", "image/jpeg", image, "paste")
    stored(browser, 4)
    browser.click(".chip:last-child [data-remove]")
    stored(browser, 3)
    assert browser.run("return document.activeElement.matches('.chip:last-child [data-remove]')")
    browser.send("[[tokens=3 rate=0]] See")
    browser.wait_for_status("done")
    content = last_content(site)
    assert isinstance(content, list)
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
    assert content[2]["text"].startswith('<file name="notes.txt">\nLine one\n')
    assert not chips(browser)
    assert browser.texts(".attached-name") == ["notes.txt"]
    loaded = (
        "return [...document.querySelectorAll('.attached img')].every((one) => one.naturalWidth)"
    )
    wait_until(lambda: browser.run(loaded), "the thumbnails are loaded")

    # Large, by keyboard.
    browser.find(".attached-image").send_keys(Keys.ENTER)
    wait_until(lambda: browser.shown(".viewer"), "the dialog opens")
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.texts("[data-place]") == ["2 / 2"]
    wait_until(
        lambda: browser.run("return document.querySelector('.viewer-image').naturalHeight") == 500,
        "the image is loaded",
    )
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait_until(lambda: not browser.shown(".viewer"), "Escape closes it")
    assert browser.run(
        "return document.activeElement === document.querySelectorAll('[data-image]')[1]"
    )

    # An edit keeps them, without the one that is removed.
    browser.click(".message.own [name=edit]")
    stored(browser, 3)
    browser.click(".chip:first-child [data-remove]")
    field = browser.find("chat-composer textarea")
    field.send_keys(Keys.CONTROL, "a")
    browser.send("[[tokens=3 rate=0]] Again")
    wait_until(lambda: "Again" in json.dumps(last_content(site)), "the edit is sent")
    browser.wait_for_status("done")
    content = last_content(site)
    assert isinstance(content, list)
    assert [part["type"] for part in content] == ["image_url", "text"]
    [(count,)] = site.rows(
        "SELECT count(*) FROM chat_messageattachment l JOIN chat_message m ON m.id = l.message_id"
        " WHERE m.conversation_id = %s",
        browser.conversation,
    )
    assert count == 5
    [refused] = browser.complaints
    assert "415" in refused


def test_image_needs_a_model_that_sees(site: Site, browser: Browser, folder: Path):
    choose(browser, folder / "portrait.jpg")
    stored(browser, 1)
    browser.wait_for_text("[data-cost]", "cannot see images")
    browser.send("Look")
    browser.wait_for_text("[data-error-text]", "cannot see images")
    assert browser.draft == "Look"
    assert chips(browser) == ["portrait.jpg"]
    # Offline: the upload fails, can be repeated, and the message waits for it.
    browser.driver.set_network_conditions(offline=True, latency=0, throughput=0)
    choose(browser, folder / "notes.txt")
    browser.wait_for_text(".chip[data-failed] .chip-detail", "Check your connection")
    browser.driver.delete_network_conditions()
    browser.click(".chip[data-failed] [data-retry]")
    stored(browser, 2)
    assert browser.draft == "Look"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_files_fit_a_phone(
    site: Site,
    seeing: None,
    open_browser: Callable[..., Browser],
    email: str,
    folder: Path,
    dark: bool,
):
    browser = open_browser(PHONE, dark=dark)
    browser.sign_up(email)
    browser.open()  # without the notice of the new account
    browser.write("[[tokens=3 rate=0]] Look")
    long = folder / f"{'a very long name ' * 8}.txt"
    long.write_text("words")
    choose(browser, folder / "red and blue.png", folder / "portrait.jpg", long)
    stored(browser, 3)
    for selector in ("", "[data-send-button]", ".attached-image"):
        if selector:
            browser.click(selector)
        if selector == "[data-send-button]":
            browser.wait_for_status("done")
        assert browser.run(OVERFLOW) <= 0
        assert browser.run(SMALL) == []
        assert browser.run(LOW_CONTRAST) == []
        assert violations(browser.driver) == []
    for path in ("/files/", "/settings/data/"):
        browser.open(path)
        assert browser.run(SMALL) == []
        assert violations(browser.driver) == []
        browser.resize(NARROW)
        assert browser.run(OVERFLOW) <= 0
        browser.resize(PHONE)


def test_files_are_sent_without_scripts(
    site: Site, seeing: None, open_browser: Callable[..., Browser], email: str, folder: Path
):
    browser = open_browser(PHONE, scripting=False)
    browser.sign_up(email)
    browser.write("[[tokens=3 rate=0]] Look")
    choose(browser, folder / "notes.txt", folder / "program.bin")
    browser.click("[data-send-button]")
    browser.wait_for_text("[data-error-text]", "program.bin: This type of file")
    assert browser.draft == "[[tokens=3 rate=0]] Look"
    assert browser.texts(".chip-box") == ["notes.txt"]
    choose(browser, folder / "portrait.jpg")
    browser.click("[data-send-button]")
    browser.wait_for_status("done")
    content = last_content(site)
    assert isinstance(content, list)
    assert [part["type"] for part in content] == ["image_url", "text"]
    assert browser.texts(".attached-name") == ["notes.txt"]
    browser.click(".message.own [name=edit]")
    browser.click(".chip-box [value]")  # without the first one
    browser.click("[data-send-button]")
    wait_until(lambda: site.count_runs(browser.conversation) == 2, "the edit is sent")
    browser.wait_for_status("done")
    assert not browser.texts(".attached-name")
    assert browser.shown(".attached-image")
