"""Owns the processes: who runs what for whom, and how to end it."""

from __future__ import annotations

from microkernel.errors import NotFound
from microkernel.events import Event
from microkernel.message import Message, calling_service, current_call
from microkernel.service import Service, handles, on
from services.scheduler.messages import Exit, Kill, ListProcesses, Process, Report, Signal, Spawn
from services.scheduler.table import ProcessTable

__all__ = ["Scheduler"]


class SchedulerSettings(Message):
    """How many processes may run at once, and how many ended ones are remembered."""

    limit: int = 4096
    history: int = 256


class Scheduler(Service):
    """The process table: every generation is a process with an owner, a state, costs, and a reason why it waits."""

    name = "scheduler"
    uses = ("*",)  # a signal goes to whichever service runs the process
    Settings = SchedulerSettings

    async def start(self) -> None:
        self._table = ProcessTable(limit=self.settings.limit, history=self.settings.history)

    @handles(name="spawn")
    async def spawn_process(self, message: Spawn) -> Process:
        """Enter a piece of work; the service that runs it reports on it and says when it ends."""
        process = self._table.spawn(message, calling_service(), self.clock.now())
        self.publish("process.spawned", process)
        return process

    @handles
    async def report(self, message: Report) -> None:
        """Progress of many processes at once."""
        now, service = self.clock.now(), calling_service()
        for progress in message.entries:
            self._table.update(progress, now, service=service)

    @handles
    async def exit(self, message: Exit) -> None:
        """A process has ended."""
        process = self._table.update(message.progress, self.clock.now(), service=calling_service())
        if process is not None:
            self.publish("process.ended", process)

    @handles(name="list", idempotent=True)
    async def list_processes(self, message: ListProcesses) -> list[Process]:
        """What runs, oldest first; users other than root see their own."""
        processes = self._table.show(self.clock.now(), ended=message.ended)
        return [process for process in processes if _may_touch(process)]

    @handles
    async def kill(self, message: Kill) -> Process:
        """End a process; returns it as it was."""
        process = self._table.running(message.pid, self.clock.now())
        if not _may_touch(process):
            raise NotFound(f"there is no process {message.pid}", remedy="see `mk ps`")
        await self.call(
            f"{process.service}.signal", Signal(pid=process.pid, signal="kill", why=message.why), deadline=5.0
        )
        self.log.info("process %d (%s) was killed: %s", process.pid, process.title, message.why)
        return process

    @on("service.*.*")
    async def bury(self, event: Event) -> None:
        """A service that is gone runs nothing any more."""
        if event.body["state"] in {"restarting", "stopped", "quarantined"}:
            why = f"service '{event.body['name']}' is {event.body['state']}"
            for process in self._table.fail_service(event.body["name"], why, self.clock.now()):
                self.publish("process.ended", process)


def _may_touch(process: Process) -> bool:
    """Whether the user of the running call may see and end `process`: its owner may, and root, and this node itself."""
    call = current_call()
    return call is None or call.user in {None, "root", process.owner}
