"""One process and several give the same masks, bit for bit, for every method."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from calibration.gradient_rows import GradientRows
from calibration.processes import Group
from calibration.statistics import MeanGradients
from console.errors import InputError
from models import load_model
from models.wrap import wrap
from pruners import PRUNERS, prune
from pruners.base import Work
from sparsity.mask import Mask
from tests.conftest import REFERENCE, reference_batches


class TwoProcesses(Group):
    """Two processes as the first one sees them: no loss of the second reaches a layer, and its memory holds sevens."""

    def objects(self, mine, ranks=None):
        return [mine, set()]

    def from_rank(self, rank, mine, like):
        return mine if rank == 0 and mine is not None else torch.full_like(like, 7.0)


@pytest.fixture
def partly():
    """A model with a layer that is reached by batches with y only, and its layers."""
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})

    def forward(module, batch):
        return sum(module[name](batch[field]).sum() for name, field in (("a", "x"), ("b", "y")) if field in batch)

    model = wrap(module, forward=forward, loss=forward)
    return model, model.prunable_layers()


def test_a_gradient_that_a_process_lacks_adds_nothing(partly, monkeypatch, tmp_path):
    model, layers = partly
    group, batch = TwoProcesses(0, 2), {"x": torch.ones(1, 2)}
    gradients = MeanGradients(model, layers, group)
    gradients.update(batch)
    gradients.merge(group, [0, 1])
    assert torch.equal(gradients.mean("a.weight"), torch.full((2, 2), 0.5))
    with pytest.raises(InputError, match=r"no gradient to 'b\.weight'"):
        gradients.mean("b.weight")
    monkeypatch.setattr(Group, "current", lambda: group)
    rows = GradientRows(model, layers, 2, 1, str(tmp_path))
    rows.update(batch)
    with pytest.raises(InputError, match=r"no gradient to 'b\.weight'"):
        rows.merge(group, [0, 1])
    rows.close()


def test_sums_are_saved_before_all_layers_are_reached(partly):
    model, layers = partly
    first, then = (MeanGradients(model, layers, Group()) for _ in range(2))
    first.update({"x": torch.ones(1, 2)})
    first.merge(Group(), [0])
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    first.clear()
    then.restore(saved)
    then.update({"y": torch.ones(1, 2)})
    then.merge(Group(), [0])
    assert all(torch.equal(then.mean(name), torch.full((2, 2), 0.5)) for name in layers)


def test_one_process_has_a_part_in_every_rank_asked():
    assert [Group().objects("mine", ranks) for ranks in (None, [0], [])] == [["mine"], ["mine"], []]


ONE_SHOT = [name for name in PRUNERS if not PRUNERS[name].uses_rounds]
ROUNDS = [name for name in PRUNERS if PRUNERS[name].uses_rounds]

SCRIPT = """
import sys
import torch.distributed as dist
from tests.calibration.test_processes import masks

model_name, folder, *pruners = sys.argv[1:]
dist.init_process_group("gloo")
for (pruner, sparsity), mask in masks(model_name, pruners):
    mask.save(f"{folder}/{pruner}_{sparsity}_{dist.get_rank()}.safetensors")
"""


def masks(name, pruners):
    """(pruner, sparsity) and its mask, one by one."""
    weights = REFERENCE / "vectors" / name / "weights.safetensors"
    model = load_model(name, config=REFERENCE / f"{name}.yaml", weights=weights)
    for pruner in pruners:
        options = {"itersnip": {"epochs": 2, "num_batches": 2}, "chita++": {"epochs": 2}}.get(pruner, {})
        for sparsity, mask in prune(model, reference_batches(name, 3), pruner, (0.63, 0.9), **options).items():
            yield (pruner, sparsity), mask


def test_units_are_in_order_from_any_step_on(xvlm, xvlm_batches, monkeypatch):
    """Of three processes and two sides a step, the second has the first unit of step 2."""
    monkeypatch.setattr(dist, "all_gather", lambda flags, mine: [flag.copy_(mine) for flag in flags])
    pruner = PRUNERS["omp"](xvlm, Work(xvlm_batches, tuple(xvlm.sides), group=Group(0, 3)), None)
    statistic = SimpleNamespace(follows_state=False, update=lambda batch: None)
    assert list(pruner._rounds_of_units(statistic, 2, 4, True)) == [[1, 2, 0]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "processes", "pruners"),
    [("xvlm", 2, [*ONE_SHOT, *ROUNDS]), ("blip", 3, ["multiflow", "snip", "itersnip", "chita"])],
)
def test_processes_do_not_change_a_bit(model, processes, pruners, run_ranks, tmp_path):
    """BLIP's queues and momentum make its gradients depend on the batches before: processes follow one another."""
    (tmp_path / "script.py").write_text(SCRIPT)
    words, threads = (tmp_path / "script.py", model, tmp_path, *pruners), str(torch.get_num_threads())
    done = run_ranks(*words, ranks=processes, timeout=600, OMP_NUM_THREADS=threads)
    assert done.returncode == 0, done.stderr
    for (pruner, sparsity), alone in masks(model, pruners):
        for rank in range(processes):
            mask = Mask.load(tmp_path / f"{pruner}_{sparsity}_{rank}.safetensors")
            assert mask == alone, f"{pruner} {sparsity} on rank {rank} of {processes}"
