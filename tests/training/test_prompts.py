"""Runs behind a visual prompt: VPNs, its switches, what they leave, and what they refuse."""

import json
import os
import re
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file

import training.loop
from configs.schema import parse
from console.interrupt import interrupt
from data.labelled import LabelledSet
from data.transforms import square_picture
from models import load_task_model
from models.label_mapping import LabelMapping
from models.prompt_files import read_prompt
from models.prompts import Prompted
from sparsity.mask import Mask
from tests.training.small_prompts import MODEL, command, draw, write

PRUNED = ("--prune", "vpns", "-s", "70", "--score_lr", "0.05")
QUICK = "--no_samples"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    four = draw(root / "four", 4)
    plain = {**four, "prompts": {"prompt": "none", "halves": "plain"}}
    missing = {"train": four["train"] | {"files": {"folder": str(root / "missing")}}, "test": four["test"]}
    return {"four": four, "seven": draw(root / "seven", 7), "plain": plain, "missing": missing}


@pytest.fixture(scope="module")
def config(tmp_path_factory, sets):
    return write(tmp_path_factory.mktemp("config") / "c.yaml", sets)


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """The folder of a run of VPNs."""
    from tests.conftest import runner

    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        check(runner(patch)(*command(config, out, *PRUNED)))
    return out


def check(done):
    assert done.returncode == 0, done.stderr
    return " ".join((done.stdout + done.stderr).split())


def metrics(folder):
    return json.loads((folder / "results.json").read_text())["metrics"]


def same(one, other, *names):
    """Whether files of two folders hold the same tensors."""
    for name in names or ("last", "mask", "prompt", "search/prompt"):
        first, second = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert first.keys() == second.keys(), name
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items()), name


def test_one_command_leaves_all(made):
    found = metrics(made)
    assert list(found) == ["top1", "plain_top1", "search_top1", "search_plain_top1"]
    mask, prompt = Mask.load(made / "mask.safetensors"), read_prompt(str(made / "prompt.safetensors"))
    weights = sum(map(mask.size, mask))
    assert sum(map(mask.kept, mask)) == weights - round(0.7 * weights)
    assert mask.source["pruner"] == "vpns" and "conv1.weight" in mask and "fc.weight" not in mask
    assert len(prompt.mapping) == 4 == len(set(prompt.mapping.tolist()))
    assert prompt.classes == [f"class{i}" for i in range(4)]
    assert prompt.program.any() and not prompt.program[:, 4:-4, 4:-4].any()
    assert {"bn1.running_mean", "bn1.running_var"} <= prompt.buffers.keys()
    for name in ("prompt.png", "progress.png", "samples.png", "search/results.json", "search/prompt.png"):
        assert (made / name).stat().st_size
    state = load_file(made / "last.safetensors")
    assert all(not state[name][~mask[name]].any() for name in mask)


def test_its_own_number_again(made, config, run, tmp_path):
    """Of the finished product, and of what the search found: its statistics come with its prompt."""
    again = ("--evaluate", QUICK, "--prompt")
    check(run(*command(config, tmp_path / "a", "-pre", made / "last.safetensors", *again, made / "prompt.safetensors")))
    found = metrics(made)
    assert metrics(tmp_path / "a") == {key: found[key] for key in ("top1", "plain_top1")}
    mask = ("--mask", made / "mask.safetensors")
    check(run(*command(config, tmp_path / "b", *mask, *again, made / "search" / "prompt.safetensors")))
    assert metrics(tmp_path / "b") == {key: found[f"search_{key}"] for key in ("top1", "plain_top1")}


def test_weights_say_whether_convolutions_count(made, config, run, tmp_path):
    """Evaluated as they are, without prompt, the weights are under the mask inside of them."""
    settings = yaml.safe_load(config.read_text())
    del settings["prompts"], settings["model"]["conv"]
    for name in settings["datasets"]:
        settings["datasets"][name]["train"]["reader"] = "classification"
    settings["datasets"]["plain"].pop("prompts")
    plain = tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump(settings))
    check(run(*command(plain, tmp_path / "out", "-pre", made / "last.safetensors", "--evaluate", QUICK)))
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["kept"]["after_loading"]["all"]["share"] == pytest.approx(0.3, abs=1e-4)


def test_the_command_line_goes_above_a_data_sets_own(config, run, tmp_path):
    more = ("--dense", "--dataset", "plain", "--halves", "both", "--prompt", "new", "--debug", QUICK)
    check(run(*command(config, tmp_path / "out", *more)))
    assert "plain_top1" in metrics(tmp_path / "out_debug")


def test_a_mask_with_its_prompt_and_with_a_new_one(made, config, run, tmp_path):
    """Finetuning under both goes on from the search's prompt; another data set has a mapping of its own."""
    mask = ("--mask", made / "mask.safetensors", QUICK)
    check(run(*command(config, tmp_path / "own", *mask, "--prompt", made / "search" / "prompt.safetensors")))
    first = read_prompt(str(made / "prompt.safetensors"))
    own = read_prompt(str(tmp_path / "own" / "prompt.safetensors"))
    assert torch.equal(own.mapping, first.mapping) and not torch.equal(own.program, first.program)
    check(run(*command(config, tmp_path / "new", *mask, "--prompt", "new", "--dataset", "seven")))
    new = read_prompt(str(tmp_path / "new" / "prompt.safetensors"))
    assert sorted(new.mapping.tolist()) == list(range(7))  # as many classes as the network knows
    given = Mask.load(made / "mask.safetensors")
    state = load_file(tmp_path / "new" / "last.safetensors")
    assert all(not state[name][~given[name]].any() for name in given)


@pytest.mark.parametrize("under", ["--dense", "--mask"])
def test_the_prompt_alone(under, made, config, run, tmp_path):
    """Of a finished network, pruned or not, not one number moves."""
    more = ["--mask", made / "mask.safetensors"] if under == "--mask" else ["--dense"]
    more += ["-pre", made / "last.safetensors", "--prompt", "new", "--freeze", QUICK]
    check(run(*command(config, tmp_path / "out", *more)))
    before, after = load_file(made / "last.safetensors"), load_file(tmp_path / "out" / "last.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert read_prompt(str(tmp_path / "out" / "prompt.safetensors")).program.any()
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert "prompted" in rows[-1] and "plain" not in rows[-1]
    go_on = ["--dense", "-pre", made / "last.safetensors", "--freeze", QUICK, "--prompt"]
    check(run(*command(config, tmp_path / "on", *go_on, tmp_path / "out" / "prompt.safetensors")))
    same(tmp_path / "out", tmp_path / "on", "last")


@pytest.mark.parametrize("kind", ["fix", "random", "expand"])
def test_other_kinds_around_smaller_pictures(kind, config, run, tmp_path):
    square = ("--prompt_square", "9") if kind != "expand" else ()
    config = write(tmp_path / "c.yaml", yaml.safe_load(config.read_text())["datasets"], prompts={})
    more = ("--prompt_kind", kind, "--picture", "24", *square, "--debug")
    check(run(*command(config, tmp_path / "out", *PRUNED, *more)))
    file = read_prompt(str(tmp_path / "out_debug" / "prompt.safetensors"))
    assert file.shape["kind"] == kind and file.shape["picture"] == 24 and file.program.any()
    assert (tmp_path / "out_debug" / "prompt.png").stat().st_size


def test_hydra_is_vpns_without_prompt(config, run, tmp_path):
    switches = ("--prompt", "none", "--halves", "plain", "-s", "70", "--score_lr", "0.05", QUICK)
    for method in ("hydra", "vpns"):
        check(run(*command(config, tmp_path / method, "--prune", method, *switches)))
    same(tmp_path / "hydra", tmp_path / "vpns")
    assert metrics(tmp_path / "hydra") == metrics(tmp_path / "vpns")
    assert list(metrics(tmp_path / "hydra")) == ["top1", "search_top1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mapping", "stop"), [("flm", 3), ("flm", 8), ("flm", 20), ("ilm", 11), ("ilm", 27), ("head", 11)]
)
def test_killed_and_resumed_gives_the_same_bits(mapping, stop, config, run, tmp_path, monkeypatch):
    """In the first stage (16 steps) or the second."""
    more = (*PRUNED, "--mapping", mapping, QUICK)
    check(run(*command(config, tmp_path / "whole", *more)))
    steps, set_rate = [], training.loop.set_rate

    def strike(*arguments):
        steps.append(1)
        if len(steps) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return set_rate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "set_rate", strike)
        assert run(*command(config, tmp_path / "part", *more)).returncode == 130
    interrupt.requested = False
    folder = tmp_path / "part" / ("search" if stop <= 16 else "")
    check(run(*command(config, tmp_path / "other", *more, "--snapshot", folder / "snapshot.pt")))
    check(run(*command(config, tmp_path / "part", *more)))
    for name in ("part", "other"):
        same(tmp_path / "whole", tmp_path / name, "last", "mask", "prompt")
        assert metrics(tmp_path / name) == metrics(tmp_path / "whole")
        for log in ("log.jsonl", "search/log.jsonl"):
            assert (tmp_path / name / log).read_text() == (tmp_path / "whole" / log).read_text()


@pytest.mark.slow
def test_two_processes_end_with_the_mask_of_one(sets, run, run_ranks, tmp_path):
    """Of a network without batch normalisation, whose statistics would be those of half a batch."""
    masks, mappings = [], []
    for devices, start in (("1", run), ("2", run_ranks)):
        vit = {"conv": True, "img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 7}
        config = write(tmp_path / f"{devices}.yaml", sets, model=vit, batch_size=4, effective_batch=8)
        words = command(config, tmp_path / devices, *PRUNED, QUICK, "--devices", devices)
        words[words.index("timm:resnet18")] = "timm:vit_tiny_patch16_224"
        check(start(*words))
        masks.append(Mask.load(tmp_path / devices / "mask.safetensors"))
        mappings.append(read_prompt(str(tmp_path / devices / "prompt.safetensors")).mapping)
    one, two = masks
    assert sum(int((one[name] != two[name]).sum()) for name in one) <= 0.001 * sum(map(one.size, one))
    assert sum(map(two.kept, two)) == sum(map(one.kept, one))
    assert torch.equal(*mappings)


def pictures(sets):
    data = parse(LabelledSet, sets["four"]["test"], "test").open()
    return torch.stack([square_picture(32)(data.read(i)[0]) for i in range(len(data))])


def test_saved_and_loaded_again(made, sets):
    """By the toolkit's classes, and by the lines of docs/prompts.md, which know torch, timm and safetensors alone."""
    file = read_prompt(str(made / "prompt.safetensors"))
    network = load_task_model("timm:resnet18", "image_classification", None, made / "last.safetensors", MODEL)
    product = Prompted(network, file.prompt(), LabelMapping(file.mapping)).eval()
    x = pictures(sets)
    with torch.no_grad():
        expected = product(x)
        right = float((expected.argmax(1) == torch.arange(4).repeat_interleave(4)).float().mean())
        torch.testing.assert_close(product(x[:1]), expected[:1], rtol=0, atol=1e-5)  # a batch of one
    assert round(100 * right, 2) == metrics(made)["top1"]

    from tests.docs.pages import REPOSITORY

    page = (REPOSITORY / "docs" / "prompts.md").read_text()
    (lines,) = re.findall(r"```python\n(import json.*?)```", page, re.DOTALL)
    assert "import models" not in lines and "from models" not in lines
    lines = lines.replace('"run/', f'"{made}/').replace("num_classes=1000", "num_classes=7, channels=(8, 8, 16, 16)")
    space = {"pictures": x}
    exec(lines, space)
    torch.testing.assert_close(space["logits"], expected, rtol=0, atol=1e-5)


def test_small_pictures_stay_small(config, run, tmp_path):
    """A prompt's file says how large its pictures are: training under it goes on with these."""
    small = ("--picture", "24", "--prompt_kind", "expand", "--debug", QUICK)
    check(run(*command(config, tmp_path / "first", *PRUNED, *small)))
    first = tmp_path / "first_debug"
    again = (
        "--mask",
        first / "mask.safetensors",
        "--prompt",
        first / "search" / "prompt.safetensors",
        "--debug",
        QUICK,
    )
    check(run(*command(config, tmp_path / "again", *again)))
    assert read_prompt(tmp_path / "again_debug" / "prompt.safetensors").shape["picture"] == 24


def test_a_batch_of_one(sets, run, tmp_path):
    """Batch normalisation of 1 x 1 maps has nothing to average over: a transformer."""
    vit = {"conv": True, "img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 7}
    config = write(tmp_path / "c.yaml", sets, model=vit, batch_size=1)
    words = command(config, tmp_path / "out", *PRUNED, QUICK, "--debug", "--set", "eval_batch=1")
    words[words.index("timm:resnet18")] = "timm:vit_tiny_patch16_224"
    check(run(*words))
    assert "plain_top1" in metrics(tmp_path / "out_debug")


def test_sparse_layers_and_short_searches_warn(config, run, tmp_path):
    """Said at the first cut and at the end, with what to do; a floor, or other scores, then leave none."""
    words = ("--prune", "vpns", "-s", "95", "--score_lr", "1e-9", QUICK)
    said = check(run(*command(config, tmp_path / "few", *words)))
    warning = "warning: less than 1 % is kept of"
    assert said.count(warning) == 2 and "; --score_init magnitude starts elsewhere" in said
    mask = Mask.load(tmp_path / "few" / "mask.safetensors")
    few = [name for name in mask if mask.kept(name) < 0.01 * mask.size(name)]
    assert few and f"{warning} {len(few)} layer" in said and few[0] in said
    assert "note: 0 of" in said and "16 steps at a score rate of 1e-09 are too few" in said
    assert "--score_lr 0.075" in said  # 1.2 / 16
    said = check(run(*command(config, tmp_path / "floor", *words, "--min_kept", "0.01")))
    mask = Mask.load(tmp_path / "floor" / "mask.safetensors")
    assert warning not in said and all(mask.kept(name) >= 0.01 * mask.size(name) for name in mask)
    said = check(run(*command(config, tmp_path / "rate", "--prune", "vpns", "-s", "95", QUICK)))
    assert "crossed the threshold" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prune vpns --mask M", "--prune vpns searches over all weights: leave --mask out"),
        ("--dense --prompt P --dataset seven", "belongs to other classes (4, first: class0) than the images (7"),
        ("--dense --prompt nowhere.safetensors", "nowhere.safetensors"),
        ("--dense --prompt M", "holds no prompt: give the prompt.safetensors of a run's folder"),
        ("--dense --prompt P --mapping head", "was trained with a label mapping: add --mapping flm"),
        ("--dense --prompt P --prompt_width 2", "--prompt_width has no effect for"),
        ("--dense --prompt new --prompt_square 3", "--prompt_square has no effect for --prompt_kind pad"),
        ("--dense --prompt new --prompt_width 17", "a frame of 17 pixels leaves no picture of 32"),
        ("--dense --prompt new --picture 33", "pictures of 33 pixels do not fit into the model's 32"),
        ("--dense --prompt new --prompt_kind expand", "give their side with --picture"),
        ("--dense --prompt none --prompt_lr 0.1", "--prompt_lr has no effect without a prompt"),
        ("--dense --prompt new --search_prompt_lr 0.1", "--search_prompt_lr has no effect without a search"),
        ("--dense --prompt new --halves plain", "--halves plain never shows the prompt"),
        ("--dense --prompt none --freeze", "--freeze trains only the prompt, and --prompt none has none"),
        ("--dense --prompt new --freeze --halves both", "--halves has no effect with --freeze"),
        ("--dense --prompt new --freeze --halves plain", "--halves has no effect with --freeze"),
        ("--dense --prompt new --dataset plain", "--halves plain never shows the prompt"),
        ("--dense --prompt nowhere.safetensors --dataset missing", "nowhere.safetensors"),
        ("--dense --prompt P --mapping head --dataset missing", "add --mapping flm"),
        (
            "--prune vpns --teacher timm:resnet18",
            "--teacher reads the pictures of a run without a prompt: leave it out",
        ),
        ("--prune vpns --freeze", "--freeze has no effect for --prune vpns"),
        ("--evaluate -pre L --prompt new", "name their file with --prompt"),
        ("--evaluate -pre L --prompt P --prune hydra", "--prune is for training"),
        ("--evaluate -pre L --prompt none", "name their file with --prompt"),
        ("--evaluate --prompt P --halves both", "--halves has no effect with --evaluate"),
        ("--dense --set prompts=none", "'prompts' must be a mapping"),
        ("--dense --prompt new --prompt_lr 0.1 --set recipe.lr=0", "lr must be above 0 with prompt_lr"),
        ("--dense --prompt new --mapping fml", "unknown mapping 'fml' (did you mean 'flm'?)"),
        ("--dense --prompt new --set best_epoch=true --set validation=0.2", "where the last epoch counts"),
        ("--dense --prompt new --set train.side=128", "the prompt decides over side and clean of train"),
    ],
)
def test_what_is_refused_in_a_sentence(words, message, made, config, run, tmp_path):
    files = {name[0].upper(): str(made / f"{name}.safetensors") for name in ("mask", "prompt", "last")}
    done = run(*command(config, tmp_path / "out", *(files.get(word, word) for word in words.split()), QUICK))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 3}, "4 classes cannot be mapped to the model's 3 classes: add --mapping head"),
        ({"pretrained_cfg_overlay": {"input_size": [3, 48, 48]}}, "is a prompt for 32 pixels, but the model takes 48"),
        ({"channels": [8, 8, 16, 32]}, "belongs to another network, with other layers"),
        ({"num_classes": 1}, "but the model has only 1: give --model and -pre as it was trained with"),
    ],
)
def test_what_does_not_fit_the_model(changes, message, made, sets, run, tmp_path):
    other = write(tmp_path / "c.yaml", sets, model=MODEL | changes)
    prompt = "new" if "cannot be mapped" in message else made / "prompt.safetensors"
    done = run(*command(other, tmp_path / "out", "--dense", "--prompt", prompt, QUICK))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_one_class_or_no_pictures_is_an_error(run, tmp_path):
    one = write(tmp_path / "one.yaml", {"one": draw(tmp_path / "one", 1)})
    done = run(*command(one, tmp_path / "out", *PRUNED))
    assert done.returncode == 2 and "has only one class ('class0')" in done.stderr
    gap = draw(tmp_path / "gap", 3)
    for path in (tmp_path / "gap" / "train" / "class1").iterdir():
        path.unlink()
    done = run(*command(write(tmp_path / "gap.yaml", {"gap": gap}), tmp_path / "out", *PRUNED))
    assert done.returncode == 2 and "class1 has no images" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prune.py --model resnet-mini --pruner vpns", "image_classification.py --model resnet-mini --prune vpns"),
        ("retrieval.py --model xvlm-mini --dense --prompt P", "--prompt is not an option of this script"),
        ("retrieval.py --model xvlm-mini --prune vpns", "or --prune hydra, the same search without"),
    ],
)
def test_other_scripts_say_where_it_is(words, message, run, tmp_path):
    done = run(*words.split(), "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
