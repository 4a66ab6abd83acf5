"""The audit as it is kept: over restarts, in bounded files, and shown."""

from __future__ import annotations

import json

import pytest

from microkernel.audit import Act, Denial
from microkernel.capability import Rights
from microkernel.errors import Denied, Invalid
from microkernel.testing import TestKernel
from services.monitor import audit_file
from services.monitor.audit_file import FILES, AuditFile
from services.monitor.messages import ReadAudit
from services.monitor.service import Monitor


def denial(number: int, user: str = "ana") -> Denial:
    return Denial(at=float(number), act=Act.CALL, who="session s1", user=user, target=f"kv.x{number}", why="no right")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "monitor" / "audit.jsonl"


def loaded(path, **limits) -> AuditFile:
    audit = AuditFile(path, **limits)
    audit.load()
    return audit


def test_what_was_kept_is_shown_after_a_restart_oldest_first_and_by_user(path):
    audit = loaded(path)
    for number in range(4):
        audit.add(denial(number, "ana" if number % 2 else "bob"))
        audit.write()
    assert path.stat().st_mode & 0o777 == 0o600
    again = loaded(path)
    assert [each.at for each in again.read(ReadAudit())] == [0, 1, 2, 3]
    assert [each.at for each in again.read(ReadAudit(lines=1, user="bob"))] == [2]
    with pytest.raises(Invalid, match="at least 1"):
        again.read(ReadAudit(lines=0))


def test_the_files_are_bounded_and_the_newest_is_kept_whatever_comes(path):
    audit = loaded(path, file_bytes=1000)
    for number in range(200):
        audit.add(denial(number))
        audit.write()
    files = sorted(path.parent.iterdir())
    assert len(files) <= FILES + 1
    assert sum(file.stat().st_size for file in files) < (FILES + 1) * 1200
    assert loaded(path).read(ReadAudit())[-1] == denial(199)


def test_memory_is_bounded(path, monkeypatch):
    monkeypatch.setattr(audit_file, "RECORDS", 10)
    audit = loaded(path)
    for number in range(100):
        audit.add(denial(number))
    assert [each.at for each in audit.read(ReadAudit(lines=1000))] == list(range(90, 100))


def test_a_line_that_a_crash_has_cut_off_is_passed_over(path):
    audit = loaded(path)
    audit.add(denial(1))
    audit.write()
    with path.open("ab") as file:
        file.write(b'{"at":2.0,"act":"ca')
    again = loaded(path)
    assert again.read(ReadAudit()) == [denial(1)]
    again.add(denial(3))
    again.write()
    assert loaded(path).read(ReadAudit()) == [denial(1), denial(3)]


async def until_kept(system: TestKernel, count: int) -> list[Denial]:
    """What the monitor has, once it has `count`."""
    while len(kept := await system.call("monitor.audit")) < count:
        await system.kernel.router.clock.sleep(0.001)
    return kept


async def test_denials_reach_the_file_and_outlive_the_node(tmp_path):
    async with TestKernel(Monitor, root=tmp_path) as system:
        port = system.kernel.port.narrow(caller="session s1", rights=Rights(allow=()), user="ana")
        with pytest.raises(Denied):
            await port.call("monitor.log")
        [kept] = await until_kept(system, 1)
        assert (kept.user, kept.target) == ("ana", "monitor.log")
    [line] = (tmp_path / "monitor" / "audit.jsonl").read_text().splitlines()
    assert json.loads(line)["who"] == "session s1"
    async with TestKernel(Monitor, root=tmp_path) as system:
        assert await system.call("monitor.audit", user="ana") == [kept]


async def test_a_flood_of_denials_becomes_a_few_lines_that_count_all_of_them(tmp_path):
    async with TestKernel(Monitor, root=tmp_path) as system:
        port = system.kernel.port.narrow(caller="session s1", rights=Rights(allow=()), user="ana")
        for number in range(20_000):
            with pytest.raises(Denied):
                port.publish(f"colour.x{number % 7000}")
        total = 0
        while total < 20_000:
            await system.kernel.router.clock.sleep(0.01)
            kept = await system.call("monitor.audit", lines=10_000)
            total = sum(each.count for each in kept)
        assert total == 20_000
        assert len((tmp_path / "monitor" / "audit.jsonl").read_text().splitlines()) < 2000


async def test_an_audit_that_cannot_be_written_is_said_once_and_stops_nothing(monkeypatch, caplog):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AuditFile, "write", full)
    async with TestKernel(Monitor) as system:
        port = system.kernel.port.narrow(caller="session s1", rights=Rights(allow=()), user="ana")
        for target in ("a.b", "a.c", "a.d"):
            with pytest.raises(Denied):
                await port.call(target)
        assert len(await until_kept(system, 3)) == 3
    assert caplog.text.count("the audit cannot be written: No space left on device") == 1
