"""All sentences for people are marked for translation, and the catalogues are complete.

New files are read automatically. What is marked is found by parsing: templates by Django's lexer and an HTML
parser, Python by its syntax tree, scripts by a lexer of their strings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from django.conf import settings
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
        if words:
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
            if name in ("translate", "load", "url", "static", "extends", "csrf_token", "now"):
                continue
            # Literals that become text: arguments of included templates and of filters.
            for match in LITERAL.finditer(token.contents):
                text = match[2] or match[3] or ""
                if (
                    re.match(r"[A-Z][a-z]", text)
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

# For operators, who read them in a terminal or a log, and for programs.
OPERATORS = re.compile(
    r"/(migrations|management|local|doctor|formats|llm/(decoder|chunks|quirks))/|"
    r"chatproject/(checks|settings|serve|clock|asgi)\.py|"
    r"chatproject/lib/(env|rq_asyncio|pubsub|server|redis|db|log_|metrics|leadership|outages|origins)|"
    r"chatproject/ops/(alerts|readiness|metrics|site_metrics|start_report|staff_log)|"
    r"billing/metering/litellm_prices\.py|billing/ledger/audit\.py"
)
# Calls whose texts are for the log or for developers.
UNSHOWN_CALLS = re.compile(
    r"(^|\.)(debug|info|warning|error|exception|critical|log|log_event|apart|getLogger|compile|execute|"
    r"Counter|Gauge|Histogram|RunSQL|cast|TypeVar|alert|notify_staff|all|first|change|columns|"
    r"(Value|Runtime|Type|Key|Lookup|Assertion|Attribute|OS|Memory|Timeout|NotImplemented)Error|ImproperlyConfigured)$"
)
SENTENCE = re.compile(r"^[A-Z“]\S*[ ,:].*[a-z]{2}|^[A-Z][a-z]+…?$|[a-z]{2,} [a-z]{2,} [a-z]+")


def in_python(source: str) -> list[tuple[int, str]]:
    """Return the lines and texts of a module that look like sentences for people and are not marked."""
    tree = ast.parse(source)
    return list(_unmarked(tree, {id(node) for node in _documents(tree)}))


def _documents(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def _unmarked(node: ast.AST, skipped: set[int]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name.rpartition(".")[2].removesuffix("_lazy") in MARKED or UNSHOWN_CALLS.search(name):
            return
    if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in skipped:
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(
            part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "{}"
            for part in parts
        )
        if isinstance(node, ast.JoinedStr) or isinstance(node.value, str):
            is_program = re.search(
                r"^\s*(SELECT|INSERT|UPDATE|DELETE|WITH|local|FROM|WHERE|LEFT|AND) |^\s*[<{(%]|;|\\",
                text,
            )
            if SENTENCE.search(text) and not is_program:
                yield node.lineno, text
        return
    if isinstance(node, ast.Subscript | ast.AnnAssign) and not isinstance(node, ast.AnnAssign):
        return
    if isinstance(node, ast.AnnAssign):
        if node.value is not None:
            yield from _unmarked(node.value, skipped)
        return
    for child in ast.iter_child_nodes(node):
        yield from _unmarked(child, skipped)


# --- Scripts ----------------------------------------------------------------------------------

STRING = re.compile(
    r"//[^\n]*|/\*.*?\*/|(?P<regex>(?<=[(,=:!&|?;{}\n] )/(?![/*])(?:\\.|\[(?:\\.|[^\]])*\]|[^/\n\\\[])+/\w*)"
    r"|(?P<text>\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)",
    re.DOTALL,
)
KEYS = {
    "Enter",
    "Escape",
    "Home",
    "End",
    "Tab",
    "Meta",
    "Control",
    "Shift",
    "Accept",
    "Backspace",
    "Delete",
}


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
    shown = [path for path in modules if not OPERATORS.search(path.as_posix())]
    templates = [
        path for path in (BASE / "templates").rglob("*") if path.suffix in (".html", ".txt")
    ]
    return sorted([*shown, *templates, *(BASE / "static" / "js").rglob("*.js")])
