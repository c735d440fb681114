"""Two machines, played by two commands on this one, end like one process: by Fabric's variables and by torchrun."""

import json
import socket

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ended, started
from tests.training.small_finetuning import options, write_config

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def by_fabric(node, port):
    """What Lightning reads: where the first node listens, and which one this is."""
    return [], {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(node)}


def by_torchrun(node, port):
    """The same as options of torchrun."""
    place = ["--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"]
    return ["-m", "torch.distributed.run", *place, "--master-addr", "127.0.0.1", "--master-port", str(port)], {}


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_end_like_one_process(world, mask, run, tmp_path):
    path = write_config(tmp_path / "vqa.yaml", world, "vqa", epochs=1, batch_size=4, effective_batch=8)

    def command(out, *more):
        return options("vqa", path, tmp_path / out, "--mask", mask, *more)

    alone = run(*command("alone"))
    assert alone.returncode == 0, alone.stderr[-2000:]
    for start in (by_fabric, by_torchrun):
        run_nodes(start, command)
        one, two = (load_file(tmp_path / out / "last.safetensors") for out in ("alone", start.__name__))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
        one, two = (json.loads((tmp_path / out / "results.json").read_text()) for out in ("alone", start.__name__))
        assert one["metrics"] == two["metrics"]
        assert two["machine"] | {"device": ""} == {"device": "", "processes": 2, "nodes": 2}


def run_nodes(start, command):
    """Both nodes' commands at once, in the folder named as `start`."""
    port, nodes = free_port(), []
    for node in (0, 1):
        before, environment = start(node, port)
        nodes.append(started(*before, *command(start.__name__, "--num_nodes", 2), **ONE_THREAD | environment))
    found = ended(nodes, 300)
    assert [node.returncode for node in found] == [0, 0], [node.stderr for node in found]
