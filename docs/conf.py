"""How the documentation is built: Sphinx, Markdown by MyST, pages that are generated from the code by `generate`."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import microkernel  # noqa: E402 - the path is set above

project = "microkernel"
author = "the authors of microkernel"
version = release = microkernel.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "generate"]
exclude_patterns = ["_build", "pictures"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

html_theme = "furo"
html_title = f"microkernel {release}"
html_show_copyright = False

default_role = "code"  # single backticks in docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
add_module_names = False

# `-n` makes every reference that leads nowhere an error. These lead out of this documentation on purpose.
nitpick_ignore_regex = [
    (r"py:.*", r"(asyncio|collections\.abc|contextlib|contextvars|enum|logging|pathlib|threading|types|typing)\..*"),
    (r"py:.*", r"(msgspec|_asyncio|_contextvars|abc|random)(\..*)?"),
    (r"py:(class|obj)", r"(.*\.)?(T|Function)"),
    (r"py:class", r"microkernel\.model_server\.(Generate|Generated|ServedModel)"),  # on the page of messages
    (r"py:class", r"microkernel\._?run\.Method"),  # in C or in Python; `Port.method` says what it is
]

# Made by the kernel or the client and handed out: what their constructors take, and what they are inside, is nobody's.
nitpick_ignore = [
    ("py:class", "Address"),  # of the simulated network
    ("py:class", "ModelServer"),  # imported for its type only, where it is found
    ("py:class", "Opening"),  # of a stream
    ("py:class", "aiohttp.client_ws.ClientWebSocketResponse"),
    ("py:class", "microkernel.backlog.Backlog"),
    ("py:class", "microkernel.config.Config"),
    ("py:class", "microkernel.events.Bus"),
    ("py:class", "microkernel.handlers.Continuation"),
    ("py:class", "microkernel.plugins.Plugin"),
    ("py:class", "microkernel.router.Router"),
    ("py:class", "microkernel.monitors.Monitors"),
    ("py:class", "microkernel.wire.inbox.Monitor"),
    ("py:class", "microkernel.wire.inbox.Stream"),
    ("py:class", "microkernel.wire.inbox.Subscription"),
    ("py:class", "microkernel.wire.limits.Limits"),
    ("py:class", "microkernel.wire.sync_system.SyncStream"),
    ("py:class", "microkernel.wire.trust.Expected"),
    ("py:class", "microkernel.wire.trust.Trust"),
]
