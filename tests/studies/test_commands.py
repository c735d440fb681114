"""The command line of experiments.py: tables, refusals in one sentence, the shell script, and the smoke grid whole."""

import json
import subprocess
import sys

import pytest
import yaml

import experiments
from console.errors import run_command
from studies.attempts import read_cost
from studies.places import Places
from studies.results import has_result, pack, read_records
from studies.shell import shell_script
from studies.version import REPOSITORY
from tests.evaluation.items_means import means
from tests.studies.fakes import COUNT, SMALL, Fake, make, told, work


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run experiments.py in this process, in a folder of its own: (exit code, stdout, stderr).

    Plans are made in this process, too, which has torch anyway; the smoke grid makes them apart.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("studies.plan.apart", lambda work, *arguments: work(*arguments))

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["experiments.py", *map(str, arguments)])
        code = 0
        try:
            run_command(experiments.main)
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_plan_of_nothing_done_and_of_all_done(cli, tmp_path):
    plan, places = make(tmp_path)
    where = ("--results", "results", "--work", "work")
    code, out, _ = cli("plan", "small.yaml", *where)
    assert code == 0
    assert f"{COUNT} runs" in out
    assert "unknown" in out
    assert "small.yaml --set pruners=[omp]: 7 runs" in cli("plan", "small.yaml", *where, "--set", "pruners=[omp]")[1]
    assert "free" in out
    assert not places.results.exists(), "a plan changes nothing"
    work(plan, places, tmp_path / "journal")
    code, out, _ = cli("plan", "small.yaml", *where)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert [row[2:4] for row in rows] == [["3", "3"], ["6", "6"], ["8", "8"], [str(COUNT), str(COUNT)]]
    assert "unknown" not in out


def test_status(cli, tmp_path):
    where = ("--results", "results", "--work", "work")
    code, _, err = cli("status", *where)
    assert (code, "no results" in err) == (2, True)
    plan, places = make(tmp_path)
    work(plan, places, tmp_path / "journal", fail=("snip-seed1",))
    pack(places, (tmp_path / "small.yaml").read_text())
    code, out, _ = cli("status", *where)
    assert code == 0
    assert f"{COUNT - 5} of {COUNT} runs done" in out
    failed = [line for line in out.splitlines() if line.startswith("failed")]
    assert len(failed) == 1, "those that could not start are simply missing"
    assert "no luck today" in failed[0]
    assert "log.txt" in failed[0]
    code, out, _ = cli("report", "small.yaml", *where)
    assert (code, "5 runs of small.yaml are missing" in out) == (0, True)


def test_many_runs_need_a_yes(cli, tmp_path):
    make(tmp_path)
    code, _, err = cli("run", "small.yaml", "--most", COUNT - 1)
    assert code == 2
    assert f"{COUNT} runs of small.yaml are missing, more than {COUNT - 1}: give --yes" in err
    assert not (tmp_path / "runs").exists()
    assert experiments.parse_args(["run", "x.yaml"]).most == 200


def test_missing_weights_in_plan_and_run(cli, tmp_path):
    grid = {**SMALL, "models": ["dino"], "tasks": ["image_classification"]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    code, out, _ = cli("plan", "grid.yaml")
    assert (code, "dino_vitbase16_pretrain.pth does not exist" in out.replace("\n", "")) == (0, True)
    assert "an unknown size (weights are missing)" in out
    code, _, err = cli("run", "grid.yaml")
    assert (code, "dino_vitbase16_pretrain.pth does not exist" in err) == (2, True)


def test_refusals(cli, tmp_path):
    (tmp_path / "bad.yaml").write_text("models: [dino-mimi]\nsparsities: [75]\nseeds: [0]\n")
    for arguments, words in (
        (("plan", "bad.yaml"), "did you mean 'dino-mini'"),
        (("run", "nowhere.yaml"), "cannot read the configuration nowhere.yaml"),
        (("run", "smoke"), "there is no grid smoke"),
        (("plan", "bad.yaml", "--results", "bad.yaml"), "--results bad.yaml is a file"),
        (("report", "nowhere"), "there are no results nowhere"),
    ):
        code, _, err = cli(*arguments)
        assert code == 2, arguments
        assert words in err
        assert len(err.strip().splitlines()) == 1
    make(tmp_path)
    assert cli("plan", "small.yaml", "--jobs", "0")[0] == 2
    code, _, err = cli("submit", "small.yaml", "--cluster", "local", "--cores", "0")
    assert (code, err) == (2, "error: --cores must be at least 1, not 0\n")


@pytest.mark.slow
def test_the_shell_script_runs(tmp_path, monkeypatch):
    """With stand-ins for the scripts' commands: the script starts each, tells of a failure, and collects."""
    plan, places = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    where = Places(places.results, places.work, places.grid)
    commands = Fake(where, tmp_path / "journal", fail=("zero_shot-dino-mini-omp-75",))
    (tmp_path / "all.sh").write_text(shell_script(plan, where, commands, list(plan.steps), "small.yaml"))
    done = subprocess.run(["sh", "all.sh"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "failed (2): " in done.stderr
    assert sum(has_result(step, places) for step in plan.steps) == COUNT - 1
    assert f"{COUNT - 1} new results" in done.stdout
    commands = Fake(where, tmp_path / "journal")
    (tmp_path / "all.sh").write_text(shell_script(plan, where, commands, list(plan.steps), "small.yaml"))
    assert subprocess.run(["sh", "all.sh"], capture_output=True, timeout=300, check=False).returncode == 0
    assert len(told(tmp_path / "journal")) == COUNT + 1, "what was done is skipped"


@pytest.mark.slow
def test_a_killed_attempt_is_repeated(tmp_path, monkeypatch):
    """After its masks and before its table; and what it took is no uninterrupted run's."""
    plan, places = make(tmp_path, pruners=["omp"], tasks=["zero_shot"], sparsities=[50], seeds=[0])
    monkeypatch.chdir(tmp_path)
    prune = plan.steps[0]
    text = shell_script(plan, places, Fake(places, tmp_path / "journal"), list(plan.steps), "small.yaml")
    mask = places.made(prune, 50)
    mask.parent.mkdir(parents=True)
    mask.write_text("mask")
    places.attempts(prune.id).write_text('{"started": "2026-01-01T00:00:00+00:00"}\n')
    (tmp_path / "all.sh").write_text(text)
    for _ in range(2):
        assert subprocess.run(["sh", "all.sh"], capture_output=True, timeout=300, check=False).returncode == 0
    assert told(tmp_path / "journal").count(prune.id) == 1
    cost = read_cost(places.attempts(prune.id))
    assert (cost["attempts"], cost["uninterrupted"]) == (2, False)
    assert read_cost(places.attempts(plan.steps[1].id))["uninterrupted"]


def test_the_script_of_real_commands(cli, tmp_path):
    make(tmp_path)
    code, out, _ = cli("shell", "small.yaml", "--work", "work", "-o", "all.sh")
    assert (code, f"{COUNT} runs in all.sh" in out) == (0, True)
    text = (tmp_path / "all.sh").read_text()
    assert text.count("\nrun work/") == COUNT
    assert subprocess.run(["sh", "-n", "all.sh"], check=False).returncode == 0
    assert '"$PYTHON" -m evaluation.zero_shot --model dino-mini' in text
    code, out, _ = cli("shell", "small.yaml", "--work", "work", "--set", "pruners=[omp]")
    assert (code, "collect small.yaml --set 'pruners=[omp]' --results" in out) == (0, True)
    code, _, err = cli("shell", "small.yaml", "--set", "overrides.image_classification.epoch=2")
    assert (code, "unknown key 'epoch' (did you mean 'epochs'?)" in err) == (2, True), "the runs would be refused"


@pytest.mark.slow
def test_the_smoke_grid_from_end_to_end(tmp_path):
    """Real scripts on the mini DINO: masks, zero-shot numbers, two steps of finetuning; again, and nothing is left."""
    command = [
        sys.executable, "experiments.py", "run", "configs/experiments/smoke.yaml", "--jobs", "2",
        "--accelerator", "cpu", "--results", str(tmp_path / "results"), "--work", str(tmp_path / "work"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    records = list(read_records(tmp_path / "results" / "smoke.jsonl.xz"))
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["smoke.jsonl.xz"]
    assert len(records) == 7
    by_kind = {(record.result["axes"]["task"], record.result["axes"]["pruner"]): record for record in records}
    metrics = {kind: record.result["metrics"] for kind, record in by_kind.items()}
    assert metrics["prune", "omp"]["75"]["seconds"] >= 0
    assert 0 <= metrics["zero_shot", "rand"]["20-NN"] <= 100
    assert metrics["zero_shot", "omp"] != metrics["zero_shot", "rand"]
    assert 0 <= metrics["image_classification", "omp"]["top1"] <= 100
    left, size = by_kind["image_classification", "magnitude"].result["kept"]["vision"]
    assert left == size - round(0.75 * size)
    assert all(record.result["seconds"] > 0 for record in records)
    for (task, pruner), record in by_kind.items():
        if task == "prune":
            assert not record.items
            continue
        metric = "20-NN" if task == "zero_shot" else "top1"
        items = json.loads(record.items)
        assert items.pop("items_of") == record.result["id"]
        (tmp_path / "items.json").write_text(json.dumps(items))
        assert means(tmp_path / "items.json") == {
            "items": {metric: pytest.approx(record.result["metrics"][metric], abs=0.0051)}
        }, pruner
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0
    assert "0 runs done, 7 were done before, 0 failed" in again.stdout
