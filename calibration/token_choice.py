"""Tokens that are chosen anew for each block of a language model: those that say most of text and images together.

ATV-Pruning (Li et al., "Mostly Text, Smart Visuals: Asymmetric Text-Visual Pruning for Large Vision-Language Models",
CVPR 2026) counts all text tokens, and the image tokens that a block changes most. AMIA (TAMP: Lee et al., Findings of
ACL 2025) counts tokens that represent the outputs of a layer, starting from those that the last token attends to. Both
are known only after a block has run, so each block runs twice.
    python prune.py --model hf:<folder> --pruner wanda --tokens atv
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.diversity import cosines_of_pairs, unit_outputs
from calibration.layer_inputs import Look, Read
from calibration.statistics import InputSums
from models.base import Batch, Model

NEIGHBOURS = 3
"""Tokens that pass their contributions on to a token, and lose when it is chosen: TAMP's."""

REDUNDANT = 0.2
"""How fast that loss fades with the distance: TAMP's."""

ENOUGH = 0.1
"""The squared discrepancy at which a choice is done, as a share of the root of the diversity: TAMP's."""


class Call(NamedTuple):
    """A block that is about to run. real, image: which of its tokens [b, t] are no padding, and of images; bool."""

    name: str
    block: nn.Module
    inputs: tuple[Any, ...]
    by_name: dict[str, Any]
    real: Tensor
    image: Tensor

    @classmethod
    def of(cls, model: Model, name: str, batch: Batch, inputs: tuple[Any, ...], by_name: dict[str, Any]) -> Call:
        """With what the model says of a batch's tokens."""
        assert model.image_tokens is not None
        image = model.image_tokens(f"{name}.", batch)
        assert image is not None
        real = model.real_tokens(f"{name}.", batch)
        real = torch.ones_like(image) if real is None else real
        return cls(name, model.mixed_blocks[name], inputs, by_name, real.bool(), image.bool() & real.bool())

    def run(self) -> Any:
        """What the block returns; its own hooks are not called, those of its layers are."""
        return self.block.forward(*self.inputs, **self.by_name)

    def drift(self, out: Any) -> Tensor:
        """1 - cos(x, y) [b, t] float32 between a token before and after the block."""
        x = next(one for one in (*self.inputs, *self.by_name.values()) if isinstance(one, Tensor))
        y = out if isinstance(out, Tensor) else out[0]
        return 1 - F.cosine_similarity(x.float(), y.float(), dim=-1)


class BlockChoice(ABC):
    """Which tokens count in the layers of a block."""

    def __init__(self, model: Model):
        self._model = model

    @abstractmethod
    def choose(self, call: Call) -> Callable[[Read], Tensor]:
        """What gives the tokens [b, t], bool, that count for a layer of the block."""

    @contextmanager
    def through(self, batch: Callable[[], Batch], look: Look) -> Iterator[Look]:
        """Within this, blocks run once more before they run; gives a `look` that then sees what counts."""
        chosen: Callable[[Read], Tensor] | None = None
        trying = False

        def before(name: str) -> Callable[..., None]:
            def tried(block: nn.Module, inputs: tuple[Any, ...], by_name: dict[str, Any]) -> None:
                nonlocal chosen, trying
                trying = True
                chosen = self.choose(Call.of(self._model, name, batch(), inputs, by_name))
                trying = False

            return tried

        def after(*_: Any) -> None:
            nonlocal chosen
            chosen = None

        def counted(read: Read) -> None:
            if not trying:
                look(read if chosen is None else read._replace(real=chosen(read)))

        with ExitStack() as hooks:
            for name, block in self._model.mixed_blocks.items():
                hooks.callback(block.register_forward_pre_hook(before(name), with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(after).remove)
            yield counted


class Drifting(BlockChoice):
    """ATV-Pruning: all text tokens; of images those that drift most, min(1, mean drift) times as many."""

    def __init__(self, model: Model, means: dict[str, float]):
        """means: by block, the mean drift of the image tokens of all batches."""
        super().__init__(model)
        self._means = means

    def choose(self, call: Call) -> Callable[[Read], Tensor]:
        """The same for all layers of the block."""
        drift = call.drift(call.run())
        counted = call.real & ~call.image
        share = min(1.0, self._means[call.name])
        for row, texts in enumerate(counted.sum(dim=1).tolist()):
            images = call.image[row].nonzero().flatten()
            most = drift[row, images].argsort(descending=True, stable=True)[: round(share * texts)]
            counted[row, images[most]] = True
        return lambda read: counted


class Representative(BlockChoice):
    """TAMP's AMIA: of each layer, tokens whose outputs stand for those of all."""

    def choose(self, call: Call) -> Callable[[Read], Tensor]:
        """Another one for each layer, by what it returns."""
        contribution = self._model.last_attention(call.block, call.run, call.real).double()

        def of(read: Read) -> Tensor:
            tokens, kinds = unit_outputs(read)
            counted = torch.zeros_like(call.real)
            for row, real in enumerate(call.real):
                here = [kind[row, real] for kind in kinds]
                counted[row, real] = representatives(tokens[row, real], here, contribution[row, real])
            return counted

        return of


def representatives(tokens: Tensor, kinds: list[Tensor], contribution: Tensor) -> Tensor:
    """Which tokens [t], bool, of a sequence stand for all, after TAMP's published code.

    tokens [t, o]: a layer's outputs as vectors of length one. kinds: text and images [t], 0 or 1. contribution [t]:
    the last token's attention. All of them float64.
    """
    cosines, pairs = cosines_of_pairs(tokens[None], [kind[None] for kind in kinds])
    some = pairs > 0
    diversity = max(0.0, float((1 - cosines[some] / pairs[some]).mean())) if some.any() else 0.0
    similar = tokens @ tokens.t()
    squares = similar.diagonal()
    kernel = (similar - (squares[:, None] + squares) / 2).exp()  # Gaussian, of width 1
    nearest = (1 - similar).fill_diagonal_(torch.inf).topk(min(NEIGHBOURS, len(tokens) - 1), largest=False)
    # A token in a dense place gathers its neighbours' contributions, and takes theirs away once it is chosen.
    passed = ((-nearest.values).exp() * contribution[nearest.indices]).sum(dim=1)
    score, near = (contribution + passed).cpu().numpy(), nearest.indices.cpu().numpy()
    lost, kernel = (-REDUNDANT * nearest.values).exp().cpu().numpy(), kernel.cpu().numpy()
    overall, column = kernel.mean(), kernel.mean(axis=0)
    counted, reached = np.zeros(len(score), dtype=bool), np.zeros(len(score))
    within = across = 0.0
    for count in range(1, len(score) + 1):
        one = int(score.argmax())
        score[near[one]] -= lost[one] * max(score[one], 0)
        score[one] = -np.inf
        counted[one] = True
        within += 2 * reached[one] + kernel[one, one]
        across += column[one]
        reached += kernel[one]
        # The maximum mean discrepancy (MMD) between the chosen tokens and all; its sums grow by a row at a time.
        if overall + within / count**2 - 2 * across / count < ENOUGH * diversity**0.5:
            break
    return torch.from_numpy(counted).to(tokens.device)


class Drift(InputSums):
    """A statistic: how much each block changes the image tokens that it reads, on average over all batches."""

    def __init__(self, model: Model):
        super().__init__(model, len(model.mixed_blocks), 2)  # drifts, and tokens
        self.choice = self._through

    @contextmanager
    def _through(self, batch: Callable[[], Batch], look: Look) -> Iterator[Look]:
        """Within this, what blocks return is compared with what they read; `look` stays as it is."""

        def met(place: int, name: str) -> Callable[..., None]:
            def after(block: nn.Module, inputs: tuple[Any, ...], by_name: dict[str, Any], out: Any) -> None:
                call = Call.of(self._model, name, batch(), inputs, by_name)
                drift = call.drift(out)[call.image].double()
                self._fresh[place] += torch.stack([drift.sum(), call.image.sum().to(drift)])

            return after

        with ExitStack() as hooks:
            for place, (name, block) in enumerate(self._model.mixed_blocks.items()):
                hooks.callback(block.register_forward_hook(met(place, name), with_kwargs=True).remove)
            yield look

    def means(self) -> dict[str, float]:
        """By block; 0 where there were no images."""
        found = (self._sums[:, 0] / self._sums[:, 1].clamp(min=1)).tolist()
        return dict(zip(self._model.mixed_blocks, found, strict=True))
