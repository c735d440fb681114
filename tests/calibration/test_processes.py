"""One process and several give the same masks, bit for bit, for every method."""

import subprocess
import sys

import pytest

from pruners import PRUNERS
from sparsity.mask import Mask
from tests.conftest import REPOSITORY

ONE_SHOT = [name for name in PRUNERS if not PRUNERS[name].uses_rounds]
ROUNDS = [name for name in PRUNERS if PRUNERS[name].uses_rounds]

SCRIPT = """
import os, sys
import torch, torch.distributed as dist
from models import load_model
from pruners import prune
from tests.conftest import REFERENCE, reference_batches

model_name, folder, threads, *pruners = sys.argv[1:]
torch.set_num_threads(int(threads))
dist.init_process_group("gloo")
weights = REFERENCE / "vectors" / model_name / "weights.safetensors"
model = load_model(model_name, config=REFERENCE / f"{model_name}.yaml", weights=weights)
for pruner in pruners:
    options = {"itersnip": {"epochs": 2, "num_batches": 2}, "chita++": {"epochs": 2}}.get(pruner, {})
    for sparsity, mask in prune(model, reference_batches(model_name, 3), pruner, (0.63, 0.9), **options).items():
        mask.save(f"{folder}/{pruner}_{sparsity}_{dist.get_rank()}.safetensors")
"""


def launch(model, processes, folder, pruners, threads=1):
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(folder / "script.py"), model, str(folder), str(threads), *pruners]
    import os

    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        (pruner, sparsity, rank): Mask.load(folder / f"{pruner}_{sparsity}_{rank}.safetensors")
        for pruner in pruners
        for sparsity in (0.63, 0.9)
        for rank in range(processes)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "processes", "pruners"),
    [("xvlm", 2, [*ONE_SHOT, *ROUNDS]), ("blip", 3, ["multiflow", "snip", "itersnip", "chita"])],
)
def test_processes_do_not_change_a_bit(model, processes, pruners, tmp_path):
    """BLIP's queues and momentum make its gradients depend on the batches before: processes follow one another."""
    alone = launch(model, 1, tmp_path / "1", pruners)
    together = launch(model, processes, tmp_path / str(processes), pruners)
    for (pruner, sparsity, rank), mask in together.items():
        assert mask == alone[pruner, sparsity, 0], f"{pruner} {sparsity} on rank {rank} of {processes}"
