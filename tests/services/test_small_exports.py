"""What services keep that keep little: it leaves a node, and holds on another one."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from portable_entries import exported, restoring, take_in

from microkernel.capability import Rights
from microkernel.errors import DataLoss, Denied, PreconditionFailed, TooBig
from microkernel.portable import EntryPiece
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.memory.service import Memory
from services.monitor.audit_file import AuditFile
from services.monitor.service import Monitor


async def test_quotas_that_were_set_live_hold_on_another_node(tmp_path):
    async with TestKernel(Devices, Memory) as system:
        assert await exported(system, "memory") == []
        await system.call("memory.set_quota", owner="ann", quota=0.25)
        await system.call("memory.set_quota", owner="bob", quota=1 << 30)
        pieces = await exported(system, "memory")
    async with restoring(tmp_path, Memory) as port:
        await take_in(port, "memory", pieces)
    async with TestKernel(Devices, Memory, root=tmp_path) as other:
        quotas = {each.owner: (each.bytes, each.set) for each in (await other.call("memory.quotas")).quotas}
    assert quotas["bob"] == (1 << 30, "live")
    assert quotas["ann"][1] == "live"


async def test_what_was_measured_holds_after_a_restore_on_the_same_machine(tmp_path):
    chosen = {"device": "cpu0", "subject": "a model", "title": "a model", "chosen": {"slots": 3}, "measured": {}}
    async with TestKernel(Devices) as system:
        assert await exported(system, "devices") == []
        kept = await system.call("devices.keep_tuning", **chosen)
        pieces = await exported(system, "devices")
    async with restoring(tmp_path, Devices) as port:
        await take_in(port, "devices", pieces)
    async with TestKernel(Devices, root=tmp_path) as other:
        assert await other.call("devices.find_tuning", device="cpu0", subject="a model") == kept


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        (Memory, "quotas.json", b"{"),
        (Memory, "quotas.json", b"[]"),
        (Memory, "quotas.json", b'{"ann": -1}'),
        (Memory, "quotas.json", b'{"ann": 1.5}'),
        (Memory, "quotas.json", b'{"": 1}'),
        (Memory, "other.json", b"{}"),
        (Devices, "tuning.json", b"{}"),
        (Devices, "tuning.json", b"\xff"),
        (Devices, "tuning.json/x", b"[]"),
        (Monitor, "audit.jsonl", b"{}"),
        (Monitor, "audit.jsonl.5", b""),
        (Monitor, "log.jsonl", b""),
    ],
)
async def test_what_no_service_could_read_is_refused_before_it_is_written(tmp_path, kind, name, content):
    async with restoring(tmp_path, kind) as port:
        with pytest.raises(DataLoss):
            await take_in(port, kind.name, [EntryPiece(name=name, content=content)])
    assert not (tmp_path / kind.name / name).exists()


async def test_a_file_that_is_too_large_is_not_taken_into_memory(tmp_path):
    async with restoring(tmp_path, Devices) as port:
        with pytest.raises(TooBig):
            await take_in(port, "devices", [EntryPiece(name="tuning.json", content=bytes(5 << 20))])


async def test_what_was_denied_before_is_in_the_audit_of_another_node(tmp_path):
    async with TestKernel(Monitor) as system:
        ann = system.kernel.port.narrow(caller="session ann", rights=Rights(allow=("monitor.log",)), user="ann")
        with pytest.raises(Denied):
            await ann.call("kernel.services")
        while not (denied := await system.call("monitor.audit")):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(until, system.root / "monitor" / "audit.jsonl")
        pieces = await exported(system, "monitor")
    async with restoring(tmp_path, Monitor) as port:
        await take_in(port, "monitor", pieces)
    async with TestKernel(Monitor, root=tmp_path) as other:
        assert await other.call("monitor.audit") == denied


def until(path: Path) -> None:
    """Return when a file has a line."""
    while not path.exists() or not path.read_bytes().endswith(b"\n"):
        time.sleep(0.005)


def test_a_line_of_the_audit_that_is_being_written_stays(tmp_path):
    (tmp_path / "audit.jsonl").write_bytes(b"whole\nha")
    (tmp_path / "audit.jsonl.1").write_bytes(b"old\n")
    assert AuditFile(tmp_path / "audit.jsonl").files() == {"audit.jsonl": b"whole\n", "audit.jsonl.1": b"old\n"}


@pytest.mark.parametrize("kind", [Devices, Memory, Monitor])
async def test_only_root_takes_along_what_services_keep_and_no_node_that_runs_takes_it_in(kind):
    async with TestKernel(Devices, Memory, Monitor) as system:
        ann = system.kernel.port.narrow(caller="session ann", rights=Rights(), user="ann")
        with pytest.raises(Denied, match="only root"):
            await anext(ann.stream(f"{kind.name}.export"))
        with pytest.raises(PreconditionFailed, match="only while a node is restored"):
            await take_in(system, kind.name, [])
