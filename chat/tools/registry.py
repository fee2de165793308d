"""The registry of tools: functions that a model may call while it writes a reply (docs/tools.md).

A module of `chat/tools/builtin/` declares its tools with `@tool`. The JSON schema that the model receives,
and the decoding of its arguments, come from the annotations of the function. Sources whose tools change at run
time (MCP servers) make `Tool` objects of the same shape and offer them by `add_source`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints
from uuid import UUID

import msgspec
from django.utils.functional import Promise
from django.utils.translation import gettext, gettext_lazy

from chatproject.lib import languages

BUILTIN = "chat.tools.builtin"

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")  # what providers accept as the name of a function

MOST_ARGUMENTS = 100_000  # characters of the arguments of one call

BAD_ARGUMENTS = gettext_lazy("The model called the tool with arguments that do not fit.")


@dataclass(frozen=True, slots=True)
class ToolContext:
    """All that a call may use: tools keep nothing at module level.

    `call` is the stable id of this call, also in a later attempt of the run: the idempotency key of an effect.
    `deadline` is the time by `time.monotonic()` by which the tool returns. `documents` are those that the run
    may read.
    """

    run_id: UUID
    user_id: int
    conversation_id: UUID
    project_id: UUID | None
    call: str
    language: str
    deadline: float
    documents: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class Display:
    """A part of the message that a call adds: `kind` is one of MessagePart.Kind, such as "table" or "chart"."""

    kind: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a call.

    `text` is for the model, whole: the loop cuts what later turns remember. `summary` is one short translated
    line for the page. `untrusted`: it has text from documents, the web or other servers.
    """

    text: str
    summary: str
    parts: tuple[Display, ...] = ()
    untrusted: bool = False


class ToolError(Exception):
    """A failure that the model and the user may read: the model in English, the page in its language.

    `values` fill in the sentence's placeholders; `detail` is for the model alone. `untrusted`: the detail has
    words of another server.
    """

    def __init__(
        self, sentence: str | Promise, *, detail: str = "", untrusted: bool = False, **values: Any
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.values = values
        self.detail = detail
        self.untrusted = untrusted

    def __str__(self) -> str:
        text = str(self.sentence)
        return text % self.values if self.values else text

    def for_model(self) -> str:
        """Return the sentence in English, with the detail."""
        with languages.use("en"):
            return " ".join(filter(None, (str(self), self.detail)))


class BadArguments(ToolError):
    """Arguments that do not fit the schema: the detail says which, and why."""

    def __init__(self, detail: str) -> None:
        super().__init__(BAD_ARGUMENTS, detail=detail)


Arguments = Mapping[str, Any]
Function = Callable[[ToolContext, Arguments], "ToolResult | Awaitable[ToolResult]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool: its name, words and schema, and the function behind it.

    `decode` makes the arguments from the JSON that the model wrote, and raises BadArguments. `call` receives
    them; it is a coroutine function if `is_async`, and otherwise runs in a thread of its own with access to the
    database. `has_effect`: a call changes something outside of the reply, so it is never repeated on
    suspicion. `needs_approval`: the user allows each call. `permission` is the one (app.codename) that its user
    needs. `fee` in micro-credits is charged for each call that succeeded. `source` names the server that it
    comes from. `briefing` returns a text for the prompt of a run that has the tool, such as the schema of its tables.
    """

    name: str
    title: str | Promise
    progress: str | Promise
    description: str
    schema: dict[str, Any]
    decode: Callable[[str], Arguments]
    call: Function
    is_async: bool = False
    has_effect: bool = False
    needs_approval: bool = False
    permission: str = ""
    fee: int = 0
    seconds: float = 10
    available: Callable[[ToolContext], bool] | None = None
    briefing: Callable[[ToolContext], str] | None = None
    source: str = ""

    def definition(self) -> dict[str, Any]:
        """Return the tool as requests to a provider name it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.schema,
        }
        return {"type": "function", "function": function}


def tool(
    *,
    name: str,
    title: str | Promise,
    progress: str | Promise,
    has_effect: bool = False,
    needs_approval: bool = False,
    permission: str = "",
    fee: int = 0,
    seconds: float = 10,
    available: Callable[[ToolContext], bool] | None = None,
    briefing: Callable[[ToolContext], str] | None = None,
) -> Callable[[Callable[..., Any]], Tool]:
    """Declare a function as a tool and register it; returns the Tool in place of the function.

    The function takes a ToolContext and the arguments of the call, which are annotated, and returns a
    ToolResult. Its docstring is the description that the model receives.
    """

    def declare(function: Callable[..., Any]) -> Tool:
        made = of_function(
            function,
            name=name,
            title=title,
            progress=progress,
            has_effect=has_effect,
            needs_approval=needs_approval,
            permission=permission,
            fee=fee,
            seconds=seconds,
            available=available,
            briefing=briefing,
        )
        if name in _registered:
            raise ValueError(f"two tools are named {name!r}")
        _registered[name] = made
        return made

    return declare


def of_function(function: Callable[..., Any], *, name: str, **fields: Any) -> Tool:
    """Return the tool that a function is, without registering it."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be the name of a tool")
    description = inspect.getdoc(function)
    if not description:
        raise ValueError(
            f"the tool {name!r} has no docstring: the model would not know what it does"
        )
    struct = _arguments_of(function, name)
    decoder = msgspec.json.Decoder(struct)

    def decode(raw: str) -> Arguments:
        if len(raw) > MOST_ARGUMENTS:
            raise BadArguments(f"They have more than {MOST_ARGUMENTS} characters.")
        try:
            # Some providers send nothing for a call without arguments.
            return _as_dict(decoder.decode(raw.strip() or "{}"))
        except msgspec.ValidationError as error:
            raise BadArguments(f"{error}. Correct the arguments and call it again.") from None
        except (msgspec.DecodeError, UnicodeError):
            raise BadArguments("They are not a JSON object.") from None

    return Tool(
        name=name,
        description=description,
        schema=_schema(struct, name),
        decode=decode,
        call=lambda context, arguments: function(context, **arguments),
        is_async=inspect.iscoroutinefunction(function),
        **fields,
    )


def _arguments_of(function: Callable[..., Any], name: str) -> type[msgspec.Struct]:
    """Return a struct whose fields are the function's parameters after the context."""
    hints = get_type_hints(function, include_extras=True)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    fields: list[Any] = []
    for one in parameters:
        if one.name not in hints:
            raise ValueError(f"the argument {one.name!r} of the tool {name!r} has no annotation")
        has_default = one.default is not one.empty
        fields.append((one.name, hints[one.name], *([one.default] if has_default else [])))
    return msgspec.defstruct(name, fields, forbid_unknown_fields=True, kw_only=True)


def _as_dict(arguments: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in arguments.__struct_fields__}


def _schema(struct: type[msgspec.Struct], name: str) -> dict[str, Any]:
    _refs, components = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
    schema: dict[str, Any] = components.pop(name)
    schema.pop("title", None)
    if components:
        schema["$defs"] = components
    return schema


_registered: dict[str, Tool] = {}
_sources: list[Callable[[ToolContext], Iterable[Tool]]] = []


def add_source(source: Callable[[ToolContext], Iterable[Tool]]) -> None:
    """Offer tools that change at run time: `source` returns those of one run, and may use the database."""
    if source not in _sources:
        _sources.append(source)


@cache
def _load() -> None:
    package = importlib.import_module(BUILTIN)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{BUILTIN}.{module.name}")


def builtin_tools() -> dict[str, Tool]:
    """Return the tools that are declared in code, by name. Their modules import nothing heavy."""
    _load()
    return dict(sorted(_registered.items()))


def tools_for(
    context: ToolContext, names: Iterable[str], permitted: Callable[[str], bool]
) -> dict[str, Tool]:
    """Return the tools of a run, by name: of `names`, those that its user may use and that are available.

    `names` are those that the assistant offers: of tools, or of sources of tools. `permitted` is asked for each
    tool's permission.
    """
    wanted = set(names)
    found = {name: one for name, one in builtin_tools().items() if name in wanted}
    for source in _sources:
        for one in source(context):
            if one.name in wanted or one.source in wanted:
                found.setdefault(one.name, one)
    return {
        name: one
        for name, one in found.items()
        if (not one.permission or permitted(one.permission))
        and (one.available is None or one.available(context))
    }


def unknown_tool(name: str, offered: Iterable[str]) -> ToolError:
    """Return the error for a call of a tool that the run does not have."""
    names = ", ".join(sorted(offered)) or gettext("none")
    return ToolError(
        gettext_lazy("The model called a tool that is not there."),
        detail=f"There is no tool named {name[:64]!r}. The tools are: {names}.",
    )
