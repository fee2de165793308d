"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from chat import errors, protocol
from chat.web import consumer

PROJECT = Path(__file__).resolve().parent.parent
PROTOCOL = (PROJECT / "docs" / "protocol.md").read_text()

DOCUMENTED = {
    match["type"]: set(re.findall(r"^\| `(\w+)` \|", match["body"], re.MULTILINE))
    for match in re.finditer(
        r"^### `(?P<type>[\w.]+)`$(?P<body>.*?)(?=^##)", PROTOCOL, re.MULTILINE | re.DOTALL
    )
}
TYPES = {**protocol.CLIENT_EVENTS, **protocol.server_events()}


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
        for name, value in vars(consumer).items()
        if name.isupper() and not name.startswith("MAX_")
        if isinstance(value, int) and 1000 <= value < 5000
    }
    assert used <= documented


def test_every_event_of_the_server_has_its_counterpart_in_ag_ui():
    section = PROTOCOL.split("## As AG-UI events")[1]
    mapped = set(re.findall(r"`([a-z]+(?:\.[a-z]+)?)`(?=[^|]*\| )", section))
    assert set(protocol.server_events()) <= mapped


@pytest.mark.parametrize("path", ["README.md", *sorted((PROJECT / "docs").glob("*.md"))], ids=str)
def test_links_between_documents_lead_somewhere(path):
    path = PROJECT / path
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name}: {target}"
