"""The training loop against a loop written out, and against itself interrupted."""

import json
import math

import pytest
import torch

from console.errors import InputError
from console.interrupt import interrupt
from tests.storage.test_atomic import file_size_limit, names
from tests.training.toy import IDENTITY, Toy, loop, micro_batches, one_process, same_weights
from training.loop import Callback, fit
from training.optimizer import Recipe
from training.schedule import Schedule


def written_out(module, steps, batch, recipe):
    """Plain PyTorch: one big batch a step, the gradient clipped by hand. Returns the norms before clipping."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, eps=recipe.eps)
    norms = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * (1 - step / steps)
        losses = module(batch(step))
        optimizer.zero_grad()
        (losses["square"] + losses["size"]).backward()
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in module.parameters()))
        norms.append(norm)
        if recipe.clip is not None and norm > recipe.clip:
            for parameter in module.parameters():
                parameter.grad *= recipe.clip / norm
        optimizer.step()
    return norms


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 0.75])
def test_accumulation_equals_one_big_batch(accumulate, clip, tmp_path):
    # Adam forgets the gradient's length unless eps is large against it.
    recipe = Recipe(lr=0.05, weight_decay=0.1, eps=0.1, clip=clip, schedule=Schedule(0.0, "linear"))
    small = micro_batches(6)

    def big(step):
        parts = small(step * accumulate)
        return tuple(torch.cat(column) for column in zip(*(next(parts) for _ in range(accumulate)), strict=True))

    expected = Toy()
    norms = written_out(expected, 12, big, recipe)
    found = fit(one_process(), Toy(), small, loop(tmp_path, recipe=recipe, accumulate=accumulate))
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(found.state_dict()[name], tensor, atol=1e-6), name
    assert min(norms) < 0.75 < max(norms)  # some steps are clipped, some are not
    assert not same_weights(found, Toy())


def test_clipping_changes_the_result(tmp_path):
    recipes = [Recipe(lr=0.05, eps=0.1, clip=clip) for clip in (None, 0.3, 1e6)]
    free, clipped, wide = (
        fit(one_process(), Toy(), micro_batches(6), loop(tmp_path / str(i), recipe=recipe))
        for i, recipe in enumerate(recipes)
    )
    assert not same_weights(free, clipped)
    assert same_weights(free, wide)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Twelve steps of two micro-batches, with dropout."""
    return fit(one_process(), Toy(dropout=0.5), micro_batches(3), loop(tmp_path_factory.mktemp("a"), accumulate=2))


@pytest.mark.parametrize("crash", [1, 2, 7, 12])
def test_a_crashed_run_goes_on_bit_for_bit(crash, unbroken, tmp_path):
    """It dies during step `crash`, before that step is saved, and starts anew with other random weights."""

    def die(step):
        if step == crash:
            raise MemoryError

    always = {"accumulate": 2, "snapshot_seconds": 0.0}
    with pytest.raises(MemoryError):
        fit(
            one_process(),
            Toy(dropout=0.5),
            micro_batches(3),
            loop(tmp_path, callbacks=[Callback(after_step=die)], **always),
        )
    torch.manual_seed(crash)
    batches = micro_batches(3)
    start = 0 if crash == 1 else 99  # before the first snapshot there is nothing to go on from
    resumed = fit(one_process(), Toy(start, dropout=0.5), batches, loop(tmp_path, **always))
    assert batches.starts == [2 * (crash - 1)]
    assert same_weights(resumed, unbroken)


def test_snapshots_by_steps(unbroken, tmp_path):
    """Every fifth step is saved though the time for it never comes; killed in the eighth, the run goes on at five."""

    def die(step):
        if step == 8:
            raise MemoryError

    rare = {"accumulate": 2, "snapshot_seconds": 1e9, "snapshot_steps": 5}
    with pytest.raises(MemoryError):
        fit(
            one_process(),
            Toy(dropout=0.5),
            micro_batches(3),
            loop(tmp_path, callbacks=[Callback(after_step=die)], **rare),
        )
    batches = micro_batches(3)
    resumed = fit(one_process(), Toy(99, dropout=0.5), batches, loop(tmp_path, **rare))
    assert batches.starts == [2 * 5]
    assert same_weights(resumed, unbroken)


def test_dropout_depends_on_the_seed(unbroken, tmp_path):
    other = fit(one_process(), Toy(dropout=0.5), micro_batches(3), loop(tmp_path, accumulate=2, seed=4))
    assert not same_weights(other, unbroken)


def test_asked_to_stop_it_saves_and_stops(unbroken, tmp_path, monkeypatch):
    """Snapshots are hours apart; the one that counts is written because somebody asked for a stop."""
    monkeypatch.setattr(interrupt, "requested", False)
    seen = []

    def ask(step):
        seen.append(step)
        monkeypatch.setattr(interrupt, "requested", step == 5)

    rare = {"accumulate": 2, "snapshot_seconds": 1e9, "callbacks": [Callback(after_step=ask)]}
    with pytest.raises(KeyboardInterrupt):
        fit(one_process(), Toy(dropout=0.5), micro_batches(3), loop(tmp_path, **rare))
    assert seen == [1, 2, 3, 4, 5]
    monkeypatch.setattr(interrupt, "requested", False)
    resumed = fit(one_process(), Toy(99, dropout=0.5), micro_batches(3), loop(tmp_path, **rare))
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert same_weights(resumed, unbroken)


def test_a_finished_run_does_nothing_but_load(unbroken, tmp_path):
    fit(one_process(), Toy(dropout=0.5), micro_batches(3), loop(tmp_path, accumulate=2))
    steps = []
    again = fit(
        one_process(),
        Toy(99),
        micro_batches(3),
        loop(tmp_path, accumulate=2, callbacks=[Callback(after_step=steps.append)]),
    )
    assert steps == []
    assert same_weights(again, unbroken)


def test_the_log_holds_means_since_the_last_line(tmp_path):
    losses = []

    class Watched(Toy):
        def forward(self, batch):
            found = super().forward(batch)
            losses.append({name: loss.item() for name, loss in found.items()})
            return found

    fit(one_process(), Watched(), micro_batches(3), loop(tmp_path, accumulate=2, log_every=5))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 12]
    for row, calls in zip(rows, (losses[:10], losses[10:20], losses[20:]), strict=True):
        for name in ("square", "size"):
            assert row[name] == pytest.approx(sum(call[name] for call in calls) / len(calls), abs=1e-5)
        assert row["lr"] == pytest.approx(0.05 * Schedule(0.25, "cosine").factor(row["step"] - 1, 12))


def test_a_resumed_run_logs_what_a_whole_one_logs(tmp_path):
    """Each row once, with the means of steps before the snapshot, too; also in another folder than the snapshot's."""

    def die(step):
        if step == 8:  # two steps after the snapshot, three after the last row
            raise MemoryError

    def trained(folder, *callbacks, **changes):
        settings = {"accumulate": 2, "log_every": 5, "snapshot_seconds": 1e9, "snapshot_steps": 6, **changes}
        fit(one_process(), Toy(), micro_batches(3), loop(folder, callbacks=list(callbacks), **settings))
        return (folder / "log.jsonl").read_text()

    whole = trained(tmp_path / "whole")
    with pytest.raises(MemoryError):
        trained(tmp_path / "part", Callback(after_step=die))
    assert trained(tmp_path / "other", start=tmp_path / "part" / "snapshot.pt") == whole
    assert trained(tmp_path / "part") == whole


@pytest.mark.slow
def test_the_log_holds_means_of_all_processes(run_ranks, tmp_path):
    """Two processes, two micro-batches a step each: lines of 8, 8 and 4 micro-batches, computed here one by one."""
    done = run_ranks("-m", "tests.training.toy", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    batches, model = micro_batches(3)(0), Toy()
    losses = [{name: loss.item() for name, loss in model(next(batches)).items()} for _ in range(20)]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 5]
    for row, calls in zip(rows, (losses[:8], losses[8:16], losses[16:]), strict=True):
        for name in ("square", "size"):
            assert row[name] == pytest.approx(sum(call[name] for call in calls) / len(calls), abs=1.1e-5)
            half = sum(call[name] for call in calls[::2]) / len(calls[::2])
            assert abs(half - row[name]) > 1e-3, "the first process alone has another mean"


def test_a_full_disk_keeps_the_last_snapshot(unbroken, tmp_path):
    """In words, and once there is room the run goes on as if nothing had been."""
    limit = None

    def fill(step):
        nonlocal limit
        if step == 6:
            limit = file_size_limit(2000)
            limit.__enter__()

    always = {"accumulate": 2, "snapshot_seconds": 0.0}
    try:
        with pytest.raises(InputError, match=r"cannot write .*snapshot\.pt"):
            fit(
                one_process(),
                Toy(dropout=0.5),
                micro_batches(3),
                loop(tmp_path, callbacks=[Callback(after_step=fill)], **always),
            )
    finally:
        limit.__exit__(None, None, None)
    assert names(tmp_path) == ["snapshot.pt"]
    batches = micro_batches(3)
    assert same_weights(fit(one_process(), Toy(99, dropout=0.5), batches, loop(tmp_path, **always)), unbroken)
    assert batches.starts == [2 * 5]


def test_another_runs_snapshot_is_refused(tmp_path):
    fit(one_process(), Toy(), micro_batches(3), loop(tmp_path))
    changed = IDENTITY | {"stage": {"recipe": {"lr": 0.06}, "sides": {}}}
    with pytest.raises(InputError, match=r"another run \(stage\.recipe\.lr was 0\.05, now it is 0\.06\)"):
        fit(one_process(), Toy(), micro_batches(3), loop(tmp_path, identity=changed))
