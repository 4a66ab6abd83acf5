"""`mk chat`: talk to a model, and see what it says as it comes. Ctrl-C stops the answer; at the prompt, the chat."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import find
from microkernel.cli.output import Commands, clean, error_line, plain, print_json, wants_json
from microkernel.errors import Invalid, MicrokernelError, Unavailable

if TYPE_CHECKING:
    from microkernel.wire.client import SyncSystem

__all__ = ["Conversation", "add", "run"]

PROMPT = ">>> "
SAMPLING = ("temperature", "top_p", "top_k", "seed")


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "chat", help="talk to a model", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a loaded model (default: the node's own)")
    parser.add_argument("--once", metavar="TEXT", help="ask this, print the answer, leave; '-' reads stdin")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before everything else")
    parser.add_argument("--temperature", type=float, help="0 always takes the likeliest token")
    parser.add_argument("--top-p", type=float, help="choose among the likeliest tokens that make up this share")
    parser.add_argument("--top-k", type=int, help="choose among this many of the likeliest tokens")
    parser.add_argument("--seed", type=int, help="the same seed and text give the same answer")
    # A small model may repeat itself for ever: without a limit one answer would take the whole context.
    parser.add_argument(
        "--max-tokens", type=int, default=1024, metavar="N", help="at most this many tokens an answer (default 1024)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """One answer, or a conversation."""
    text = sys.stdin.read() if args.once == "-" else args.once
    if text is not None and not text.strip():
        raise Invalid("there is nothing to ask: the text is empty")
    from microkernel.wire.client import connect_sync

    where = find(args)
    # The client's loop has a thread of its own: the link stays alive while this one waits for the keyboard.
    with connect_sync(where.url, root=where.root, reconnect=False) as system:
        conversation = Conversation(system, args)
        _tell_if_loading(system)
        if text is None:
            return _talk(conversation)
        conversation.ask(text)
        return 0


class Conversation:
    """The messages so far, and how the next answer is asked for."""

    def __init__(self, system: SyncSystem, args: argparse.Namespace) -> None:
        self.messages: list[dict[str, str]] = []
        if args.system:
            self.messages.append({"role": "system", "content": args.system})
        self._system = system
        self._json = wants_json(args)
        self._fields: dict[str, Any] = {
            key: getattr(args, key) for key in (*SAMPLING, "max_tokens", "model") if getattr(args, key) is not None
        }

    def ask(self, text: str) -> None:
        """Print the answer as it comes. An error forgets the question; Ctrl-C keeps what was said so far."""
        self.messages.append({"role": "user", "content": text})
        answer: list[str] = []
        finished = False
        try:
            with self._system.stream("inference.chat", messages=self.messages, **self._fields) as pieces:
                for piece in pieces:
                    self._show(piece, answer)
                    finished = finished or piece.finish_reason is not None
        except KeyboardInterrupt:
            self._end_line(answer)
            self.messages.append({"role": "assistant", "content": "".join(answer)})
            raise
        except BaseException:
            self._end_line(answer)
            self.messages.pop()
            raise
        self._end_line(answer)
        if not finished:
            self.messages.pop()
            raise Unavailable("the answer ended before the model had finished it")
        self.messages.append({"role": "assistant", "content": "".join(answer)})

    def _show(self, piece: Any, answer: list[str]) -> None:
        answer.append(piece.text)
        if self._json:
            print_json(plain(piece))
        elif piece.text:
            sys.stdout.write(clean(piece.text))
            sys.stdout.flush()

    def _end_line(self, answer: list[str]) -> None:
        if not self._json and answer and not "".join(answer).endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()


def _tell_if_loading(system: SyncSystem) -> None:
    """The first answer waits for the model: whoever sits at a terminal should know why."""
    if not sys.stderr.isatty():
        return
    unready = plain(system.call("kernel.status"))["unready"]
    if "inference" in unready:
        sys.stderr.write(clean(f"the model is not there yet (inference is {unready['inference']}); the answer waits\n"))


def _talk(conversation: Conversation) -> int:
    if sys.stdin.isatty():
        _enable_line_editing()
        sys.stderr.write("Ctrl-C stops an answer, Ctrl-D leaves.\n")
    while True:
        try:
            text = _read()
        except (EOFError, KeyboardInterrupt):
            if sys.stdin.isatty():
                sys.stderr.write("\n")
            return 0
        if not text.strip():
            continue
        try:
            conversation.ask(text)
        except KeyboardInterrupt:
            continue
        except MicrokernelError as error:
            if not sys.stdin.isatty():
                raise  # a script must see that its question got no answer
            sys.stderr.write(error_line(error) + "\n")


def _read() -> str:
    """A line from the keyboard, with a prompt; from a pipe without. Raises `EOFError`."""
    if sys.stdin.isatty():
        return input(PROMPT)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _enable_line_editing() -> None:
    try:
        import readline
    except ImportError:
        return  # a Python without it: typing works, the arrow keys do not
    readline.set_history_length(1000)
