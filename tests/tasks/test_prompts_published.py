"""VPNs against runs of the published classes: scores, cuts, half-steps, both stages (tests/reference/vectors/vpns)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from safetensors.torch import load_file
from torch import nn

from models.label_mapping import LabelMapping
from models.prompts import Prompted, VisualPrompt
from models.wrap import WrappedClassifier
from sparsity.progressive_config import ProgressiveConfig
from sparsity.search import Search, initial_score
from tasks.prompt_options import PromptOptions
from tasks.prompts import Prompts
from tests.conftest import REFERENCE
from training.loop import Callback, Loop, fit
from training.optimizer import Recipe
from training.schedule import Schedule
from training.task import Objective

VECTORS = {
    name: load_file(REFERENCE / "vectors" / "vpns" / f"{name}.safetensors") for name in ("resnet", "vit", "run_resnet")
}
KINDS = {
    "resnet": ("pad", {"width": 4}, 0.3),
    "vit": ("fix", {"square": 15}, 0.4),
    "run_resnet": ("pad", {"width": 8}, 0.2),
}


class Residual(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        if (i, stride) != (o, 1):
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        beside = self.downsample(x) if hasattr(self, "downsample") else x
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + beside).relu()


class MiniResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Residual(8, 8, 1))
        self.layer2 = nn.Sequential(Residual(8, 16, 2))
        self.layer3 = nn.Sequential(Residual(16, 32, 2))
        self.fc = nn.Linear(32, 26)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        return self.fc(x.mean(dim=(2, 3)))


class Block(nn.Module):
    def __init__(self, d=32, hidden=64):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(d, hidden), nn.Linear(hidden, d)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class MiniViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head, self.norm = nn.Linear(48, 32), nn.Linear(32, 30), nn.LayerNorm(32)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(torch.zeros(1, 65, 32))
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        x = self.embed(F.unfold(x, 4, stride=4).transpose(1, 2))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Made:
    """A network of the vectors, its prompt, and what trains them."""

    def __init__(self, name, density, score_lr=1e-4):
        self.vectors = VECTORS[name]
        module = MiniViT() if name == "vit" else MiniResNet()
        module.load_state_dict(self.part("in/state/"))
        self.model = WrappedClassifier(module, lambda module, image: module(image), conv=True)
        kind, sizes, _ = KINDS[name]
        self.prompt = VisualPrompt(kind, side=32, **sizes)
        config = ProgressiveConfig(prune="vpns", sparsity=100 * (1 - density), score_lr=score_lr)
        self.search = Search(config, None)
        self.search.attach(self.model)
        self.task = object.__new__(Prompts)
        self.task._options, self.task._prompt, self.task._last = PromptOptions(), self.prompt, ""
        self.task.extra_modules = {"prompt": self.prompt}
        mapping = LabelMapping(self.vectors["mapping"])
        self.prompted = self.task._prompted = Prompted(self.model, self.prompt, mapping)
        self.objective = Objective(self.model, self.task, 1)
        self.losses, self.seen = [], []

    def part(self, prefix):
        return {k.removeprefix(prefix): v for k, v in self.vectors.items() if k.startswith(prefix)}

    def batches(self, passes):
        """A1 B1 A2 B2 ... of the vectors' batches."""
        v, halves = self.vectors, []
        for i in range(len(v["in/x"])):
            halves.append({"image": v["in/vp_x"][i].float() / 255, "label": v["in/vp_y"][i], "prompted": True})
            halves.append({"image": v["in/x"][i].float() / 255, "label": v["in/y"][i], "prompted": False})
        return halves * passes

    def run(self, folder, recipe, epoch, passes=1):
        batches = self.batches(passes)
        loop = Loop("test", recipe, len(batches), 0, folder, {}, epoch=epoch, sparsifier=self.search, log_every=1)
        self.search.started(len(batches), epoch)
        if self.search.searching:
            self.search.begin_search(self.objective, self.objective.extra_modules.parameters())
        keep = Callback(
            after_step=self.keep, after_log=lambda row: self.losses.append(row.get("prompted", row.get("plain")))
        )
        stand = Callback(after_backward=self.task.after_backward)
        folder.mkdir(parents=True, exist_ok=True)
        fit(
            Fabric(accelerator="cpu"), self.objective, lambda first: iter(batches[first:]), loop_with(loop, stand, keep)
        )

    def keep(self, step):
        found = {"prompt": self.prompt.full_program().clone()}
        found |= {f"state/{k}": v.clone() for k, v in self.model.state_dict().items()}
        if self.search.searching:
            found |= {f"scores/{k}": v.detach().clone() for k, v in self.search._scores.scores.items()}
        found |= {f"mask/{k}": self.search.mask[k].clone() for k in self.search.mask}
        self.seen.append(found)

    def check(self, prefix, step, mask=None, **tolerances):
        """All that the vectors hold under a prefix; weights there are masked when they are used."""
        found = self.seen[step - 1]
        for key, expected in self.part(prefix).items():
            kind = key.partition("/")[0]
            if kind == "mask":
                assert torch.equal(found[key], unpacked(expected, found[key].shape)), key
            elif kind in tolerances:
                if mask is not None and (name := key.partition("/")[2]) in mask:
                    expected = expected * mask[name]
                torch.testing.assert_close(found[key], expected, rtol=0, atol=tolerances[kind], msg=f"{prefix}{key}")


def loop_with(loop, *callbacks):
    loop.callbacks += callbacks
    return loop


def unpacked(bits, shape):
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=math.prod(shape))).bool().view(shape)


def adam(rate, **more):
    return Recipe(
        lr=rate, optimizer="adam", weight_decay=1e-4, schedule=Schedule(warmup=0.0, **({"decay": "none"} | more))
    )


def sgd(**more):
    return Recipe(
        lr=0.01, optimizer="sgd", weight_decay=1e-4, schedule=Schedule(warmup=0.0, **({"decay": "none"} | more))
    )


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_scores_cuts_and_mapping(name):
    made = Made(name, KINDS[name][2])
    for layer, expected in made.part("scores/").items():
        found = initial_score(made.vectors[f"in/state/{layer}"], "published")
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert sum(layer.weight.numel() for layer in made.model.prunable_layers().values()) == (
        18_880 if name == "vit" else 20_120
    )
    for density in (0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
        cut = Made(name, density).search.mask
        for layer, bits in made.part(f"masks/{density}/mask/").items():
            assert torch.equal(cut[layer], unpacked(bits, cut[layer].shape)), (density, layer)
        assert sum(map(cut.size, cut)) - sum(map(cut.kept, cut)) == int(made.vectors[f"masks/{density}/pruned"])
    made.model.eval()
    x = made.vectors["in/x"].flatten(0, 1).float() / 255
    with torch.no_grad():
        logits = made.model.logits(made.prompt(x))
    torch.testing.assert_close(logits, made.vectors["mapping_logits"], rtol=0, atol=1e-4)
    labels = made.vectors["in/y"].flatten()
    assert torch.equal(LabelMapping.fit(logits, labels, len(made.vectors["mapping"])).mapping, made.vectors["mapping"])


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_half_steps_of_the_search(name, tmp_path):
    """Score tolerance: ten times what another order of sums does, as the vectors' page says."""
    for stage, rate, score in (("stage1", 1e-4, 5e-6), ("stage1fast", 1e-2, 4e-4)):
        made = Made(name, KINDS[name][2], rate)
        weights = {n: p.detach().clone() for n, p in made.model.inner.named_parameters()}
        zeroed = {n: made.search._scores._weights[n].clone() for n in made.model.prunable_layers()}
        made.run(tmp_path / stage, adam(rate), epoch=0)
        for moment, step in (("half1", 1), ("step1", 2), ("step3", 6)):
            made.check(f"{stage}/{moment}/", step, scores=score, prompt=4e-8, state=1e-4)
        assert made.losses == pytest.approx(made.vectors[f"{stage}/losses"].tolist(), abs=1e-3)
        assert torch.equal(made.seen[0]["prompt"], made.seen[1]["prompt"])  # B leaves the prompt alone
        for n, p in made.model.inner.named_parameters():  # nothing but scores and prompt moved
            expected = zeroed[n] * made.search.mask[n] if n in zeroed else weights[n]
            assert torch.equal(p.detach(), expected), n


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_half_steps_of_training(name, tmp_path):
    made = Made(name, KINDS[name][2], 1e-2)
    made.run(tmp_path / "one", adam(1e-2), epoch=0)
    mask = made.search.end_search()
    made.losses, made.seen = [], []
    made.run(tmp_path / "two", sgd(), epoch=0)
    for moment, step in (("half1", 1), ("step1", 2), ("step3", 6)):
        made.check(f"stage2/{moment}/", step, mask=mask, prompt=1e-4, state=1e-3)
    assert made.losses == pytest.approx(made.vectors["stage2/losses"].tolist(), abs=1e-3)
    assert all(not layer.weight[~mask[n]].any() for n, layer in made.model.prunable_layers().items())
    made.prompted.eval()
    x = made.vectors["in/x"][0].float() / 255
    with torch.no_grad():
        for key, prompted in (("with", True), ("without", False)):
            torch.testing.assert_close(
                made.prompted(x, prompted=prompted), made.vectors[f"eval/logits_{key}_prompt"], rtol=0, atol=3e-3
            )


def test_a_run_from_end_to_end(tmp_path):
    made = Made("run_resnet", 0.2, 1e-3)
    expected = made.vectors["losses"].tolist()
    cosine = {"decay": "cosine", "every": "epoch"}
    made.run(tmp_path / "one", adam(1e-3, **cosine), epoch=4, passes=3)
    made.check("after1/", 12, scores=3e-3, prompt=5e-4, state=3e-3)
    mask = made.search.end_search()
    made.seen = []
    made.run(tmp_path / "two", sgd(**cosine), epoch=4, passes=3)
    made.check("after2/", 12, mask=mask, prompt=5e-4, state=3e-3)
    assert made.losses == pytest.approx(expected, abs=9e-4)
