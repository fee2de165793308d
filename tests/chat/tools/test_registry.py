"""Tools are typed functions: schema and decoding come from their annotations."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal
from uuid import uuid4

import pytest
from msgspec import Meta

from chat.tools import registry
from chat.tools.registry import BadArguments, ToolContext, ToolError, ToolResult


def context(**fields) -> ToolContext:
    given: dict[str, Any] = {
        "run_id": uuid4(),
        "user_id": 1,
        "conversation_id": uuid4(),
        "project_id": None,
        "call": "run:1",
        "language": "en",
        "deadline": time.monotonic() + 10,
    }
    return ToolContext(**given | fields)


def lookup(
    context: ToolContext,
    city: Annotated[str, Meta(max_length=20, description="Name of the city")],
    days: Annotated[int, Meta(ge=1, le=7)] = 3,
    unit: Literal["c", "f"] = "c",
) -> ToolResult:
    """Return the weather."""
    return ToolResult(text=f"{city} {days} {unit}", summary="sunny")


@pytest.fixture
def weather():
    return registry.of_function(lookup, name="weather", title="Weather", progress="Looking…")


def test_schema_comes_from_annotations(weather):
    assert weather.definition() == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Return the weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 20, "description": "Name of the city"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 7, "default": 3},
                    "unit": {"enum": ["c", "f"], "default": "c"},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }


def test_arguments_are_decoded_with_defaults(weather):
    arguments = weather.decode('{"city": "Oslo", "days": 2}')
    assert arguments == {"city": "Oslo", "days": 2, "unit": "c"}
    assert weather.call(context(), arguments).text == "Oslo 2 c"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("", "missing required field `city`"),
        ('{"city": 7}', "Expected `str`, got `int` - at `$.city`"),
        ('{"city": "Oslo", "country": "NO"}', "unknown field `country`"),
        ('{"city": "Oslo", "days": 9}', "<= 7"),
        ('{"city": "Os', "not a JSON object"),
        ("[1]", "Expected `object`"),
        ('{"city": "\\ud800"}', "not a JSON object"),
        ("[" * 90_000, "object"),
        ('{"city": "' + "x" * registry.MOST_ARGUMENTS + '"}', "more than"),
    ],
)
def test_misfitting_arguments_name_the_fault(weather, raw, words):
    with pytest.raises(BadArguments) as caught:
        weather.decode(raw)
    assert words in caught.value.for_model()


def test_error_reads_in_both_languages():
    from django.utils.translation import gettext_lazy, override

    error = ToolError(gettext_lazy("Not found, or you do not have access. Go back to your chats."))
    with override("de"):
        assert str(error) != error.for_model()


@pytest.mark.parametrize("name", ["", "1st", "two words", "x" * 65])
def test_name_must_suit_providers(name):
    with pytest.raises(ValueError, match="name of a tool"):
        registry.of_function(lookup, name=name, title="", progress="")


@pytest.mark.django_db
def test_run_has_offered_permitted_available_tools():
    source = registry.of_function(
        lookup, name="crm_find", title="", progress="", source="crm", permission="chat.x"
    )
    registry.add_source(found := lambda _context: [source])
    try:
        names = {"calculate", "crm", "nonsense"}
        assert {*registry.tools_for(context(), names, lambda _one: True)} == {
            "calculate",
            "crm_find",
        }
        assert {*registry.tools_for(context(), names, lambda _one: False)} == {"calculate"}
        assert registry.tools_for(context(), (), lambda _one: True) == {}
    finally:
        registry._sources.remove(found)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("0.1 + 0.2", "0.3"),
        ("(2 + 3) * 4 / 8", "2.5"),
        ("2 ^ 64", "18446744073709551616"),
        ("1 / 3", "≈ 0.333333333333"),
        ("-1 / 8", "-0.125"),
        ("7 // 2 + 7 % 2", "4"),
        ("2 ** 0.5", "1.41421356237"),
    ],
)
def test_calculator_is_exact(expression, result):
    tool = registry.builtin_tools()["calculate"]
    assert tool.call(context(), {"expression": expression}).text.removeprefix("≈ ") == (
        result.removeprefix("≈ ")
    )


@pytest.mark.parametrize(
    "expression",
    [
        "1/0",
        "9**9**9",
        "__import__('os')",
        "1e99999",
        "a",
        "",
        "(" * 200,
        "-8 ** 0.5 ** 0.5 if 1 else 2",
    ],
)
def test_calculator_refuses_in_words(expression):
    tool = registry.builtin_tools()["calculate"]
    with pytest.raises(ToolError):
        tool.call(context(), {"expression": expression})


def test_current_time_knows_zones():
    tool = registry.builtin_tools()["current_time"]
    assert "UTC+0000" in tool.call(context(), {"zone": "UTC"}).text
    with pytest.raises(ToolError, match="Nowhere"):
        tool.call(context(), {"zone": "Nowhere/At_all"})
