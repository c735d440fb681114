"""CLIP and SigLIP as models of retrieval: their losses, with the gradient of a large batch, and what they refuse."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from console.errors import InputError
from models import load_model, load_task_model
from models.library.hf_models import wrap_hf
from models.library.hf_tokenizer import HFTokenizer
from pruners import PRUNERS, prune
from tests.models.test_any_module import HUGGING_FACE, vit
from tests.models.test_finding import ROUNDS
from training.negatives import StepFeatures

BOTH = ["CLIPModel", "SiglipModel"]


@pytest.fixture(params=BOTH)
def model(request):
    torch.manual_seed(0)
    return wrap_hf(HUGGING_FACE[request.param]()).eval()


def logits(model, batch):
    """Of the module itself, [texts, images]."""
    names = {"pixel_values": batch["image"], "input_ids": batch["text_ids"]}
    if type(model.module).__name__ == "CLIPModel":
        names["attention_mask"] = batch["text_atts"]
    return model.module(**names).logits_per_text


def test_without_ids_the_loss_is_the_modules_own(model):
    batch = model.example(5)["general"]
    torch.testing.assert_close(model(batch)["itc"], model.loss(batch))


def test_captions_of_one_image_are_right_answers(model):
    batch, idx = model.example(4)["general"], [7, 3, 7, 5]
    found = model(batch | {"idx": torch.tensor(idx)})["itc"]
    score, total = logits(model, batch).detach(), 0.0
    for of_rows in (score, score.t()):
        for i, row in enumerate(of_rows):
            same = [j for j in range(4) if idx[j] == idx[i]]
            if type(model.module).__name__ == "CLIPModel":
                total += sum(-row.log_softmax(0)[j] for j in same) / len(same) / 8
            else:
                total += sum(-F.logsigmoid(row[j] if j in same else -row[j]) for j in range(4)) / 8
    assert found.item() == pytest.approx(total.item(), rel=1e-5)


def test_gathered_passes_equal_one_large_batch(model):
    model = model.double()
    large = {k: v.double() if v.is_floating_point() else v for k, v in model.example(6)["general"].items()}
    large["idx"] = torch.tensor([0, 1, 2, 0, 4, 2])
    whole = copy.deepcopy(model)
    whole(large)["itc"].backward()
    parts, features = [{k: v[i : i + 2] for k, v in large.items()} for i in (0, 2, 4)], StepFeatures()
    for part in parts:
        with torch.no_grad():
            entries = model.image_entry(part["image"])[1], model.text_entry(part["text_ids"], part["text_atts"])[1]
        features.collect(*entries, part["idx"])
    for part in parts:
        (model(part, gather=features.gather())["itc"] / len(parts)).backward()
    for (name, one), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_clips_scale_stays_below_a_hundred(model):
    bound = math.log(100) if type(model.module).__name__ == "CLIPModel" else 5.0
    model.module.logit_scale.data.fill_(5.0)
    model(model.example(2)["general"])
    assert model.module.logit_scale.item() == 5.0, "evaluation changes nothing"
    model.train()(model.example(2)["general"])
    assert model.module.logit_scale.item() == pytest.approx(bound)


def test_as_models_of_a_task(model, tmp_path):
    folder = tmp_path / "pairs"
    model.module.save_pretrained(folder)
    same = load_task_model(f"hf:{folder}", "retrieval")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in same.state_dict().items())
    assert (same.positions, same.reranks) == (16, False)
    with pytest.raises(InputError, match="no model for 'vqa': it has models for retrieval"):
        load_task_model(f"hf:{folder}", "vqa")


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_method_prunes_both_towers(pruner):
    torch.manual_seed(0)
    clip = wrap_hf(HUGGING_FACE["CLIPModel"]())
    mask = prune(clip, [clip.example(4) for _ in range(2)], pruner, (0.5,), **ROUNDS.get(pruner, {}))[0.5]
    assert mask.sparsity() == pytest.approx(0.5, abs=1e-4)
    assert all(0 < share < 1 for share in mask.sparsity_by_modality().values()) and len(mask) == 24


def test_models_of_images_alone_are_refused(tmp_path):
    vit().save_pretrained(tmp_path / "vit")
    with pytest.raises(InputError, match="no model for 'retrieval': it has models for image_classification"):
        load_task_model(f"hf:{tmp_path / 'vit'}", "retrieval")


def test_siglip_reads_padded_texts():
    class Words:
        pad_token_id = 1

    for length in (None, 4):
        ids, atts = HFTokenizer(Words(), longest=6, filled=True).pad_batch([[5, 6], [7]], length)
        assert ids.tolist() == [[5, 6, 1, 1, 1, 1], [7, 1, 1, 1, 1, 1]] and atts.sum(dim=1).tolist() == [2, 1]
    assert HFTokenizer(Words(), longest=6).pad_batch([[5, 6], [7]])[0].shape == (2, 2)


def test_the_mini_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mini = load_model("clip-mini", weights="random")
    assert type(mini.module).__name__ == "CLIPModel" and mini.tokenizer == "weights/mini-vocab.txt"
    # The text feature is that of [SEP]: words behind it, as under padding, change nothing.
    texts = torch.tensor([[2, 9, 20, 3, 0, 0], [2, 9, 20, 3, 50, 51]])
    one, other = mini.text_entry(texts, torch.ones_like(texts))[1]
    torch.testing.assert_close(one, other)
