"""Models that are pruned block by block: the same bits as in one piece."""

from __future__ import annotations

import threading

import pytest
import torch

import pruners.sparsegpt
import pruners.streaming
from calibration.processes import Group
from calibration.resume import Checkpoint
from calibration.statistics import InputNorms
from console.errors import InputError
from models import load_model
from pruners import prune
from pruners.session import Session
from pruners.sparsegpt import SparseGPT
from pruners.streaming import check_disk
from tests.models.generative import CONFIGS, saved

BATCHES, SIZE = 3, 2


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """A family's model in one piece and streamed, and batches."""
    return _pair(tmp_path_factory.mktemp("streamed"), request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return _pair(tmp_path_factory.mktemp("streamed"), "Qwen3VL")


def _pair(folder, family):
    reference = f"hf:{saved(folder / 'model', family)}"
    whole, streamed = load_model(reference), load_model(reference, overrides={"stream": True})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return whole, streamed, [whole.example(SIZE)["general"] for _ in range(BATCHES)]


def test_masks_and_statistics_are_those_of_the_whole(pair):
    whole, streamed, batches = pair
    for method in ("wanda", "multiflow", "lamp"):
        sessions = [Session(model, batches, method) for model in (whole, streamed)]
        masks = [session.masks([0.5]) for session in sessions]
        assert masks[0] == masks[1]
        one, other = (session.pruner for session in sessions)
        assert all((one.scores()[name] == other.scores()[name]).all() for name in one.layers)
        if method == "wanda":
            assert torch.equal(one.norms.state()["sums"], other.norms.state()["sums"])


def test_sparsegpt_block_by_block(pair, monkeypatch):
    whole, streamed, batches = pair
    folders = set()
    monkeypatch.setattr(pruners.sparsegpt, "on_disk", lambda array, folder: folders.add(folder) or array)
    assert prune(whole, batches, "sparsegpt", (0.5,)) == prune(streamed, batches, "sparsegpt", (0.5,))
    assert folders == {None}, "the system's folder, without a checkpoint"


def test_updated_weights_need_room(qwen, tmp_path, monkeypatch):
    needed = []
    monkeypatch.setattr(pruners.streaming, "check_room", lambda folder, size, purpose: needed.append(size))
    for updates in (False, True):
        check_disk(qwen[1], tmp_path, [0.5, 0.9], updates)
    assert needed[0] == 2 * qwen[1].streamed.size
    assert needed[1] > needed[0]


@pytest.mark.parametrize("tokens", [0.3, "atv", "amia"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_tokens_count_as_they_do_of_the_whole(qwen, method, tokens):
    whole, streamed, batches = qwen
    found = [prune(model, batches, method, (0.5,), tokens=tokens)[0.5] for model in (whole, streamed)]
    assert found[0] == found[1]
    assert found[0] != prune(whole, batches, method, (0.5,))[0.5]


def test_what_is_measured_apart_is_that_of_the_whole(qwen):
    whole, streamed, batches = qwen
    options = {"allocation": "das", "repair": "dsnot"}
    found = [prune(model, batches, "wanda", (0.5,), **options)[0.5] for model in (whole, streamed)]
    assert found[0] == found[1]


def test_one_block_is_in_memory_at_a_time(qwen):
    _, streamed, batches = qwen
    seen = []

    def look(module, inputs):
        blocks = streamed.streamed.blocks
        seen.append([i for i, block in enumerate(blocks) if next(block.parameters()).dtype == torch.float32])

    handles = [block.register_forward_hook(lambda m, i, o: look(m, i)) for block in streamed.streamed.blocks]
    prune(streamed, batches, "wanda", (0.5,))
    for handle in handles:
        handle.remove()
    assert seen == [[i] for i in range(4) for _ in range(BATCHES)]
    assert all(p.dtype == torch.bfloat16 for block in streamed.streamed.blocks for p in block.parameters())
    assert streamed.module.lm_head.weight.dtype == torch.bfloat16, "the head is never read"


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_what_goes_wrong_in_one_pass_ends_all(qwen, error):
    _, streamed, batches = qwen
    calls = []

    def breaks(module, inputs):
        calls.append(1)
        if len(calls) == 2:
            raise error

    handle = streamed.streamed.blocks[2].register_forward_pre_hook(breaks)
    before = threading.active_count()
    with pytest.raises(type(error)):
        prune(streamed, batches, "wanda", (0.5,))
    handle.remove()
    assert threading.active_count() == before
    assert not streamed.streamed.blocks[2]._forward_pre_hooks
    assert next(streamed.streamed.blocks[2].parameters()).dtype == torch.bfloat16


def test_gradients_need_the_whole_model(qwen):
    with pytest.raises(InputError, match=r"whole model must be in memory.*leave out --stream, or choose one of multi"):
        prune(qwen[1], qwen[2], "snip", (0.5,))
    with pytest.raises(InputError, match="allocation 'global' compares all of them"):
        prune(qwen[1], qwen[2], "sparsegpt", (0.5,), allocation="global")


class Together(Group):
    """Processes as threads: what one gives is there for all of them once all have given."""

    def exchange(self, mine):
        """What each gives, in the order of ranks."""
        given, barrier = self.table
        given[self.rank] = mine
        barrier.wait(60)
        found = list(given)
        barrier.wait(60)
        return found

    def ranks_with_work(self, has_work, device, first=0):
        flags = self.exchange(has_work)
        return [rank for rank in (*range(first, self.size), *range(first)) if flags[rank]]

    def objects(self, mine, ranks=None):
        found = self.exchange(mine)
        return list(found) if ranks is None else [found[rank] for rank in ranks]

    def from_rank(self, rank, mine, like):
        return self.exchange(mine.clone())[rank]


@pytest.mark.parametrize("tokens", ["all", "atv", "amia"])
def test_processes_do_not_change_a_bit(qwen, tmp_path, monkeypatch, tokens):
    _, streamed, batches = qwen
    alone = Session(streamed, batches, "wanda", tokens=tokens)
    mask = alone.masks([0.5])[0.5]
    groups = threading.local()
    monkeypatch.setattr(Group, "current", lambda: getattr(groups, "mine", Group()))
    reference, table = streamed.load_report.source, ([None, None], threading.Barrier(2))
    found = {}

    def process(rank):
        groups.mine = Together(rank, 2)
        object.__setattr__(groups.mine, "table", table)
        session = Session(load_model(f"hf:{reference}", overrides={"stream": True}), batches, "wanda", tokens=tokens)
        found[rank] = session.masks([0.5])[0.5], session.pruner.norms.state()["sums"]

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for other, sums in found[0], found[1]:
        assert other == mask
        assert torch.equal(sums, alone.pruner.norms.state()["sums"])


@pytest.mark.parametrize(("at_once", "tokens"), [(256, "all"), (2, "all"), (256, "atv"), (256, "amia")])
def test_an_interrupted_run_goes_on_at_a_block(qwen, tmp_path, monkeypatch, at_once, tokens):
    _, streamed, batches = qwen
    monkeypatch.setattr(pruners.streaming, "AT_ONCE", at_once)
    expected = prune(streamed, batches, "wanda", (0.5,), tokens=tokens)
    file = tmp_path / "unfinished.safetensors"
    calls = []

    def stops(module, inputs):
        calls.append(1)
        if len(calls) == BATCHES * (1 + (tokens == "atv")):  # which has a pass before
            raise KeyboardInterrupt

    handle = streamed.streamed.blocks[2].register_forward_pre_hook(stops)
    with pytest.raises(KeyboardInterrupt):
        prune(streamed, batches, "wanda", (0.5,), tokens=tokens, checkpoint=Checkpoint(file, {}, every=0))
    handle.remove()
    merged = []
    merge = InputNorms.merge
    monkeypatch.setattr(InputNorms, "merge", lambda self, *of: merged.append(1) or merge(self, *of))
    checkpoint = Checkpoint(file, {}, every=0, resume=True)
    resumed = prune(streamed, batches, "wanda", (0.5,), tokens=tokens, checkpoint=checkpoint)
    assert resumed == expected
    assert len(merged) == (2 * BATCHES if at_once == 256 else 2), "blocks whose sums were saved are not added again"


def test_what_sparsegpt_solved_is_not_solved_again(qwen, tmp_path, monkeypatch):
    _, streamed, batches = qwen
    expected = prune(streamed, batches, "sparsegpt", (0.5, 0.7))
    file, solve, solved = tmp_path / "unfinished.safetensors", SparseGPT._solve, []

    def counted(self, names, masks):
        if len(solved) == 2 and not file.with_suffix(".stopped").exists():
            file.with_suffix(".stopped").touch()
            raise KeyboardInterrupt
        solved.append(names)
        solve(self, names, masks)

    monkeypatch.setattr(SparseGPT, "_solve", counted)
    with pytest.raises(KeyboardInterrupt):
        prune(streamed, batches, "sparsegpt", (0.5, 0.7), checkpoint=Checkpoint(file, {}, every=0))
    checkpoint = Checkpoint(file, {}, every=0, resume=True)
    resumed = prune(streamed, batches, "sparsegpt", (0.5, 0.7), checkpoint=checkpoint)
    assert resumed == expected
    assert len({name for names in solved for name in names}) == sum(map(len, solved)) == len(expected[0.5])
    checkpoint.finish()
    assert [left.name for left in tmp_path.iterdir()] == ["unfinished.stopped"]
