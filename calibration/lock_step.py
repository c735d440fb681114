"""Forward passes in lock step, for models that do not fit into memory: each waits for the others before each block.

Each batch is an ordinary pass of the whole model in its own thread, and one thread runs at a time. So a block is read
from disk once for all batches, and what a model does between its blocks (positions, masks, image features) needs no
code here: a replay block by block would have to know it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from calibration.processes import Group
from models.streaming import Streamed

AT_ONCE = 256
"""Largest number of passes at a time: each holds the states of its batch in memory."""

START = -1
"""Number of the part of a model before its first block."""


class _Ended(BaseException):
    """Ends a pass early. A BaseException, since a model's `except Exception` must not catch it."""


class _Pass(threading.Thread):
    """A forward pass of one batch in a thread, which runs only during `advance`."""

    def __init__(self, run: Callable[[], object]):
        super().__init__(daemon=True)
        self.at: int | None = START  # the block in front of which it waits; None: it has ended
        self.error: BaseException | None = None
        self.stopped = False
        self._run, self._turn, self._waits = run, threading.Semaphore(0), threading.Semaphore(0)
        self._chance = torch.get_rng_state()

    def run(self) -> None:
        """The thread's code. Grad mode is set here, since each thread has its own."""
        self._turn.acquire()
        try:
            if not self.stopped:
                with torch.no_grad():
                    self._run()
        except _Ended:
            pass
        except BaseException as error:
            self.error = error
        self.at = None
        self._waits.release()

    def advance(self) -> None:
        """Run the pass to the next block, or to its end; raises what it raised."""
        ours = torch.get_rng_state()  # all threads share one generator, and each pass has its own state of it
        try:
            torch.set_rng_state(self._chance)
            self._turn.release()
            self._waits.acquire()
            self._chance = torch.get_rng_state()
        finally:
            torch.set_rng_state(ours)
        if self.error is not None:
            raise self.error

    def wait(self, block: int) -> None:
        """Called in the thread, in front of a block: wait for the next `advance`."""
        self.at = block
        self._waits.release()
        self._turn.acquire()
        if self.stopped:
            raise _Ended

    def stop(self) -> None:
        """End the pass where it waits, or at its next block."""
        self.stopped = True
        self._turn.release()


class LockStep:
    """Passes that meet in front of every block of a streamed model.

    `steps` runs them; `turn` is the number of the running pass, for hooks of modules.
    """

    def __init__(self, streamed: Streamed, runs: Sequence[Callable[[], object]]):
        self.turn = 0
        self._streamed = streamed
        self._passes = [_Pass(run) for run in runs]

    def steps(self, group: Group, device: torch.device, first: int = 0) -> Iterator[tuple[int, list[int] | None]]:
        """Run all passes to their ends, block by block. first: the process with the first of them.

        Yields (block, ranks) after each turn: the processes `ranks` each ran one pass through the block, so that sums
        are added in the order of units. Yields (block, None) once all passes have left it. Every process is at the same
        block; START is the part before the first one.
        """
        rounds = range(max(group.objects(len(self._passes))))
        with self._met():
            try:
                for one in self._passes:
                    one.start()
                while (block := self._next(group)) is not None:
                    with self._block(block):
                        for number in rounds:
                            here = number < len(self._passes) and self._passes[number].at == block
                            if here:
                                self.turn = number
                                self._passes[number].advance()
                            yield block, group.ranks_with_work(here, device, first)
                    yield block, None
            finally:
                for one in self._passes:
                    one.stop()
                for one in self._passes:
                    if one.ident is not None:
                        one.join()

    def _next(self, group: Group) -> int | None:
        """The first block that any pass of any process waits for; no pass calls an earlier one again."""
        mine = min((one.at for one in self._passes if one.at is not None), default=None)
        found = [block for block in group.objects(mine) if block is not None]
        return min(found, default=None)

    @contextmanager
    def _block(self, number: int) -> Iterator[None]:
        if number == START:
            yield
        else:
            with self._streamed.resident(number):
                yield

    @contextmanager
    def _met(self) -> Iterator[None]:
        """Inside, each block makes its pass wait, and the head ends it: nothing behind the head is pruned."""

        def waits(number: int) -> Callable[..., None]:
            return lambda module, inputs: self._passes[self.turn].wait(number)

        def ends(module: nn.Module, inputs: object) -> None:
            raise _Ended

        with ExitStack() as hooks:
            for i, block in enumerate(self._streamed.blocks):
                # Before all other hooks of a block: those may run it, for which it must be in memory.
                hooks.enter_context(block.register_forward_pre_hook(waits(i), prepend=True))
            if self._streamed.head is not None:
                hooks.enter_context(self._streamed.head.register_forward_pre_hook(ends))
            yield
