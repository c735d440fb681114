"""Progress of a method that makes one mask after another, for a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from calibration.resume import Checkpoint, State
from sparsity.mask import Mask


@dataclass
class Progress:
    """The finished masks, and for the next one the round and its sums."""

    finished: dict[float, Mask]
    alive: Mask | None = None
    turn: int = 0
    pairs: int = 0
    sums: dict[str, Tensor] | None = None

    def state(self, turn: int = 0) -> State:
        """Tensors and progress for the checkpoint: masks as bits, named by sparsity."""
        tensors = {}
        for label, mask in [*((str(s), m) for s, m in self.finished.items()), ("alive", self.alive)]:
            if mask is not None:
                tensors |= {f"{label}/{name}": mask[name] for name in mask}
        return tensors, {"turn": turn, "finished": list(self.finished)}

    @classmethod
    def load(cls, checkpoint: Checkpoint, mask_of: Callable[[dict[str, Tensor]], Mask]) -> Progress:
        """The progress in a checkpoint, or a fresh start. mask_of: tensors by layer -> their mask."""
        saved = checkpoint.load()
        if saved is None:
            return cls({})
        tensors, progress = saved
        masks: dict[str, dict[str, Tensor]] = {}
        sums = {}
        labels = {*map(str, progress["finished"]), "alive"}
        for key, tensor in tensors.items():
            label, _, name = key.partition("/")
            if label in labels:
                masks.setdefault(label, {})[name] = tensor
            else:
                sums[key] = tensor
        finished = {s: mask_of(masks[str(s)]) for s in progress["finished"]}
        alive = mask_of(masks["alive"]) if "alive" in masks else None
        return cls(finished, alive, progress["turn"], progress["pairs"], sums)

    def pairs_done(self, rounds: int, per_round: int | None) -> int:
        """Steps that were finished earlier, for the progress bar."""
        return len(self.finished) * rounds * per_round + self.pairs if per_round else 0
