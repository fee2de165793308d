"""The forms of a page, read from its HTML as a browser reads them."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any


class FormReader(HTMLParser):
    """Collects for each form of a page the fields that a browser would post, without buttons."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[dict[str, str]] = []
        self._select = ""
        self._textarea: str | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        have = {name: value or "" for name, value in attributes}
        name, form = have.get("name", ""), self.forms[-1] if self.forms else {}
        if tag == "form":
            self.forms.append({})
        elif tag == "select":
            self._select = name
        elif tag == "option" and self._select and ("selected" in have or self._select not in form):
            form[self._select] = have.get("value", "")
        elif tag == "textarea":
            self._textarea, form[name] = name, ""
        elif tag == "input" and name and "disabled" not in have:
            kind = have.get("type", "text")
            if kind in {"checkbox", "radio"}:
                if "checked" in have:
                    form[name] = have.get("value", "on")
            elif kind not in {"submit", "button", "image"}:
                form[name] = have.get("value", "").replace("\n", "\r\n")

    def handle_data(self, data: str) -> None:
        if self._textarea is not None:
            self.forms[-1][self._textarea] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self._textarea is not None:
            # HTML ignores the first line break, and forms are sent with CRLF.
            text = self.forms[-1][self._textarea].removeprefix("\n")
            self.forms[-1][self._textarea] = text.replace("\n", "\r\n")
            self._textarea = None
        elif tag == "select":
            self._select = ""


def posted_form(page: Any) -> dict[str, str]:
    """Return the fields of the largest form of a page as a browser would post them unchanged."""
    reader = FormReader()
    reader.feed(page.content.decode())
    return max(reader.forms, key=len)
