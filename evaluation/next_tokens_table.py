"""The measurement behind `evaluation.next_tokens`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.lock_step import AT_ONCE, LockStep
from calibration.processes import Group
from configs.limits import at_least
from console.errors import InputError
from console.progress import progress_bar
from console.words import counted
from data.batches import Side, load
from data.readers import ReaderConfig, make_reader
from data.tokenizer import load_tokenizer
from evaluation.bootstrap import interval
from evaluation.efficiency.table import chosen_device
from evaluation.items import Items
from evaluation.zero_shot_table import check_json, show, write_rows
from models import load_model
from models.base import Batch, placed
from models.tasks import LanguageModel
from sparsity.mask import Mask

ROWS = 512
"""Tokens whose logits are computed at once: 0.3 GB with a vocabulary of 150,000."""


@dataclass(frozen=True)
class NextTokensConfig:
    """configs/hf/next_tokens.yaml."""

    pairs: ReaderConfig  # of image-text pairs that the model was not calibrated on
    count: int = 128  # how many pairs, a multiple of batch_size
    batch_size: int = 2  # pairs in a pass
    num_workers: int = 2  # processes that read pairs
    seed: int = 0  # of the choice of pairs

    def __post_init__(self) -> None:
        at_least(self, 1, "count", "batch_size")
        at_least(self, 0, "num_workers", "seed")
        if self.count % self.batch_size:
            raise InputError(f"count {self.count} is no multiple of batch_size {self.batch_size}: change one of them")


class Read(NamedTuple):
    """For each token [n]: its loss, the model's prediction in its place, and the number of its pair."""

    losses: Tensor
    predicted: Tensor
    pairs: Tensor


class Texts:
    """Batches of pairs, the same for all models. pictures: the picture of each pair, the unit of the bootstrap."""

    def __init__(self, model: LanguageModel, config: NextTokensConfig):
        reader = make_reader(config.pairs, model.image_shape, load_tokenizer(model.tokenizer))
        if (there := len(reader.source)) < config.count:
            raise InputError(f"the data has {counted(there, 'pair')}, but count is {config.count}: lower it")
        self._side = Side("pairs", reader, config.batch_size, config.seed)
        self._workers = config.num_workers
        self.batches = config.count // config.batch_size
        self.pictures = [reader.source.name(i) for t in range(self.batches) for i in self._side.planned(t)]
        self.starts = [t * config.batch_size for t in range(self.batches)]

    def each(self) -> Callable[[], Batch]:
        """A function that returns the next batch. InputError for an unreadable image: evaluations need all pairs."""
        found = load(self._side, range(self.batches), self._workers)

        def one() -> Batch:
            loaded = next(found)
            if loaded.failed:
                raise InputError(f"an evaluation needs all pairs, but cannot read {loaded.failed[0]}: fetch it again")
            return loaded.batch

        return one


def compare(args: argparse.Namespace, config: NextTokensConfig) -> list[dict[str, Any]]:
    """Rows of numbers for the dense model and each pruned one, printed as a table; one is in memory at a time."""
    check_json(args.json)
    device = torch.device("cpu") if args.stream else chosen_device(args.device)
    texts: Texts | None = None
    dense: Tensor | None = None
    rows, items = [], []
    with progress_bar("reading", (1 + len(args.pruned)) * config.count) as advance:
        for path in (None, *args.pruned):
            model = opened(args.model, path, args.stream).to(device)
            if texts is None:
                texts, form = Texts(model, config), form_of(model)
                for mask in (mask for mask in args.pruned if not Path(mask).is_dir()):
                    Mask.load(mask).fitted(model)  # before the first expensive second
            if form_of(model) != form:
                raise InputError(f"{path} is a {form_of(model)}, and {args.model} a {form}: give a pruned one of it")
            read = read_texts(model, texts, lambda share: advance(share * config.count))
            del model
            dense = read.predicted if dense is None else dense
            same = (read.predicted == dense).double().numpy()
            pictures = [texts.pictures[pair] for pair in read.pairs.tolist()]
            shares = {"agreement": same.mean()}
            if (found := interval(same, pictures)) is not None:
                shares |= dict(zip(("low", "high"), found, strict=True))
            name = Path(path).name if path else "dense"  # a folder and its mask differ in the ending
            row = {"mask": name, "loss": round(read.losses.mean().item(), 4)}
            rows.append(row | {key: round(100 * share, 2) for key, share in shares.items()})
            items.append({"tokens": Items(list(range(len(same))), pictures, {"agreement": same.tolist()})})
    words = f"{counted(len(same), 'token')} of {counted(len(texts.pictures), 'text')}"
    show(rows, f"{args.model}: {words}; agreement with the dense model's next token in %, 95 % interval over pictures")
    write_rows(args.json, rows, items)
    return rows


def opened(name: str, path: str | None, stream: bool) -> LanguageModel:
    """The dense model (path None), the same under a mask (a file), or a pruned model (a folder).

    InputError if it is not generative.
    """
    folder = path is not None and Path(path).is_dir()
    model = load_model(f"hf:{path}" if folder else name, overrides={"stream": True} if stream else {})
    if not isinstance(model, LanguageModel):
        raise InputError(
            f"{path or name} is not a generative model, so it predicts no next token: evaluate it by its task's script"
        )
    if path is not None and not folder:
        Mask.load(path).apply(model)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def read_texts(model: LanguageModel, texts: Texts, advance: Callable[[float], None]) -> Read:
    """A pass over each batch. advance: receives the share of the work done since its last call.

    Losses are computed from the inputs of the head, since passes of a streamed model end there.
    """
    give, asked, states = texts.each(), dict[int, tuple[Tensor, Tensor, Tensor]](), dict[int, Tensor]()
    turn: Callable[[], int]  # number of the running pass: the passes of a streamed model are threads that take turns

    def run(number: int) -> None:
        batch = placed(give(), model)
        wanted = model.next_tokens(batch)
        there = wanted != -100
        positions = there.any(dim=0).nonzero()[:, 0]
        pairs = texts.starts[number] + there.nonzero()[:, 0]
        asked[number] = there[:, positions], wanted[there], pairs
        model.read(batch, positions)

    def keep_states(head: nn.Module, inputs: tuple[Tensor]) -> None:
        states[turn()] = inputs[0][asked[turn()][0]]

    handle = model.head.register_forward_pre_hook(keep_states)  # runs before the hook that ends passes
    try:
        if model.streamed is None:
            for number in range(texts.batches):
                turn = partial(int, number)
                run(number)
                advance(1 / texts.batches)
        else:
            share = texts.batches * (len(model.streamed.blocks) + 1)
            for start in range(0, texts.batches, AT_ONCE):
                numbers = range(start, min(start + AT_ONCE, texts.batches))
                lock = LockStep(model.streamed, [partial(run, number) for number in numbers])
                turn = partial(lambda lock, start: start + lock.turn, lock, start)
                with closing(lock.steps(Group(), torch.device("cpu"))) as turns:
                    for _, ranks in turns:
                        advance(len(ranks or ()) / share)
    finally:
        handle.remove()
    tokens, pairs = (torch.cat([asked[number][part] for number in sorted(asked)]) for part in (1, 2))
    return Read(*_scored(model.head, torch.cat([states[number] for number in sorted(states)]), tokens), pairs)


def _scored(head: nn.Module, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [n] of tokens [n] after states [n, d], and the most likely tokens [n]."""
    weight, bias = head.weight.float(), getattr(head, "bias", None)  # a streamed head may be in half precision
    losses, predicted = [], []
    for some, wanted in zip(states.split(ROWS), tokens.split(ROWS), strict=True):
        scores = F.linear(some.float(), weight, bias)
        losses.append(F.cross_entropy(scores, wanted, reduction="none").double())
        predicted.append(scores.argmax(dim=1))
    return torch.cat(losses).cpu(), torch.cat(predicted).cpu()


def form_of(model: LanguageModel) -> str:
    """Class, vocabulary and width, which two models must share to read the same batches."""
    words, width = model.head.weight.shape
    return f"{type(model.inner).__name__} with a vocabulary of {words} and width {width}"
