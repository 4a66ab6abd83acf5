"""The browser's client of the examples and of the reference page, run by Node.js where that has a WebSocket."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from wire_node import ALL, node

ROOT = Path(__file__).parents[3]
FLAG = "--experimental-websocket"  # needed by Node.js 20, harmless later


def has_websocket() -> bool:
    program = shutil.which("node")
    if program is None:
        return False
    probe = subprocess.run([program, FLAG, "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"], check=False)
    return probe.returncode == 0


def of_the_page() -> str:
    page = (ROOT / "examples/browser.html").read_text()
    script = re.search(r"<script>\n(  function connect.*?\n  }\n)", page, re.DOTALL)
    assert script is not None
    return script[1]


def of_the_reference() -> str:
    script = re.search(r"```js\n(.*?)```", (ROOT / "docs/reference/wire.md").read_text(), re.DOTALL)
    assert script is not None
    lines = script[1].replace('location.origin.replace("http", "ws") + "/mk"', "url_").strip()
    return f"function connect(url_, token) {{\n{lines}\nreturn {{ready, call, stream, close: () => socket.close()}}; }}"


JOURNEY = """
(async () => {
  const seen = [], system = connect(process.argv[1], process.argv[2]);
  seen.push((await system.ready).user);
  seen.push((await system.call("maths.add", {a: 1, b: 2})).total);
  let items = 0;
  await system.stream("maths.count", {to: 200}, item => { items += 1; });
  seen.push(items);
  await system.call("maths.fail").catch(error => seen.push(error.code));
  const stranger = connect(process.argv[1], "guess");
  await stranger.ready.catch(error => seen.push(error.message));
  system.close();
  console.log(JSON.stringify(seen));
})();
"""


@pytest.mark.skipif(not has_websocket(), reason="needs Node.js with a WebSocket")
@pytest.mark.parametrize("source", [of_the_page, of_the_reference])
async def test_a_browser_needs_no_library(source: object) -> None:
    assert callable(source)
    async with node() as here:
        url = here.url.replace("http", "ws") + "mk"
        process = await asyncio.create_subprocess_exec(
            "node", FLAG, "--no-warnings", "-e", source() + JOURNEY, url, ALL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert json.loads(out) == ["root", 3, 200, "NOT_FOUND", "the token is not valid here"]
