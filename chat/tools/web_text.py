"""The text of a page of the web, for a model: headings, paragraphs, lists, tables and links, without the furniture.

`extract` runs in the sandbox, in a process of its own: pages are hostile. It imports nothing of Django.
"""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

MAX_CHARACTERS = 200_000  # of a page's text
MAX_LINKS = 60

# Elements without text for a reader.
DROPPED = frozenset(
    (
        *("script", "style", "noscript", "template", "svg", "canvas", "iframe", "object", "embed"),
        *("form", "button", "select", "textarea", "input", "nav", "aside", "dialog", "head"),
    )
)
HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}
BLOCKS = frozenset(
    (
        *(
            "p",
            "div",
            "section",
            "article",
            "main",
            "header",
            "footer",
            "ul",
            "ol",
            "dl",
            "dt",
            "dd",
        ),
        *(
            "table",
            "blockquote",
            "figure",
            "figcaption",
            "address",
            "pre",
            "hr",
            "details",
            "summary",
        ),
        *HEADINGS,
    )
)
HIDDEN = re.compile(
    r"(?:display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0)", re.IGNORECASE
)
# Characters that nobody sees: controls, overrides of the direction, and tags, which can spell words for models.
DISGUISED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]"
)
DECLARED = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w.:-]{1,40})", re.IGNORECASE)
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def extract(argument: dict[str, Any]) -> dict[str, Any]:
    """Return `title`, `text` and `links` of a page: `body` (Base64), `type`, `charset` and `url` of its answer."""
    body = base64.b64decode(argument["body"])
    text = decoded(body, argument["charset"])
    if "html" not in argument["type"] and not text.lstrip()[:200].lower().startswith(
        ("<!doctype html", "<html")
    ):
        return {"title": "", "text": squeezed(text)[:MAX_CHARACTERS], "links": []}
    return of_html(text, argument["url"])


def decoded(body: bytes, charset: str) -> str:
    """Return the text of a body: by its mark, the server, the page's own declaration, or as it looks."""
    for mark, name in MARKS:
        if body.startswith(mark):
            return body.decode(name, errors="replace")
    declared = DECLARED.search(body[:4_000])
    for name in (charset, declared[1].decode() if declared else "", "utf-8"):
        try:
            return body.decode(codecs.lookup(name).name) if name else body.decode()
        except (LookupError, UnicodeError, ValueError):
            continue
    from charset_normalizer import from_bytes

    best = from_bytes(body[:100_000]).best()
    return body.decode(best.encoding if best else "latin-1", errors="replace")


def of_html(text: str, url: str) -> dict[str, Any]:
    """Return title, text and links of an HTML page."""
    from lxml import etree, html

    # Bytes: lxml refuses a text that declares an encoding.
    parser = html.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True, huge_tree=False
    )
    try:
        root = html.document_fromstring(text.encode(errors="replace"), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError):
        return {"title": "", "text": "", "links": []}
    title = " ".join((root.findtext(".//title") or "").split())[:300]
    declared = root.find(".//base")
    base = urljoin(url, declared.get("href") or "") if declared is not None else url
    for element in list(root.iter()):
        is_text = isinstance(element.tag, str)
        is_unseen = not is_text or element.tag in DROPPED or is_hidden(element)
        if is_unseen and element.getparent() is not None:
            element.drop_tree()
    main = next(
        (
            one
            for path in (".//main", ".//article", ".//*[@role='main']")
            for one in root.iterfind(path)
            if len(one.text_content().strip()) > 200
        ),
        root,
    )
    links: dict[str, str] = {}
    parts, length = [], 0
    for part in walk(main, base, links):
        parts.append(part)
        length += len(part)
        if length > 2 * MAX_CHARACTERS:
            break
    return {
        "title": title,
        "text": squeezed("".join(parts))[:MAX_CHARACTERS],
        "links": [[words, to] for to, words in links.items()],
    }


def is_hidden(element: Any) -> bool:
    """Return whether a reader would not see an element: its text may be meant for models alone."""
    return (
        element.get("hidden") is not None
        or element.get("aria-hidden") == "true"
        or bool(HIDDEN.search(element.get("style") or ""))
    )


def walk(root: Any, base: str, links: dict[str, str]) -> Iterator[str]:
    """Yield the text of an element with the marks of Markdown, and collect its links; without recursion."""
    from lxml import etree

    for event, element in etree.iterwalk(root, events=("start", "end")):
        name = element.tag
        if not isinstance(name, str):
            continue
        if event == "start":
            if name in BLOCKS or name == "tr":
                yield "\n\n" if name != "tr" else "\n"
            if name in HEADINGS:
                yield f"{HEADINGS[name]} "
            elif name == "li":
                yield "\n- "
            elif name in ("td", "th"):
                yield " | "
            elif name == "br":
                yield "\n"
            elif name == "img" and element.get("alt"):
                yield f"[{element.get('alt')[:200]}]"
            if element.text:
                yield element.text if name == "pre" else spaced(element.text)
        else:
            if name == "a" and len(links) < MAX_LINKS:
                note_link(element, base, links)
            if name in BLOCKS:
                yield "\n\n"
            if element.tail and element is not root:
                yield spaced(element.tail)


def note_link(element: Any, base: str, links: dict[str, str]) -> None:
    """Add a link with its words, unless it leads nowhere else."""
    words = " ".join(element.text_content().split())[:100]
    try:
        to = urljoin(base, (element.get("href") or "").strip()).partition("#")[0]
    except ValueError:
        return
    if words and to.startswith(("http://", "https://")) and to != base and len(to) < 500:
        links.setdefault(to, words)


def spaced(text: str) -> str:
    """Return a text with single spaces in place of other white space."""
    return re.sub(r"\s+", " ", text)


def squeezed(text: str) -> str:
    """Return a text without control characters, spaces at the ends of lines and more than single empty lines."""
    text = DISGUISED.sub(" ", text[: 2 * MAX_CHARACTERS].replace("\r\n", "\n"))
    lines = [one.rstrip() if one.startswith("    ") else one.strip() for one in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
