"""Command lines of others' tools, whose options were read in their own code."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from console.errors import InputError
from evaluation import harnesses


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Makes a folder that names a class, in the working directory."""
    monkeypatch.chdir(tmp_path)

    def made(name, family):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(
            json.dumps({"architectures": [f"{family}ForConditionalGeneration"]})
        )
        return name

    return made


@pytest.fixture
def printed(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["harnesses", *arguments])
        harnesses.main()
        return capsys.readouterr().out.splitlines()

    return run


def test_lmms_eval(model, printed):
    both = [model("Qwen2.5-VL-3B", "Qwen2_5_VL"), model("qwen pruned", "Qwen2_5_VL")]
    first, second = printed(*both, "--tasks", "pope", "gqa", "--limit", "8", "--output_dir", "out")
    assert first == (
        "python -m lmms_eval --model qwen2_5_vl --model_args pretrained=Qwen2.5-VL-3B --tasks pope,gqa --batch_size 1 "
        "--limit 8 --log_samples --output_path out"
    )
    assert "pretrained=qwen pruned" in shlex.split(second)
    [line] = printed(both[0], "--tasks", "own", "--include_path", "tasks", "--device", "cpu")
    assert "pretrained=Qwen2.5-VL-3B,device_map=cpu,device=cpu --tasks own --include_path tasks" in line


def test_lm_eval(model, printed):
    assert printed(model("gemma", "Gemma3"), "--tool", "lm-eval", "--batch_size", "4") == [
        "python -m lm_eval --model hf-multimodal --model_args pretrained=gemma --tasks mmmu_val --batch_size 4 "
        "--log_samples --output_path runs/harnesses --apply_chat_template"
    ]


def test_vlmevalkit_reads_a_file(model, printed, tmp_path):
    [line] = printed(model("pali", "PaliGemma"), "--tool", "vlmevalkit", "--output_dir", "out", "--kit", "../kit")
    assert line == "python ../kit/run.py --config out/pali.json --work-dir out"
    assert json.loads((tmp_path / "out" / "pali.json").read_text()) == {
        "model": {"pali": {"class": "PaliGemma", "model_path": str(tmp_path / "pali")}},
        "data": {
            "POPE": {"class": "ImageYORNDataset", "dataset": "POPE"},
            "MMBench_DEV_EN_V11": {"class": "ImageMCQDataset", "dataset": "MMBench_DEV_EN_V11"},
        },
    }


def test_vlmevalkit_decides_by_the_path(model, printed):
    for name, family in (("qwen", "Qwen2_5_VL"), ("qwen_62.5", "Qwen2VL")):
        with pytest.raises(InputError, match="loaded as the wrong class: rename it"):
            printed(model(name, family), "--tool", "vlmevalkit")
    assert printed(model("qwen_50", "Qwen2VL"), "--tool", "vlmevalkit")


def test_two_folders_of_one_name(model, printed, tmp_path):
    (tmp_path / "pruned").mkdir()
    both = [model("gemma", "Gemma3"), model("pruned/gemma", "Gemma3")]
    with pytest.raises(InputError, match="two have the same name: rename one"):
        printed(*both, "--tool", "vlmevalkit")
    assert len(printed(*both, "--tool", "lm-eval")) == 2


def test_clip_benchmark(printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "open_clip_config.json").write_text("{}")
    assert printed("open", "--tool", "clip_benchmark", "--output_dir", "out") == [
        "python -m clip_benchmark.cli eval --model_type open_clip --model local-dir:open --pretrained '' --dataset "
        "imagenet1k --batch_size 1 --output 'out/open_{dataset}.json'"
    ]
    assert (tmp_path / "out").is_dir(), "clip_benchmark makes no folder"


def test_what_is_run(model, printed, monkeypatch):
    """Its own Python runs the tool; that it is missing is found before the first command."""
    folder = model("llava", "Llava")
    with pytest.raises(InputError, match="lmms-eval is not installed: pip install lmms-eval"):
        printed(folder, "--run")
    monkeypatch.setattr(harnesses.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(InputError, match="lmms-eval ended with code 1, see above: python -m lmms_eval"):
        printed(folder, "--run")
    with pytest.raises(InputError, match=r"there is no kit/run\.py: clone open-compass/VLMEvalKit"):
        printed(model("Qwen3", "Qwen3VL"), "--run", "--tool", "vlmevalkit", "--kit", "kit")


@pytest.mark.parametrize(
    ("name", "family", "arguments", "sentence"),
    [
        ("pali", "PaliGemma", (), "lmms-eval has no model for a PaliGemma.*: use --tool vlmevalkit"),
        ("x", "Kosmos2", (), "lmms-eval has no model for a Kosmos2.*: lmms-eval has Qwen2VL"),
        ("a,b", "Llava", (), "has a comma or =: rename it"),
        ("g", "Gemma3", ("--tool", "vlmevalkit", "--tasks", "POP"), r"'POP' \(did you mean 'POPE'"),
        ("g", "Gemma3", ("--tool", "vlmevalkit", "--limit", "3"), "vlmevalkit has nothing like --limit"),
        ("g", "Gemma3", ("--tool", "clip_benchmark"), "clip_benchmark reads OpenCLIP's folders"),
        ("g", "Gemma3", ("--tool", "lmmseval"), "did you mean 'lmms-eval'"),
        ("g", "Gemma3", ("--batch_size", "0"), "--batch_size must be at least 1"),
    ],
)
def test_bad_input(model, printed, name, family, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        printed(model(name, family), *arguments)


def test_folders_that_are_none(model, printed, tmp_path):
    with pytest.raises(InputError, match=r"there is no nowhere/config\.json"):
        printed("nowhere")
    (tmp_path / model("g", "Gemma3") / "config.json").write_text("{}")
    with pytest.raises(InputError, match="names no class in 'architectures'"):
        printed("g")
