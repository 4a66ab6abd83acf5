"""The commands: `mk …`, the same as `python -m microkernel …`.

One file a command, each a thin client. Here the parsers are put together, and whatever a command raises becomes one
line and an exit code: 0 fine, 1 error, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from microkernel import __version__
from microkernel.cli import (
    backup,
    bench,
    boot,
    call,
    chat,
    describe,
    devices,
    doctor,
    fs,
    jobs,
    log,
    maps,
    memory,
    models,
    nice,
    nodes,
    policy,
    ps,
    restore,
    services,
    signals,
    token,
    top,
    train,
    watch,
    why,
)
from microkernel.cli.output import error_line

__all__ = ["main", "make_parser"]

COMMANDS = (
    *(boot, chat, ps, top, signals, nice, why, policy, maps, services, call, describe, models, devices, memory, nodes),
    *(train, jobs, fs, log, watch, token, backup, restore, bench, doctor),
)

SHORT_HELP = """\
mk: the operating system for language models

  mk boot              start a node (fetches the default model the first time)
  mk chat              talk to the model
  mk ps                what runs
  mk services          what answers, and how it is
  mk doctor            check everything, and how to mend it

mk --help lists all commands, mk COMMAND --help tells about one.
"""

BROKEN_PIPE = 141  # what a shell reports for a process that SIGPIPE has ended
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        sys.stdout.write(SHORT_HELP)
        return 0
    args = make_parser().parse_args(arguments)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit: that must not complain a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if _wants_traceback(args):
            raise
        sys.stderr.write(error_line(error) + "\n")
        return 1
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    common = _common()
    parser = _Parser(
        prog="mk", description="The operating system for language models.", parents=[common], allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"microkernel {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for command in COMMANDS:
        command.add(commands, [common])
    return parser


def _common() -> argparse.ArgumentParser:
    """What every command takes, before its name or after it."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("every command")
    group.add_argument("--json", action="store_true", help="print JSON, one value a line")
    group.add_argument("--url", help="the node's address (default: MICROKERNEL_URL, or what runs on the state folder)")
    group.add_argument("--on", metavar="NODE", help="ask this node of the cluster, through the one that is reached")
    group.add_argument("--root", help="the state folder (default: MICROKERNEL_ROOT, or ~/.microkernel)")
    return common


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and what was probably meant."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            known = [name.strip(" '") for name in choice[2].split(",")]
            near = difflib.get_close_matches(choice[1], known, n=1)
            remedy = f"did you mean '{self.prog} {near[0]}'?" if near else f"there are: {', '.join(known)}"
            message = f"'{self.prog} {choice[1]}' is no command ({remedy})"
        else:
            message = f"{message} (see {self.prog} --help)"
        self.exit(2, f"error: {message}\n")


def _wants_traceback(args: argparse.Namespace) -> bool:
    if os.environ.get("MICROKERNEL_DEBUG", "0") not in {"", "0"}:
        return True
    return getattr(args, "log_level", None) == "debug"
