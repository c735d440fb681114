"""One process and several give the same masks, bit for bit, for every method."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from calibration.processes import Group
from models import load_model
from pruners import PRUNERS, prune
from pruners.base import Work
from sparsity.mask import Mask
from tests.conftest import REFERENCE, reference_batches

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
