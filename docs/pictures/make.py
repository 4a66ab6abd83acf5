"""Makes the README's pictures from real runs: python docs/pictures/make.py

Boots a node on an empty state folder in a pseudo-terminal and keeps what it showed when it was ready.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
COLUMNS, LINES = 108, 40


def record(arguments: list[str], environment: dict[str, str], until: str, *, timeout: float = 300.0) -> str:
    """What a command writes to a terminal, up to and with the screen on which `until` stands."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(arguments[0], arguments, {**os.environ, **environment, "TERM": "xterm-256color"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    output, began = b"", time.monotonic()
    while until.encode() not in output:
        if not select.select([terminal], [], [], max(0.0, began + timeout - time.monotonic()))[0]:
            raise SystemExit(f"'{until}' did not appear within {timeout:g} s")
        try:
            output += os.read(terminal, 65536)
        except OSError as error:
            raise SystemExit(f"the command ended early:\n{output.decode(errors='replace')}") from error
    while select.select([terminal], [], [], 0.5)[0]:  # what follows on the same screen
        output += os.read(terminal, 65536)
    os.kill(pid, signal.SIGTERM)
    while True:
        try:
            if not os.read(terminal, 65536):
                break
        except OSError:
            break
    os.waitpid(pid, 0)
    return output.decode(errors="replace")


def screen(output: str) -> str:
    """The lines as they stand at the end: cursor movements carried out, colours kept."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r\n|\n|\r)", output):
        move = re.fullmatch(r"\x1b\[([0-9;?]*)([A-Za-z])", part)
        if part in {"\r\n", "\n"}:
            row += 1
            if row == len(lines):
                lines.append("")
        elif part == "\r":
            continue
        elif move and move[2] == "A":
            row = max(0, row - int(move[1] or 1))
        elif move and move[2] == "K":
            lines[row] = ""
        elif move and move[2] != "m":
            continue
        else:
            lines[row] += part
    return "\n".join(lines)


def picture(text: str, path: Path, title: str) -> None:
    """Draw a terminal."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(text), soft_wrap=True)
    svg = console.export_svg(title=title)
    # Fonts come from the reader's machine, not from somebody's server.
    path.write_text(re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        environment = {"MICROKERNEL_ROOT": str(Path(root) / "microkernel"), "MICROKERNEL_TOKEN": ""}
        output = record([sys.executable, "-m", "microkernel", "boot", "--port", "7070"], environment, "what to try")
        text = screen(output).replace(root, "/home/you")
        text = re.sub(r"mk-[\w-]{43}", "mk-" + "•" * 12, text)  # a token is not for pictures, not even a dead one
        picture(text, HERE / "boot.svg", "make boot")
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
