from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kept_states import KeptJob, flip, same, state_of

from services.training.checkpoints import writing
from services.training.checkpoints.manifest import file_name, manifest_name
from services.training.checkpoints.rotation import best


def kept(job: KeptJob) -> list[int]:
    return sorted(each.number for each in job.folder.scan().complete)


@pytest.mark.parametrize(("keep", "numbers"), [(1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_newest_are_kept(tmp_path, keep, numbers):
    job = KeptJob(tmp_path, keep=keep)
    job.write(*(state_of(step) for step in range(1, 6)))
    assert kept(job) == numbers


def test_the_best_is_kept_beside_them(tmp_path):
    job = KeptJob(tmp_path, keep=1)
    job.write(*(state_of(step, loss=loss) for step, loss in enumerate((3.0, 1.0, 2.0, 4.0), 1)), state_of(5))
    assert kept(job) == [2, 5]


def test_of_equally_good_ones_the_newest_is_the_best(tmp_path):
    job = KeptJob(tmp_path, keep=3)
    job.write(*(state_of(step, loss=1.0) for step in range(1, 4)))
    assert best(job.folder.scan().complete).number == 3


def test_nothing_is_left_of_those_that_go(tmp_path):
    job = KeptJob(tmp_path, keep=1, file_bytes=12_000)
    job.write(*(state_of(step) for step in range(1, 4)))
    assert job.names() == [*(file_name(3, index) for index in range(3)), manifest_name(3)]


def test_an_old_one_that_cannot_be_removed_is_told_and_the_new_one_is_there(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(5, "Input/output error")

    job = KeptJob(tmp_path, keep=1)
    job.write(state_of(1))
    monkeypatch.setattr(writing, "remove", refuse)
    job.write(state_of(2))
    assert "cannot be removed" in job.writer.notes[-1]
    assert job.folder.newest()[0].number == 2


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs, not even what withdraws an attempt."""


class Rotation(RuleBasedStateMachine):
    """Saves, kills and damage in any order; what was acknowledged and not damaged since is there."""

    @initialize(keep=st.integers(1, 3))
    def begin(self, keep: int) -> None:
        self.root = tempfile.TemporaryDirectory()
        self.job = KeptJob(Path(self.root.name), keep=keep)
        self.keep = keep
        self.step = 0
        self.written: dict[int, tuple[int, float]] = {}  # number: step, loss
        self.damaged: set[int] = set()

    @rule(loss=st.sampled_from([1.0, 2.0, 3.0]))
    def save(self, loss: float) -> None:
        self.step += 1
        number = self.job.write(state_of(self.step, loss=loss))
        assert number > max(self.written, default=0)
        self.written[number] = (self.step, loss)

    @rule(stage=st.sampled_from(["write_image", "sync_folder", "sealed", "write_durably", "remove"]))
    def kill(self, stage: str) -> None:
        """The writer is killed as it comes to a stage; another one takes its place."""

        def end(*_args, **_options):
            raise Killed

        self.step += 1
        assert self.job.writer is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writing, stage, end)
            patch.setattr(writing.FolderWriter, "_withdraw", lambda *_: None)
            with contextlib.suppress(Killed):
                self.job.write(state_of(self.step, loss=9.0))
        last = self.job.folder.scan().complete
        if last and last[0].step == self.step:  # it had come as far as that
            self.written[last[0].number] = (self.step, 9.0)
        self.job.close()

    @precondition(lambda self: len(self.good) > 1)
    @rule(which=st.integers(0, 9), bit=st.integers(0, 1 << 30), manifest=st.booleans())
    def damage(self, which: int, bit: int, manifest: bool) -> None:
        number = self.good[which % len(self.good)]
        flip(self.job.path / (manifest_name(number) if manifest else file_name(number, 0)), bit)
        self.damaged.add(number)

    @property
    def good(self) -> list[int]:
        there = {int(name[11:19]) for name in self.job.names() if name.endswith(".json")} if self.step else set()
        return sorted(there - self.damaged)

    @invariant()
    def the_newest_good_one_loads(self) -> None:
        if getattr(self, "step", 0) and self.good:
            checkpoint, state, _ = self.job.folder.newest()
            assert checkpoint.number == self.good[-1]
            step, loss = self.written[checkpoint.number]
            assert same(state, state_of(step, loss=loss))

    @invariant()
    def the_last_that_was_written_is_there_unless_it_was_damaged(self) -> None:
        last = max(getattr(self, "written", {}), default=None)
        if last is not None and last not in self.damaged:
            assert last in self.good

    def teardown(self) -> None:
        if hasattr(self, "root"):
            self.job.close()
            self.root.cleanup()


Rotation.TestCase.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
TestRotation = Rotation.TestCase
