"""Rules of the layout beyond the layers that import-linter checks (see pyproject.toml)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("accounts", "billing", "chat", "chatproject")

# `async` stays at the edges: sockets, jobs of the worker that call models, and the libraries under both.
MAY_BE_ASYNC = (
    "accounts/sockets.py",
    "accounts/sso/http.py",
    "chat/api/",
    "chat/documents/retrieval/embedding.py",
    "chat/documents/retrieval/jobs.py",
    "chat/generation/",
    "chat/guarded/",
    "chat/insights/generate.py",
    "chat/insights/jobs.py",
    "chat/llm/",
    "chat/push/",
    "chat/streaming/",
    "chat/tools/",
    "chat/web/consumer.py",
    "chat/web/outgoing.py",
    "chat/web/run_follower.py",
    "chat/web/socket_limits.py",
    "chat/webhooks/",
    "chatproject/lib/",
    "chatproject/ops/",
    "chatproject/serve.py",
)

# Calls that stop an event loop for as long as they take.
BLOCKING = {"time.sleep", "sync_client", "requests.get", "subprocess.run", "open", "input"}


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted((PROJECT / package).rglob("*.py")):
            if "migrations" not in path.parts:
                yield path


each_source = pytest.mark.parametrize(
    "path", list(sources()), ids=lambda path: str(path.relative_to(PROJECT))
)


@each_source
def test_async_functions_stay_at_the_edges(path):
    functions = [
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.AsyncFunctionDef)
    ]
    assert functions == [] or str(path.relative_to(PROJECT)).startswith(MAY_BE_ASYNC)


@each_source
def test_no_coroutine_blocks_its_loop(path):
    found = [
        f"{function.name}: {ast.unparse(call.func)}"
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.AsyncFunctionDef)
        for call in calls_of(function)
        if ast.unparse(call.func) in BLOCKING or ".objects." in ast.unparse(call.func)
    ]
    assert found == []


def calls_of(function: ast.AsyncFunctionDef) -> Iterator[ast.Call]:
    """The calls that the coroutine itself makes, not those of functions defined inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Call):
            yield node
        waiting += ast.iter_child_nodes(node)


def test_listed_asynchronous_modules_exist():
    assert [name for name in MAY_BE_ASYNC if not (PROJECT / name).exists()] == []


# --- Money -----------------------------------------------------------------------------------

LEDGER = {"CreditLot", "DebtEntry", "Hold", "LedgerEntry", "LotMove"}
FIGURES = {"balance", "held", "debt", "seq", "next_expiry_at", "status"}
WRITES = {
    "create", "bulk_create", "update", "bulk_update", "delete", "get_or_create", "update_or_create",
}  # fmt: skip


def test_only_postings_writes_the_ledger():
    offences = [
        f"{path.relative_to(PROJECT)}:{call.lineno}"
        for path in sources()
        if path != PROJECT / "billing" / "ledger" / "postings.py"
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and writes_the_ledger(call)
    ]
    assert offences == []


def writes_the_ledger(call: ast.Call) -> bool:
    """Whether a call is like `Hold.objects.filter(…).update(…)`."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in WRITES:
        return False
    root: ast.expr = call.func
    while isinstance(root, ast.Attribute | ast.Call):
        root = root.value if isinstance(root, ast.Attribute) else root.func
    if not isinstance(root, ast.Name):
        return False
    named = {keyword.arg for keyword in call.keywords}
    return root.id in LEDGER or (root.id == "Account" and bool(named & FIGURES))


@pytest.mark.parametrize(
    ("code", "is_offence"),
    [
        ("Hold.objects.filter(pk=1).update(status='settled')", True),
        ("LedgerEntry.objects.create(amount=1)", True),
        ("Account.objects.filter(pk=1).update(balance=1)", True),
        ("Account.objects.filter(pk=1).update(plan=None)", False),
        ("Hold.objects.filter(pk=1).first()", False),
    ],
)
def test_ledger_writes_are_recognised(code: str, is_offence: bool):
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert writes_the_ledger(call) is is_offence
