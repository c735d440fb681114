"""FLOPs against counts by hand: two for each multiplication of a product of matrices."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evaluation.efficiency import table
from evaluation.efficiency.flops import count_flops
from models.wrap import wrap
from sparsity.mask import Mask

B, T, D, HEADS = 3, 5, 8, 2


class Attention(nn.Module):
    """q, k, v and an output layer around torch's fused attention."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(D, D) for _ in range(4))

    def forward(self, x):
        q, k, v = (part(x).view(B, T, HEADS, D // HEADS).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, D))


@pytest.fixture
def attention():
    return wrap(Attention(), forward=lambda module, batch: module(batch["x"]))


LINEAR = 2 * B * T * D * D
PRODUCTS = 2 * (2 * B * T * T * D)  # queries by keys, weights by values, all heads together


def work_of(model):
    return count_flops(model, lambda: model.observe({"x": torch.randn(B, T, D)}))


def test_attention_by_hand(attention):
    work = work_of(attention)
    assert work.total == 4 * LINEAR + PRODUCTS
    assert work.layers == dict.fromkeys(("q.weight", "k.weight", "v.weight", "out.weight"), LINEAR)


def test_nominal_by_hand(attention):
    """Densities 1/4, 1/2, 0 and 1 of the four layers; attention's products stay whole."""
    kept = {name: torch.zeros(D * D, dtype=torch.bool) for name in attention.prunable_layers()}
    for name, count in {"q.weight": 16, "k.weight": 32, "v.weight": 0, "out.weight": 64}.items():
        kept[name][:count] = True
    mask = Mask({name: bits.view(D, D) for name, bits in kept.items()})
    assert work_of(attention).nominal(mask) == LINEAR // 4 + LINEAR // 2 + LINEAR + PRODUCTS


def test_shared_weights_count_wherever_they_are_used():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    module[2].weight = module[0].weight
    model = wrap(module, forward=lambda module, batch: module(batch["x"]))
    work = count_flops(model, lambda: model.observe({"x": torch.randn(6, 4)}))
    assert work.layers == {"0.weight": 2 * (2 * 6 * 4 * 4), "3.weight": 2 * 6 * 4 * 2}
    assert work.total == sum(work.layers.values())


def test_convolution_by_hand():
    model = wrap(nn.Conv2d(3, 4, 2, stride=2), forward=lambda module, batch: module(batch["x"]), conv=True)
    work = count_flops(model, lambda: model.observe({"x": torch.randn(2, 3, 8, 8)}))
    assert work.layers == {"weight": 2 * 2 * (4 * 4) * 4 * (3 * 2 * 2)}


def vision_flops(b, patches, patch, width, mlp, layers):
    """A vision transformer without classifier, from its sizes."""
    t = patches + 1
    linear = 2 * b * t * (4 * width * width + 2 * width * mlp)
    return 2 * b * patches * width * 3 * patch * patch + layers * (linear + 4 * b * t * t * width)


def counted(name, task=None, size=2):
    model = table.load_for(name, task, "random")
    _, batch, run = table.work_of(model, task, size, torch.device("cpu"), torch.float32)
    return count_flops(model, lambda: run(model, batch))


def test_dino_from_its_sizes():
    assert counted("dino-mini").total == vision_flops(2, 64, 8, 128, 512, 6)
    assert counted("dino-mini", "image_classification").total == (
        vision_flops(2, 64, 8, 128, 512, 6) + 2 * 2 * 128 * 32
    )


def test_timm_from_its_sizes():
    found = counted("timm:vit_tiny_patch16_224", size=1)
    assert found.total == vision_flops(1, 196, 16, 192, 768, 12) + 2 * 192 * 1000


PASSES = [(name, task) for name in ("xvlm-mini", "blip-mini") for task in (None, "retrieval", "captioning", "vqa")]


@pytest.mark.parametrize(("name", "task"), [*PASSES, ("blip-mini", "nlvr")])
def test_a_pass_meets_every_prunable_layer(name, task):
    work = counted(name, task)
    assert all(flops > 0 for flops in work.layers.values())
    assert work.total > sum(work.layers.values())


def test_attention_of_torch_by_hand():
    """nn.MultiheadAttention calls no module for its products: q, k, v and out, of three texts of five tokens."""
    module = nn.MultiheadAttention(D, 2, batch_first=True)
    model = wrap(module, forward=lambda module, batch: module(batch["x"], batch["x"], batch["x"]))
    work = count_flops(model, lambda: model.observe({"x": torch.randn(3, 5, D)}))
    assert work.layers == {"in_proj_weight": 2 * 15 * 3 * D * D, "out_proj.weight": 2 * 15 * D * D}
