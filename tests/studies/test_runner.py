"""The runner with runs that take no time: resumed after a kill, two at once, on after failures, results made whole."""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from console.errors import InputError
from studies import runner
from studies.attempt import environment, take, threads_each
from studies.grid import grid_text
from studies.plan import PRUNE
from studies.results import Record, all_records, has_result, later, pack, read_records
from studies.status import disk_needed, duration, is_running, survey, times_of
from studies.version import REPOSITORY
from tests.studies.fakes import COUNT, Fake, make, told, work


def results(plan, places):
    return {step.id: result_of(step, places) for step in plan.steps}


def result_of(step, places):
    (record,) = read_records(places.result(step.id))
    return record.result


def start_runner(tmp_path, seconds):
    """A runner in a process of its own."""
    command = [
        sys.executable, "-m", "tests.studies.fakes", tmp_path / "small.yaml", tmp_path / "results", tmp_path / "work",
        tmp_path / "journal", str(seconds),
    ]  # fmt: skip
    return subprocess.Popen(list(map(str, command)), cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_everything_once(tmp_path):
    plan, places = make(tmp_path)
    summary = work(plan, places, tmp_path / "journal")
    assert (len(summary.done), summary.failed, summary.left, summary.before) == (COUNT, {}, [], 0)
    assert sorted(told(tmp_path / "journal")) == sorted(step.id for step in plan.steps)
    again = work(plan, places, tmp_path / "journal")
    assert (again.done, again.before, len(told(tmp_path / "journal"))) == ([], COUNT, COUNT)


def test_masks_of_a_model_are_evaluated_together(tmp_path):
    """In one process where one is free, in parallel where two are; a failure is of one mask, and the others count."""
    plan, places = make(tmp_path, tasks=["zero_shot"], seeds=[0])
    failed = "zero_shot-dino-mini-snip-75"
    summary = work(plan, places, tmp_path / "journal", jobs=1, fail=(failed,))
    by_name = {step.id.rpartition("-seed")[0]: step for step in plan.steps}
    assert [name.startswith(failed) for name in summary.failed] == [True]
    first = by_name["zero_shot-dino-mini-omp-50"]
    for name, step in by_name.items():
        if step.kind == "zero_shot":
            assert has_result(step, places) == (name != failed)
            assert step == first or f"evaluated with {first.id}" in places.log(step.id).read_text()
    assert "no luck today" in summary.failed[by_name[failed].id]

    (tmp_path / "held").mkdir()
    plan, places = make(tmp_path / "held", tasks=["zero_shot"], seeds=[0], pruners=["omp"])
    first, second = (step for step in plan.steps if step.kind == "zero_shot")
    with take(first, places):  # by another runner
        held = threading.Thread(target=work, args=(plan, places, tmp_path / "held.txt"), kwargs={"jobs": 1})
        held.start()
        wait_for(lambda: has_result(second, places))
        assert not has_result(first, places)
    held.join()
    assert has_result(first, places)

    (tmp_path / "two").mkdir()
    plan, places = make(tmp_path / "two", tasks=["zero_shot"], seeds=[0], pruners=["omp"])
    work(plan, places, tmp_path / "other", jobs=2)
    evaluations = [step for step in plan.steps if step.kind == "zero_shot"]
    assert all(result_of(step, places)["uninterrupted"] for step in evaluations)
    logs = [places.log(step.id).read_text() for step in evaluations]
    assert not any("evaluated with" in log for log in logs)


def test_what_a_result_holds(tmp_path):
    plan, places = make(tmp_path, options={"snip": {"num_batches": 3}})
    work(plan, places, tmp_path / "journal")
    found = results(plan, places)
    for step in plan.steps:
        result = found[step.id]
        assert result["axes"] == json.loads(json.dumps(step.axes))
        assert result["seconds"] > 0
        assert result["cpu_seconds"] >= 0
        assert result["peak_memory_gb"] > 0
        assert result["version"]["results"] == "2"
        assert result["packages"]["torch"].split(".")[0] == result["version"]["torch"]
        assert (result["attempts"], result["uninterrupted"]) == (1, True)
        if step.kind == "image_classification":
            assert result["metrics"] == {"top1": 62.5}
            assert not (places.run_folder(step) / "last.safetensors").exists(), "weights are not asked for"
        elif step.kind == "zero_shot":
            assert result["metrics"] == {"20-NN": 40.0}
        else:
            assert result["metrics"]["75"]["calibration_seconds"] == 1.5
            assert result["peak_memory_gb"] == 0.25
    snip = next(result for result in found.values() if result["axes"]["pruner"] == "snip")
    assert snip["axes"]["options"] == {"num_batches": 3}


def test_a_run_that_prunes_writes_its_mask(tmp_path):
    plan, places = make(tmp_path, pruners=[], progressive=["platon"], seeds=[0], sparsities=[75])
    (step,) = plan.steps
    work(plan, places, tmp_path / "journal")
    (record,) = read_records(places.result(step.id))
    result = record.result
    assert (result["mask"], result["pruned_by"]) == (str(places.made_mask(step)), None)
    assert result["kept"] == {"vision": [3, 10]}
    assert places.made_mask(step).is_file()
    assert not places.made_mask(step).with_name("last.safetensors").exists()


def test_items_of_a_run_are_kept(tmp_path):
    plan, places = make(tmp_path, keep_weights=True)
    work(plan, places, tmp_path / "journal")
    step = next(step for step in plan.steps if step.kind == "image_classification")
    assert (places.run_folder(step) / "last.safetensors").exists()
    places.items(step).write_text('{"format": 2, "groups": {"items": {"ids": [7], "scores": {"top1": [1.0]}}}}\n')
    places.result(step.id).unlink()
    work(plan, places, tmp_path / "journal")
    pack(places, "")
    for records in (read_records(places.result(step.id)), all_records(places)):
        (items,) = [json.loads(record.items) for record in records if record.items]
        assert items == {"items_of": step.id, **json.loads(places.items(step).read_text())}
    assert len(told(tmp_path / "journal")) == COUNT, "finished work is collected, not done again"


def test_a_failure_stops_nothing_else(tmp_path):
    plan, places = make(tmp_path)
    summary = work(
        plan, places, tmp_path / "journal", fail=("prune-dino-mini-snip-seed1", "zero_shot-dino-mini-omp-50")
    )
    assert len(summary.failed) == 1 + 4 + 1, "a pruning, the four runs that need it, and an evaluation"
    assert len(summary.done) == COUNT - 6
    lines = runner.summary_lines(summary, places)
    broken = [line for line in lines if "no luck today" in line]
    assert len(broken) == 2
    assert all("log.txt" in line for line in broken)
    assert sum("its masks are missing" in line for line in lines) == 4
    mended = work(plan, places, tmp_path / "journal")
    assert (len(mended.done), mended.failed) == (6, {})


def test_resumed_after_the_runner_was_killed(tmp_path):
    plan, places = make(tmp_path)
    journal = tmp_path / "journal"
    process = start_runner(tmp_path, 0.5)
    wait_for(lambda: len(told(journal, "end")) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = len(told(journal))
    assert begun < COUNT
    summary = work(plan, places, journal)
    assert summary.failed == {}
    assert len(summary.done) + summary.before == COUNT
    assert sorted(told(journal)) == sorted(step.id for step in plan.steps), (
        "none ran twice, not even those on their way"
    )
    assert all(has_result(step, places) for step in plan.steps)


def test_a_run_outlives_its_runner_and_keeps_its_lock(tmp_path):
    plan, places = make(tmp_path)
    process = start_runner(tmp_path, 5)
    wait_for(lambda: told(tmp_path / "journal"))
    process.kill()
    process.wait()
    alive = [step for step in plan.steps if is_running(step, places)]
    assert [step.kind for step in alive] == [PRUNE] * len(alive)
    assert alive
    wait_for(lambda: not any(is_running(step, places) for step in alive))


def test_a_run_killed_in_the_middle_is_run_again(tmp_path):
    """Its half of a file counts for nothing."""
    plan, places = make(tmp_path)
    step = next(step for step in plan.steps if step.kind == "image_classification")
    places.run_folder(step).mkdir(parents=True)
    (places.run_folder(step) / "results.json").write_text('{"metrics": {"to')
    assert step in survey(plan, places).missing
    work(plan, places, tmp_path / "journal")
    assert told(tmp_path / "journal").count(step.id) == 1
    assert result_of(step, places)["metrics"] == {"top1": 62.5}


def test_weights_of_collected_work_are_removed(tmp_path):
    """Of work that another grid did, or a script; unless they are asked for."""
    for keep in (False, True):
        (folder := tmp_path / str(keep)).mkdir()
        plan, places = make(folder, keep_weights=keep)
        step = next(step for step in plan.steps if step.kind == "image_classification")
        places.run_folder(step).mkdir(parents=True)
        weights = places.run_folder(step) / "last.safetensors"
        weights.write_text("heavy")
        (places.run_folder(step) / "results.json").write_text('{"metrics": {"top1": 62.5}}')
        work(plan, places, folder / "journal")
        assert step.id not in told(folder / "journal")
        assert weights.exists() == keep


def test_a_failure_is_noted_before_others_may_look(tmp_path, monkeypatch):
    """The other runner takes the lock the moment that it is free."""
    plan, places = make(tmp_path, pruners=["omp"], tasks=["zero_shot"], sparsities=[50], seeds=[0])
    free = []

    def noted(step, places, why):
        free.append((lock := take(step, places)) is not None)
        if lock is not None:
            lock.close()

    monkeypatch.setattr("studies.attempt.note_failure", noted)
    work(plan, places, tmp_path / "journal", fail=("prune",))
    assert free == [False]


def test_two_runners_never_run_the_same_run_twice(tmp_path):
    plan, places = make(tmp_path, seeds=[0, 1, 2])
    journal = tmp_path / "journal"
    summaries = []

    def one():
        summaries.append(runner.Runner(plan, places, Fake(places, journal, 0.05), 3, pause=0.02, show=False).run())

    both = [threading.Thread(target=one) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(300)
    assert len(summaries) == 2
    assert sorted(told(journal)) == sorted(step.id for step in plan.steps)
    for summary in summaries:
        assert (summary.failed, summary.left) == ({}, [])
        assert len(summary.done) + summary.before == len(plan.steps), "each knows at the end that all is done"


def test_a_runner_waits_for_what_another_holds(tmp_path):
    plan, places = make(tmp_path, pruners=["omp"], tasks=["zero_shot"], sparsities=[50], seeds=[0])
    other = start_runner(tmp_path, 1)
    wait_for(lambda: told(tmp_path / "journal"))
    summary = work(plan, places, tmp_path / "journal")
    other.wait(120)
    assert (summary.failed, summary.left) == ({}, [])
    assert len(told(tmp_path / "journal")) == 2


def test_the_same_work_is_not_repeated(tmp_path):
    plan, places = make(tmp_path)
    work(plan, places, tmp_path / "journal")
    other, elsewhere = make(tmp_path, "other", seeds=[1], sparsities=[75])
    summary = work(other, elsewhere, tmp_path / "journal")
    assert (summary.done, len(told(tmp_path / "journal"))) == ([], COUNT)
    assert all(has_result(step, elsewhere) for step in other.steps)


def test_a_sparsity_more_needs_one_more_pruning(tmp_path):
    plan, places = make(tmp_path)
    work(plan, places, tmp_path / "journal")
    more, _ = make(tmp_path, sparsities=[50, 75, 90])
    summary = work(more, places, tmp_path / "journal")
    assert len(summary.done) == 3 + 1 + 2 + 4, "three prunings, and at 90 %: zero-shot omp 1, snip 2; finetuning 4"


def test_packed_results_are_whole(tmp_path):
    """One file that holds the same as the single ones, the same bytes each time, and is enough without the work."""
    plan, places = make(tmp_path)
    work(plan, places, tmp_path / "journal")
    paths = sorted(places.result(step.id) for step in plan.steps)
    single = [record for path in paths for record in read_records(path)]
    pack(places, "models: []\n")
    first = places.pack.read_bytes()
    pack(places, "models: []\n")
    assert places.pack.read_bytes() == first
    assert list(read_records(places.pack)) == single
    assert grid_text(places.pack) == "models: []\n"
    for file in places.loose.glob("*.jsonl"):
        file.unlink()
    pack(places, "models: []\n")
    assert places.pack.read_bytes() == first, "what is packed stays"
    shutil.rmtree(places.work)
    assert len(survey(plan, places).done) == COUNT
    assert [path.name for path in places.results.iterdir()] == [places.pack.name]


def test_of_two_results_the_later_counts(tmp_path):
    plan, places = make(tmp_path, pruners=["omp"], tasks=["zero_shot"], sparsities=[50], seeds=[0])
    work(plan, places, tmp_path / "journal")
    task = plan.steps[1]
    pack(places, "")
    original = result_of(task, places)
    for finished, value in (("2099-01-01", 3), ("1999-01-01", 0)):
        changed = {**original, "finished": finished, "metrics": {"20-NN": value}}
        places.result(task.id).write_text(json.dumps(changed) + "\n")
        pack(places, "")
        found = {record.result["id"]: record.result["metrics"] for record in read_records(places.pack)}
        assert found[task.id] == {"20-NN": 3}


def test_prunings_keep_earlier_sparsities():
    one, other = (
        Record(
            {"kind": PRUNE, "version": {}, "finished": day, "sparsities": [s], "layers": {}, "metrics": {str(s): day}}
        )
        for day, s in (("2026-01-02", 75.0), ("2026-01-01", 50.0))
    )
    for found in (later(one, other), later(later(other, one), one)):
        assert found.result["metrics"] == {"75.0": "2026-01-02", "50.0": "2026-01-01"}
        assert found.result["sparsities"] == [50.0, 75.0] and found.result["finished"] == "2026-01-02"


def test_several_runners_pack_together(tmp_path):
    """Two at once, and one that was killed before it could pack."""
    plan, places = make(tmp_path)
    journal = tmp_path / "journal"
    process = start_runner(tmp_path, 0.3)
    wait_for(lambda: len(told(journal, "end")) >= 3)
    process.kill()
    process.wait()
    work(plan, places, journal)
    threads = [threading.Thread(target=pack, args=(places, "")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.result["id"] for record in read_records(places.pack)] == sorted(step.id for step in plan.steps)


@pytest.mark.parametrize("text", ["", "no JSON", "{}\n", '{"id": "x", "ver', '["id"]\n', '{"items_of": "x"}\n'])
def test_damaged_results_are_named(tmp_path, text):
    plan, places = make(tmp_path)
    places.results.mkdir()
    whole = lzma.compress(b'{"yaml": ""}\n' + text.encode())
    for content in (whole[:-9], whole if text else text.encode()):
        places.pack.write_bytes(content)
        with pytest.raises(InputError, match=r"small\.jsonl\.xz is damaged or holds no results: remove it"):
            survey(plan, places)


def test_removed_masks_are_made_again(tmp_path):
    plan, places = make(tmp_path)
    work(plan, places, tmp_path / "journal")
    task = next(step for step in plan.steps if step.needs is not None and step.kind == "image_classification")
    prune = plan.by_id()[task.needs]
    for sparsity in prune.sparsities:
        places.made(prune, sparsity).unlink()
    assert survey(plan, places).missing == [], "nobody needs them any more"
    places.result(task.id).unlink()
    (places.run_folder(task) / "results.json").unlink()
    assert survey(plan, places).missing == [prune, task]


def test_results_of_another_version_are_unused(tmp_path, monkeypatch):
    plan, places = make(tmp_path)
    work(plan, places, tmp_path / "journal")
    monkeypatch.setattr("studies.version.RESULTS_VERSION", 7)
    plan, places = make(tmp_path)
    found = survey(plan, places)
    assert len(found.missing) == COUNT
    assert any(f"{COUNT} results of another version (results 2) are not used" in note for note in found.notes)
    assert not any("earlier version of its file" in note for note in found.notes)


def test_results_of_an_earlier_grid_are_named(tmp_path):
    plan, places = make(tmp_path)
    work(plan, places, tmp_path / "journal")
    plan, places = make(tmp_path, seeds=[0], pruners=["omp"])
    assert any("12 results of no run of this grid" in note for note in survey(plan, places).notes)


def test_a_full_disk_is_told_and_counts_for_nothing(tmp_path, monkeypatch):
    plan, places = make(tmp_path)
    monkeypatch.setattr(runner, "disk_free", lambda places: 1_000_000)
    summary = work(plan, places, tmp_path / "journal")
    assert len(summary.failed) == COUNT
    assert any("the disk is full (1.0 MB free)" in why for why in summary.failed.values())
    monkeypatch.undo()

    def full(path, value):
        raise InputError(f"cannot write {path}: the disk is full; free some space or choose another folder")

    with monkeypatch.context() as patch:
        patch.setattr("studies.collecting.write_text", full)
        summary = work(plan, places, tmp_path / "journal")
    assert any("the disk is full" in why for why in summary.failed.values())
    assert not any(has_result(step, places) for step in plan.steps)
    assert work(plan, places, tmp_path / "journal").failed == {}


def test_times_are_medians_of_the_same_kind(tmp_path):
    plan, places = make(tmp_path)
    assert times_of(places) == {}
    work(plan, places, tmp_path / "journal")
    steps = [step for step in plan.steps if step.kind == "image_classification"]
    for number, step in enumerate(steps):
        path = places.result(step.id)
        path.write_text(json.dumps({**result_of(step, places), "seconds": [1, 2, 3, 100][number % 4]}) + "\n")
    times = times_of(places)
    assert times[steps[0].like] == 2.5, "the median of 1, 2, 3, 100, twice each"
    longer, _ = make(tmp_path, "longer", overrides={"image_classification": {"epochs": 9}})
    kinds = {step.kind: times.get(step.like) for step in longer.steps}
    assert kinds["image_classification"] is None, "another configuration is another kind"
    assert kinds["zero_shot"] is not None


def test_disk_and_threads(monkeypatch):
    from tests.studies.test_plan import plan_of

    plan = replace(plan_of(), weights={"dino-mini": 3200})
    kept = plan_of(keep_weights=True)
    kept = replace(kept, weights=plan.weights)
    updated = replace(plan_of(pruners=["sparsegpt"]), weights=plan.weights)
    prunes = [step for step in plan.steps if step.kind == PRUNE]
    tasks = [step for step in plan.steps if step.kind == "image_classification"]
    assert disk_needed(plan, prunes, 1) == 3 * 2 * 100, "three prunings, two masks each, a bit for 32"
    assert disk_needed(plan, tasks, 2) == 2 * 6 * 3200, "two at once"
    assert disk_needed(kept, tasks, 1) == 8 * 2 * 3200 + 6 * 3200
    assert disk_needed(updated, updated.steps[:1], 1) == 2 * 3200, "its masks carry the weights"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_each(jobs) for jobs in (1, 3, 16, 40)] == [16, 5, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_each(3) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [environment(1, slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "6", "4"]
    assert environment(3)["OMP_NUM_THREADS"] == "3"
    assert [duration(seconds) for seconds in (5, 600, 9000)] == ["5 s", "10 min", "2.5 h"]


def test_a_sitting_of_some_hours(tmp_path):
    """What was begun in time is finished; nothing is begun later, and the next sitting does the rest."""
    plan, places = make(tmp_path)
    commands = Fake(places, tmp_path / "journal", 0.3)
    sitting = runner.Runner(plan, places, commands, 1, hours=0.2 / 3600, pause=0.02, show=False).run()
    assert (len(sitting.done), len(sitting.left), sitting.failed) == (1, COUNT - 1, {})
    assert any(f"{COUNT - 1} runs are left" in line for line in runner.summary_lines(sitting, places))
    assert len(work(plan, places, tmp_path / "journal").done) == COUNT - 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_passed_on_and_leaves_the_rest(tmp_path, number):
    plan, places = make(tmp_path)
    process = start_runner(tmp_path, 20)
    wait_for(lambda: told(tmp_path / "journal"))
    process.send_signal(number)
    assert process.wait(60) == 0
    assert not told(tmp_path / "journal", "end")
    assert not any(has_result(step, places) for step in plan.steps)
    assert not list(places.work.glob("*/failed.json")), "a stop is no failure"
