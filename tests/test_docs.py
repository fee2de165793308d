"""The documents say what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chat import errors, protocol

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


def test_every_type_on_the_wire_is_documented_and_no_other():
    assert DOCUMENTED.keys() == TYPES.keys()


@pytest.mark.parametrize("type", sorted(TYPES))
def test_the_fields_of_a_type_are_documented(type):
    fields = {field.encode_name for field in msgspec.structs.fields(TYPES[type])}
    assert DOCUMENTED[type] == fields


def test_the_error_codes_are_documented():
    section = PROTOCOL.split("## Error codes")[1].split("## Close codes")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(errors.ERRORS)


def test_the_close_codes_are_documented():
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


def test_every_event_of_the_server_has_its_counterpart_in_ag_ui():
    section = PROTOCOL.split("## As AG-UI events")[1]
    mapped = set(re.findall(r"`([a-z]+(?:\.[a-z]+)?)`(?=[^|]*\| )", section))
    assert set(SERVER_EVENTS) <= mapped


@pytest.mark.parametrize("path", ["README.md", *sorted((PROJECT / "docs").glob("*.md"))], ids=str)
def test_links_between_documents_lead_somewhere(path):
    path = PROJECT / path
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name}: {target}"
