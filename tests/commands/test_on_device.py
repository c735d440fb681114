"""The checks that want a GPU, small and on the CPU: they run, and find here what they look for there."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_all_parts_run(tmp_path):
    """Masks of one device are equal; 2:4 kernels say why there are none; a resumed run repeats the whole one."""
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.on_device", "--small", "--json", str(found)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(found.read_text())["found"]
    assert {finding["value"] for finding in parts["masks"]} == {0.0}
    assert "CUDA" in parts["kernels"][0]["value"]
    assert parts["resuming"][-1]["value"] == 0.0
