"""What was chosen by measuring, kept for this machine in one small file. It blocks: for threads.

A folder may be carried to another machine, or the machine may get another version of torch: what was measured there and
then is not found here and now, and gone when something is kept in its place.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from microkernel.durable import replace
from microkernel.errors import DataLoss
from services.devices.messages import Tuning

__all__ = ["FILE", "LARGEST", "KeptTunings", "check_text"]

FILE = "tuning.json"
LARGEST = 4 << 20  # bytes of that

MOST = 256  # the newest: a node that has had many models remembers these


class KeptTunings:
    """All that is kept, by device and subject."""

    def __init__(self, path: Path) -> None:
        """What `path` holds. `broken` says why that cannot be read; then nothing is kept, until something is put."""
        self.broken = ""
        self._path = path
        self._kept: dict[tuple[str, str], Tuning] = {}  # the newest last
        self._one_at_a_time = threading.Lock()
        try:
            for each in msgspec.json.decode(path.read_bytes(), type=list[Tuning]):
                self._kept[each.device, each.subject] = each
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            self.broken = f"{path} cannot be read: {error}"

    def find(self, device: str, subject: str, machine: str) -> Tuning | None:
        """What was chosen for that subject on that machine."""
        kept = self._kept.get((device, subject))
        return kept if kept is not None and kept.machine == machine else None

    def all(self, machines: dict[str, str]) -> list[Tuning]:
        """All that holds here; `machines` says by device what it is."""
        return [kept for kept in self._kept.values() if machines.get(kept.device) == kept.machine]

    def text(self) -> bytes:
        """What the file says, also of other machines; empty where nothing is kept."""
        return _text(self._kept.values()) if self._kept else b""

    def put(self, tuning: Tuning) -> None:
        """Keep it, on the disk when this returns. Raises `OSError`, and keeps it until the end all the same."""
        with self._one_at_a_time:
            kept = {key: each for key, each in self._kept.items() if key != (tuning.device, tuning.subject)}
            newest = [*kept.values(), tuning][-MOST:]
            self._kept = {(each.device, each.subject): each for each in newest}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace(self._path, _text(newest))


def check_text(text: bytes) -> None:
    """Raises `DataLoss` for what is no file of tunings."""
    try:
        msgspec.json.decode(text, type=list[Tuning])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataLoss(f"what was measured is damaged: {error}") from error


def _text(kept: Iterable[Tuning]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(list(kept)), indent=1)
