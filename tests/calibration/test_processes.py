"""One process and several give the same masks, bit for bit, for every method."""

import os
import subprocess
import sys

import pytest
import torch

from models import load_model
from pruners import PRUNERS, prune
from sparsity.mask import Mask
from tests.conftest import REFERENCE, REPOSITORY, reference_batches

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "processes", "pruners"),
    [("xvlm", 2, [*ONE_SHOT, *ROUNDS]), ("blip", 3, ["multiflow", "snip", "itersnip", "chita"])],
)
def test_processes_do_not_change_a_bit(model, processes, pruners, tmp_path):
    """BLIP's queues and momentum make its gradients depend on the batches before: processes follow one another."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(tmp_path / "script.py"), model, str(tmp_path), *pruners]
    environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert subprocess.run(command, cwd=REPOSITORY, env=os.environ | environment, timeout=600).returncode == 0
    for (pruner, sparsity), alone in masks(model, pruners):
        for rank in range(processes):
            mask = Mask.load(tmp_path / f"{pruner}_{sparsity}_{rank}.safetensors")
            assert mask == alone, f"{pruner} {sparsity} on rank {rank} of {processes}"
