"""The commands, as a user has them: real processes, a real node, real signals."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from microkernel.cli.boot import SAME_SIGNAL

KV = '''
from collections.abc import AsyncIterator

from microkernel import Message, Service, handles, streams


class Put(Message):
    key: str
    value: int


class Count(Message):
    to: int = 3


class KV(Service):
    """Keeps numbers."""

    name = "kv"

    async def start(self) -> None:
        self.data: dict[str, int] = {}

    @handles
    async def put(self, message: Put) -> int:
        """Keep a number; gives how many there are."""
        self.data[message.key] = message.value
        return len(self.data)

    @streams
    async def count(self, message: Count) -> AsyncIterator[int]:
        """Counts."""
        for number in range(message.to):
            yield number

    @handles
    async def fail(self) -> None:
        """Raises."""
        raise RuntimeError("the shelf has\\nfallen down")
'''

ECHO = '''
import asyncio
from collections.abc import AsyncIterator
from typing import Any

from microkernel import Service, streams
from microkernel.errors import Overloaded


class Inference(Service):
    """Says back what it hears, with the number of messages so far."""

    name = "inference"

    @streams
    async def chat(self, message: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        messages = message["messages"]
        last = messages[-1]["content"].strip()
        yield {"text": "", "finish_reason": None}
        if last == "overload":
            raise Overloaded("too many ask", remedy="come back later")
        yield {"text": f"{len(messages)}:", "finish_reason": None}
        for word in last.split():
            yield {"text": f" {word}\\x1b[2J", "finish_reason": None}
        if last == "forever":
            while True:
                await asyncio.sleep(0.01)
                yield {"text": ".", "finish_reason": None}
        if last != "stop short":
            yield {"text": "", "finish_reason": "stop"}
'''


def environment(folder: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MICROKERNEL_")}
    return {**inherited, "HOME": str(folder), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


class Node:
    """A booted node in a process of its own, and commands that are about it."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], events: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.process = process
        self.events = events

    @property
    def ready(self) -> dict[str, Any]:
        return self.events[-1]

    @property
    def states(self) -> dict[str, str]:
        return {service["name"]: service["state"] for service in self.ready["services"]}

    def mk(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return mk("--root", str(self.root), *arguments, folder=self.folder, text=text)

    def json(self, *arguments: str) -> Any:
        done = self.mk("--json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def mk(*arguments: str, folder: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "microkernel", *arguments],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        input=text if text is not None else "",
        check=False,
    )


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that does not outlive the block, however that ends."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()


@contextmanager
def boot(folder: Path, *arguments: str, config: str | None = None) -> Iterator[subprocess.Popen[str]]:
    file = folder / "config.toml"
    file.write_text('disable = ["inference", "models"]\n' if config is None else config)
    given = ["--config", str(file), "--root", str(folder / "root"), "--port", "0", "--json", *arguments]
    with started(
        [sys.executable, "-m", "microkernel", "boot", *given],
        env=environment(folder),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def read_until(process: subprocess.Popen[str], *kinds: str) -> list[dict[str, Any]]:
    """The events up to the first of `kinds`; fails with what the node said when it ends before."""
    assert process.stdout is not None
    assert process.stderr is not None
    events = []
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1]["event"] in kinds:
            return events
    pytest.fail(f"the boot ended: {process.stderr.read()}")


@contextmanager
def booted(folder: Path, *arguments: str, config: str | None = None) -> Iterator[Node]:
    with boot(folder, *arguments, config=config) as process:
        yield Node(folder, process, read_until(process, "ready"))


def boot_fails(folder: Path, *arguments: str, config: str | None = None) -> str:
    """Boot, expect exit code 1, and return stderr, which is one line without a traceback."""
    with boot(folder, *arguments, config=config) as process:
        _, stderr = process.communicate()
    assert process.returncode == 1, stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert not (folder / "root" / "node.json").exists()
    return stderr


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def services(folder: Path, **sources: str) -> Sequence[str]:
    """Arguments that boot Python files with these contents."""
    return [argument for name, text in sources.items() for argument in ("--service", write(folder, f"{name}.py", text))]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    with booted(folder, *services(folder, kv=KV, echo=ECHO)) as running:
        yield running


# The node


def test_what_a_boot_has_made_is_not_looked_through_by_every_collection(tmp_path: Path):
    counts = "import gc\nfrom microkernel import Service, handles\nclass Counts(Service):\n    name = 'counts'\n"
    counts += "    @handles\n    async def objects(self) -> list[int]:\n"
    counts += "        return [gc.get_freeze_count(), len(gc.get_objects())]\n"
    with booted(tmp_path, *services(tmp_path, counts=counts)) as node:
        frozen, watched = 0, 1
        while frozen < 2 * watched:  # some services are ready later than the node
            frozen, watched = node.json("call", "counts.objects")


def test_an_empty_folder_becomes_a_node_with_a_private_token(node: Node):
    assert node.states["kv"] == "ready"
    assert node.ready["url"].startswith("http://127.0.0.1:")
    assert stat.S_IMODE((node.root / "token").stat().st_mode) == 0o600
    assert (node.root / "token").read_text().strip() == node.ready["token"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_node_clean(tmp_path: Path, number: signal.Signals):
    with booted(tmp_path) as node:
        assert (node.root / "node.json").exists()
        node.process.send_signal(number)
        _, stderr = node.process.communicate()
        assert (node.process.returncode, stderr) == (0, "")
        assert not (node.root / "node.json").exists()


def test_a_call_can_end_the_node(tmp_path: Path):
    with booted(tmp_path) as node:
        node.mk("call", "kernel.shutdown")
        node.process.communicate()
        assert node.process.returncode == 0


def test_a_boot_that_still_loads_can_be_talked_to_and_stopped(tmp_path: Path):
    never = "import asyncio\nfrom microkernel import Service\nclass Never(Service):\n    name = 'never'\n"
    never += "    essential = True\n    async def ready(self):\n        await asyncio.sleep(3600)\n"
    with boot(tmp_path, *services(tmp_path, never=never)) as process:
        listening = read_until(process, "gateway.listening")
        assert listening[-1]["fields"]["url"].startswith("http://")
        status = mk("--root", str(tmp_path / "root"), "--json", "call", "kernel.status", folder=tmp_path)
        assert json.loads(status.stdout)["ready"] is False
        process.terminate()
        process.communicate()
        assert process.returncode == 0


def test_a_plugin_whose_import_never_ends_does_not_keep_a_boot_from_being_stopped(tmp_path: Path):
    with boot(tmp_path, *services(tmp_path, never="import time\ntime.sleep(3600)\n")) as process:
        assert read_until(process, "stage")[-1]["text"] == "finding services"
        process.terminate()
        process.communicate()
        assert process.returncode == 0


def test_a_second_signal_ends_a_node_that_will_not_stop(tmp_path: Path):
    stuck = "import asyncio\nfrom microkernel import Service\nclass Stuck(Service):\n    name = 'stuck'\n"
    stuck += "    async def stop(self):\n        self.log.warning('stopping')\n        await asyncio.sleep(3600)\n"
    with booted(tmp_path, *services(tmp_path, stuck=stuck)) as node:
        assert node.process.stderr is not None
        node.process.terminate()
        node.process.terminate()  # as make does when its whole group is told: the same wish, said twice
        assert "stopping" in node.process.stderr.readline()
        time.sleep(SAME_SIGNAL)
        node.process.terminate()
        node.process.communicate()
        assert node.process.returncode == 130


def test_a_node_boots_again_on_its_folder_and_keeps_the_token(tmp_path: Path):
    with booted(tmp_path) as node:
        token = node.ready["token"]
        node.process.kill()  # no chance to clean up
        node.process.wait()
    done = mk("--root", str(tmp_path / "root"), "ps", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no node is running" in done.stderr
    with booted(tmp_path) as node:
        assert node.ready["token"] == token


def test_two_nodes_do_not_share_a_folder(node: Node):
    with boot(node.folder) as process:
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr.startswith(f"error: a node already runs on the state folder {node.root} at {node.ready['url']}")
    assert node.mk("ps").returncode == 0


def test_what_is_plain_has_no_control_codes_and_ends_with_the_address(tmp_path: Path):
    config = write(tmp_path, "config.toml", 'disable = ["inference", "models"]\n')
    command = [sys.executable, "-m", "microkernel", "boot", "--config", config, "--root", str(tmp_path / "root")]
    with started(
        [*command, "--port", "0"], env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "the websocket:" in line:
                break
        process.terminate()
        process.communicate()
    shown = "".join(lines)
    assert "\x1b" not in shown
    services = "backup, cluster, devices, filesystem, gateway, memory, monitor, scheduler, training"
    assert f"found 9 services: {services}" in shown
    assert "address  http://127.0.0.1:" in shown
    assert f"mk chat --root {tmp_path / 'root'}" in shown


def test_a_terminal_sees_the_boot_live(tmp_path: Path):
    config = write(tmp_path, "config.toml", 'disable = ["inference", "models"]\n')
    command = [sys.executable, "-m", "microkernel", "boot", "--config", config, "--root", str(tmp_path / "root")]
    terminal, end = pty.openpty()
    environ = {**environment(tmp_path), "TERM": "xterm"}
    with started([*command, "--port", "0"], env=environ, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        shown = read_terminal(terminal, "websocket")
        process.terminate()
        process.wait()
        os.close(terminal)
    assert "✓" in shown
    assert "found 9 services" in shown
    assert process.returncode == 0


def read_terminal(terminal: int, text: str) -> str:
    """What was shown up to `text`, and not a byte of what follows: that is for who reads next."""
    shown = b""
    while not shown.endswith(text.encode()):
        piece = os.read(terminal, 1)
        assert piece, shown
        shown += piece
    return shown.decode(errors="replace")


# Boots that cannot be


def test_a_taken_port_is_named_with_the_remedy(tmp_path: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is taken" in boot_fails(tmp_path, "--port", str(port))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("disable = [\n", "not TOML"),
        ('log_level = "info"\nnodes = 1\n', "config.toml, line 2: unknown key 'nodes' (did you mean 'node'?)"),
        ("\n[services.gateway]\nprot = 1\n", "config.toml, line 3: unknown key 'services.gateway.prot'"),
        ("[services.gateway]\nhost = 1\n", "config.toml, line 2: services.gateway.host"),
        ("[services.gatway]\nport = 1\n", "no service is named 'gatway'"),
        ('log_level = "loud"\n', "'loud' is no level"),
    ],
)
def test_a_wrong_config_is_named_with_its_line(tmp_path: Path, config: str, told: str):
    assert told in boot_fails(tmp_path, config=config)


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path):
    missing = mk("boot", "--config", "missing.toml", "--root", "root", folder=tmp_path)
    assert (missing.returncode, missing.stderr) == (1, "error: there is no config file missing.toml\n")
    folder = mk("boot", "--config", ".", "--root", "root", folder=tmp_path)
    assert (folder.returncode, folder.stderr) == (1, "error: cannot read .: Is a directory\n")


def test_a_state_folder_that_cannot_be_is_named(tmp_path: Path):
    write(tmp_path, "root", "a file")
    assert "cannot use the state folder" in boot_fails(tmp_path)


def test_a_traceback_comes_only_when_it_is_asked_for(tmp_path: Path):
    quiet = mk("boot", "--config", "missing.toml", folder=tmp_path)
    loud = mk("boot", "--config", "missing.toml", "--log-level", "debug", folder=tmp_path)
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr


# Broken plugins


def test_broken_plugins_are_named_and_stop_nobody(tmp_path: Path):
    head = "import asyncio\nfrom microkernel import Service, handles\n"
    broken = services(
        tmp_path,
        absent="import a_module_that_is_not_there\n",
        syntax="def broken(:\n",
        empty="",
        raising=head
        + "class R(Service):\n    name = 'raising'\n    async def start(self):\n        raise OSError('no')\n",
        hanging=head + "class H(Service):\n    name = 'hanging'\n    start_timeout = 0.1\n"
        "    async def start(self):\n        await asyncio.sleep(3600)\n",
        kv=KV,
    )
    with booted(tmp_path, *broken) as node:
        for name in ("absent", "syntax", "empty"):
            assert node.states[name] == "broken"
        assert node.states["raising"] in {"restarting", "starting", "quarantined"}
        assert node.states["hanging"] in {"restarting", "starting", "quarantined"}
        whys = {service["name"]: service["detail"] for service in node.ready["services"]}
        assert "a_module_that_is_not_there" in whys["absent"]
        assert "SyntaxError" in whys["syntax"]
        assert "defines no service" in whys["empty"]
        told = [event["text"] for event in node.events if event["event"] == "service" and event["mark"] == "fail"]
        assert any("hanging" in text and "did not start within 0.1 s" in text for text in told)
        assert node.json("call", "kv.put", "key=a", "value=1") == 1
        doctor = node.mk("doctor")
        assert doctor.returncode == 1
        assert "a_module_that_is_not_there" in doctor.stdout


# Talking to a node


def test_a_call_takes_json_or_fields_and_prints_json(node: Node):
    assert node.json("call", "kv.put", '{"key": "a", "value": 1}') == 1
    assert node.json("call", "kv.put", "key=b", "value=2") == 2
    assert node.mk("call", "kv.put", "-", text='{"key": "b", "value": 3}').stdout == "2\n"


def test_a_stream_is_printed_item_by_item(node: Node):
    assert node.mk("call", "kv.count", "to=3").stdout == "0\n1\n2\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("kv.put", "key=a", "value=x"), "error: kv.put: Expected `int`, got `str` in field 'value'\n"),
        (("kv.put", "nonsense"), "error: 'nonsense' is neither a JSON object nor key=value\n"),
        (("kv.put", "{"), "error: the message is no JSON object: Input data was truncated\n"),
        (("kv.fail",), "error: kv raised RuntimeError: the shelf has fallen down\n"),
        (("kv.nothing",), "error: service 'kv' has no handler 'nothing' (it has: count, fail, put)\n"),
    ],
)
def test_what_is_wrong_is_one_line(node: Node, arguments: tuple[str, ...], told: str):
    done = node.mk("call", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)


def test_services_are_listed_restarted_removed_and_added(node: Node):
    assert {"kernel", "gateway", "kv"} <= {service["name"] for service in node.json("services")}
    extra = KV.replace('"kv"', '"extra"')
    assert node.json("services", "add", write(node.folder, "extra.py", extra))[0]["state"] in {"running", "ready"}
    assert node.json("services", "restart", "extra")[0]["incarnation"] == 2
    assert node.mk("services", "remove", "extra").stdout == "removed extra\n"
    assert node.mk("services", "restart", "extra").returncode == 1
    table = node.mk("services").stdout.splitlines()
    assert table[0].split() == ["service", "state", "starts", "in-flight", "source", "why"]


def test_describe_shows_what_a_message_takes(node: Node):
    assert "kv.put(key: string, value: integer) -> integer" in node.mk("describe", "kv").stdout
    assert "kv.count(to?: integer) ->> integer" in node.mk("describe", "kv.count").stdout
    assert "Keeps numbers." in node.mk("describe").stdout
    assert node.json("describe", "kv.put")["address"] == "kv.put"
    assert "it has: count, fail, put" in node.mk("describe", "kv.nothing").stderr


def test_devices_memory_and_processes_are_tables_and_json(node: Node):
    assert node.json("devices")[0]["name"] == "cpu0"
    assert node.mk("devices").stdout.startswith("device")
    assert node.json("memory")[0]["device"] == "cpu0"
    assert node.mk("memory").stdout.splitlines()[1].startswith("cpu0")
    assert node.json("ps", "--all") == []
    assert node.mk("ps").stdout.startswith("pid")
    killed = node.mk("kill", "77")
    assert (killed.returncode, killed.stdout) == (1, "")
    assert "77" in killed.stderr


def test_a_map_prints_values_by_line_and_a_reduction_alone(node: Node):
    assert node.mk("map", "math:sqrt", "[1, 4, 9]").stdout == "1.0\n2.0\n3.0\n"
    assert node.mk("map", "math:sqrt", "0:5", "--reduce", "max", "--tasks", "2").stdout == "2.0\n"
    assert node.mk("map", "math:sqrt", "-", "--processes", text="16\n25\n").stdout == "4.0\n5.0\n"
    failed = node.mk("map", "math:sqrt", "[4, -1]")
    assert (failed.returncode, failed.stdout) == (1, "2.0\nnull\n")
    assert "item 1: " in failed.stderr
    assert "math domain error" in failed.stderr


def test_the_policy_is_shown_and_switched(node: Node):
    assert node.mk("policy").stdout.startswith("fair; others: ")
    assert node.mk("policy", "priority").stdout.startswith("priority; others: ")
    status = json.loads(node.mk("--json", "policy", "fair", "--weight", "ana=3").stdout)
    assert (status["name"], status["weights"]) == ("fair", {"ana": 3.0})
    wrong = node.mk("policy", "--weight", "ana=no")
    assert wrong.returncode == 2
    for command in ("nice 999999 5", "pause 999999", "resume 999999", "why 999999"):
        refused = node.mk(*command.split())
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "no process 999999" in refused.stderr


def test_top_is_printed_once_into_a_pipe_and_lives_on_a_terminal(node: Node):
    once = node.mk("top")
    assert "policy fair" in once.stdout
    assert "cpu0" in once.stdout
    terminal, end = pty.openpty()
    arguments = [sys.executable, "-m", "microkernel", "--root", str(node.root), "top"]
    process = subprocess.Popen(
        arguments, stdin=end, stdout=end, stderr=end, env=environment(node.folder) | {"TERM": "xterm"}
    )
    os.close(end)
    seen = b""
    while b"q quit" not in seen:
        seen += os.read(terminal, 65536)
    os.write(terminal, b"q")
    with suppress(OSError):  # the terminal closes with its last process
        while os.read(terminal, 65536):
            pass
    assert process.wait(30) == 0
    os.close(terminal)


def test_the_log_can_be_read_and_followed(node: Node):
    assert any("listening on" in json.loads(line)["message"] for line in node.mk("--json", "log").stdout.splitlines())
    assert len(node.mk("log", "-n", "1").stdout.splitlines()) == 1
    follow = [sys.executable, "-m", "microkernel", "log", "-f", "--root", str(node.root)]
    with started(
        follow, env=environment(node.folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "")


def watching(node: Node, *arguments: str) -> Any:
    """`mk watch`, once it follows: what is kept comes first."""
    command = [sys.executable, "-m", "microkernel", "watch", "service.>", "--since", "0", "--root", str(node.root)]
    return started(
        [*command, *arguments], env=environment(node.folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_events_can_be_followed_from_the_first_that_is_kept_until_there_are_enough(node: Node):
    done = node.mk("watch", "service.kv.*", "--since", "0", "--count", "3")
    assert (done.returncode, done.stderr) == (0, "")
    told = [shown.split(maxsplit=4) for shown in done.stdout.splitlines()]
    assert [words[2:4] for words in told] == [
        [f"service.kv.{state}", "name=kv"] for state in ("starting", "running", "ready")
    ]
    offsets = [int(words[0]) for words in told]
    assert offsets == sorted(set(offsets))
    later = json.loads(node.mk("watch", "service.kv.*", "--since", str(offsets[1]), "--count", "1", "--json").stdout)
    assert later["offset"] == offsets[2]
    assert later["subject"] == "service.kv.ready"
    assert later["body"]["state"] == "ready"


def test_ctrl_c_ends_a_watch_without_a_word(node: Node):
    with watching(node) as process:
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "")


def test_a_watch_ends_with_its_node_and_says_so_in_one_line(tmp_path: Path):
    with booted(tmp_path) as node, watching(node) as process:
        assert process.stdout.readline()
        node.process.terminate()
        node.process.communicate()
        stdout, stderr = process.communicate()
    assert "the node was told to stop" in stdout
    assert process.returncode == 1
    assert stderr.startswith("error: the link to ")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("kv.changed", "--since", "0"), "error: the events of kv.changed are not kept"),
        (("service.>", "--since", "999999999"), "error: offset 999999999 is not of this epoch"),
        (("no subject",), "error: 'no subject' is no subject"),
    ],
)
def test_a_watch_that_cannot_be_is_one_line(node: Node, arguments: tuple[str, ...], told: str):
    done = node.mk("watch", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_the_pipe_is_no_error(node: Node):
    follow = [sys.executable, "-m", "microkernel", "call", "kv.count", "to=100000", "--root", str(node.root)]
    with started(
        follow, env=environment(node.folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141


def test_doctor_checks_the_node_and_this_machine(node: Node):
    checks = {check["name"]: check for check in json.loads(node.mk("--json", "doctor").stdout)}
    for name in ("python", "torch", "state folder", "token", "node", "service kv", "device cpu0"):
        assert checks[name]["ok"], checks[name]
    (node.root / "token").chmod(0o644)
    try:
        done = node.mk("doctor")
        assert done.returncode == 1
        assert f"chmod 600 {node.root / 'token'}" in done.stdout
    finally:
        (node.root / "token").chmod(0o600)


def test_what_was_chosen_by_measuring_is_shown_kept_and_told_by_doctor(node: Node):
    tuned = [json.loads(line) for line in node.mk("--json", "bench", "tune", "--anyway").stdout.splitlines()]
    (device,) = [each for each in tuned if each["subject"] == ""]
    assert device["title"] == "cpu0"
    assert {"spread", "core_threads"} == set(device["chosen"])
    chosen = f"spread {device['chosen']['spread']}, core_threads {device['chosen']['core_threads']}"
    assert any(chosen in line and "tuning" in line for line in node.mk("doctor").stdout.splitlines())
    shown = node.mk("devices").stdout
    assert "T_c create" in shown
    assert f"{device['chosen']['spread']} cores" in shown


def test_the_node_is_a_tree_of_files(node: Node):
    assert {"/dev", "/proc"} < {each["path"] for each in json.loads(node.mk("--json", "fs", "ls").stdout)}
    assert "kv\tready" in node.mk("fs", "cat", "/proc/services").stdout
    assert "state:\thealthy\n" in node.mk("fs", "cat", "/dev/cpu0").stdout
    assert json.loads(node.mk("--json", "fs", "stat", "/dev/cpu0").stdout)["kind"] == "live"
    for wrong in (("cat", "/proc"), ("cat", "/proc/../etc/passwd"), ("ls", "/etc"), ("stat", "proc")):
        done = node.mk("fs", *wrong)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")


def test_files_go_into_the_tree_and_out_of_it_and_about_in_it(node: Node, tmp_path: Path):
    content = random.Random(6).randbytes(700_000)
    (tmp_path / "in").write_bytes(content)
    assert "/data/go/a: 683.6 KiB, version" in node.mk("fs", "put", str(tmp_path / "in"), "/data/go/a").stdout
    assert node.mk("fs", "get", "/data/go/a", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out").read_bytes() == content
    for action in (("mkdir", "/data/go/f"), ("mv", "/data/go/a", "/data/go/f/b"), ("cp", "/data/go/f/b", "/data/go/c")):
        done = node.mk("fs", *action)
        assert (done.returncode, done.stderr) == (0, "")
    assert [each["path"] for each in json.loads(node.mk("--json", "fs", "ls", "/data/go").stdout)] == [
        "/data/go/c",
        "/data/go/f",
    ]
    assert "/data/go/f/b" in node.mk("fs", "ls", "/data/go/f").stdout
    assert node.mk("fs", "rm", "/data/go").stderr.startswith("error: /data/go is not empty")
    assert node.mk("fs", "rm", "-r", "/data/go").returncode == 0
    assert node.mk("fs", "get", "/data/go/c", str(tmp_path / "late")).returncode == 1
    assert not list(tmp_path.glob("late*"))


def test_versions_of_files_are_told_compared_and_gone_back_to(node: Node, tmp_path: Path):
    def write(text: str) -> None:
        (tmp_path / "note").write_text(text)
        node.mk("fs", "put", str(tmp_path / "note"), "/data/versions/note")

    write("first\n")
    assert "first-state is version" in node.mk("fs", "snapshot", "first-state").stdout
    write("second\n")
    assert node.mk("fs", "cat", "/data/versions/note", "--at", "first-state").stdout == "first\n"
    history = json.loads(node.mk("--json", "fs", "history", "/data/versions/note").stdout)
    assert [each["action"] for each in history] == ["written", "written"]
    assert "written" in node.mk("fs", "history", "/data/versions/note").stdout
    assert "changed" in node.mk("fs", "diff", "first-state", "/data/versions").stdout
    assert "first-state" in node.mk("fs", "snapshots").stdout
    node.mk("fs", "rollback", "/data/versions/note", str(history[1]["version"]))
    assert node.mk("fs", "cat", "/data/versions/note").stdout == "first\n"
    assert node.mk("fs", "snapshot", "first-state", "--forget").returncode == 0
    assert "forgotten" in node.mk("fs", "collect", "--older-than", "0", "--dry-run").stdout
    assert "0 damages" in node.mk("fs", "scrub").stdout
    assert "/data/versions/note:1: first" in node.mk("fs", "grep", "fi.st", "/data/versions").stdout
    assert node.mk("fs", "grep", "nothing like it", "/data").returncode == 1


def test_rights_and_quotas_of_files_are_told_and_changed(node: Node, tmp_path: Path):
    (tmp_path / "in").write_bytes(b"1")
    node.mk("fs", "put", str(tmp_path / "in"), "/data/rights/a")
    given = node.mk("fs", "access", "/data/rights", "--give", "ann=read,write", "--give", "*=read").stdout
    assert "ann" in given
    assert "by the list of /data/rights" in node.mk("fs", "access", "/data/rights/a").stdout
    assert "by the list of /data" in node.mk("fs", "access", "/data/rights", "--inherit").stdout
    assert node.mk("fs", "quota", "bob", "10G").returncode == 0
    assert node.mk("fs", "quota", "bob", "lots").returncode == 2
    assert "root" in node.mk("fs", "usage").stdout
    assert "no folder" in node.mk("fs", "index").stdout


def test_other_storage_is_mounted_listed_and_taken_out_again(node, tmp_path):
    (tmp_path / "a.txt").write_text("elsewhere\n")
    mounted = node.mk("--json", "fs", "mount", tmp_path.as_uri(), "/mnt/here", "--writable", "--option", "x=1")
    assert json.loads(mounted.stdout)[0]["path"] == "/mnt/here"
    assert node.mk("fs", "cat", "/mnt/here/a.txt").stdout == "elsewhere\n"
    (told,) = json.loads(node.mk("--json", "fs", "mounts").stdout)
    assert (told["url"], told["writable"], told["atomic"]) == (tmp_path.as_uri(), True, True)
    assert tmp_path.as_uri() in node.mk("fs", "mounts").stdout
    assert "password" in node.mk("fs", "mount", "https://ann:hunter22@host/x", "/mnt/there").stderr
    assert node.mk("fs", "umount", "/mnt/here").returncode == 0
    assert json.loads(node.mk("--json", "fs", "mounts").stdout) == []


def test_a_benchmark_that_is_not_there_is_told_with_those_that_are(tmp_path: Path):
    done = mk("bench", "run", "nothing", folder=tmp_path)
    assert done.returncode == 1
    assert "scheduling" in done.stderr
    assert "usage: python -m benchmarks.messages" in mk("bench", "run", "messages", "--help", folder=tmp_path).stdout


def test_without_a_node_commands_say_how_to_start_one(tmp_path: Path):
    for command in (("ps",), ("chat", "--once", "hi"), ("services",), ("log",)):
        done = mk(*command, folder=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: no node is running")
        assert "boot" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_wrong_token_is_refused_in_one_line(node: Node):
    done = subprocess.run(
        [sys.executable, "-m", "microkernel", "ps", "--root", str(node.root)],
        env={**environment(node.folder), "MICROKERNEL_TOKEN": "mk-wrong-wrong-wrong"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_the_node_is_found_by_url(node: Node):
    environ = {**environment(node.folder), "MICROKERNEL_TOKEN": node.ready["token"]}
    command = [sys.executable, "-m", "microkernel", "--json", "call", "kernel.status"]
    for given, extra in ((("--url", node.ready["url"]), {}), ((), {"MICROKERNEL_URL": node.ready["url"]})):
        done = subprocess.run([*command, *given], env={**environ, **extra}, capture_output=True, text=True, check=False)
        assert json.loads(done.stdout)["root"] == str(node.root), done.stderr


# Chat


def test_chat_once_streams_the_answer_and_drives_no_terminal(node: Node):
    done = node.mk("chat", "--once", "hello there")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1: hello[2J there[2J\n", "")
    assert node.mk("chat", "--once", "-", "--system", "be brief", text="from a pipe\n").stdout.startswith("2: from")


def test_chat_keeps_the_conversation(node: Node):
    done = node.mk("chat", text="one\n\ntwo\n")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["1", "3"]
    assert done.returncode == 0


def test_chat_that_gets_no_answer_fails_in_one_line(node: Node):
    done = node.mk("chat", "--once", "overload")
    assert (done.returncode, done.stderr) == (1, "error: too many ask (come back later)\n")
    short = node.mk("chat", "--once", "stop short")
    assert short.returncode == 1
    assert "ended before the model had finished" in short.stderr
    assert node.mk("chat", "--once", " ").returncode == 1


def test_ctrl_c_stops_the_answer_and_not_the_chat(node: Node):
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "microkernel", "chat", "--root", str(node.root)]
    environ = {**environment(node.folder), "TERM": "dumb"}
    with started(command, env=environ, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        read_terminal(terminal, ">>> ")
        os.write(terminal, b"forever\n")
        read_terminal(terminal, "1: forever")
        process.send_signal(signal.SIGINT)
        read_terminal(terminal, ">>> ")
        os.write(terminal, b"again\n")
        read_terminal(terminal, "3: again")
        read_terminal(terminal, ">>> ")
        os.write(terminal, b"\x04")
        assert process.wait() == 0
        os.close(terminal)
    assert node.json("ps") == []


# Usage


def test_without_arguments_the_five_most_useful_commands_are_shown(tmp_path: Path):
    done = mk(folder=tmp_path)
    assert done.returncode == 0
    assert "mk boot" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("chta",), "error: 'mk chta' is no command (did you mean 'mk chat'?)\n"),
        (("services", "restrat"), "error: 'mk services restrat' is no command (did you mean 'mk services restart'?)\n"),
        (("boot", "--port", "70000"), "error: argument --port: '70000' is no port: 0 to 65535 (see mk boot --help)\n"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], told: str):
    done = mk(*arguments, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_help_brings_in_nothing_heavy(tmp_path: Path):
    code = "import sys\nfrom microkernel.cli import make_parser\nmake_parser().format_help()\n"
    code += "print([name for name in ('torch', 'aiohttp', 'rich', 'numpy', 'uvloop') if name in sys.modules])\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "[]\n"


# Checks before a boot


def test_check_finds_nothing_wrong_and_starts_nothing(tmp_path: Path):
    config = write(tmp_path, "config.toml", 'disable = ["inference", "models"]\n')
    done = mk("boot", "--check", "--config", config, "--root", "root", "--port", "0", folder=tmp_path)
    assert done.returncode == 0, done.stdout
    assert not (tmp_path / "root").exists()


def test_check_names_everything_that_is_wrong_at_once(tmp_path: Path):
    config = write(tmp_path, "config.toml", 'disable = ["models"]\n[services.memory]\nshare = "x"\n')
    model = write(tmp_path, "model.gguf", "not a model")
    absent = write(tmp_path, "absent.py", "import a_module_that_is_not_there\n")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        given = ("--config", config, "--root", "root", "--port", port, "--model", model, "--service", absent)
        done = mk("boot", "--check", "--json", *given, folder=tmp_path)
    wrong = {check["name"]: check["detail"] for check in json.loads(done.stdout) if not check["ok"]}
    assert done.returncode == 1
    assert set(wrong) >= {"settings", "port", "model", "service absent"}
    assert "line 3" in wrong["settings"]


SERVER = '[[services.devices.drivers.upstream.servers]]\nname = "a"\nurl = "http://127.0.0.1:9/v1"\n'


def test_check_names_the_servers_that_are_set_and_asks_none(tmp_path: Path):
    config = write(tmp_path, "config.toml", SERVER + '[services.inference]\nmodel = "a/some-model"\n')
    done = mk("boot", "--check", "--json", "--config", config, "--root", "root", "--port", "0", folder=tmp_path)
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert found["driver upstream"]["detail"] == "a"
    assert "looked up at the boot" in found["model"]["detail"]


def test_check_names_a_server_that_cannot_be_one(tmp_path: Path):
    config = write(tmp_path, "config.toml", SERVER.replace("http", "gopher"))
    done = mk("boot", "--check", "--json", "--config", config, "--root", "root", "--port", "0", folder=tmp_path)
    wrong = {check["name"]: check["detail"] for check in json.loads(done.stdout) if not check["ok"]}
    assert done.returncode == 1
    assert "services.devices.drivers.upstream.servers[0].url" in wrong["driver upstream"]


def test_check_names_launchers_that_cannot_be_used(tmp_path: Path):
    text = '[services.cluster.launchers.ray]\naddress = "nowhere"\n[services.cluster.launchers.other]\n'
    config = write(tmp_path, "config.toml", text)
    done = mk("boot", "--check", "--json", "--config", config, "--root", "root", "--port", "0", folder=tmp_path)
    wrong = {check["name"]: check["detail"] for check in json.loads(done.stdout) if not check["ok"]}
    assert done.returncode == 1
    assert "services.cluster.launchers.ray.address" in wrong["launcher ray"]
    assert wrong["launcher other"] == "is not installed"


# The model store


@pytest.mark.model
def test_a_model_is_pulled_listed_shown_and_removed_before_the_first_boot(tmp_path: Path, default_model: Path):
    pulled = mk("models", "pull", str(default_model), "--name", "tiny", "--root", "root", folder=tmp_path)
    assert pulled.returncode == 0, pulled.stderr
    assert "tiny is stored" in pulled.stdout
    assert mk("models", "--root", "root", folder=tmp_path).stdout.splitlines()[1].startswith("tiny")
    shown = json.loads(mk("--json", "models", "show", "tiny", "--root", "root", folder=tmp_path).stdout)
    assert shown["format"] == "gguf"
    assert mk("models", "remove", "tiny", "--root", "root", folder=tmp_path).returncode == 0
    assert json.loads(mk("--json", "models", "--root", "root", folder=tmp_path).stdout) == []


def test_a_pull_that_cannot_be_says_why_in_one_line(tmp_path: Path):
    done = mk("models", "pull", "missing/model.gguf", "--root", "root", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.model
def test_the_default_model_answers_after_a_boot(tmp_path: Path, default_model: Path):
    with booted(tmp_path, "--model", str(default_model), config="") as node:
        assert node.states["inference"] == "ready"
        assert any(event["event"] == "inference.loaded" for event in node.events)
        # What a model of this size says is its own affair; tests/services/inference/test_fidelity.py judges the engine.
        done = node.mk("chat", "--once", "Name three colours.", "--temperature", "0", "--max-tokens", "24")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) > 3
        assert node.json("ps", "--all")[0]["state"] == "done"


@pytest.mark.model
def test_a_model_that_was_cut_off_is_named_and_nothing_is_left(tmp_path: Path, default_model: Path):
    short = tmp_path / "short.gguf"
    short.write_bytes(default_model.read_bytes()[:1_000_000])
    assert "short.gguf" in boot_fails(tmp_path, "--model", str(short), config="")


@pytest.mark.model
def test_a_model_that_does_not_fit_in_memory_is_told_with_its_size(tmp_path: Path, default_model: Path):
    told = boot_fails(tmp_path, "--model", str(default_model), config="[services.memory]\nshare = 0.001\n")
    assert "needs" in told
    assert "cpu0" in told


def test_a_file_that_is_no_model_is_named(tmp_path: Path):
    path = write(tmp_path, "wrong.gguf", "this is not a model at all")
    assert "wrong.gguf" in boot_fails(tmp_path, "--model", path, config="")


def test_a_thread_that_is_inside_of_torch_does_not_abort_the_process_that_ends(tmp_path: Path):
    marker = tmp_path / "marker"
    source = f"""
import pathlib, torch
square = torch.ones(600, 600)
pathlib.Path({str(marker)!r}).touch()
while True:
    square @ square
"""
    with boot(tmp_path, "--service", write(tmp_path, "busy.py", source)) as process:
        while not marker.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")


def test_a_token_is_made_handed_on_used_audited_and_revoked(node: Node):
    def as_holder(token: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "microkernel", "--url", node.ready["url"], *arguments],
            env={**environment(node.folder), "MICROKERNEL_TOKEN": token},
            cwd=node.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    asked = ["--user", "ana", "--allow", "kv.*", "--allow", "kernel.describe", "--expires", "1h"]
    made = node.mk("token", "create", *asked)
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    number = made.stderr.split()[1].rstrip(",")
    narrowed = node.mk("token", "narrow", "-", "--deny", "kv.put", text=token).stdout.strip()
    assert as_holder(token, "call", "kv.put", "key=a", "value=1").returncode == 0
    for holder, target in ((narrowed, "kv.put"), (token, "kernel.shutdown"), (token, "kernel.token_create")):
        denied = as_holder(holder, "call", target)
        assert denied.returncode == 1
        assert f"has no right to call {target}" in denied.stderr
    audit = node.mk("log", "--audit", "--user", "ana").stdout
    assert [line.split()[2:4] for line in audit.splitlines()] == [["call", "ana"]] * 3
    assert "kernel.shutdown: its rights do not cover it" in audit
    assert node.mk("token", "revoke", number).stdout == f"revoked {number}\n"
    for holder in (token, narrowed):
        refused = as_holder(holder, "services")
        assert refused.returncode == 1
        assert "the token was revoked" in refused.stderr
    assert [each["id"] for each in node.json("token", "revoked")] == [number]
    log = node.mk("log", "--level", "debug", "-n", "4000").stdout
    assert f"token {number} was made for ana" in log
    for secret in (token, narrowed, node.ready["token"]):
        assert secret not in log + audit + node.mk("log", "--audit").stdout
    assert node.mk("token", "rotate").returncode == 0
    assert node.json("token", "revoked") == []
