"""The first stage of captioning as a finetuning task, and its transfer to the second stage.

Zeng, Zhang and Li, ICML 2022: one epoch of captioning on the pretraining images and regions, without prompt and
smoothing. Its weights contain their mask, since the second stage trains under the same mask.
    python captioning_pretrain.py --model xvlm
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from configs.limits import at_least
from configs.schema import task_file
from console.errors import InputError
from console.progress import console
from data.batches import Side, load
from data.readers import Batch, ReaderConfig, make_reader
from data.tokenizer import Tokenizer
from models import RANDOM
from models.base import placed
from models.common.checkpoint import MASK_SUFFIX, KeyRules, read_state
from training.epoch_weights import Metrics
from training.evaluating import Evaluation
from training.merge import gather_shares
from training.task import Finetuning, Task, check_positions

HEAD = "text_decoder.cls.predictions.decoder.weight"
WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"


@dataclass(frozen=True, kw_only=True)
class FirstStageConfig(Finetuning):
    """The first stage of captioning."""

    reads = "first_stage_captions"

    val: ReaderConfig | None = None  # held-out captions, whose loss is measured after every epoch; None: no evaluation
    eval_batch: int = 64  # captions per forward pass in evaluation

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "eval_batch")


class FirstStage(Task):
    """Captions without a prompt, of web images and regions. The last epoch counts."""

    name = words = "captioning_pretrain"
    Config = FirstStageConfig
    decides = None
    validates = False

    def __init__(self, config: FirstStageConfig, model: nn.Module, tokenizer: Tokenizer, limit: int | None = None):
        check_positions(model, {"train: max_tokens": config.train.max_tokens})
        self._held_out: Side | None = None
        self._batches = 0
        if config.val is not None:
            reader = make_reader(config.val, model.image_shape, tokenizer)
            size = config.eval_batch if limit is None else min(limit, config.eval_batch)
            self._held_out = Side("val", reader, size, seed=0)  # fixed: all runs are evaluated on the same captions
            self._batches = self._held_out.batches if limit is None else min(self._held_out.batches, limit // size)

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross-entropy of every word: no prompt is given, and labels are not smoothed."""
        return model(batch, prompt=0, smoothing=0.0)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, look: Evaluation) -> Metrics:
        """`lm`: mean loss of a word of the held-out captions, the same ones for either split."""
        if self._held_out is None:
            return {}
        share: dict[int, tuple[float, int]] = {}
        fabric = look.fabric
        numbers = range(fabric.global_rank, self._batches, fabric.world_size)
        with look.bar(len(numbers)) as advance:
            for t, item in zip(numbers, load(self._held_out, numbers, look.workers), strict=True):
                batch = placed(item.batch, model)
                words = int(batch["text_atts"][:, 1:].sum())  # [CLS] is given
                share[t] = (self.losses(model, batch, 0.0)["lm"].item() * words, words)
                advance(1)
        parts = gather_shares(fabric, share).values()
        return {"lm": round(sum(loss for loss, _ in parts) / sum(words for _, words in parts), 5)}


def use_first_stage(args: argparse.Namespace) -> dict[str, Any]:
    """Use the first stage's file, `weights`, also as the mask of the second stage, unless it is dense.

    Returns overrides of the model's configuration: published files have an untied word prediction. InputError for a
    model without a first stage, for another file, and for one without masks.
    """
    task_file(args.model, "captioning_pretrain")
    if not args.weights:
        raise InputError("--load_capt_pretrain starts from a first stage: give its weights with -pre FILE")
    state, _ = read_state(args.weights, KeyRules())
    if not any(name.startswith("text_decoder.") for name in state):
        raise InputError(
            f"{args.weights} is not from a first stage, since it has no text decoder: give the last.safetensors of "
            "captioning_pretrain.py, or leave --load_capt_pretrain out"
        )
    changes = {"own_head": True} if not _tied(state) else {}
    if args.dense:
        return changes
    if not _contains_masks(state):
        raise InputError(
            f"{args.weights} contains no mask, so its first stage was dense: give --dense to train all weights, or the "
            "weights of a first stage under a mask"
        )
    if args.mask:
        console.print(f"--mask is not used: training continues under the mask that {args.weights} contains")
    args.mask = args.weights
    return changes


def refuse_first_stage(weights: str | None) -> None:
    """InputError if the initial weights contain a mask, which another mask must not replace silently."""
    if weights is None or weights == RANDOM:
        return
    if _contains_masks(read_state(weights, KeyRules())[0]):
        raise InputError(
            f"{weights} contains a mask: give it as --mask as well, or continue a first stage with captioning.py "
            "--load_capt_pretrain"
        )


def _contains_masks(names: Iterable[str]) -> bool:
    return any(name.endswith(f".weight{MASK_SUFFIX}") for name in names)


def _tied(state: dict[str, Tensor]) -> bool:
    """Whether word prediction shares the word embeddings; a file may store them once."""
    return HEAD not in state or WORDS not in state or torch.equal(state[HEAD], state[WORDS])
