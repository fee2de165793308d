"""Keeps the catalogues of the languages in step with the sources: `make messages`.

chatproject/locale/<language>/LC_MESSAGES/django.po is edited by people; this command adds new texts, removes
unused ones, and writes what the site reads: django.mo for Django, static/catalogs/<language>.js for the scripts.
All three are committed, so that neither a start nor an image needs a tool of gettext.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.utils.translation.template import templatize

LOCALE = settings.BASE_DIR / "chatproject" / "locale"
SCRIPTS = settings.BASE_DIR / "static" / "catalogs"
PYTHON = ("accounts", "billing", "chat", "chatproject")
KEYWORDS: dict[str, Any] = {
    "_": None,
    "gettext": None,
    "gettext_lazy": None,
    "gettext_noop": None,
    "ngettext": (1, 2),
    "ngettext_lazy": (1, 2),
    "pgettext": ((1, "c"), 2),
    "pgettext_lazy": ((1, "c"), 2),
    "npgettext": ((1, "c"), 2, 3),
    "npgettext_lazy": ((1, "c"), 2, 3),
}
COMMENTS = ("Translators:",)
NO_TIME = datetime(2026, 1, 1, tzinfo=UTC)  # of a catalogue: its files depend on the texts alone


class Command(BaseCommand):
    help = "Update and compile the catalogues of the languages (needs requirements-dev.txt)."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--check", action="store_true", help="Only list what is not in step.")

    def handle(self, *args: object, check: bool, **options: object) -> None:
        template, stale = extracted(), []
        for code in languages():
            catalog = read(code)
            update(catalog, template)
            for path, content in files(code, catalog).items():
                if path.exists() and path.read_bytes() == content:
                    continue
                stale.append(str(path.relative_to(settings.BASE_DIR)))
                if not check:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
            empty = sum(1 for message in catalog if message.id and not is_translated(message))
            self.stdout.write(f"{code}: {len(catalog)} texts, {empty} not translated")
        if check and stale:
            raise SystemExit(f"Run make messages. Not in step: {', '.join(stale)}")


def languages() -> list[str]:
    """Return the languages with a catalogue: all but that of the sources."""
    return [code for code, _name in settings.LANGUAGES if code != settings.LANGUAGE_CODE]


def po_path(code: str) -> Path:
    path: Path = LOCALE / code / "LC_MESSAGES" / "django.po"
    return path


def read(code: str) -> Catalog:
    """Return the stored catalogue of a language; an empty one for a new language."""
    if not po_path(code).exists():
        return Catalog(locale=code, fuzzy=False)
    with po_path(code).open("rb") as file:
        return read_po(file, locale=code)


def extracted() -> Catalog:
    """Return the texts of all sources, with the files that have them."""
    catalog = Catalog()
    for path, found in sources():
        name = str(path.relative_to(settings.BASE_DIR))
        for _line, text, comments, context in found:
            catalog.add(text, locations=[(name, 0)], auto_comments=comments, context=context)
    return catalog


def sources() -> Iterator[tuple[Path, Iterator[Any]]]:
    """Yield the files with texts and what is marked in each: Python, templates and scripts."""
    base: Path = settings.BASE_DIR
    for folder in PYTHON:
        for path in sorted((base / folder).rglob("*.py")):
            yield path, _marked("python", path.read_bytes())
    for path in sorted((base / "templates").rglob("*")):
        if path.suffix in (".html", ".txt"):
            # As Python calls, one after the other: its indentation has no meaning.
            code = re.sub(r"(?m)^[ \t]+", "", templatize(path.read_text(encoding="utf-8")))
            yield path, _marked("python", code.encode())
    for path in sorted((base / "static" / "js").rglob("*.js")):
        yield path, _marked("javascript", path.read_bytes())


def _marked(method: str, content: bytes) -> Iterator[Any]:
    return extract(method, BytesIO(content), KEYWORDS, COMMENTS, strip_comment_tags=True)


def update(catalog: Catalog, template: Catalog) -> None:
    """Give a catalogue the texts of a template; translations of other texts are removed."""
    catalog.update(template, no_fuzzy_matching=True)
    catalog.obsolete.clear()


def is_translated(message: Message) -> bool:
    """Return whether a text has all of its forms."""
    forms = message.string if isinstance(message.string, tuple | list) else (message.string,)
    return all(forms)


def files(code: str, catalog: Catalog) -> dict[Path, bytes]:
    """Return the files of a language with their content."""
    catalog.fuzzy = False
    po, mo = BytesIO(), BytesIO()
    write_po(po, catalog, width=100, sort_output=True, include_lineno=False, omit_header=False)
    text = re.sub(
        rb'(?m)^"(POT-Creation-Date|PO-Revision-Date|Generated-By):.*\n', b"", po.getvalue()
    )
    text = re.sub(rb"\A(?:#.*\n)+", b"", text)
    compiled = read_po(BytesIO(text), locale=code)
    compiled.creation_date = compiled.revision_date = NO_TIME
    write_mo(mo, compiled)
    return {
        po_path(code): text,
        po_path(code).with_suffix(".mo"): mo.getvalue(),
        SCRIPTS / f"{code}.js": script(code, catalog).encode(),
    }


def script(code: str, catalog: Catalog) -> str:
    """Return the texts of the scripts as a script: `catalog`, which static/js/helpers/gettext.js reads."""
    texts = {}
    for message in catalog:
        in_scripts = any(str(path).startswith("static/js/") for path, _line in message.locations)
        if message.id and in_scripts and is_translated(message):
            key = message.id[0] if message.pluralizable else message.id
            texts[key] = message.string
    lines = json.dumps(texts, ensure_ascii=False, indent=0, sort_keys=True)
    return (
        "// Written by `make messages` from chatproject/locale/.\n"
        f'globalThis.catalog = {{ language: "{code}", plural: (n) => Number({catalog.plural_expr}),'
        f" messages: {lines} }};\n"
    )
