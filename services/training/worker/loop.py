"""The life of a worker: meets a group, does steps with it, and meets another one when somebody of it has gone."""

from __future__ import annotations

import contextlib
import sys
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # as in the agent

from microkernel.errors import AlreadyExists, from_exception
from services.training.beat import Beat
from services.training.checkpoints.facts import Facts
from services.training.checkpoints.interval import Faults
from services.training.optimisation.clipping import Diverged
from services.training.orders import Broken, Failed, Finished, Form, Formed, LeftOut, Rested, Start, Stop
from services.training.worker.group import Group, GroupBroken
from services.training.worker.inbox import Inbox, Wish
from services.training.worker.keeping import Keeping, newest_state
from services.training.worker.trainer import Trainer

__all__ = ["Worker"]

RESULT = "result"  # the folder of what was learned, in the job's
DOOR = 1.0  # seconds to reach the place to meet: it is there before it is called, and once gone it does not come back
SPOILED = 4  # status of a worker that has nothing to go on from
MOST_ROLLED_BACK = 20  # times that a worker goes back before the job is given up


class Called(GroupBroken):
    """There is to be another group."""


class Worker:
    """One worker of a job, from the model that it has to the end of the job."""

    def __init__(self, trainer: Trainer, inbox: Inbox, beat: Beat) -> None:
        self._trainer = trainer
        self._inbox = inbox
        self._beat = beat
        self._keeping: Keeping | None = None
        self._rolled_back = 0
        self._spoiled = False  # what it has came half from others, which have gone

    def live(self) -> None:
        """Until told to stop, or until there is an error that no other group would mend."""
        torch.set_num_threads(self._trainer.job.threads)
        try:
            order: Form | Stop | Start | None = self._next()
            while isinstance(order, Form):
                order = self._meet(order)
            self._end_keeping()
        except Exception as error:  # noqa: BLE001 - told to whoever started this process
            self._inbox.tell(Failed(error=from_exception(error, service="training").report()))
            self._next()  # all others see the same, or are told to stop

    def _next(self) -> Form | Stop | Start:
        self._beat.enter("waiting", self._trainer.step)
        return self._inbox.wait()

    def _meet(self, form: Form) -> Form | Stop | Start:
        """One generation of the group; what comes after it."""
        group = Group(shards=self._trainer.job.config.schedule.shards)
        self._inbox.heeded(Wish.REST)  # of the group before this one, whose others may have heeded it first
        try:
            self._beat.enter("forming")
            if form.restore:
                self._restore()
            group = self._join(form)
            self._bring_up(group)
            self._inbox.tell(Formed(generation=form.generation, step=self._trainer.step))
            return self._train(group, form)
        except Called:
            return self._inbox.wait()
        except GroupBroken as error:
            self._inbox.tell(Broken(generation=form.generation, step=self._trainer.step, why=error.message))
            group.leave()
            return self._next()
        finally:
            group.leave()

    def _bring_up(self, group: Group) -> None:
        """Be where the others are."""
        step, self._spoiled = -1 if self._spoiled else self._trainer.step, True
        facts = group.bring_up(step, self._facts(), list(self._trainer.tensors.values()))
        if facts is not None:
            self._trainer.take_facts(msgspec.json.decode(facts, type=Facts))
        self._spoiled = False

    def _join(self, form: Form) -> Group:
        shards, store = self._trainer.job.config.schedule.shards, None
        if form.world > 1:
            try:
                server = TCPStore("127.0.0.1", form.port, is_master=False, timeout=timedelta(seconds=DOOR))
                server.set_timeout(timedelta(seconds=form.patience))
            except RuntimeError as error:
                raise GroupBroken(f"the place to meet is not there: {error}") from error
            store = PrefixStore(f"{self._trainer.job.job}/{form.generation}", server)
        return Group.join(store, form.rank, form.world, shards=shards, timeout=form.patience)

    def _train(self, group: Group, form: Form) -> Form | Stop | Start:
        trainer = self._trainer
        self._keep(group, form)
        if self._keeping is not None and trainer.step == 0 and trainer.job.config.faults.diverged == "rollback":
            self._keeping.save(trainer.state())  # there has to be something to go back to
        evaluation = trainer.job.config.evaluation.every
        if evaluation and trainer.step == 0:
            self._evaluate(group)  # what the others are to be compared with
        while trainer.step < trainer.job.steps:
            try:
                wish, seconds = self._step(group)
            except Diverged as error:
                self._roll_back(group, error)
                continue
            step = trainer.step
            if evaluation and step % evaluation == 0 and step < trainer.job.steps:
                self._evaluate(group)
            is_due = self._keeping is not None and self._keeping.stepped(step, seconds)
            if self._keeping is not None and (is_due or wish >= Wish.SAVE):
                self._beat.enter("saving")
                self._keeping.save(trainer.state())
            self._inbox.heeded(wish)
            if wish >= Wish.REST:
                return self._rest(group, wish)
        return self._finish(group)

    def _step(self, group: Group) -> tuple[Wish, float]:
        began = time.perf_counter()
        result = self._trainer.do_step(group, self._inbox.wish, self._enter, self._check_called)
        self._inbox.tell(result.stepped)
        return Wish(result.wish), time.perf_counter() - began

    def _evaluate(self, group: Group) -> None:
        told = self._trainer.evaluate(group, self._beat.enter)
        if told is not None and group.rank == 0:
            self._inbox.tell(told)

    def _rest(self, group: Group, wish: Wish) -> Form | Stop | Start:
        """All stop behind the same step, with a checkpoint of it."""
        group.leave()
        if self._keeping is not None:
            self._keeping.settle()
        if wish is Wish.STOP:
            return Stop()
        self._inbox.tell(Rested(step=self._trainer.step))
        return self._next()

    def _finish(self, group: Group) -> Form | Stop | Start:
        """All steps are done: the first worker writes what was learned."""
        self._evaluate(group)
        if group.rank == 0:
            self._beat.enter("finishing")
            if self._keeping is not None:
                self._keeping.save(self._trainer.state())
                self._keeping.settle()
            folder = Path(self._trainer.job.folder) / RESULT
            with contextlib.suppress(AlreadyExists):
                self._trainer.save(folder)
            self._inbox.tell(Finished(step=self._trainer.step, path=str(folder)))
        return self._next()

    def _roll_back(self, group: Group, error: Diverged) -> None:
        """All go back to the newest checkpoint, and leave out the rows of the step that diverged, if so wanted."""
        trainer = self._trainer
        self._rolled_back += 1
        if trainer.job.config.faults.diverged == "stop" or self._rolled_back > MOST_ROLLED_BACK:
            raise error
        diverged = trainer.step
        facts = b""
        if group.rank == 0:
            if self._keeping is not None:
                self._keeping.settle()
            state = newest_state(trainer.job, self._inbox.tell)
            if state is None:
                raise error
            trainer.restore(state)
            facts = self._facts()
        told = group.gather([len(facts)])
        facts = group.give(0, facts, int(told[0][0]), list(trainer.tensors.values()))
        trainer.take_facts(msgspec.json.decode(facts, type=Facts))
        trainer.leave_out_step(diverged)
        if group.rank == 0:
            self._inbox.tell(LeftOut(diverged=diverged, step=trainer.step, why=error.message))

    def _restore(self) -> None:
        state = newest_state(self._trainer.job, self._inbox.tell)
        if state is not None:
            self._trainer.restore(state)
            self._spoiled = False
        elif self._spoiled:
            sys.exit(SPOILED)  # a new one begins at the beginning

    def _keep(self, group: Group, form: Form) -> None:
        if group.rank != 0:
            self._end_keeping()
        elif self._keeping is None:
            faults = Faults(form.faults, form.seconds)
            self._keeping = Keeping(self._trainer.job, self._trainer.state(), self._inbox.tell, faults)

    def _end_keeping(self) -> None:
        if self._keeping is not None:
            self._keeping.close()
            self._keeping = None

    def _facts(self) -> bytes:
        return msgspec.json.encode(self._trainer.state().facts)

    def _enter(self, phase: str) -> None:
        self._beat.enter(phase, self._trainer.step)

    def _check_called(self) -> None:
        if self._inbox.is_called:
            raise Called("there is to be another group")
