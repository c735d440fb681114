"""The number of cores, also where the system does not tell which ones a process may use."""

import os

from console.cores import usable_cores


def test_cores_of_systems_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()
