"""Pages that are made from the code while the documentation is built, so that they cannot fall behind it.

A page says `<!-- generated: NAME -->` where the text belongs; NAME is one of `GENERATED`. Services are read from their
classes as installed: no node is booted, no device is touched.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_origin

import msgspec

from microkernel import errors, service
from microkernel.config import Config, Supervision
from microkernel.introspection import Introspection
from microkernel.message import Message, Nothing
from microkernel.plugins import SERVICES
from microkernel.service import Handler, Service, handlers_of, subscribers_of, timers_of

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

__all__ = ["GENERATED", "fill", "service_classes", "setup"]

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _source_read)
    app.connect("env-get-outdated", _outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def fill(text: str) -> str:
    """`text` with what is generated in place of the marks."""
    return MARK.sub(lambda mark: GENERATED[mark[1]](), text)


def service_classes() -> list[type[Service]]:
    """The kernel's own service and all that this project installs, by name."""
    points = sorted(entry_points(group=SERVICES), key=lambda point: point.name)
    ours = [point.load() for point in points if point.value.startswith("services.")]
    return [Introspection, *ours]


def services() -> str:
    """Every service with its handlers, and every message that is not the kernel's own."""
    kinds = service_classes()
    parts = [_service(kind) for kind in kinds]
    messages = sorted(set(_messages(kinds)), key=lambda kind: kind.__name__)
    parts += ["## Messages", "Types that handlers take and give, by name. `?` marks a field that may be left out."]
    parts += [_message(kind) for kind in messages]
    return "\n\n".join(parts)


def settings() -> str:
    """Every key of the configuration file."""
    parts = ["### At the top", _keys(Config, without={"source", "text", "services", "supervision"})]
    parts += ["### `[supervision]`", _keys(Supervision)]
    for kind in service_classes():
        if kind.Settings is not Nothing:
            parts += [f"### `[services.{kind.name}]`", _prose(kind.Settings), _keys(kind.Settings)]
    return "\n\n".join(parts)


def error_codes() -> str:
    """Each code with its class, its meaning and its HTTP status."""
    from services.gateway.errors_http import answer_for  # noqa: PLC0415 - only this page needs the gateway

    rows = []
    for name in errors.__all__:
        kind = getattr(errors, name)
        if inspect.isclass(kind) and issubclass(kind, errors.MicrokernelError) and kind is not errors.MicrokernelError:
            answer = answer_for(kind("…"))
            rows.append((f"`{kind.code}`", f"`{name}`", _summary(kind), str(answer.status), f"`{answer.error.code}`"))
    order = [f"`{code}`" for code in errors.Code]
    rows.sort(key=lambda row: order.index(row[0]))
    return _table(("code", "class", "meaning", "HTTP", "`error.code` over HTTP"), rows)


def close_codes() -> str:
    """How a link may be closed."""
    from microkernel.wire.codec import CloseCode  # noqa: PLC0415 - only this page needs it

    return _table(("code", "name", "come back?"), [
        (str(code.value), f"`{code.name}`", "yes" if code < 4500 else "not with the same") for code in CloseCode
    ])  # fmt: skip


def handler_defaults() -> str:
    """What a handler gets that says nothing."""
    return (
        f"Where a mark says nothing: `concurrency` {service.CONCURRENCY}, `queue` {service.QUEUE}, `deadline` "
        f"{service.DEADLINE:g} s (a stream has none), `credit` {service.CREDIT}."
    )


GENERATED: dict[str, Callable[[], str]] = {
    "services": services,
    "settings": settings,
    "error_codes": error_codes,
    "close_codes": close_codes,
    "handler_defaults": handler_defaults,
}


def _source_read(_: Sphinx, __: str, source: list[str]) -> None:
    source[0] = fill(source[0])


def _outdated(_: Sphinx, env: BuildEnvironment, *__: Any) -> Iterable[str]:
    """The code may have changed since: pages with generated parts are always read again."""
    for name in env.found_docs:
        if MARK.search(Path(env.doc2path(name)).read_text(encoding="utf-8")):
            yield name


def _service(kind: type[Service]) -> str:
    parts = [f"## {kind.name}", _prose(kind)]
    facts = [("needs", kind.needs), ("uses", kind.uses)]
    lines = [f"- {word}: {', '.join(f'`{name}`' for name in names)}" for word, names in facts if names]
    lines.append(f"- restart: {kind.restart_policy}" + (", essential" if kind.essential else ""))
    lines += [
        f"- listens to `{each.subject}`: {_summary(getattr(kind, each.attribute))}" for each in subscribers_of(kind)
    ]
    lines += [f"- every {each.seconds:g} s: {_summary(getattr(kind, each.attribute))}" for each in timers_of(kind)]
    parts.append("\n".join(lines))
    parts += [_handler(kind, handler) for handler in handlers_of(kind)]
    return "\n\n".join(part for part in parts if part)


def _handler(kind: type[Service], handler: Handler) -> str:
    arrow = "items of" if handler.kind == "stream" else "gives"
    taken = _link(handler.message) if handler.takes_message else "nothing"
    deadline = "no deadline" if handler.deadline is None else f"deadline {handler.deadline:g} s"
    limits = f"{deadline}, {handler.concurrency} at a time, {handler.queue} waiting"
    if handler.kind == "stream":
        limits += f", credit {handler.credit}"
    text = inspect.getdoc(getattr(kind, handler.attribute)) or ""
    given = "nothing" if handler.result is type(None) else _link(handler.result)
    head = f"`{kind.name}.{handler.name}`: takes {taken}, {arrow} {given}"
    return f"### {kind.name}.{handler.name}\n\n{_markdown(text)}\n\n{head}. {limits[0].upper()}{limits[1:]}."


def _messages(kinds: Iterable[type[Service]]) -> Iterator[type[msgspec.Struct]]:
    seen: set[Any] = set()
    fresh = [each for kind in kinds for handler in handlers_of(kind) for each in (handler.message, handler.result)]
    while fresh:
        kind = fresh.pop()
        if inspect.isclass(kind) and issubclass(kind, msgspec.Struct):
            if kind in seen or kind is Nothing:
                continue
            seen.add(kind)
            yield kind
            fresh += [field.type for field in msgspec.structs.fields(kind)]
        else:
            fresh += getattr(kind, "__args__", ())


def _message(kind: type[msgspec.Struct]) -> str:
    rows = [
        (f"`{field.encode_name}`" + ("" if field.required else "?"), _link(field.type), _default(field))
        for field in msgspec.structs.fields(kind)
    ]
    head = f"({_anchor(kind)})=\n### {kind.__name__}\n\n{_prose(kind)}"
    return head + ("\n\n" + _table(("field", "type", "default"), rows) if rows else "")


def _keys(kind: type[Message], without: Iterable[str] = ()) -> str:
    rows = [
        (f"`{field.encode_name}`", _link(field.type), _default(field))
        for field in msgspec.structs.fields(kind)
        if field.name not in without
    ]
    return _table(("key", "type", "default"), rows)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is not msgspec.NODEFAULT:
        value = field.default
    elif field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    else:
        return ""
    value = msgspec.to_builtins(value)
    return "none" if value is None else f"`{msgspec.json.encode(value).decode()}`"


def _link(kind: Any) -> str:
    """A type as a reader sees it, with links to messages."""
    if kind is Any:
        return "anything"
    if kind in {None, type(None)}:
        return "none"
    if inspect.isclass(kind) and issubclass(kind, msgspec.Struct):
        return f"[{kind.__name__}](#{_anchor(kind)})"
    if inspect.isclass(kind) and issubclass(kind, Enum):
        return " or ".join(f"`{member.value}`" for member in kind)
    name = getattr(kind, "__name__", str(kind))
    arguments = [each for each in getattr(kind, "__args__", ()) if each is not Ellipsis]
    if hasattr(kind, "__metadata__"):
        limits = [
            f"{word} {getattr(meta, key)}"
            for meta in kind.__metadata__
            for key, word in _LIMITS
            if getattr(meta, key, None) is not None
        ]
        return f"{_link(kind.__origin__)} ({', '.join(limits)})" if limits else _link(kind.__origin__)
    if get_origin(kind) in {Union, types.UnionType}:
        return " or ".join(_link(each) for each in arguments)
    if name in {"list", "tuple"}:
        return f"list of {_link(arguments[0])}" if arguments else "list"
    if name in {"dict", "Mapping"}:
        return "object" if not arguments or arguments[1] is Any else f"object of {_link(arguments[1])}"
    return _WORDS.get(name, f"`{name}`")


_WORDS = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "bytes": "bytes (base64)"}
_LIMITS = (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))


def _anchor(kind: type) -> str:
    return f"message-{kind.__name__.lower()}"


def _prose(kind: Any) -> str:
    return _markdown(inspect.cleandoc(kind.__doc__ or ""))


def _summary(kind: Any) -> str:
    return _markdown(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " "))


def _markdown(text: str) -> str:
    """A docstring's text; doctests do not belong on these pages."""
    return re.sub(r"(?m)^(>>>|\.\.\.).*\n?", "", text).strip()


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
