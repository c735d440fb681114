"""Forward passes in lock step, for models that do not fit into memory: all wait for one another before each block.

Each batch is an ordinary pass of the whole model in a thread of its own, of which one runs at a time. So what a model
does between its blocks (positions, masks, image features that are added later) needs no code here; a replay of block
after block would lose it. A block is read once for all batches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from calibration.processes import Group
from models.streaming import Streamed

AT_ONCE = 256
"""Passes that wait for one another: each keeps the states of its batch in memory."""

START = -1
"""What stands before the first block, as a place where a pass waits."""


class _Ended(BaseException):
    """A pass is over before its end; no `except Exception` of a model may catch it."""


class _Pass(threading.Thread):
    """A pass over one batch, which runs when it is its turn."""

    def __init__(self, run: Callable[[], object]):
        super().__init__(daemon=True)
        self.at: int | None = START  # the block that it waits for; None: it is over
        self.error: BaseException | None = None
        self.stopped = False
        self._run, self._turn, self._waits = run, threading.Semaphore(0), threading.Semaphore(0)
        self._chance = torch.get_rng_state()

    def run(self) -> None:
        """The thread: grad mode is its own, and must be said in it."""
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
        """Let it run to the next block, or to its end; what went wrong in it is raised here."""
        ours = torch.get_rng_state()  # the generator is everyone's: each pass has its own state of it
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
        """In the thread: it is in front of a block."""
        self.at = block
        self._waits.release()
        self._turn.acquire()
        if self.stopped:
            raise _Ended

    def stop(self) -> None:
        """End it where it waits, or will wait next."""
        self.stopped = True
        self._turn.release()


class LockStep:
    """Passes that meet in front of every block of a streamed model.

    `steps` runs them; `turn` is the number of the pass that runs now, which hooks of modules may ask for.
    """

    def __init__(self, streamed: Streamed, runs: Sequence[Callable[[], object]]):
        self.turn = 0
        self._streamed = streamed
        self._passes = [_Pass(run) for run in runs]

    def steps(self, group: Group, device: torch.device) -> Iterator[tuple[int, list[int] | None]]:
        """Run all passes to their ends; yields after each turn of a pass, and None for ranks once all left a block.

        Yields the block (START: what comes before the first) and the ranks of the processes that had a pass there. They
        take turns as their passes do, so that sums go in the order of units. The block is the same everywhere.
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
                            yield block, group.ranks_with_work(here, device)
                    yield block, None
            finally:
                for one in self._passes:
                    one.stop()
                for one in self._passes:
                    if one.ident is not None:
                        one.join()

    def _next(self, group: Group) -> int | None:
        """The first block that any pass of any process waits for: none comes to one that is behind it any more."""
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
        """Within this, blocks make passes wait, and the head ends them."""

        def waits(number: int) -> Callable[..., None]:
            return lambda module, inputs: self._passes[self.turn].wait(number)

        def ends(module: nn.Module, inputs: object) -> None:
            raise _Ended

        # Before all other hooks of a block: those may run it, for which it must be in memory.
        handles = [
            block.register_forward_pre_hook(waits(i), prepend=True) for i, block in enumerate(self._streamed.blocks)
        ]
        if self._streamed.head is not None:
            handles.append(self._streamed.head.register_forward_pre_hook(ends))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
