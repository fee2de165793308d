"""All sentences for people are marked for translation, and the catalogues are complete.

New files are read automatically. What is marked is found by parsing: templates by Django's lexer and an HTML
parser, Python by its syntax tree, scripts by a lexer of their strings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog, Message
from django.conf import settings
from django.forms import BaseForm
from django.template.base import Lexer, TokenType

from chatproject.management.commands import messages

BASE: Path = settings.BASE_DIR

WORD = re.compile(r"[^\W\d_]{2,}")
MARKED = {name.removesuffix("_lazy") for name in messages.KEYWORDS}


# --- Templates --------------------------------------------------------------------------------

SHOWN_ATTRIBUTES = {"title", "alt", "placeholder", "aria-label", "aria-description", "label"}
# Their texts are for programs, names of keys or code.
PLAIN_ELEMENTS = {"script", "style", "code", "kbd", "title"}
# The same in every language: formats, products, units.
NAMES = {
    "CSV",
    "Parley",
    "Markdown",
    "JSON",
    "HTML",
    "ID",
    "Aa",
    "IP",
    "Django",
    "Stripe",
    "Redis",
    "Ctrl",
}
# Forms whose templates write the labels.
OWN_LABELS = {"AppearanceForm", "BuyForm", "MessageForm", "ProjectForm", "TitleForm"}
LITERAL = re.compile(r"""_\(("[^"]*"|'[^']*')\)|"([^"]*)"|'([^']*)'""")


class Shown(HTMLParser):
    """Collects the texts of elements and attributes that people read."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            is_button = tag == "input" and name == "value" and ("type", "submit") in attributes
            if name in SHOWN_ATTRIBUTES or is_button:
                self.see(value or "")
        if tag in PLAIN_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            self.open.remove(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open == ["title"]:
            self.see(data)

    def see(self, text: str) -> None:
        words = [word for word in WORD.findall(text) if word not in NAMES]
        is_class = re.fullmatch(r"colM|[a-z]+(-[a-z]+)+", text.strip())
        if words and not is_class:
            self.found.append((self.getpos()[0], " ".join(text.split())))


def in_template(source: str, *, is_html: bool = True) -> list[tuple[int, str]]:
    """Return the lines and texts of a template that no tag translates."""
    found: list[tuple[int, str]] = []
    plain, inside = "", ""
    for token in Lexer(source).tokenize():
        name = token.contents.split()[0] if token.contents.split() else ""
        lines = "\n" * source[: token.position[0] if token.position else 0].count("\n")
        plain += "\n" * (lines.count("\n") - plain.count("\n"))
        if inside:
            inside = "" if name == f"end{inside}" else inside
        elif token.token_type == TokenType.BLOCK and name in ("blocktranslate", "comment"):
            inside = name
        elif token.token_type == TokenType.TEXT:
            plain += token.contents
        elif token.token_type in (TokenType.BLOCK, TokenType.VAR):
            plain += "\x00" if token.token_type == TokenType.VAR else ""
            # The names of blocks and conditions are no texts.
            if token.token_type == TokenType.BLOCK and name not in ("include", "with"):
                continue
            # Literals that become text: arguments of included templates and of filters.
            for match in LITERAL.finditer(token.contents):
                text = match[2] or match[3] or ""
                if (
                    re.match(r"[A-Z][a-z]", text)
                    and text not in NAMES
                    and "date" not in token.contents[: match.start()][-10:]
                ):
                    found.append((token.lineno or 0, text))
    if not is_html:
        texts = [line for line in plain.replace("\x00", "").splitlines() if WORD.search(line)]
        return [*found, *((0, text.strip()) for text in texts)]
    parser = Shown()
    parser.feed(plain.replace("\x00", "·"))
    parser.close()
    return found + parser.found


# --- Python -----------------------------------------------------------------------------------

# Their texts are for operators and developers (terminal, log), for programs and models, or names of formats.
UNSHOWN = re.compile(
    r"/(migrations|management|local|doctor|formats|api|llm|rendering|streaming|generation|recovery|push|moderation|privacy|retrieval|parsing)/|"
    r"chatproject/(checks|settings|serve|clock|asgi)\.py|chat/runs/queue|chat/attachments/content|"
    r"chatproject/lib/(env|rq_asyncio|pubsub|server|redis|db|log_|metrics|leadership|stored_limits|outages|origins|alerts|mail/outbox)|"
    r"chatproject/ops/(alerts|readiness|metrics|site_metrics|start_report|staff_log|health)|"
    r"chat/insights/(answers|seeds)|chat/tools/(builtin|charts|mcp)/|chat/tools/(arithmetic|web_|checks|apps|registry)|"
    r"chat/documents/datasets/|chat/runs/steps|chat/conversations/(notes|prompt_builder|path|search_words)|billing/schedule|"
    r"billing/privacy|billing/metering/litellm_prices|billing/ledger/audit|billing/payments/(disputes|reclaim|fonts|providers)"
)
SHOWN_FILES = re.compile(r"chat/llm/errors\.py$")
# Calls whose texts are for the log or for developers.
UNSHOWN_CALLS = re.compile(
    r"(^|\.)(debug|info|warning|error|exception|critical|log|log_event|apart|getLogger|compile|execute|"
    r"Counter|Gauge|Histogram|RunSQL|TemplateSyntaxError|cast|TypeVar|alert|notify_staff|all|first|change|columns|Traceback|"
    r"(Value|Runtime|Type|Key|Lookup|Assertion|Attribute|OS|Memory|Timeout|NotImplemented)Error|ImproperlyConfigured)$"
)
MESSAGES = re.compile(r"^messages\.(success|info|warning|error)$|message_user$")
SHOWN_ARGUMENTS = {
    "label", "help_text", "verbose_name", "verbose_name_plural", "description", "empty_label",
}  # fmt: skip
SENTENCE = re.compile(r"^[A-Z“]\S*[ ,:].*[a-z]{2}")
PROGRAM = re.compile(
    r"^\s*(SELECT|INSERT|UPDATE|DELETE|WITH|FROM|WHERE|LEFT|AND|CASE|COALESCE)\b|[;\\]|^\W|Mozilla"
)
# The same in every language.
UNTRANSLATED = {
    "New Password",
    "New Password (again)",
    "Current Password",
    "Stripe",
    "Razorpay",
    "The above",
}


def in_python(source: str) -> list[tuple[int, str]]:
    """Return the lines and texts of a module that look like sentences for people and are not marked."""
    tree = ast.parse(source)
    documents = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        (node.lineno, text)
        for node, text, is_shown in _texts(tree, is_shown=False)
        if id(node) not in documents
        and text not in UNTRANSLATED
        and (SENTENCE.search(text) or (is_shown and WORD.search(text)))
        and not PROGRAM.search(text)
    ]


def _texts(node: ast.AST, *, is_shown: bool) -> Iterator[tuple[ast.expr, str, bool]]:
    """Yield the texts below a node that are not marked, and whether their place shows them to people."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name.rpartition(".")[2].removesuffix("_lazy") in MARKED:
            return
        is_message = bool(MESSAGES.search(name))
        if not is_message and UNSHOWN_CALLS.search(name):
            return
        for child in node.args:
            yield from _texts(child, is_shown=is_message)
        for argument in node.keywords:
            yield from _texts(argument.value, is_shown=argument.arg in SHOWN_ARGUMENTS)
        return
    if isinstance(node, ast.FunctionDef) and node.name in ("__str__", "__repr__"):
        return
    if isinstance(node, ast.Constant | ast.JoinedStr):
        parts = list(node.values) if isinstance(node, ast.JoinedStr) else [node]
        yield (
            node,
            "".join(
                part.value
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
                else "{}"
                for part in parts
            ),
            is_shown,
        )
        return
    if isinstance(node, ast.Subscript) or (isinstance(node, ast.Constant) and node.value is None):
        return
    if isinstance(node, ast.AnnAssign):
        if node.value is not None:
            yield from _texts(node.value, is_shown=False)
        return
    for below in ast.iter_child_nodes(node):
        yield from _texts(below, is_shown=False)


# --- Scripts ----------------------------------------------------------------------------------

STRING = re.compile(
    r"//[^\n]*|/\*.*?\*/|(?P<regex>(?:(?<=[(,=:!&|?;{}\n] )|(?<=\()|(?<=return ))/(?![/*])(?:\\.|\[(?:\\.|[^\]])*\]|[^/\n\\\[])+/\w*)"
    r"|(?P<text>\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)",
    re.DOTALL,
)
# Names of the platform and values of forms.
KEYS = {
    "Enter", "Escape", "Home", "End", "Tab", "Meta", "Control", "Shift", "Accept", "Backspace", "Delete",
    "Files", "Notification", "True", "False",
}  # fmt: skip


def in_script(source: str) -> list[tuple[int, str]]:
    """Return the lines and texts of a script that look like words for people and are not marked."""
    found = []
    for match in STRING.finditer(source):
        if match["text"] is None:
            continue
        text = match["text"][1:-1]
        before = source[: match.start()].rstrip()
        is_marked = re.search(r"gettext\($|\bngettext\(\s*(\"[^\"]*\",)?$", before)
        is_unshown = re.search(r"(console\.\w+\(|Error\(|fetch\(|from|import)$", before)
        is_shown = re.match(r"[A-Z][a-z']+( |…|$)", text) or re.search(
            r"[a-z]{2,} [a-z]{2,} [a-z]{2,}", text
        )
        if (
            is_shown
            and not is_marked
            and not is_unshown
            and text not in KEYS
            and "Arrow" not in text
        ):
            found.append((source[: match.start()].count("\n") + 1, text))
    return found


def found_in(path: Path) -> list[str]:
    """Return what is not marked in a file, for the report of a test."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        found = in_python(source)
    elif path.suffix == ".js":
        found = in_script(source)
    else:
        found = in_template(source, is_html=path.suffix == ".html")
    return [f"{path.relative_to(BASE)}:{line}: {text}" for line, text in found]


def files() -> list[Path]:
    modules = [path for folder in messages.PYTHON for path in (BASE / folder).rglob("*.py")]
    shown = [
        path
        for path in modules
        if SHOWN_FILES.search(path.as_posix())
        or not UNSHOWN.search("/" + path.relative_to(BASE).as_posix())
    ]
    templates = [
        path
        for path in (BASE / "templates").rglob("*")
        if path.suffix in (".html", ".txt") and not re.search("styleguide|api_reference", path.name)
    ]
    return sorted([*shown, *templates, *(BASE / "static" / "js").rglob("*.js")])


def test_each_text_for_people_is_marked():
    assert [line for path in files() for line in found_in(path)] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("page.html", "<p>Not marked</p>"),
        ("page.html", '<button aria-label="Not marked"></button>'),
        ("page.html", '{% include "x.html" with title="Not marked" %}'),
        ("page.html", "{% if a %}{% translate 'x' %}{% else %}Not marked{% endif %}"),
        ("mail.txt", "{% load i18n %}Not marked"),
        ("view.py", 'def view(request):\n    messages.success(request, "Saved")\n'),
        ("form.py", 'name = forms.CharField(label="Name")\n'),
        ("errors.py", 'raise Refused(f"Only {count} are left. Try again.")\n'),
        ("chat.js", 'button.textContent = "Copied";'),
        ("chat.js", "this.#announce(`${count} messages are loaded`);"),
    ],
)
def test_unmarked_text_is_found(name, source):
    suffix = Path(name).suffix
    if suffix == ".py":
        assert in_python(source)
    elif suffix == ".js":
        assert in_script(source)
    else:
        assert in_template(source, is_html=suffix == ".html")


def test_shown_field_has_a_marked_label():
    """Django makes a label in English from the name of a field without one."""
    forms = [
        form
        for module in ("accounts.forms", "billing.web.forms", "chat.web.forms")
        for form in vars(import_module(module)).values()
        if isinstance(form, type) and issubclass(form, BaseForm) and hasattr(form, "base_fields")
    ]
    without = [
        f"{form.__name__}.{name}"
        for form in forms
        for name, field in form.base_fields.items()
        if field.label is None and not field.widget.is_hidden and form.__name__ not in OWN_LABELS
    ]
    assert forms
    assert without == []


# --- The catalogues ---------------------------------------------------------------------------

# Texts of staff pages alone may stay English.
STAFF = re.compile(
    r"^templates/(admin/|chat/_?styleguide)|/admin/|^(accounts|chatproject/lib)/admin\.py|/models/|models\.py$|apps\.py$|"
    r"^chatproject/(lib/mail|ops/status_page)|staff_actions|payments/(checkout|providers)|^chat/llm/|chat/moderation/|insights/(schemas|templates)"
)
VALUE = re.compile(r"%\(\w+\)[sd]|\{\w*\}")
PLACEHOLDER = re.compile(r"%\(\w+\)[sd]|%%|%[sd]|\{\w*\}|</?[a-z]+")


@pytest.fixture(scope="module")
def template() -> Catalog:
    return messages.extracted()


@pytest.mark.parametrize("code", messages.languages())
def test_catalogue_is_complete_and_compiled(code: str, template: Catalog):
    """`make messages` and a translation of the listed texts make it pass."""
    catalog = messages.read(code)
    messages.update(catalog, template)
    for path, content in messages.files(code, catalog).items():
        assert path.read_bytes() == content, f"{path} is not in step: run make messages"
    texts = [message for message in catalog if message.id]
    missing = [
        message.id
        for message in texts
        if not messages.is_translated(message)
        and not all(STAFF.search(path) for path, _line in message.locations)
    ]
    assert missing == []
    assert [message.id for message in texts if message.fuzzy] == []
    assert [problem for message in texts for problem in problems(message, catalog)] == []


def problems(message: Message, catalog: Catalog) -> list[str]:
    """Return what is wrong with a translation: its number of forms, its placeholders and elements."""
    if not messages.is_translated(message):
        return []
    if not message.pluralizable:
        source, shown = [str(message.id)], [str(message.string)]
    else:
        source, shown = [*map(str, message.id)], [*map(str, message.string or ())]
        if len(shown) != catalog.num_plurals:
            return [f"{message.id}: {len(shown)} forms"]
    wanted = sorted(PLACEHOLDER.findall(source[-1]))
    # A singular with other values than the plural is a text of its own: some languages have that form for 21, too.
    extra = set(VALUE.findall(source[0])) - set(VALUE.findall(source[-1]))
    found = [f"{message.id}: {name} is only in the singular" for name in extra]
    # The last form is that of most numbers; forms of one, two or none may leave out the number.
    if sorted(PLACEHOLDER.findall(shown[-1])) != wanted:
        found.append(f"{message.id}: {shown[-1]}")
    known = {name for text in source for name in PLACEHOLDER.findall(text)}
    found += [f"{message.id}: {text}" for text in shown if set(PLACEHOLDER.findall(text)) - known]
    # Attributes are written with these quotes.
    return found + [
        f"{message.id}: {text}" for text in shown if '"' in text and '"' not in source[0]
    ]
