"""A jinja2 environment for chat templates of unknown origin, bounded in time, steps and sizes.

A template comes inside a model file, so it is a stranger's program. On top of jinja2's sandbox
(https://jinja.palletsprojects.com/en/stable/sandbox/), which keeps it away from Python's inside and from
changing what it is given:

- every iteration of a loop, call, filter and operation pays a step, and the steps have a budget and a
deadline;
- what makes a long text of a short one (`*`, `+`, `~`, `%`, replace, join, format, captured blocks) is
measured first;
- lists and dicts are measured with all that is in them, since `[x, x]` thirty times over has no end when
printed;
- filters and methods that no published template needs, and that pad or repeat, are not there.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

__all__ = ["TemplateSandbox"]

MAX_SOURCE = 256 << 10  # characters; the longest published template has some 20,000
MAX_SECONDS = 2.0  # a template of 100 lines over 1,000 messages takes 0.05
MAX_STEPS = 1_000_000
MAX_TEXT = 4 << 20  # characters of a rendering and of any value on the way
MAX_MADE = 128 << 20  # characters of all values on the way
MAX_ITEMS = 200_000  # of a list or dict, with all that is in it
MAX_INTEGER = 1 << 64


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Compiles and renders with the names that Hugging Face's templates expect.

    https://huggingface.co/docs/transformers/chat_templating_writing. A rendering that goes over a limit ends
    with a `TemplateError`. The budget is that of one rendering: not for several threads.
    """

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[loopcontrols, _Generation])
        self._steps, self._made, self._deadline = 0, 0, 0.0
        self.concat = self._concat  # type: ignore[method-assign]  # jinja2 reads it from the instance
        for name in ("lipsum", "cycler", "joiner"):
            del self.globals[name]
        self.globals |= {
            "range": self._range,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            _TICKING: self._ticking,
            _CONCATENATED: self._concatenated,
            _MEASURED: self._measured,
        }
        own: dict[str, Callable[..., Any]] = {
            "tojson": _to_json,
            "replace": self._replace,
            "join": self._join,
            "indent": self._indent,
        }
        kept = {name: own.get(name, self.filters.get(name)) for name in _FILTERS}
        self.filters = {name: self._metered(function) for name, function in kept.items() if function}

    def build(self, source: str) -> jinja2.Template:
        """The compiled template. Raises `TemplateError`, or what Python raises where it nests too deeply."""
        if len(source) > MAX_SOURCE:
            _refuse(f"a template of {len(source)} characters; allowed are {MAX_SOURCE}")
        tree = self.parse(source)
        if any(loop.recursive for loop in tree.find_all(nodes.For)):
            _refuse("a recursive loop")
        _instrument(tree)
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    def run(self, template: jinja2.Template, values: dict[str, Any]) -> str:
        """The rendered text. Raises what the template raises; `TemplateError` over a limit."""
        self._steps, self._made, self._deadline = 0, 0, time.monotonic() + MAX_SECONDS
        pieces, length = [], 0
        for piece in template.generate(values):
            self._step()
            length += len(piece)
            self._allow(length)
            pieces.append(piece)
        return "".join(pieces)

    def call(self, context: Context, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call in the template, if its result is of a size that a template may make."""
        self._step()
        method = getattr(callee, "__wrapped__", callee)  # jinja2 wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            self._allow_method(owner, name, args, kwargs)
        return self._measured(super().call(context, callee, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operation, if its result is of a size that a template may make."""
        self._step()
        if operator == "**":
            if not all(isinstance(side, (int, float)) and abs(side) <= 1024 for side in (left, right)):
                _refuse("a power of large numbers")
        elif operator == "*":
            sized, times = (left, right) if hasattr(left, "__len__") else (right, left)
            if hasattr(sized, "__len__") and isinstance(times, int):
                self._allow(self._size(sized) * times)
        elif operator == "%" and isinstance(left, str):
            _allow_widths(left, "%")
            self._allow(len(left) + left.count("%") * self._size(right))
        return self._measured(super().call_binop(context, operator, left, right))

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            _refuse(f"more than {MAX_STEPS} steps")
        if self._steps % 64 == 0 and time.monotonic() > self._deadline:
            _refuse(f"more than {MAX_SECONDS:g} seconds")

    def _measured(self, value: Any) -> Any:
        """`value`, if its size is allowed."""
        self._allow(self._size(value))
        self._made += len(value) if isinstance(value, (str, list, tuple, dict)) else 1
        if self._made > MAX_MADE:
            _refuse(f"more than {MAX_MADE} characters on the way")
        return value

    def _size(self, value: Any) -> int:
        """Characters and items of `value`, with all that is in it."""
        if isinstance(value, str):
            return len(value)
        size, items, left = 0, 0, [value]
        while left:
            value = left.pop()
            items += 1
            if items > MAX_ITEMS:
                _refuse(f"a list of more than {MAX_ITEMS} items")
            if isinstance(value, str):
                size += len(value)
            elif isinstance(value, int) and abs(value) > MAX_INTEGER:
                _refuse("a number of more than 64 bits")
            elif isinstance(value, Namespace):
                left.extend(object.__getattribute__(value, "_Namespace__attrs").values())
            elif isinstance(value, dict):
                left.extend(value)
                left.extend(value.values())
            elif isinstance(value, (list, tuple, set, frozenset)):
                left.extend(value)
        return size + items

    def _allow(self, length: int) -> None:
        if length > MAX_TEXT:
            _refuse(f"more than {MAX_TEXT} characters")

    def _allow_method(self, owner: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name not in _TEXT_METHODS:
            _refuse(f"the method str.{name}")
        if name == "replace" and len(args) >= 2:
            self._allow_replacement(owner, str(args[0]), str(args[1]))
        elif name == "join" and args:
            self._allow_join(owner, args[0])
        elif name == "format":
            _allow_widths(owner, ":")
            self._allow(len(owner) + owner.count("{") * self._size([*args, *kwargs.values()]))

    def _allow_replacement(self, text: str, old: str, new: str) -> None:
        self._allow(len(text) + text.count(old) * max(0, len(new) - len(old)))

    def _allow_join(self, between: str, parts: Any) -> None:
        if not isinstance(parts, (str, list, tuple, dict)):
            _refuse("to join what is not a list")
        self._allow(self._size(parts) + len(between) * len(parts))

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that pays a step and whose result is measured; jinja2's marks on it are kept."""

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self._step()
            return self._measured(function(*args, **kwargs))

        return metered

    def _concat(self, pieces: Iterable[str]) -> str:
        """What a captured block or macro has written, as one text."""
        kept = list(pieces)
        self._allow(sum(map(len, kept)))
        return "".join(kept)

    def _ticking(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._step()
            yield value

    def _concatenated(self, *parts: Any) -> str:
        return self._concat([str(part) for part in parts])

    def _range(self, *bounds: int) -> range:
        values = range(*bounds)
        if len(values) > MAX_ITEMS:
            _refuse(f"a range of {len(values)} numbers")
        return values

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        self._allow_replacement(str(text), str(old), str(new))
        return str(text).replace(str(old), str(new), -1 if count is None else count)

    def _join(self, values: Iterable[Any], d: Any = "", attribute: str | None = None) -> str:
        parts = list(self._ticking(values))
        if attribute is not None:
            parts = [self.getitem(part, attribute) for part in parts]
        self._allow_join(str(d), parts)
        return str(d).join(map(str, parts))

    def _indent(self, text: Any, width: int | str = 4, first: Any = False, blank: Any = False) -> str:
        margin = width if isinstance(width, str) else " " * min(width, 1024)
        lines = str(text).splitlines()
        self._allow(len(str(text)) + len(margin) * len(lines))
        wanted = (bool(line or blank) and bool(place or first) for place, line in enumerate(lines))
        return "\n".join(margin + line if want else line for want, line in zip(wanted, lines, strict=True))


_TICKING, _CONCATENATED, _MEASURED = "mk_ticking", "mk_concatenated", "mk_measured"

# What published templates use, less what pads or repeats without a bound.
_FILTERS = frozenset(
    {
        "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby",
        "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
        "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum",
        "title", "tojson", "trim", "unique", "upper", "wordcount",
    }
)  # fmt: skip
_TEXT_METHODS = frozenset(
    {
        "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha",
        "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip",
        "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit",
        "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
    }
)  # fmt: skip


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here it is as if it was not there."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _instrument(node: nodes.Node) -> None:
    """Let every loop, concatenation and literal list of the tree go through the functions that meter them."""
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, name, _metered_node(value))
        elif isinstance(value, list):
            value[:] = [_metered_node(item) if isinstance(item, nodes.Node) else item for item in value]
    if isinstance(node, nodes.For):
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _call(_TICKING, [node.iter])


def _metered_node(node: nodes.Node) -> nodes.Node:
    _instrument(node)
    if isinstance(node, nodes.Concat):
        return _call(_CONCATENATED, node.nodes)
    if isinstance(node, (nodes.List, nodes.Dict)) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        assert isinstance(node, nodes.Expr)
        return _call(_MEASURED, [node])
    return node


def _call(name: str, args: list[nodes.Expr]) -> nodes.Call:
    call = nodes.Call(nodes.Name(name, "load"), args, [], None, None)
    call.set_lineno(args[0].lineno if args else 1)
    return call


def _refuse(what: str) -> NoReturn:
    raise SecurityError(f"it asks for {what}")


def _allow_widths(text: str, mark: str) -> None:
    """Formats can pad: `{:999999999}` and `%999999999d` are short texts that make long ones."""
    if re.search(rf"{mark}[^{{}}%:]*(\d{{4}}|\*|\{{)", text):
        _refuse("a format of this width")


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(pattern: Any) -> str:
    return datetime.now(tz=UTC).astimezone().strftime(str(pattern)[:256])


def _to_json(
    value: Any,
    ensure_ascii: Any = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: Any = False,
) -> str:
    """JSON with its characters as they are; jinja2's own filter escapes them for HTML."""
    margin = None if indent is None else min(indent, 16)
    return json.dumps(
        value,
        ensure_ascii=bool(ensure_ascii),
        indent=margin,
        separators=separators,
        sort_keys=bool(sort_keys),
    )
