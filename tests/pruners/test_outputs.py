"""What a pruning writes when it is killed, and the memory that it records."""

import csv
import resource
from types import SimpleNamespace

import pytest
import torch

from pruners.outputs import Outputs, peak_memory


def test_times_are_written_before_masks(tmp_path):
    """Killed after its first mask, it is asked for the others only, and a result needs the times of all."""

    def killed(path):
        raise KeyboardInterrupt

    outputs = Outputs.of(str(tmp_path), "m", "omp", None, 0)
    model = SimpleNamespace(streamed=SimpleNamespace(device="cpu"))
    session = SimpleNamespace(pruner=SimpleNamespace(model=model), seconds={"calibration": 1.0})
    masks = {sparsity: SimpleNamespace(source={}, save=killed) for sparsity in (0.5, 0.75)}
    with pytest.raises(KeyboardInterrupt):
        outputs.write(session, masks, {}, save_scores=False, processes=1)
    with outputs.runtimes.open() as file:
        assert [row["sparsity"] for row in csv.DictReader(file)] == ["50", "75"]


@pytest.mark.parametrize(("system", "unit"), [("darwin", 1), ("linux", 1024)])
def test_peak_memory_is_in_bytes(monkeypatch, system, unit):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=7))
    assert peak_memory() == 7 * unit
