"""BLIP while it is trained and asked: queue and momentum over two processes, stages of towers, retrieval scores."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from models import load_model, load_task_model
from models.common.attention_masks import without_padding
from pretraining.guides import tower_trained
from pruners import prune
from sparsity.sparsifiers import Fixed
from tasks.retrieval import Retrieval
from tests.conftest import REFERENCE

SIZE, STEPS = 4, 3

SCRIPT = f"""
import sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from models import load_model, load_task_model
from storage.tensors import write_safetensors
from tests.conftest import REFERENCE
from training.optimizer import Recipe, make_optimizer
from pretraining.objectives import Together

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, folder = dist.get_rank(), sys.argv[1]
model = load_model("blip", config=REFERENCE / "blip.yaml", weights="random").train()
wrapped = DistributedDataParallel(  # as training/fabric.py does
    Together(model), find_unused_parameters=False, broadcast_buffers=False
)
optimizer = make_optimizer(wrapped.named_parameters(), Recipe(lr=1e-3))
features, owned = {{}}, []
moment = model.momentum_features
def remember(batch):
    found = moment(batch)
    owned.append(found)
    return found
model.momentum_features = remember
for step in range({STEPS}):
    torch.manual_seed(10 * step + rank)
    if step == 1:
        model.temp.data.fill_(7.0)
    batch = model.example({SIZE})["general"]
    sum(wrapped({{"general": batch}}).values()).backward()
    optimizer.step()
    optimizer.zero_grad()
    features[f"image.{{step}}"], features[f"text.{{step}}"] = owned[-1]
state = {{f"model/{{name}}": tensor.clone() for name, tensor in model.state_dict().items()}}
write_safetensors(f"{{folder}}/rank{{rank}}.safetensors", state | features, {{}})
"""


@pytest.fixture
def blip():
    return load_model("blip", config=REFERENCE / "blip.yaml", weights="random")


@pytest.mark.slow
def test_two_processes_fill_one_queue(blip, run_ranks, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_ranks(tmp_path / "script.py", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]
    for name in blip.state_dict():
        assert torch.equal(ranks[0][f"model/{name}"], ranks[1][f"model/{name}"]), name
    filled = 2 * SIZE * STEPS
    assert ranks[0]["model/queue_ptr"].item() == filled
    for kind in ("image", "text"):
        queue = ranks[0][f"model/{kind}_queue"]
        fed = torch.cat([ranks[rank][f"{kind}.{step}"] for step in range(STEPS) for rank in range(2)])
        assert torch.equal(queue[:, :filled], fed.t())
        assert torch.equal(queue[:, filled:], getattr(blip, f"{kind}_queue")[:, filled:])
    assert not torch.equal(ranks[0]["image.0"], ranks[1]["image.0"]), "each process has pairs of its own"
    for name in ("visual_encoder.blocks.0.attn.qkv.weight", "text_encoder.encoder.layer.0.output.dense.weight"):
        tower, _, rest = name.partition(".")
        start, slow, fast = blip.state_dict()[name], ranks[0][f"model/{tower}_m.{rest}"], ranks[0][f"model/{name}"]
        assert 0 < (slow - start).norm() < 0.02 * (fast - start).norm(), "three steps of 0.005 after 0, 1 and 2 updates"
    assert ranks[0]["model/temp"].item() == pytest.approx(0.5, abs=5e-3), "clamped in the second step"


def test_a_stage_of_the_vision_tower_alone(blip):
    with torch.no_grad():
        for parameter in blip.visual_encoder.parameters():
            parameter.add_(1)
    before = copy.deepcopy(blip.state_dict())
    tower_trained(blip, "vision")
    for name, tensor in blip.state_dict().items():
        source = name.replace("visual_encoder_m.", "visual_encoder.")
        assert torch.equal(tensor, before[source]), name
    assert not any(p.requires_grad for p in blip.visual_encoder_m.parameters())


def test_a_stage_of_the_text_tower_alone(blip):
    with torch.no_grad():
        for parameter in blip.text_encoder.parameters():
            parameter.add_(1)
    before = copy.deepcopy(blip.state_dict())
    tower_trained(blip, "text")
    for name, tensor in blip.state_dict().items():
        source = name.replace("text_encoder_m.", "text_encoder.")
        if ".attention." in name:
            source = source.replace("text_decoder.bert.", "text_encoder.")
        assert torch.equal(tensor, before[source]), name
    first = "encoder.layer.0.attention.self.query.weight"
    blip.text_encoder.get_parameter(first).data.zero_()
    assert blip.text_decoder.bert.get_parameter(first).any(), "equal at the start, not shared"


def test_retrieval_scores_are_itm_logit_and_cosine(blip):
    batch = blip.example(5)["general"]
    with torch.no_grad():
        states, image = blip.image_entry(batch["image"])
        ids, text = blip.text_entry(batch["text_ids"], batch["text_atts"])
        cosine = (image * text).sum(dim=1)
        scores = blip.match(ids, batch["text_atts"], states, cosine)
        for i in range(5):
            real = int(batch["text_atts"][i].sum())
            words = batch["text_ids"][i : i + 1, :real].clone()
            image_state = blip.visual_encoder(batch["image"][i : i + 1])
            text_state = blip.text_states(words, torch.ones_like(words))
            words[0, 0] = blip.enc
            grounded = blip.text_encoder(words, torch.zeros(1, 1, 1, real), image_state)
            logits = blip.itm_head(grounded[0, 0])
            similarity = F.cosine_similarity(blip.vision_proj(image_state[:, 0]), blip.text_proj(text_state[:, 0]))
            torch.testing.assert_close(cosine[i], similarity[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(scores[i], logits[1] + similarity[0], rtol=1e-4, atol=1e-5)


def test_padding_behind_the_longest_text_is_left_out(blip):
    batch = blip.example(3)["general"]
    longest = int(batch["text_atts"].sum(dim=1).max())
    ids, atts = without_padding(batch["text_ids"], batch["text_atts"])
    assert ids.shape == atts.shape == (3, longest)
    wide = batch | {name: F.pad(batch[name], (0, 7)) for name in ("text_ids", "text_atts")}
    values = []
    for variant in (batch, wide):
        torch.manual_seed(0)
        with torch.no_grad():
            values.append(copy.deepcopy(blip).losses(variant))
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])


def pairs(model):
    """Four pairs of different images."""
    generator = torch.Generator().manual_seed(3)
    side, words = model.image_shape.image_size, model.config.text.vocab_size - 2
    ids = torch.randint(5, words, (4, 6), generator=generator)
    image = torch.randn(4, 3, side, side, generator=generator)
    return {"image": image, "text_ids": ids, "text_atts": torch.ones_like(ids), "idx": torch.arange(4)}


def test_copies_move_once_a_step_in_retrieval():
    model = load_task_model("blip-mini", "retrieval")
    with torch.no_grad():
        model.visual_encoder.norm.weight.add_(1)
        model.temp.fill_(9.0)
    slow, start = model.visual_encoder_m.norm.weight, model.visual_encoder_m.norm.weight.clone()
    model(pairs(model), move=False)
    assert torch.equal(slow, start)
    assert model.temp.item() == 0.5
    model(pairs(model))
    torch.testing.assert_close(slow, 0.995 * start + 0.005 * model.visual_encoder.norm.weight)


def test_only_the_first_pass_moves_the_copies():
    """Two steps of two passes, and a stage after them that begins where the second step was."""
    asked = []

    class Remembering(nn.Module):
        momentum_targets = True

        def forward(self, batch, gather, alpha, move):
            asked.append(move)
            return {}

    task = Retrieval.__new__(Retrieval)
    task._config = SimpleNamespace(alpha=0.4)
    for progresses in ((0.0, 0.0, 0.5, 0.5), (0.5, 0.5)):
        task.begin(None, None)
        for progress in progresses:
            task.losses(Remembering(), {}, progress)
    assert asked == [True, False, True, False, True, False]


def test_the_momentum_copies_carry_the_mask():
    mask = prune(load_model("blip-mini"), [], "omp", (0.75,))[0.75]
    model = load_task_model("blip-mini", "retrieval")
    dense = model.visual_encoder_m.blocks[0].mlp.fc1.weight.clone()
    fixed = Fixed(mask)
    fixed.attach(model)
    copies = model.followers()
    assert set(copies) == set(fixed.mask)
    for name, copied in copies.items():
        assert (copied.weight[~fixed.mask[name]] == 0).all(), name
    kept = fixed.mask["visual_encoder.blocks.0.mlp.fc1.weight"]
    assert torch.equal(model.visual_encoder_m.blocks[0].mlp.fc1.weight[kept], dense[kept])
    for _ in range(3):
        model(pairs(model))
    fixed.check()
    with torch.no_grad():
        model.text_encoder_m.encoder.layer[0].output.dense.weight.fill_(1)
    with pytest.raises(RuntimeError, match="pruned weights of 'text_encoder"):
        fixed.check()
