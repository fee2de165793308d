"""The documents agree with the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from django.apps import apps
from django.core.cache import caches
from rq.job import Job

from accounts.api_keys import KeyRefused
from chat import errors, protocol
from chat.api import errors as api_errors
from chat.api.rest.errors import SENTENCES
from chat.insights import context as insights
from chat.runs import queue, wait_estimate
from chat.streaming import log as run_log
from chat.streaming import places
from chat.streaming.leases import lease_key, stop_key
from chatproject.lib import loop_monitor, rate_limits
from chatproject.lib.metrics import shared
from chatproject.lib.pubsub.layer import get_layer
from chatproject.ops import alerts, readiness
from chatproject.ops.doctor import redis_server

PROJECT = Path(__file__).resolve().parent.parent
PROTOCOL = (PROJECT / "docs" / "protocol.md").read_text()

DOCUMENTED = {
    match["type"]: set(re.findall(r"^\| `(\w+)` \|", match["body"], re.MULTILINE))
    for match in re.finditer(
        r"^### `(?P<type>[\w.]+)`$(?P<body>.*?)(?=^##)", PROTOCOL, re.MULTILINE | re.DOTALL
    )
}


def server_events() -> Iterator[tuple[str, type[protocol.ServerEvent]]]:
    """All events of the server, each with its type."""
    pending: list[Any] = [protocol.ServerEvent]
    while pending:
        event = pending.pop()
        pending += event.__subclasses__()
        if event.__struct_config__.tag:
            yield event.__struct_config__.tag, event


SERVER_EVENTS = dict(server_events())
TYPES = {**protocol.CLIENT_EVENTS, **SERVER_EVENTS}


def test_documented_types_are_those_on_the_wire():
    assert DOCUMENTED.keys() == TYPES.keys()


@pytest.mark.parametrize("type", sorted(TYPES))
def test_fields_of_each_type_are_documented(type):
    fields = {field.encode_name for field in msgspec.structs.fields(TYPES[type])}
    assert DOCUMENTED[type] == fields


def test_error_codes_are_documented():
    section = PROTOCOL.split("## Error codes")[1].split("## Close codes")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(errors.ERRORS)


def test_close_codes_are_documented():
    section = PROTOCOL.split("## Close codes")[1].split("## As AG-UI")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    used = {
        value
        for name, value in vars(protocol).items()
        if name.isupper() and not name.startswith("MAX_")
        if isinstance(value, int) and 1000 <= value < 5000
    }
    assert used
    assert used <= documented


def test_server_events_have_counterparts_in_ag_ui():
    section = PROTOCOL.split("## As AG-UI events")[1]
    mapped = set(re.findall(r"`([a-z]+(?:\.[a-z]+)?)`(?=[^|]*\| )", section))
    assert set(SERVER_EVENTS) <= mapped


DOCUMENTS = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_links_between_documents_have_targets(path):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name}: {target}"


# --- The glossary ----------------------------------------------------------------------------

GLOSSARY = (PROJECT / "docs" / "glossary.md").read_text()
OURS = [
    "accounts",
    "billing",
    "chat",
    "documents",
    "insights",
    "tools",
    "mail",
    "leadership",
    "stored_limits",
]


def test_glossary_has_every_table():
    defined = set(re.findall(r"\*\*(\w+)\*\*", GLOSSARY))
    tables = {model.__name__ for app in OURS for model in apps.get_app_config(app).get_models()}
    assert defined == tables


def test_glossary_has_every_redis_key_prefix():
    prefixes = set(re.findall(r"`(\w+:?)`", GLOSSARY.split("## Keys in Redis")[1]))
    run_id = UUID(int=0)
    ours = [run_log.log_key(run_id), lease_key(run_id), stop_key(run_id), wait_estimate.KEY]
    ours += [loop_monitor.LOOPS, loop_monitor.BLOCKS, Job.key_for(queue.job_id(run_id, 1))]
    ours += [caches["default"].make_key("x"), get_layer().raw_channel("run.x")]
    ours += [f"{rate_limits.PREFIX}:messages", places.places_key(1), places.WAITING]
    ours.append(readiness.PROBE)
    ours += [shared.TOTALS, shared.PROCESSES, f"{alerts.PREFIX}:x", insights.KEY]
    assert {re.match(r"\w+:?", key).group() for key in ours} == prefixes
    assert {*redis_server.OURS} == prefixes - {"parley:"}  # those that doctor expects


@pytest.mark.parametrize("path", ["docs/architecture.md", "docs/glossary.md"])
def test_files_named_in_documents_exist(path):
    """Paths in backticks are from the project's folder, or (as `runs/start.py`) from an app's."""
    named = re.findall(r"`((?:[\w.]+/)+(?:\w+\.(?:py|md))?)[`#:]", (PROJECT / path).read_text())
    assert named
    roots = [PROJECT, *(PROJECT / app for app in (*OURS, "chatproject"))]
    missing = [name for name in named if not any((root / name).exists() for root in roots)]
    assert missing == []


def api_codes() -> set[str]:
    """Return the codes of errors that the sources of the OpenAI-compatible API name."""
    found = {
        code
        for _status, _kind, code in [*api_errors.OF_CHAT.values(), *api_errors.OF_CAUSE.values()]
    }
    found |= set(KeyRefused.SENTENCES)
    for path in (PROJECT / "chat" / "api").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            given = [word.value for word in node.keywords if word.arg in ("code", "name")]
            # The code is the third argument of `wrong`, without which it is `invalid_value`.
            given += node.args[2:3] if node.func.id == "wrong" else []
            if node.func.id in ("ApiError", "wrong"):
                found |= {
                    one.value
                    for one in given
                    if isinstance(one, ast.Constant) and isinstance(one.value, str)
                }
    # The last is that of a run, as it is.
    return found | {"invalid_value", "unsupported_parameter", "limit_reached"}


def test_documented_client_is_the_pinned_one():
    pinned = re.findall(
        r"^openai==([\w.]+)", (PROJECT / "requirements.txt").read_text(), re.MULTILINE
    )
    text = (PROJECT / "docs" / "api.md").read_text()
    of_python = text.partition("### openai (Python)")[2].partition("\n### ")[0]
    assert re.findall(r"\bopenai ([\d.]+\d)", of_python) == pinned


def test_codes_of_both_apis_are_documented():
    text = (PROJECT / "docs" / "api.md").read_text()
    listed = text.partition("## Errors and headers")[2].partition("\n## ")[0]
    rows = [line for line in listed.splitlines() if line.startswith("| ") and "`" in line]
    named = set(re.findall(r"`([a-z_]+)`", " ".join(rows)))
    assert api_codes() ^ named == set()
    of_rest = text.partition("**Errors** are `{")[2]
    missing = {code for code in SENTENCES if f"`{code}`" not in of_rest}
    assert missing == set()
