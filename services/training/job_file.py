"""What the processes of a job need to know of it, as files in the job's folder: made by the agent, read by them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from microkernel.errors import DataLoss
from microkernel.message import Message
from services.training.config import DataConfig, JobConfig
from services.training.data.preparation import Prepared

__all__ = ["JobFile", "PreparationFile", "read_file", "write_file"]

T = TypeVar("T", bound=msgspec.Struct)


class JobFile(Message, kw_only=True):
    """A job, ready to be begun.

    `base` is the model's file or folder, "" for a new one; `tokenizer` that of the model whose tokenizer is used, which
    may be the same. Checkpoints are in `folder`, signed with the key in the file `key`. `device` is torch's name.
    """

    job: str
    config: JobConfig
    base: str
    tokenizer: str
    prepared: Prepared
    folder: str
    key: str
    steps: int
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1


class PreparationFile(Message, kw_only=True):
    """What is to be prepared: local files, each with the name that its user knows, and where prepared data are kept."""

    train: tuple[tuple[str, str], ...]
    evaluation: tuple[tuple[str, str], ...]
    tokenizer: str
    config: DataConfig
    cache: str


def write_file(path: Path, content: msgspec.Struct) -> None:
    """Write it. Raises `OSError`."""
    path.write_bytes(msgspec.json.encode(content))


def read_file(path: Path, kind: type[T]) -> T:
    """Read it. Raises `DataLoss`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataLoss(f"the job's file {path} cannot be read: {error}") from error
