"""The command from a table to an export, and its refusals."""

import argparse
import json

import pytest
import torch
import transformers

import shrink
from console.errors import InputError
from models import load_model
from models.parts import all_sets
from models.plans import Plan
from models.surgery import cut
from sparsity.mask import Mask
from tasks.loading import data_of
from tests.models.test_any_module import HUGGING_FACE


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP with random weights, as a folder."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    HUGGING_FACE["CLIPModel"]().save_pretrained(folder)
    return f"hf:{folder}"


def shrunk(run, folder, model, *plan):
    """A smaller model in FOLDER/a, by the first three commands."""
    run(
        "shrink.py",
        "measure",
        "--model",
        model,
        "--criterion",
        "magnitude",
        "--group",
        "8",
        "-o",
        folder / "a_errors.safetensors",
    )
    run("shrink.py", "plan", folder / "a_errors.safetensors", "--round", "8", *plan)
    return run("shrink.py", "cut", "--model", model, "--plan", folder / "a_plan.json", "--repeats", "2")


def test_from_a_table_to_files_of_others(run, tmp_path, monkeypatch):
    done = shrunk(run, tmp_path, "dino-mini", "--scope", "layer")
    assert done.returncode == 0, done.stderr
    assert "0.50 x" in done.stdout
    small = load_model(f"small:{tmp_path / 'a'}")
    about = json.loads((tmp_path / "a" / "plan.json").read_text())
    assert about["made_by"]["errors"]["criterion"] == "magnitude"
    assert about["made_by"]["shares"] == {"heads": 0.5, "neurons": 0.5, "channels": 0.5}
    with monkeypatch.context() as patch:
        patch.setattr("shrinking.export.CLOSE", -1.0)
        done = run("shrink.py", "export", tmp_path / "a", "--to", "torch")
    assert done.returncode == 2 and "gives other outputs" in done.stderr
    assert not (tmp_path / "a.pt2").exists()
    for kind in ("torch", "zeros", "mask"):
        done = run("shrink.py", "export", tmp_path / "a", "--to", kind)
        assert done.returncode == 0, done.stderr
    image = torch.randn(3, 3, 64, 64)
    program = torch.export.load(tmp_path / "a.pt2").module()
    torch.testing.assert_close(program(image), small.logits(image), rtol=1e-5, atol=1e-5)
    whole = load_model("dino-mini", weights=tmp_path / "a_zeros" / "model.safetensors")
    torch.testing.assert_close(whole.vit(image), small.vit(image), rtol=1e-5, atol=1e-5)
    masked = load_model("dino-mini")
    Mask.load(tmp_path / "a.safetensors").apply(masked)
    torch.testing.assert_close(masked.vit(image), small.vit(image), rtol=1e-5, atol=1e-5)
    done = run("shrink.py", "export", tmp_path / "a", "--to", "hf")
    assert done.returncode == 2
    assert "not a Hugging Face model" in done.stderr


@pytest.mark.parametrize(("criterion", "shares"), [("mope", ()), ("taylor", ()), ("influence", ("--keep", "1"))])
def test_measured_on_data(run, tmp_path, criterion, shares):
    """X-VLM's text layers compete; those that fuse are unknown to ITC, and stay. The same command, the same table."""
    options = ("--model", "xvlm-mini", "--criterion", criterion, "--samples", "8", "--group", "256")
    for name in ("a", "b"):
        done = run("shrink.py", "measure", *options, "-o", tmp_path / f"{name}_errors.safetensors")
        assert done.returncode == 0, done.stderr
    table = tmp_path / "a_errors.safetensors"
    assert table.read_bytes() == (tmp_path / "b_errors.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_errors.safetensors", "b_errors.safetensors"]
    done = run("shrink.py", "plan", table, *shares, "--keep_layers", "0.5", "--tower", "text")
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "a_plan.json").read_text())["kept"]
    stay = Plan.from_json(kept, "a_plan.json").stays[0][1]
    assert (stay.kind, len(stay.kept)) == ("layers", stay.count - 1)
    assert stay.kept[-2:] == (stay.count - 2, stay.count - 1)


def test_onnx(run, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    shrunk(run, tmp_path, "dino-mini", "--scope", "layer")
    done = run("shrink.py", "export", tmp_path / "a", "--to", "onnx")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.onnx").stat().st_size > 1e6


def test_stock_clip(run, tmp_path, clip):
    """All heads, the same number of neurons, fewer layers: transformers' class loads it, with no code of ours."""
    options = ("--keep_heads", "1", "--keep_layers", "0.5", "--scope", "layer", "--tower", "both")
    assert shrunk(run, tmp_path, clip, *options).returncode == 0
    done = run("shrink.py", "export", tmp_path / "a", "--to", "hf")
    assert done.returncode == 0, done.stderr
    stock = transformers.CLIPModel.from_pretrained(tmp_path / "a_hf").eval()
    assert stock.config.vision_config.intermediate_size == 32
    assert stock.config.text_config.num_hidden_layers == 1
    small = load_model(f"small:{tmp_path / 'a'}")
    batch = small.example(3)["general"]
    names = {"pixel_values": batch["image"], "input_ids": batch["text_ids"], "attention_mask": batch["text_atts"]}
    with torch.no_grad():
        torch.testing.assert_close(stock(**names).logits_per_image, small.module(**names).logits_per_image)
    done = run("shrink.py", "export", tmp_path / "a", "--to", "zeros")
    assert done.returncode == 2
    assert "layers were removed" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--scope", "layer"), "a stock CLIPAttention has no place for fewer heads of the same width"),
        (
            ("--keep_heads", "1", "--protect", "layers.0."),
            "and a stock CLIPMLP has one number for all: plan with --scope layer",
        ),
    ],
)
def test_what_a_stock_clip_cannot_be(run, tmp_path, clip, options, says):
    assert shrunk(run, tmp_path, clip, *options).returncode == 0
    done = run("shrink.py", "export", tmp_path / "a", "--to", "hf")
    assert done.returncode == 2
    assert says in done.stderr
    assert not list(tmp_path.glob("*hf*"))


def test_code_beside_the_weights(run, tmp_path, clip):
    """Heads and neurons that differ by layer, and a layer less: a class in the folder builds them, without us."""
    options = ("--tower", "both", "--keep_layers", "0.5")
    assert shrunk(run, tmp_path, clip, *options).returncode == 0
    done = run("shrink.py", "export", tmp_path / "a", "--to", "hf-code")
    assert done.returncode == 0, done.stderr
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "a_hf_code", trust_remote_code=True).eval()
    assert type(theirs).__name__ == "PrunedCLIPModel"
    small = load_model(f"small:{tmp_path / 'a'}")
    state, expected = theirs.state_dict(), small.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    batch = small.example(3)["general"]
    names = {"pixel_values": batch["image"], "input_ids": batch["text_ids"], "attention_mask": batch["text_atts"]}
    with torch.no_grad():
        assert torch.equal(theirs(**names).logits_per_image, small.module(**names).logits_per_image)


def test_a_stock_vit_has_fewer_heads(run, tmp_path):
    torch.manual_seed(0)
    HUGGING_FACE["ViTForImageClassification"]().save_pretrained(tmp_path / "base")
    assert shrunk(run, tmp_path, f"hf:{tmp_path / 'base'}", "--scope", "layer").returncode == 0
    done = run("shrink.py", "export", tmp_path / "a", "--to", "hf")
    assert done.returncode == 0, done.stderr
    stock = transformers.ViTForImageClassification.from_pretrained(tmp_path / "a_hf").eval()
    assert (stock.config.num_attention_heads, stock.config.head_dim) == (2, 8)
    image = torch.randn(2, 3, 32, 32)
    small = load_model(f"small:{tmp_path / 'a'}")
    torch.testing.assert_close(stock(image).logits, small.logits(image))


def test_a_plan_of_a_smaller_model_is_of_the_first(run, tmp_path):
    """Width, then layers of the result: the second plan says both, and either model can be cut by it."""
    shrunk(run, tmp_path, "dino-mini")
    first = f"small:{tmp_path / 'a'}"
    run("shrink.py", "measure", "--model", first, "--criterion", "random", "-o", tmp_path / "b_errors.safetensors")
    run("shrink.py", "plan", tmp_path / "b_errors.safetensors", "--keep", "1", "--keep_layers", "0.5")
    for name, model in (("b", first), ("c", "dino-mini")):
        done = run("shrink.py", "cut", "-m", model, "--plan", tmp_path / "b_plan.json", "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
    found, expected = (load_model(f"small:{tmp_path / name}") for name in "bc")
    assert len(found.vit.encoder.layer) == 3
    assert found.plan == expected.plan
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in found.state_dict().items())
    whole = load_model("dino-mini")
    assert cut(whole, found.plan.kept(all_sets(whole))).plan == found.plan


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan", "nowhere.safetensors"), "cannot read nowhere.safetensors"),
        (("measure", "--model", "dino-mini", "--criterion", "mop"), "unknown criterion 'mop'"),
        (("finetuning", "--model", "dino-mini", "--keep", "0"), "--keep is the share to keep"),
        (("finetuning", "--model", "dino-mini", "--keep", "1", "--keep_layers", "1"), "nothing would be removed"),
        (
            ("finetuning", "--model", "xvlm-mini", "--task", "vqa"),
            "distillation is for retrieval and",
        ),
        (("pretraining", "--model", "dino-mini"), "has no features of images and texts"),
        (("pretraining", "--model", "xvlm-mini", "--steps", "0"), "steps must be at least 1"),
        (("pretraining", "--model", "xvlm-mini", "--task", "retrieval"), "not for pretraining"),
        (("finetuning", "--model", "resnet-mini", "--task", "retrieval"), "no configuration for 'retrieval'"),
        (("measure", "--model", "dino-mini", "--group", "0"), "group must be at least 1"),
        (("measure", "--model", "dino-mini", "--criterion", "random", "--screen", "0.5"), "--screen 0.5 is for"),
        (("measure", "--model", "dino-mini", "--criterion", "magnitude", "--score", "loss"), "measures no score"),
        (
            ("measure", "--model", "dino-mini", "--criterion", "influence", "--kinds", "heads", "--samples", "16"),
            "influence has no errors of these parts",
        ),
        (("finetuning", "--model", "dino-mini", "--criterion", "influence"), "unknown criterion 'influence'"),
        (("finetuning", "--model", "dino-mini", "--tower", "text"), "the model has no 'text'"),
        (("finetuning", "--model", "dino-mini", "--protect", "banana"), "'banana' is in no name of a removable part"),
        (("finetuning", "--model", "dino-mini", "--set", "banana=2"), "unknown key 'banana'"),
        (("pretraining", "--model", "clip-mini", "--set", "banana=2"), "unknown key 'banana'"),
        (("cut", "--model", "dino-mini", "--plan", "nowhere.json", "--repeats", "0"), "repeats must be at least 1"),
        (("measure", "--model", "dino-mini", "--samples", "1"), "--samples must be at least 2"),
        (("measure", "--model", "dino-mini", "--order", "tailor"), "unknown order 'tailor' (did you mean 'taylor'"),
        (("measure", "--model", "dino-mini", "--samples", "9", "--score", "itc"), "compares features of images"),
        (("measure", "--model", "dino-mini", "--samples", "9", "--score", "z"), "unknown score 'z'"),
        (("measure", "--model", "xvlm-mini", "--samples", "9", "--score", "accuracy"), "needs a classifier"),
        (("measure", "--model", "dino-mini", "--criterion", "taylor", "--resume"), "--resume is for --criterion mope"),
        (("cut", "--model", "dino-mini", "--plan", "nowhere.json"), "there is no nowhere.json"),
        (("cut", "--model", "dino-mini", "--plan", "nowhere.json", "--samples", "9"), "--samples is for --repair"),
        (("export", "nowhere", "--to", "hff"), "unknown export 'hff'"),
        (("export", "nowhere", "--to", "mask"), "there is no nowhere/plan.json"),
    ],
)
def test_bad_input(run, arguments, says):
    done = run("shrink.py", *arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_plan_for_another_base(run, tmp_path):
    shrunk(run, tmp_path, "dino-mini")
    done = run("shrink.py", "cut", "-m", "xvlm-mini", "--plan", tmp_path / "a_plan.json", "-o", tmp_path / "b")
    assert done.returncode == 2
    assert "the plan is of another model" in done.stderr
    for words, says in (
        (["--keep_channels", "0.5"], "has no errors of channels"),
        (["--keep", "0.9999"], "nothing would be removed"),
    ):
        with pytest.raises(InputError, match=says):
            shrink.plan(shrink.parse_args(["plan", str(tmp_path / "a_errors.safetensors"), *words]))


def test_a_plan_for_other_weights(run, tmp_path, clip):
    """The plan names the weights that it was made for, and so does what is cut by it."""
    assert shrunk(run, tmp_path, clip).returncode == 0
    about = [json.loads(path.read_text()) for path in (tmp_path / "a_plan.json", tmp_path / "a" / "plan.json")]
    assert about[0]["base_sha256"] == about[1]["base_sha256"]
    torch.manual_seed(1)
    HUGGING_FACE["CLIPModel"]().save_pretrained(tmp_path / "other")
    words = ("cut", "-m", f"hf:{tmp_path / 'other'}", "--plan", tmp_path / "a_plan.json", "-o", tmp_path / "b")
    done = run("shrink.py", *words)
    assert done.returncode == 2
    assert "was made for other weights" in done.stderr
    assert run("shrink.py", *words, "--any_base", "--repeats", "1").returncode == 0


@pytest.mark.parametrize(
    ("model", "reader"),
    [
        ("xvlm-mini", "{reader: retrieval_pairs, files: {annotations: [data/finetune/itr/coco_test.json]}}"),
        ("xvlm-mini", "{reader: retrieval_pairs, files: {shards: [own/karpathy-test-{0..3}.tar]}}"),
        ("dino-mini", "{reader: classification, files: {annotations: [a.csv]}, splits: [train, test]}"),
        ("dino-mini", "{reader: classification, files: {annotations: [data/flowers102/annots/split.csv]}}"),
    ],
)
def test_a_test_split_is_refused(tmp_path, model, reader):
    """What a configuration tests on, and what is called so; unless asked. What is learnt from is not."""
    file = tmp_path / "data.yaml"
    file.write_text(f"sides: {{general: {reader.replace('{0..3}', '0')}}}")
    args = argparse.Namespace(model=model, task=None, config=file, on_test=False)
    with pytest.raises(InputError, match="is test data"):
        data_of(args)
    args.on_test = True
    assert data_of(args).sides["general"]
    args = argparse.Namespace(model="dino-mini", task="image_classification", config=None)
    assert data_of(args).sides["general"].splits == ["train", "val"]
    args.set = ["train.splits=[val]"]
    assert data_of(args).sides["general"].splits == ["val"], "of the task"
