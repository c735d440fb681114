"""The same samples in batches of another size: only the order of sums changes, so masks stay up to 1e-4 of their bits.

For methods that need gradients the losses themselves depend on which samples share a batch (negatives), except where
they are means over samples, as DINO's.
"""

import pytest
import torch

from models import load_model
from pruners import prune
from tests.conftest import REFERENCE, reference_batches

BOUND = 1e-4


def joined(batches):
    """Several batches of the reference files as one: tensors one after the other, image numbers moved along."""
    images = 0
    for batch in batches:
        if "idx_to_group_img" in batch:
            batch["idx_to_group_img"] = batch["idx_to_group_img"] + images
        images += len(batch["image"])
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def in_batches_of(batches, times):
    """The same samples with `times` batches joined to one."""
    return [
        {side: joined([dict(batch[side]) for batch in batches[i : i + times]]) for side in batches[0]}
        for i in range(0, len(batches), times)
    ]


def changed(one, other):
    """Share of the bits that differ."""
    bits = sum(one[name].numel() for name in one)
    return sum(int((one[name] != other[name]).sum()) for name in one) / bits


def reference_model(family):
    """The small model of the reference files; DINO has none with weights."""
    weights = REFERENCE / "vectors" / family / "weights.safetensors"
    torch.manual_seed(0)
    return load_model(family, config=REFERENCE / f"{family}.yaml", weights=weights if weights.is_file() else "random")


@pytest.mark.parametrize("pruner", ["multiflow", "wanda", "sparsegpt"])
@pytest.mark.parametrize("family", ["xvlm", "blip", "dino"])
def test_forward_statistics(family, pruner):
    model = reference_model(family)
    batches = reference_batches(family, 4) if family != "dino" else [model.example(4) for _ in range(4)]
    small = prune(model, batches, pruner, (0.63, 0.9))
    for times in (2, 4):
        large = prune(model, in_batches_of(batches, times), pruner, (0.63, 0.9))
        for sparsity, mask in small.items():
            assert changed(mask, large[sparsity]) <= BOUND, (times, sparsity)


def test_gradients_of_a_loss_that_is_a_mean():
    model = reference_model("dino")
    batches = [model.example(4) for _ in range(4)]
    masks = [prune(model, in_batches_of(batches, times), "snip", (0.63,))[0.63] for times in (1, 2, 4)]
    assert changed(masks[0], masks[1]) <= BOUND
    assert changed(masks[0], masks[2]) <= BOUND
