"""An evaluation's share of a process: every sample on one of them, in the batches that one process would make."""

from types import SimpleNamespace

import pytest
import torch

from training.evaluating import Evaluation


class Numbers:
    """Sample i is the number i."""

    def __len__(self):
        return 23

    def __getitem__(self, i):
        return i

    def collate(self, samples):
        return {"number": torch.tensor(samples)}


def shares(world, workers=0):
    fabrics = [SimpleNamespace(global_rank=r, world_size=world, is_global_zero=r == 0) for r in range(world)]
    looks = [Evaluation(fabric, "val", 1, workers) for fabric in fabrics]
    return [[batch["number"].tolist() for batch in look.batches(Numbers(), 4)] for look in looks]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_each_batch_is_on_one_process(world):
    (alone,) = shares(1)
    assert [number for batch in alone for number in batch] == list(range(23))
    found = shares(world)
    assert sorted(batch for share in found for batch in share) == alone
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_loader_processes_change_nothing():
    assert shares(2, workers=1) == shares(2)
