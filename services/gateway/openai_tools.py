"""Tools as OpenAI's clients name them: checked in a request, and put together in an answer.

https://platform.openai.com/docs/guides/function-calling. Which model can call tools, inference knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from microkernel.errors import Invalid, Unimplemented
from services.inference.messages import Piece

__all__ = ["NamedTool", "Tool", "ToolCall", "check_calls", "check_tools", "whole_calls"]

MAX_TOOLS = 128
MAX_CALLS = 128  # in one turn
MAX_ID = 256
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Function(msgspec.Struct, frozen=True, omit_defaults=True):
    """What can be called; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    """One tool."""

    type: str
    function: Function | None = None


class _Named(msgspec.Struct, frozen=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True):
    """The tool that is to be called."""

    type: str
    function: _Named | None = None


class _Call(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    """A call that an assistant has made; `arguments` are JSON text, as the model wrote it."""

    id: str
    type: str
    function: _Call | None = None


class _Asked(Protocol):
    @property
    def tools(self) -> list[Tool] | None: ...
    @property
    def tool_choice(self) -> str | NamedTool | None: ...


def check_tools(asked: _Asked) -> None:
    """Raises `Invalid`, and `Unimplemented` for tools that are no functions; both name the field."""
    tools = asked.tools or []
    if len(tools) > MAX_TOOLS:
        raise Invalid(f"there are {len(tools)} tools, at most {MAX_TOOLS}", field="tools")
    names = set()
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        if tool.type != "function":
            raise Unimplemented(f"a tool of type {tool.type[:40]!r} is not supported yet", field=f"{where}.type")
        if tool.function is None or not NAME.fullmatch(tool.function.name):
            raise Invalid(
                f"'{where}.function.name' is no name: 1 to 64 letters, digits, '_' and '-'",
                field=f"{where}.function.name",
            )
        if tool.function.name in names:
            raise Invalid(f"there are two tools '{tool.function.name}'", field=f"{where}.function.name")
        names.add(tool.function.name)
    _check_choice(asked.tool_choice, names)


def check_calls(calls: Sequence[ToolCall], where: str) -> None:
    """The calls of an assistant's turn. Raises `Invalid` that names the field."""
    if len(calls) > MAX_CALLS:
        raise Invalid(f"'{where}' has {len(calls)} calls, at most {MAX_CALLS}", field=where)
    for number, call in enumerate(calls):
        if call.type != "function" or call.function is None:
            raise Invalid(f"'{where}[{number}]' is no call of a function", field=f"{where}[{number}].type")
        if not 0 < len(call.id) <= MAX_ID:
            raise Invalid(f"'{where}[{number}].id' has 1 to {MAX_ID} characters", field=f"{where}[{number}].id")


def whole_calls(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """The calls of an answer, of which pieces hold parts: those with the same `index` belong together."""
    calls: dict[int, dict[str, Any]] = {}
    for part in (part for piece in pieces for part in piece.tool_calls):
        index = part.get("index")
        index = index if isinstance(index, int) else len(calls)
        call = calls.setdefault(index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call["id"] = call["id"] or part.get("id") or ""
        function = part.get("function")
        if isinstance(function, dict):
            for name in ("name", "arguments"):
                call["function"][name] += function.get(name) or ""
    return [calls[index] for index in sorted(calls)]


def _check_choice(choice: str | NamedTool | None, names: set[str]) -> None:
    if choice is None or choice in ("none", "auto"):
        return
    if isinstance(choice, str):
        if choice != "required":
            raise Invalid(
                f"'tool_choice' is {choice[:40]!r}, allowed are none, auto, required and one of the tools",
                field="tool_choice",
            )
    elif choice.type != "function" or choice.function is None or choice.function.name not in names:
        raise Invalid("'tool_choice' names none of the tools", field="tool_choice")
    if not names:
        raise Invalid("'tool_choice' asks for a call, and there are no tools", field="tool_choice")
