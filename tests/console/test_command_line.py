"""Slips on the command line end with one sentence and code 2, in scripts and in their subcommands."""

import importlib
import sys

import pytest

from console.errors import run_command


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
    script = importlib.import_module("data.miniworld.__main__" if module == "data.miniworld" else module)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as caught:
        run_command(script.main)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert line.endswith("; --help lists what can be given")


@pytest.mark.parametrize("script", ["prune", "pretrain", "retrieval", "captioning", "vqa", "image_classification"])
def test_help_names_every_precision(script, monkeypatch, capsys):
    """All that lightning is asked for; in a window so wide that no name is broken."""
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(script).parse_args(["--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split()).split(" --precision PRECISION ")[1].split(" --")[0]
    for precision in ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"):
        assert precision in said.replace(",", "").split()
