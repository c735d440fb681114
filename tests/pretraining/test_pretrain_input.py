"""Bad input to pretrain.py: one sentence, exit code 2, and before the first expensive second."""

import copy
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from console.errors import run_command
from tests.conftest import REPOSITORY
from tests.storage.test_tensors import Bomb
from tests.training.small_run import call, options, small_config, write_config


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The first stage alone."""
    config = small_config(tmp_path_factory.mktemp("small"))
    return config | {"stages": config["stages"][:1]}


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A run's configuration and output."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder / "c.yaml", small)
    with pytest.MonkeyPatch.context() as monkeypatch:
        call(monkeypatch, *options(config, folder / "out"))
    return config, folder / "out"


@pytest.fixture
def refused(monkeypatch, capsys):
    """Check that a command line ends with code 2 and one line that holds a message."""

    def check(message, *arguments):
        with pytest.raises(SystemExit) as caught:
            run_command(lambda: call(monkeypatch, *arguments))
        assert caught.value.code == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        assert message in said[0]

    return check


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "dense_label"}, "unknown objective 'dense_label' (did you mean 'dense_labels'?)"),
        ({"steps": 0}, "steps and batch_size must be at least 1, not 0 and 4"),
        ({"batch_size": -4}, "steps and batch_size must be at least 1, not 4 and -4"),
        ({"name": "a/b"}, "a stage needs a name of its own that can name a folder"),
        ({"sides": {}}, "dense_labels needs the side 'scenes', given: none"),
        ({"sides": {"scene": {"reader": "dense_scenes"}}}, "needs the side 'scenes', given: scene"),
        (
            {"sides": {name: {"reader": "dense_scenes"} for name in ("scenes", "region")}},
            "dense_labels does not read the side 'region': leave it out",
        ),
        ({"sides": {"scenes": {"reader": "dense_scene"}}}, "(did you mean 'dense_scenes'?)"),
        (
            {"sides": {"scenes": {"reader": "dense_scenes", "files": {}}}},
            "'dense_scenes' has no option 'files'",
        ),
        ({"objective": "together", "sides": {}}, "together needs at least one side, given: none"),
        ({"recipe": {"lr": "1e-3"}}, "(YAML reads this as text: write 1.0e-3)"),
        ({"recipe": {"lr": -1.0}}, "lr must be a number from 0 up"),
        ({"recipe": {"lr": 1.0e-3, "betas": [0.9]}}, "betas are two numbers"),
        ({"recipe": {"lr": 1.0e-3, "schedule": {"decay": "cosin"}}}, "(did you mean 'cosine'?)"),
        ({"stepps": 3}, "unknown key 'stepps' (did you mean 'steps'?)"),
    ],
)
def test_stages(changes, message, small, refused, tmp_path):
    config = write_config(tmp_path / "c.yaml", small, vision=changes)
    refused(message, *options(config, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_wrong_last_stage_is_found_first(small, refused, tmp_path):
    stages = [small["stages"][0], copy.deepcopy(small["stages"][0]) | {"name": "last", "objective": "togther"}]
    config = write_config(tmp_path / "c.yaml", small | {"stages": stages})
    refused("stage 'last': unknown objective 'togther' (did you mean 'together'?)", *options(config, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_list_of_no_stages(small, refused, tmp_path):
    """Random weights would be written over those of a finished run."""
    config = write_config(tmp_path / "c.yaml", small | {"stages": []})
    refused("stages: a pretraining needs at least one stage", *options(config, tmp_path / "out"))


def test_two_stages_of_one_name(small, refused, tmp_path):
    config = write_config(tmp_path / "c.yaml", small | {"stages": 2 * small["stages"]})
    refused("stage 'vision': a stage needs a name of its own", *options(config, tmp_path / "out"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--devices", "3"), "stage 'vision': a batch of 4 cannot be divided among 3 processes evenly"),
        (("--devices", "2", "--num_nodes", "4"), "cannot be divided among 8 processes evenly"),
        (("--devices", "0"), "devices and num_nodes must be at least 1"),
        (("--precision", "8"), "unknown precision '8'"),
        (("--accelerator", "cpuu"), "unknown accelerator 'cpuu'"),
        (("--weights", "nowhere.safetensors"), "nowhere.safetensors does not exist"),
        (("--model", "xvlm-mimi"), "unknown model 'xvlm-mimi' (did you mean 'xvlm-mini'?)"),
        (("--config", "nowhere.yaml"), "nowhere.yaml: no such file"),
    ],
)
def test_command_line(arguments, message, small, refused, tmp_path):
    config = write_config(tmp_path / "c.yaml", small)
    refused(message, *options(config, tmp_path / "out"), *arguments)


def test_several_processes_train_every_parameter(small, refused, tmp_path):
    """X-VLM's head for boxes would get no gradient."""
    pairs = {"general": {"reader": "mlm_pairs", "files": {}}}
    config = write_config(tmp_path / "c.yaml", small, vision={"objective": "together", "sides": pairs})
    message = "stage 'vision': X-VLM needs a side of mlm_regions when several processes train"
    refused(message, *options(config, tmp_path / "out"), "--devices", "2")


def test_an_objective_that_the_model_cannot_serve(small, refused, tmp_path):
    """DINO has no words. Nothing of it is built to find that out."""
    texts = {"texts": {"reader": "masked_texts", "files": {}}}
    config = write_config(tmp_path / "c.yaml", small, vision={"objective": "masked_text", "sides": texts})
    message = "masked_text is not for dino: it is for XVLM and BLIP"
    refused(message, *options(config, tmp_path / "out"), "--model", "dino")


def test_no_configuration_for_a_model(refused):
    refused("model 'xvlm' has no configuration for 'pretrain'", "--model", "xvlm")


def test_output_folders_that_cannot_be_written(small, refused, tmp_path):
    config = write_config(tmp_path / "c.yaml", small)
    (tmp_path / "file").write_text("x")
    refused("cannot write to", *options(config, tmp_path / "file"))
    refused("cannot write to", *options(config, tmp_path / "file" / "below"))
    refused("cannot write to /proc/nowhere", *options(config, "/proc/nowhere"))


def test_data_that_are_not_there(small, refused, tmp_path):
    sides = {"texts": {"reader": "masked_texts", "files": {"annotations": [str(tmp_path / "none.json")]}}}
    config = write_config(tmp_path / "c.yaml", small, vision={"objective": "masked_text", "sides": sides})
    refused("none.json", *options(config, tmp_path / "out"))


class TestWhatAnotherRunLeft:
    """The finished stage or the snapshot in the output folder belongs to other options, or is broken."""

    @pytest.fixture
    def out(self, finished, tmp_path):
        return shutil.copytree(finished[1], tmp_path / "out")

    @pytest.fixture
    def unfinished(self, out):
        (out / "1-vision.safetensors").unlink()
        return out

    def test_finished_with_another_seed(self, finished, out, refused):
        refused(
            "1-vision.safetensors belongs to another run (seed was 0, now it is 1)",
            *options(finished[0], out, "--seed", "1"),
        )

    def test_unfinished_with_another_rate(self, small, unfinished, refused, tmp_path):
        changed = write_config(tmp_path / "c.yaml", small, vision={"recipe": {"lr": 0.002}})
        refused(
            "snapshot.pt belongs to another run (stage.recipe.lr was 0.001, now it is 0.002)",
            *options(changed, unfinished),
        )

    @pytest.mark.parametrize("name", ["1-vision.safetensors", "1-vision/snapshot.pt"])
    def test_damaged(self, name, finished, out, refused):
        (out / name).write_bytes((out / name).read_bytes()[:-500])
        if name.endswith(".pt"):
            (out / "1-vision.safetensors").unlink()
        refused(f"{name} is corrupt", *options(finished[0], out))

    def test_code_in_a_snapshot(self, finished, unfinished, refused, tmp_path):
        torch.save({"model": Bomb(tmp_path / "it-ran")}, unfinished / "1-vision" / "snapshot.pt")
        refused("whose loading could run code: it is refused", *options(finished[0], unfinished))
        assert not (tmp_path / "it-ran").exists()

    def test_weights_of_another_model_under_a_stages_name(self, finished, out, refused):
        save_file({"w": torch.zeros(1)}, out / "1-vision.safetensors")
        refused("does not fit XVLM", *options(finished[0], out))

    def test_a_tower_from_elsewhere_is_taken(self, finished, out, monkeypatch):
        """A file without a record of its run: somebody put it there to go on from."""
        state = load_file(out / "1-vision.safetensors")
        state["temp"] = torch.tensor(0.125)
        save_file(state, out / "1-vision.safetensors")
        call(monkeypatch, *options(finished[0], out))
        assert load_file(out / "xvlm-mini.safetensors")["temp"] == 0.125


def test_a_real_process_ends_with_two_and_one_line():
    command = [sys.executable, "pretrain.py", "--model", "xvlm-mimi"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown model 'xvlm-mimi' (did you mean 'xvlm-mini'?)")
    assert done.stderr.count("\n") == 1
