"""Repair in closed form: refit the weights of kept units by least squares, without labels or gradients.

    W_K' = W_K + W_R H_RK (H_KK + damp mean(diag H_KK) I)^-1,    H = sum x x'
W is the matrix that reads the units (W_o for heads, W_2 for neurons), x its inputs in the dense model, K the kept and R
the removed units. This is ridge regression of the output of R on the inputs K. With a bias, a 1 is appended to x, which
is kept and not damped: the bias then absorbs the mean. H is SparseGPT's (Frantar and Alistarh, 2023;
calibration/hessians.py).

    python shrink.py cut --model dino-mini --plan PLAN --repair
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from calibration.hessians import InputHessians
from calibration.preserve import preserved
from calibration.processes import Group
from calibration.stream import device_of, to_device
from models.base import Batch, Model
from models.common.attention_masks import without_padding
from models.layers import form_of
from models.parts import Kept, Layers, Units, all_sets, checked, named_tensors
from models.surgery import cut
from pruners.preparing import plain_samples
from pruners.settings import PruneConfig
from shrinking.mope import reading

BATCH = 32

DAMP = 1e-3
"""Ridge, as a share of the mean diagonal: against rounding errors, and large weights on nearly constant inputs."""


def cut_repaired(model: Model, kept: Kept, batches: Callable[[], Iterable[Batch]]) -> Model:
    """`surgery.cut` after refitting the kept weights; the model itself does not change."""
    with repaired(model, kept, input_moments(model, kept, batches)):
        return cut(model, kept)


def cut_on_data(model: Model, kept: Kept, config: PruneConfig, samples: int, seed: int) -> Model:
    """The same on the first samples of a configuration's data, without augmentation."""
    return cut_repaired(model, kept, plain_samples(model, replace(config, seed=seed), samples, BATCH)[1])


def pruned_consumers(model: Model, kept: Kept) -> dict[str, Units]:
    """Prunable matrix that reads units -> its set, for all sets with removed units outside of removed layers."""
    found, prunable = all_sets(model), model.prunable_layers()
    stays = checked(found, kept)
    gone = tuple(
        f"{path}.{number}."
        for one in found
        if isinstance(one, Layers)
        for path in one.lists
        for number in (~stays[one.name]).nonzero()[:, 0].tolist()
    )
    return {
        one.consumer: one
        for one in found
        if isinstance(one, Units) and one.consumer in prunable and not one.consumer.startswith(gone)
        if not stays[one.name].all()
    }


def input_moments(model: Model, kept: Kept, batches: Callable[[], Iterable[Batch]]) -> InputHessians:
    """H [i + 1, i + 1] of each such matrix, from one pass: that of calibration, else that of the task."""
    layers = {name: layer for name, layer in model.prunable_layers().items() if name in pruned_consumers(model, kept)}
    run = None
    if type(model).observe is Model.observe:
        probe = model.probe(1)

        def run(batch: Batch) -> None:
            if "text_atts" in batch:  # matching drops common padding columns, so drop them here for all passes
                ids, atts = without_padding(batch["text_ids"], batch["text_atts"])
                batch |= {"text_ids": ids, "text_atts": atts}
            probe.run(model, batch)

    moments = InputHessians(model, layers, run, constant=True)
    with preserved(model, gradients=False):
        for batch in batches():
            moments.update(to_device(batch, device_of(model)))
            moments.merge(_ALONE, [0])
    return moments


_ALONE = Group()


@contextmanager
def repaired(model: Model, kept: Kept, moments: InputHessians, damp: float = DAMP) -> Iterator[None]:
    """Refit the kept weights in place; restore them on exit. Matrices without any input are unchanged."""
    tensors, saved = named_tensors(model), []
    try:
        for name, one in pruned_consumers(model, kept).items():
            if name not in moments.met:
                continue
            form = form_of(model.prunable_layers()[name])
            stays = form.matrix(one.over_inputs(kept[one.name].cpu(), tensors[name].shape))[0]
            for at in reading(one, tensors):  # momentum copies, too
                weight, bias = tensors[at.tensor], tensors.get(f"{at.tensor.removesuffix('weight')}bias")
                saved += [(tensor, tensor.detach().clone()) for tensor in (weight, bias) if tensor is not None]
                whole = form.matrix(weight.detach()).double().cpu()
                change = ridge_update(whole, moments.of(name), stays, bias is not None, damp)
                whole[:, stays] += change[:, : int(stays.sum())]
                with torch.no_grad():
                    weight.copy_(form.parameter(whole))
                    if bias is not None:
                        bias += change[:, -1].to(bias)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in saved:
                tensor.copy_(value)


def ridge_update(weight: Tensor, moments: Tensor, stays: Tensor, bias: bool, damp: float) -> Tensor:
    """The update of the kept columns, and of the bias behind them: float64 [o, kept (+ 1)].

    weight: [o, i]; moments: H [i + 1, i + 1]; stays: bool [i].
    """
    moments = moments.double().cpu()
    known = torch.cat([stays, torch.tensor([bias])]).nonzero()[:, 0]
    gone = (~stays).nonzero()[:, 0]
    own = moments[known][:, known]
    # float64 and a ridge: H of few samples is nearly singular. The constant for the bias is not damped.
    ridge = torch.zeros(len(known), dtype=torch.float64)
    ridge[: int(stays.sum())] = damp * moments.diagonal()[:-1][stays].mean() if stays.any() else 0.0
    return torch.linalg.solve(own + torch.diag(ridge), moments[known][:, gone] @ weight[:, gone].t()).t()
