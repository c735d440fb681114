"""The plan on a cluster: submitit's local executor runs it; for SLURM, what would be asked for."""

import shutil
import types

import pytest
import submitit

import experiments
from console.errors import InputError
from studies import cluster
from studies.cluster import Job, submit_steps
from studies.plan import PRUNE
from studies.results import has_result, pack
from studies.status import survey
from tests.studies.fakes import Fake, make, told


def queue(*options):
    return experiments.parse_args(["submit", "grid.yaml", *options])


TINY = {"pruners": ["omp"], "tasks": ["zero_shot"], "sparsities": [50], "seeds": [0]}


def test_local_executor(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    plan, places = make(tmp_path, **TINY, variants={"prior": {"pruner": "omp", "allocation": "multimodal"}})
    commands = Fake(places, tmp_path / "journal", fail=("zero_shot-dino-mini-omp-multimodal",))
    found = submit_steps(
        plan,
        places,
        commands,
        survey(plan, places).missing,
        queue("--cluster", "local", "--minutes", "10", "--parallel", "2"),
    )
    failed = {run: why for run, why in found.items() if why is not None}
    assert len(found) == len(plan.steps) == 4
    assert list(failed.values()) == ["error: no luck today"]
    assert sum(has_result(step, places) for step in plan.steps) == 3
    assert len(told(tmp_path / "journal")) == 4


def test_a_job_without_its_mask_says_so(tmp_path):
    plan, places = make(tmp_path, **TINY)
    task = next(step for step in plan.steps if step.kind != PRUNE)
    job = Job(plan, places, Fake(places, tmp_path / "journal"), 1)
    assert "its mask is missing" in job(task.id)
    assert job(task.needs) is None
    assert job(task.id) is None
    assert job(task.id) is None, "again, and nothing is run twice"
    assert len(told(tmp_path / "journal")) == 2
    delayed = job.checkpoint(task.id)
    assert isinstance(delayed, submitit.helpers.DelayedSubmission)
    assert delayed.function == job
    assert delayed.args == (task.id,)


def test_masks_that_are_gone_are_made_again(tmp_path):
    """As in a fresh clone: results are committed, masks are not."""
    plan, places = make(tmp_path, **TINY)
    prune, task = plan.steps
    job = Job(plan, places, Fake(places, tmp_path / "journal"), 1)
    assert job(prune.id) is None
    pack(places, "")
    shutil.rmtree(places.work)
    assert has_result(prune, places)
    assert job(prune.id) is None
    assert job(task.id) is None
    assert told(tmp_path / "journal") == [prune.id, prune.id, task.id]


def test_slurm_arrays_in_order(tmp_path, monkeypatch):
    """Masks first; the tasks wait for all their arrays, however they end."""
    asked, arrays = [], []

    class Executor:
        def update_parameters(self, **values):
            asked.append(values)

        def map_array(self, job, runs):
            arrays.append(list(runs))
            return [types.SimpleNamespace(job_id=f"{len(arrays)}_{i}") for i in range(len(runs))]

    monkeypatch.setattr(cluster, "make_executor", lambda places, queue: Executor())
    monkeypatch.setattr(cluster, "ARRAY", 2)
    plan, places = make(tmp_path)
    found = submit_steps(plan, places, Fake(places, tmp_path / "journal"), list(plan.steps), queue())
    assert [len(array) for array in arrays] == [2, 1] + [2] * 7
    assert all(run.startswith("prune") == (number < 2) for number, array in enumerate(arrays) for run in array)
    assert asked == [{"slurm_additional_parameters": {"dependency": "afterany:1:2"}}]
    assert found[arrays[0][1]] == "1_1"
    assert set(found) == {step.id for step in plan.steps}


def test_a_refusal_of_the_cluster_is_one_sentence(tmp_path, monkeypatch):
    def refuse(self, job, runs):
        raise submitit.core.utils.FailedJobError("sbatch: error:\ninvalid partition")

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", refuse)
    plan, places = make(tmp_path, **TINY)
    with pytest.raises(InputError, match=r"refused the jobs \(sbatch: error: invalid partition\): check --partition"):
        submit_steps(plan, places, Fake(places, tmp_path / "journal"), list(plan.steps), queue("--cluster", "local"))
