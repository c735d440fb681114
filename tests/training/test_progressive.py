"""Pruning while training: runs that end at exactly the sparsity, whatever the task, the processes and interruptions."""

import json
import os
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file

import training.loop
from console.interrupt import interrupt
from models import load_model, load_task_model
from models.blip.retrieval import BLIPRetrieval
from pruners import prune
from sparsity.mask import Mask
from tests.training.small_classification import options, small_config
from tests.training.small_finetuning import options as options_of
from tests.training.small_finetuning import write_config

METHODS = ("platon", "taylor", "magnitude", "hydra")
PHASES = ("--interval", "2", "--dense_until", "0.2", "--settle", "0.3")


def short(method):
    """Phases of a short run; HYDRA has a share of its own."""
    return ("--no_samples", *(() if method == "hydra" else PHASES))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two epochs of six steps."""
    return small_config(tmp_path_factory.mktemp("config"))


def pruned(run, config, out, method, *more, code=0):
    command = [
        word for word in options(config, out, "--prune", method, "-s", "70", *short(method), *more) if word != "--dense"
    ]
    done = run(*command)
    assert done.returncode == code, done.stderr
    return done


def results(folder):
    return json.loads((folder / "results.json").read_text())


def expected(weights, share=0.3):
    return weights - round((1 - share) * weights)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_a_mask_at_exactly_the_sparsity(method, run, config, tmp_path):
    """The mask, the weights that contain it, and what the results count are one; another script takes it."""
    out = tmp_path / "out"
    pruned(run, config, out, method)
    mask, found = Mask.load(out / "mask.safetensors"), results(out)
    total = sum(map(mask.size, mask))
    assert sum(map(mask.kept, mask)) == expected(total)
    assert found["kept"]["after_training"]["all"]["kept"] == expected(total)
    assert found["run"]["progressive"]["prune"] == method
    assert found["mask_file"] == str(out / "mask.safetensors")
    assert Mask.load(out / "last.safetensors") == mask
    state = load_file(out / "last.safetensors")
    assert all(not state[name][~mask[name]].any() for name in mask)
    again = run(*options(config, tmp_path / "again", "--mask", out / "mask.safetensors", "--debug", "--no_samples"))
    assert again.returncode == 0, again.stderr
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["remaining"] == pytest.approx(0.3, abs=1e-5)
    lines = [json.loads(line) for line in (out / "epochs.jsonl").read_text().splitlines()]
    assert [line["kept"]["all"]["kept"] for line in lines][-1] == expected(total)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["platon", "hydra", "frozen"])
def test_killed_and_resumed_gives_the_same_bits(method, run, config, tmp_path, monkeypatch):
    more = ("--freeze",) if method == "frozen" else ()
    method = "magnitude" if method == "frozen" else method
    pruned(run, config, tmp_path / "whole", method, *more)
    whole = load_file(tmp_path / "whole" / "last.safetensors")
    set_rate = training.loop.set_rate
    for stop in (2, 7, 11):
        steps, out = iter(range(1, 99)), tmp_path / str(stop)

        def strike(*arguments, steps=steps, stop=stop):
            if next(steps) == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return set_rate(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(training.loop, "set_rate", strike)
            pruned(run, config, out, method, *more, code=130)
        interrupt.requested = False
        pruned(run, config, out, method, *more)
        part = load_file(out / "last.safetensors")
        assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items()), stop
        assert Mask.load(tmp_path / "whole" / "mask.safetensors") == Mask.load(out / "mask.safetensors")


@pytest.mark.slow
def test_two_processes_end_with_the_mask_of_one(run, run_ranks, config, tmp_path):
    """The same samples a step; sums in another order may move a weight across the cut."""
    masks = []
    for devices, start in (("1", run), ("2", run_ranks)):
        settings = yaml.safe_load(config.read_text()) | {"batch_size": 4, "effective_batch": 8}
        path = tmp_path / f"{devices}.yaml"
        path.write_text(yaml.safe_dump(settings))
        out = tmp_path / devices
        command = options(path, out, "--prune", "platon", "-s", "70", *PHASES, "--devices", devices)
        done = start(*(word for word in command if word != "--dense"))
        assert done.returncode == 0, done.stderr
        masks.append(Mask.load(out / "mask.safetensors"))
    one, two = masks
    differing = sum(int((one[name] != two[name]).sum()) for name in one)
    assert differing <= 0.001 * sum(map(one.size, one)), differing
    assert sum(map(two.kept, two)) == sum(map(one.kept, one))


@pytest.mark.parametrize(
    ("task", "mini"),
    [
        ("retrieval", "xvlm-mini"),
        ("captioning", "blip-mini"),
        ("vqa", "xvlm-mini"),
        ("retrieval", "blip-mini"),
        ("retrieval", "clip-mini"),
    ],
)
@pytest.mark.parametrize("method", ["platon", "hydra"])
def test_every_task_prunes_while_it_trains(task, mini, method, world, run, tmp_path):
    """Two steps; copies that follow the weights are zero where these are."""
    config = write_config(tmp_path / "config.yaml", world, task, mini)
    own = ("--search", "0.5") if method == "hydra" else ("--interval", "1")
    more = ("--prune", method, "-s", "80", *own, "--debug", "--no_samples")
    done = run(*options_of(task, config, tmp_path / "out", *more, mini=mini))
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out_debug"
    mask = Mask.load(out / "mask.safetensors")
    total = sum(map(mask.size, mask))
    assert sum(map(mask.kept, mask)) == expected(total, 0.2)
    settings = yaml.safe_load(config.read_text())
    model = load_task_model(mini, task, weights=out / "last.safetensors", overrides=settings.get("model", {}))
    for name, layer in model.prunable_layers().items():
        assert not layer.weight[~mask[name]].any()
        if (copy := model.followers().get(name)) is not None and method == "platon":
            assert not copy.weight[~mask[name]].any()


def test_a_search_counts_its_steps(world, run, tmp_path, monkeypatch):
    """Momentum targets are ramped up in each stage, and each step moves the copies, the first of a stage, too."""
    asked = []
    forward = BLIPRetrieval.forward

    def noted(model, batch, gather, alpha, move):
        asked.append((alpha, move))
        return forward(model, batch, gather, alpha, move)

    monkeypatch.setattr(BLIPRetrieval, "forward", noted)
    config = write_config(tmp_path / "config.yaml", world, "retrieval", "blip-mini", short_epoch=2, epochs=2, alpha=0.4)
    more = ("--prune", "hydra", "-s", "80", "--search", "0.5", "--no_samples", "--set", "skip_val=true")
    done = run(*options_of("retrieval", config, tmp_path / "out", *more, mini="blip-mini"))
    assert done.returncode == 0, done.stderr
    assert asked == [(0.0, True), (0.2, True)] * 2


def test_only_final_sparsity_can_be_best(world, run, tmp_path):
    config = write_config(tmp_path / "config.yaml", world, "retrieval", epochs=3, short_epoch=2)
    more = ("--prune", "magnitude", "-s", "60", "--interval", "1", "--no_samples", "--dense_until", "0.3")
    done = run(*options_of("retrieval", config, tmp_path / "out", *more))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "epochs.jsonl").read_text().splitlines()]
    assert [line.get("settled", True) for line in lines] == [False, False, True]
    assert results(tmp_path / "out")["epoch"] == 3
    assert Mask.load(tmp_path / "out" / "best.safetensors") == Mask.load(tmp_path / "out" / "mask.safetensors")


@pytest.mark.parametrize("method", ["magnitude", "hydra"])
def test_every_layer_keeps_its_least(method, run, config, tmp_path):
    """More than the layer would keep by its scores, and exactly the sparsity all the same."""
    pruned(run, config, tmp_path / "plain", method)
    plain = Mask.load(tmp_path / "plain" / "mask.safetensors")
    least = 1 + min(plain.kept(name) for name in plain)
    pruned(run, config, tmp_path / "out", method, "--min_kept", least)
    mask = Mask.load(tmp_path / "out" / "mask.safetensors")
    assert min(mask.kept(name) for name in mask) >= least
    assert sum(map(mask.kept, mask)) == sum(map(plain.kept, plain))


@pytest.mark.parametrize("more", [(), ("--freeze",)])
def test_biases_compete_with_weights(more, run, config, tmp_path):
    """Exactly the share of both goes; biases are zero in the weights' file, and the mask holds weights alone."""
    out = tmp_path / "out"
    done = pruned(run, config, out, "magnitude", "--biases", *more)
    state, mask = load_file(out / "last.safetensors"), Mask.load(out / "mask.safetensors")
    biases = [state[name.replace("weight", "bias")] for name in mask]
    size = sum(map(mask.size, mask)) + sum(bias.numel() for bias in biases)
    zeros = sum(map(mask.size, mask)) - sum(map(mask.kept, mask)) + sum(int((bias == 0).sum()) for bias in biases)
    assert zeros == round(0.7 * size)
    assert sum(int((bias == 0).sum()) for bias in biases) > 0
    assert "are zero; the mask holds weights only" in done.stdout + done.stderr


def test_a_given_mask_stays_and_counts(run, config, tmp_path):
    given = prune(load_model("dino-mini"), [], "omp", (0.5,))[0.5]
    given.save(tmp_path / "given.safetensors")
    pruned(run, config, tmp_path / "out", "platon", "--freeze", "--mask", tmp_path / "given.safetensors")
    mask = Mask.load(tmp_path / "out" / "mask.safetensors")
    before = dict(zip(mask, given.values(), strict=True))
    assert not any((mask[name] & ~before[name]).any() for name in mask)
    again = pruned(run, config, tmp_path / "out", "platon", "--freeze", "--mask", tmp_path / "given.safetensors")
    assert "resuming after step 12" in again.stderr + again.stdout  # it is the same run
    assert sum(map(mask.kept, mask)) == expected(sum(map(mask.size, mask)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prune platon --dense", "--prune prunes while training, but --dense does not prune"),
        ("--prune multiflow", "multiflow prunes before training: python prune.py --pruner multiflow makes a mask"),
        ("--prune platton", "unknown method 'platton' (did you mean 'platon'?)"),
        ("--prune platon -s 100", "sparsity 100 is not between 0 and 100 percent (both excluded)"),
        (
            "--prune platon --dense_until 0.7 --settle 0.4",
            "dense_until 0.7 and settle 0.4 add up to more than the whole run",
        ),
        ("--prune platon --settle 0", "settle must be above 0"),
        ("--prune platon --interval 99", "platon has its first importances after 99 steps, but the run has 12"),
        ("--prune platon --modality text", "there is no modality 'text': the model has vision"),
        ("--prune platon --min_kept 9000", "min_kept keeps 324,000, more than the 235,930"),
        ("--prune platon --ids nowhere.json", "nowhere.json cannot be read"),
        (
            "--prune hydra --interval 5",
            "--interval has no effect for --prune hydra: it is for platon, taylor, magnitude",
        ),
        ("--prune taylor --beta1 0.5", "--beta1 has no effect for --prune taylor: it is for platon"),
        ("-s 80", "--sparsity has no effect without --prune METHOD: add it, or leave this out"),
    ],
)
def test_what_is_refused_in_a_sentence(words, message, run, config, tmp_path):
    command = [word for word in options(config, tmp_path / "out") if word != "--dense"]
    done = run(*command, *words.split())
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
