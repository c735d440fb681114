"""Compiled blocks: which they are, that names stay, that results stay, and that an interrupted run ends the same."""

import shutil

import pytest
import torch
from torch import nn

from console.errors import InputError
from console.interrupt import interrupt
from models import load_model
from models.common.blocks import repeated_blocks
from tests.training.test_negatives import distance
from tests.training.tiny_pairs import PASSES, gradients, hardest, tiny_model
from tests.training.toy import loop, micro_batches, one_process, same_weights
from training.compiling import check_compiler, compile_blocks
from training.loop import Callback, fit
from training.negatives import StepFeatures

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.drop = nn.Linear(4, 4), nn.Dropout(0.3)

    def forward(self, x):
        return x + self.drop(torch.nn.functional.gelu(self.inner(x)))


class Tower(nn.Module):
    """Two equal blocks, and a head that is no block."""

    def __init__(self, start=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(start)
            self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(4, 2)

    def forward(self, batch):
        x, y = batch
        for block in self.blocks:
            x = block(x)
        return {"square": torch.nn.functional.mse_loss(self.head(x), y)}


@pytest.fixture(autouse=True)
def no_stop_left():
    yield
    interrupt.requested = False


@pytest.mark.parametrize(("model", "rows"), [("xvlm-mini", 2), ("blip-mini", 2), ("dino-mini", 1)])
def test_blocks_are_the_rows_of_equal_layers(model, rows):
    """At least one row a tower; nothing that is no part of a row, and no block within a block."""
    built = load_model(model, weights="random")
    blocks = repeated_blocks(built)
    assert len({type(block) for block in blocks}) >= 1
    within = [id(module) for block in blocks for module in block.modules()]
    assert len(within) == len(set(within))
    prunable = built.prunable_layers().values()
    assert sum(id(layer) in set(within) for layer in prunable) >= 0.9 * len(prunable)
    assert len({len(list(block.modules())) for block in blocks}) >= rows or rows == 1


def test_a_model_without_rows():
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))) == []
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == [], "bare layers are no blocks"


def test_names_and_weights_stay_as_they_were(quick):
    tower, plain = Tower(), Tower()
    assert compile_blocks(tower, CPU) == 2
    assert list(tower.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in tower.named_modules()] == [name for name, _ in plain.named_modules()]
    assert same_weights(tower, plain)
    assert all(call.get("dynamic") is True for call in quick), "sizes must not depend on earlier batches"


def stopped_and_gone_on(folder, make, **changes):
    """Train, stop after seven of twelve steps, and go on with a new module."""

    def stop(step):
        interrupt.requested = step == 7

    with pytest.raises(KeyboardInterrupt):
        fit(one_process(), make(0), micro_batches(3), loop(folder, callbacks=[Callback(after_step=stop)], **changes))
    interrupt.requested = False
    return fit(one_process(), make(99), micro_batches(3), loop(folder, **changes))


def compiled(start):
    tower = Tower(start)
    compile_blocks(tower, CPU)
    return tower


def test_stopped_and_started_again(quick, tmp_path):
    whole = fit(one_process(), compiled(0), micro_batches(3), loop(tmp_path / "whole"))
    assert same_weights(stopped_and_gone_on(tmp_path / "stopped", compiled), whole)
    # a snapshot of a compiled module is one of the plain module, too
    plain = fit(one_process(), Tower(5), micro_batches(3), loop(tmp_path / "whole"))
    assert same_weights(plain, whole)


@pytest.mark.slow
@needs_compiler
def test_generated_code_computes_the_same(monkeypatch, tmp_path):
    """Real code: forward and backward as without, evaluation and other batch sizes included."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    tower, plain = compiled(0).eval(), Tower().eval()
    for size in (3, 5):
        batch = (torch.randn(size, 4), torch.randn(size, 2))
        one, two = tower(batch)["square"], plain(batch)["square"]
        torch.testing.assert_close(one, two)
        for module, loss in ((tower, one), (plain, two)):
            module.zero_grad()
            loss.backward()
        for a, b in zip(tower.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        with torch.no_grad():
            torch.testing.assert_close(tower(batch)["square"], plain(batch)["square"])
    torch._dynamo.reset()


@pytest.mark.slow
def test_negatives_of_a_whole_step(quick, tmp_path, monkeypatch):
    """--compile with --gather_negatives: features are those of the rehearsal, with dropout, too; gradients stay."""
    gather, gaps = StepFeatures.gather, []

    def watched(features):
        own = iter([column[features._handed] for column in features._columns])
        give = gather(features)

        def look(tensor):
            gaps.append(not torch.equal(tensor.detach(), next(own)))
            return give(tensor)

        return look

    monkeypatch.setattr(StepFeatures, "gather", watched)
    monkeypatch.setattr(torch, "multinomial", hardest)
    plain, model = gradients(one_process(), tiny_model(0.3), tmp_path / "plain"), tiny_model(0.3)
    assert compile_blocks(model, CPU) > 0
    found = gradients(one_process(), model, tmp_path / "compiled")
    assert len(gaps) == 2 * PASSES * 3, "images, texts and numbers of each pass"
    assert not any(gaps)
    assert distance(found, plain) < 1e-5


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"--compile needs a C\+\+ compiler, but there is no 'no-such-compiler' here"):
        check_compiler(CPU)


def test_a_compiler_that_fails_is_told_in_a_sentence(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("C++ compile error:\nPython.h is not there")

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(InputError, match=r"--compile does not work on this machine \(C\+\+ compile error\)") as caught:
        check_compiler(CPU)
    assert "\n" not in str(caught.value)
