"""The processes of training, from their first line on: the fork server, what prepares data, a job's template, workers.

`python -m services.training.worker.processes` is the fork server: it imports all that they need. A child of it is told
what to be. One that is given a job becomes its template: it reads the model and the data once, with one thread, and
forks the job's workers, which have both in the time that a fork takes and share the memory of what they do not change.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import torch
import torch.distributed

from formats.checkpoint.checkpoint import open_checkpoint
from microkernel.errors import DataLoss, Invalid, from_exception
from microkernel.isolation.child import die_with
from services.training.beat import Beat
from services.training.data.preparation import prepare
from services.training.data.progress import Progress
from services.training.data.sources import Source
from services.training.forkserver import serve
from services.training.job_file import JobFile, PreparationFile, read_file
from services.training.orders import (
    DataReady,
    Failed,
    Order,
    Prepare,
    Preparing,
    Ready,
    Report,
    Start,
    decode_order,
    frame,
    frames,
)
from services.training.worker.inbox import Inbox
from services.training.worker.loop import Worker
from services.training.worker.trainer import Trainer

__all__ = ["main"]

NICE = 10  # of all of them: the node, and what it computes for people, goes first


def main() -> None:
    """The fork server; its standard input is the line to the node."""
    die_with(os.getppid())
    os.nice(NICE)
    torch.set_num_threads(1)  # threads do not outlive a fork
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # the first one imports for seconds
    link = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    serve(link, _become)


def _become(descriptors: list[int]) -> None:
    """A child: its line to the node, and, where it is to fork others, the line on which it is asked to."""
    control = socket.socket(fileno=descriptors[0])
    try:
        match _first_order(control):
            case Prepare() as order:
                _prepare(Path(order.path), control)
            case Start() as order:
                _be_template(Path(order.path), control, descriptors[1])
            case order:
                raise Invalid(f"a new process cannot begin with {type(order).__name__}")
    except Exception as error:  # noqa: BLE001 - told to whoever started this process
        _tell(control, Failed(error=from_exception(error, service="training").report()))


def _prepare(path: Path, control: socket.socket) -> None:
    file = read_file(path, PreparationFile)

    def report(progress: Progress) -> None:
        _tell(control, Preparing(**progress._asdict()))

    prepared = prepare(
        [Source(Path(path), name) for path, name in file.train],
        [Source(Path(path), name) for path, name in file.evaluation],
        open_checkpoint(Path(file.tokenizer)).tokenizer_source,
        file.config,
        Path(file.cache),
        report,
    )
    _tell(control, DataReady(text=msgspec.json.encode(prepared).decode()))


def _be_template(path: Path, control: socket.socket, forks: int) -> None:
    trainer = Trainer(read_file(path, JobFile))
    parameters, trained = trainer.model.config.parameters, trainer.flat.layout.size
    _tell(control, Ready(parameters=parameters, trained=trained))

    def become(descriptors: list[int]) -> None:
        control.close()
        Worker(trainer, Inbox(socket.socket(fileno=descriptors[0])), Beat(descriptors[1])).live()

    with socket.socket(fileno=forks) as link:
        serve(link, become)


def _first_order(control: socket.socket) -> Order:
    buffer = bytearray()
    while not (found := frames(buffer)):
        chunk = control.recv(1 << 16)
        if not chunk:
            raise DataLoss("whoever started this process has gone")
        buffer += chunk
    return decode_order(found[0])


def _tell(control: socket.socket, report: Report) -> None:
    control.sendall(frame(report))


if __name__ == "__main__":
    main()
