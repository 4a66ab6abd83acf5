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
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import msgspec
from events import EVENTS, EventKind

from microkernel import errors, service
from microkernel.config import Config, Supervision
from microkernel.driver import Driver
from microkernel.introspection import Introspection
from microkernel.launcher import Launcher
from microkernel.message import Message, Nothing
from microkernel.plugins import DRIVERS, LAUNCHERS, SERVICES
from microkernel.rings import RingLimits
from microkernel.service import Handler, Isolation, Service, handlers_of, subscribers_of, timers_of

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


def driver_classes() -> list[type[Driver]]:
    """All that this project installs, by name."""
    points = sorted(entry_points(group=DRIVERS), key=lambda point: point.name)
    return [point.load() for point in points if point.value.startswith("drivers.")]


def launcher_classes() -> list[type[Launcher]]:
    """All that this project installs, by name."""
    points = sorted(entry_points(group=LAUNCHERS), key=lambda point: point.name)
    return [point.load() for point in points if point.value.startswith("drivers.")]


def services() -> str:
    """Every service with what it needs, what it listens to, and a line for each handler."""
    return "\n\n".join(_service(kind) for kind in service_classes())


def messages() -> str:
    """Every handler with the fields that it takes, what it gives and its limits; then the types among these."""
    kinds = service_classes()
    parts = []
    for kind in kinds:
        parts += [f"## {kind.name}", *(_handler(kind, handler) for handler in handlers_of(kind))]
    parts += ["## Types", "What handlers give and events say, by name. `?` marks a field that may be left out."]
    parts += [_message(kind) for kind in sorted(set(_types(kinds)), key=lambda kind: kind.__name__)]
    return "\n\n".join(parts)


def events() -> str:
    """Every subject that a node publishes on, with its fields."""
    return _table(("subject", "when", "body"), [(f"`{each.subject}`", each.when, _body(each)) for each in EVENTS])


def settings() -> str:
    """Every key of the configuration file."""
    parts = ["### At the top", _keys(Config, without={"source", "text", "services", "supervision", "rings"})]
    parts += ["### `[supervision]`", _keys(Supervision)]
    parts += ["### `[[rings]]`", _prose(RingLimits), _keys(RingLimits)]
    for kind in service_classes():
        if kind.Settings is not Nothing:
            parts += _section(f"services.{kind.name}", kind.Settings)
    for driver in driver_classes():
        if driver.Settings is not Nothing:
            parts += _section(f"services.devices.drivers.{driver.name}", driver.Settings)
    for launcher in launcher_classes():
        parts += _section(f"services.cluster.launchers.{launcher.name}", launcher.Settings)
    return "\n\n".join(parts)


def job_config() -> str:
    """Every key of a training job's configuration."""
    from services.training.config import JobConfig  # noqa: PLC0415 - only this page needs it

    parts = ["## At the top", _keys(JobConfig)]
    for field in msgspec.structs.fields(JobConfig):
        if _is_struct(field.type):
            parts += [part.replace("### ", "## ", 1) for part in _section(field.encode_name, field.type)]
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
    "messages": messages,
    "events": events,
    "settings": settings,
    "job_config": job_config,
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
    if kind.isolation != Isolation.INLINE or kind.instances > 1:
        lines.append(f"- isolation: {kind.isolation}, instances: {kind.instances}, balance: {kind.balance}")
    lines.append(f"- restart: {kind.restart_policy}" + (", essential" if kind.essential else ""))
    lines += [
        f"- listens to `{each.subject}`: {_summary(getattr(kind, each.attribute))}" for each in subscribers_of(kind)
    ]
    lines += [f"- every {each.seconds:g} s: {_summary(getattr(kind, each.attribute))}" for each in timers_of(kind)]
    parts.append("\n".join(lines))
    rows = [
        (f"[`{kind.name}.{handler.name}`](#{_handler_anchor(kind, handler)})", _markdown(handler.summary))
        for handler in handlers_of(kind)
    ]
    parts.append(_table(("handler", ""), rows) if rows else "")
    return "\n\n".join(part for part in parts if part)


def _handler(kind: type[Service], handler: Handler) -> str:
    text = _markdown(inspect.getdoc(getattr(kind, handler.attribute)) or "")
    given = "nothing" if handler.result is type(None) else _link(handler.result)
    parts = [f"({_handler_anchor(kind, handler)})=\n### {kind.name}.{handler.name}", text]
    if not handler.takes_message:
        parts.append("Takes nothing.")
    elif _is_struct(handler.message):
        parts += [f"Takes `{handler.message.__name__}`: {_prose(handler.message)}", _fields(handler.message)]
    else:
        parts.append(f"Takes {_link(handler.message)}.")
    if handler.inputs is not None:
        parts.append(f"Its reader may send {_link(handler.inputs)}.")
    parts.append(f"{'Items of' if handler.kind == 'stream' else 'Gives'} {given}. {_limits(handler)}")
    return "\n\n".join(part for part in parts if part)


def _limits(handler: Handler) -> str:
    deadline = "No deadline" if handler.deadline is None else f"Deadline {handler.deadline:g} s"
    limits = f"{deadline}, {handler.concurrency} at a time, {handler.queue} waiting"
    if handler.kind == "stream":
        limits += f", credit {handler.credit}"
    return f"{limits}, idempotent." if handler.idempotent else f"{limits}."


def _handler_anchor(kind: type[Service], handler: Handler) -> str:
    return f"call-{kind.name}-{handler.name}".replace("_", "-")


def _body(each: EventKind) -> str:
    if inspect.isclass(each.body):
        return _link(each.body)
    optional = [(name.rstrip("?"), "?" if name.endswith("?") else "", kind) for name, kind in each.body.items()]
    return ", ".join(f"`{name}`{mark} {_link(kind)}" for name, mark, kind in optional)


def _types(kinds: Iterable[type[Service]]) -> Iterator[type[msgspec.Struct]]:
    """All messages that others link to: results, items, inputs, bodies of events, and what is within these."""
    seen: set[Any] = set()
    handlers = [handler for kind in kinds for handler in handlers_of(kind)]
    fresh = [each for handler in handlers for each in (handler.result, handler.inputs)]
    fresh += [each.body for each in EVENTS if inspect.isclass(each.body)]
    for handler in handlers:
        if _is_struct(handler.message):
            fresh += [field.type for field in msgspec.structs.fields(handler.message)]
        else:
            fresh.append(handler.message)
    while fresh:
        kind = fresh.pop()
        if _is_struct(kind):
            if kind in seen or kind is Nothing:
                continue
            seen.add(kind)
            yield kind
            fresh += [field.type for field in msgspec.structs.fields(kind)]
        else:
            fresh += getattr(kind, "__args__", ())
            fresh += [kind.__origin__] if hasattr(kind, "__metadata__") else []


def _message(kind: type[msgspec.Struct]) -> str:
    return "\n\n".join(
        part for part in (f"({_anchor(kind)})=\n### {kind.__name__}", _prose(kind), _fields(kind)) if part
    )


def _fields(kind: type[msgspec.Struct]) -> str:
    """The fields of a message; a column for what `msgspec.Meta` says of them, where it does of one."""
    fields = msgspec.structs.fields(kind)
    told = [_description(field.type) for field in fields]
    head = ("field", "type", "default", "") if any(told) else ("field", "type", "default")
    rows = [
        (f"`{field.encode_name}`" + ("" if field.required else "?"), _link(field.type), _default(field), text)
        for field, text in zip(fields, told, strict=True)
    ]
    return _table(head, [row[: len(head)] for row in rows]) if rows else ""


def _description(kind: Any) -> str:
    return next((meta.description for meta in getattr(kind, "__metadata__", ()) if meta.description), "")


def _section(name: str, kind: type[Message]) -> list[str]:
    """The keys of one section of the configuration, and of the sections within it."""
    parts = [f"### `[{name}]`", _prose(kind), _keys(kind)]
    for field in msgspec.structs.fields(kind):
        if _is_struct(field.type):
            parts += _section(f"{name}.{field.encode_name}", field.type)
        elif (each := _struct_by_name(field.type)) is not None:
            parts += _section(f"{name}.{field.encode_name}.<name>", each)
        elif (each := _struct_in_list(field.type)) is not None:
            parts += _section(f"[{name}.{field.encode_name}]", each)
    return parts


def _keys(kind: type[Message], without: Iterable[str] = ()) -> str:
    rows = [
        (
            f"`{field.encode_name}`",
            *(
                ("section", "")
                if _is_struct(field.type) or _struct_by_name(field.type) or _struct_in_list(field.type)
                else (_link(field.type), _default(field))
            ),
        )
        for field in msgspec.structs.fields(kind)
        if field.name not in without
    ]
    return _table(("key", "type", "default"), rows)


def _is_struct(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, msgspec.Struct)


def _struct_by_name(kind: Any) -> type[Message] | None:
    """The type of the values, where a field holds structs by names."""
    arguments = getattr(kind, "__args__", ())
    return arguments[1] if get_origin(kind) is dict and _is_struct(arguments[1]) else None


def _struct_in_list(kind: Any) -> type[Message] | None:
    """The type of the values, where a field holds structs one after the other."""
    arguments = getattr(kind, "__args__", ())
    return arguments[0] if get_origin(kind) in {list, tuple} and _is_struct(arguments[0]) else None


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
    if _is_struct(kind):
        return f"[{kind.__name__}](#{_anchor(kind)})"
    if inspect.isclass(kind) and issubclass(kind, Enum):
        return " or ".join(f"`{member.value}`" if member.value != "" else '`""`' for member in kind)
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
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
