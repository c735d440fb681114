"""Slips on the command line end with one sentence and code 2, in scripts and in their subcommands."""

import importlib
import sys

import pytest

from console.errors import run_command

FOLDERS = ("data.miniworld", "evaluation.efficiency")
"""Commands that are folders."""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("prune --model xvlm-mini -s", "-s/--sparsities: expected at least one argument"),
        ("prune --modle xvlm-mini", "unrecognized arguments: --modle xvlm-mini"),
        ("prune --seed many", "--seed: invalid int value: 'many'"),
        ("masks", "the following arguments are required: COMMAND"),
        ("masks cut scores.safetensors -s", "-s/--sparsities: expected at least one argument"),
        ("masks cut", "the following arguments are required: SCORES, -s/--sparsities"),
        ("retrieval --dense", "the following arguments are required: -m/--model"),
        ("pretrain", "the following arguments are required: -m/--model"),
        ("experiments", "the following arguments are required"),
        ("evaluation.zero_shot", "the following arguments are required: -m/--model"),
        ("evaluation.efficiency", "the following arguments are required"),
        ("evaluation.weight_shape --nothing", "the following arguments are required"),
        ("models.check --config", "--config: expected one argument"),
        ("data.download --nothing", "unrecognized arguments: --nothing"),
        ("data.miniworld", "the following arguments are required"),
    ],
)
def test_one_sentence_and_no_usage(command, message, monkeypatch, capsys):
    module, *arguments = command.split()
    script = importlib.import_module(f"{module}.__main__" if module in FOLDERS else module)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as caught:
        run_command(script.main)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert line.endswith("; --help lists all options")


@pytest.mark.parametrize(
    "script", ["prune", "pretrain", "retrieval", "captioning", "vqa", "nlvr", "image_classification"]
)
def test_help_names_every_precision(script, monkeypatch, capsys):
    """All that lightning is asked for; in a window so wide that no name is broken."""
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(script).parse_args(["--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split()).split(" --precision PRECISION ")[1].split(" --")[0]
    for precision in ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"):
        assert precision in said.replace(",", "").split()


@pytest.mark.parametrize(
    "command",
    [
        "prune --model xvlm-mini --pruner omp",
        "pretrain --model xvlm-mini",
        "retrieval --model xvlm-mini --dense",
        "image_classification --model dino-mini --dense",
        "evaluation.efficiency --model xvlm-mini",
    ],
)
@pytest.mark.parametrize("precision", ["16", "bf16", "32", "8"])
def test_a_precision_means_the_same_everywhere(command, precision, monkeypatch, capsys, tmp_path):
    """`16` is two things, half precision throughout and beside 32 bits: every command asks which."""
    module, *arguments = command.split()
    folder = [] if module == "evaluation.efficiency" else ["--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [module, *arguments, *folder, "--precision", precision])
    script = importlib.import_module(f"{module}.__main__" if module in FOLDERS else module)
    with pytest.raises(SystemExit) as caught:
        run_command(script.main)
    assert caught.value.code == 2
    short = precision in ("16", "bf16")
    start = f"precision '{precision}' is ambiguous" if short else f"unknown precision '{precision}': choose one of"
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {start}")
    for name in ("32-true", "16-true", "bf16-true"):
        assert name in said.replace(",", "").split()
    assert not (tmp_path / "out").exists()
